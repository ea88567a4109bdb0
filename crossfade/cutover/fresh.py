"""Tells the workers of this instance, several times a second, up to when new has everything that was written.

A mark is put into legacy's log and waited for at new. What was committed before the mark was begun is there
then; so it is that moment that workers are told, by the clock that all processes of this host share.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

import psycopg
import structlog

from crossfade.channel import Message
from crossfade.cutover.ground import NAME, Plot, plots
from crossfade.store.connection import StoreError
from crossfade.store.store import Store
from dualwrite import heartbeat, target
from dualwrite.change import Position
from dualwrite.pg_connect import connect
from flags.change import Refused
from flags.model import Side

log = structlog.get_logger(__name__)

EVERY: Final = 0.1
"""Seconds between two marks: a session stays with legacy for that long at least after a write."""
LOOK_AGAIN: Final = 0.01
"""Seconds between two looks at which marks have come."""
MOST_MARKS: Final = 10_000
"""That are under way; a stream that is further behind gets no more of them."""
LOOK_EVERY: Final = 2.0
"""Seconds between two looks at what there is to tell."""

Ask = Callable[[Message], Awaitable[Message]]


async def run(store: Store, ask: Ask, context: Callable[[], Message]) -> None:
    """Until it is cancelled."""
    telling: dict[tuple[str, ...], asyncio.Task[None]] = {}
    try:
        while True:
            try:
                wanted = {_key(plot): plot for plot in await _wanted(store, context)}
            except (StoreError, Refused) as error:
                # What is told goes on being told: it is true whoever has the authority.
                log.info("freshness_not_known", message=str(error))
            else:
                for key in telling.keys() - wanted.keys():
                    telling[key].cancel()
                for key in wanted.keys() - telling.keys():
                    telling[key] = asyncio.create_task(_tell(ask, wanted[key]))
            await asyncio.sleep(LOOK_EVERY)
            for key in [key for key, task in telling.items() if task.done()]:
                _look_at_the_end(telling.pop(key))
    finally:
        for task in telling.values():
            task.cancel()
        await asyncio.gather(*telling.values(), return_exceptions=True)


def _look_at_the_end(task: asyncio.Task[None]) -> None:
    """Until another one is begun, who must not read what is old stays with legacy. Raises our faults."""
    fault = None if task.cancelled() else task.exception()
    if isinstance(fault, psycopg.Error | OSError):
        log.info("freshness_not_known", message=str(fault))
    elif fault is not None:
        raise fault


def _key(plot: Plot) -> tuple[str, ...]:
    stream = plot.streams[Side.NEW]
    return plot.name, stream.name, stream.source_url, stream.target_url


async def _wanted(store: Store, context: Callable[[], Message]) -> list[Plot]:
    known = {
        name: plot for name, plot in plots(context()).items()
        if plot.own_writes or plot.max_lag_ms is not None
    }  # fmt: skip
    if not known:
        return []
    authorities = (await store.flag_set()).authorities
    return [known[one.cutover] for one in authorities if one.cutover in known and one.side is Side.LEGACY]


async def _tell(ask: Ask, plot: Plot) -> None:
    """Marks follow each other, however long each is on its way: what is told is as old as the lag."""
    stream = plot.streams[Side.NEW]
    marks: deque[tuple[float, Position]] = deque()
    last = -EVERY
    async with (
        await connect(stream.source_url, NAME) as legacy,
        await connect(stream.target_url, NAME) as new,
    ):
        while True:
            now = time.monotonic()
            if now - last >= EVERY and len(marks) < MOST_MARKS:
                last = now
                marks.append((now, await heartbeat.mark(legacy, stream.name)))
            state = await target.state(new, stream.name)
            upto = None
            # While it copies, what comes with the stream stands among rows that are not there yet.
            while marks and state is not None and state.whole and state.applied >= marks[0][1]:
                upto, _ = marks.popleft()
            if upto is not None:
                await ask({"do": "fresh", "cutover": plot.name, "upto": upto})
            # One that has been under way for long is no matter of milliseconds.
            await asyncio.sleep(LOOK_AGAIN if marks and now - marks[0][0] < 1 else EVERY)
