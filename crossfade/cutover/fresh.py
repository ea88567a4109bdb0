"""Tells the workers of this instance, several times a second, up to when new has everything that was written.

A mark is put into legacy's log and waited for at new. What was committed before the mark was begun is there
then; so it is that moment that workers are told, by the clock that all processes of this host share.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

import psycopg
import structlog

from crossfade.channel import Message
from crossfade.cutover.ground import NAME, Plot, brought, plots
from crossfade.store.connection import StoreError
from crossfade.store.store import Store
from dualwrite.pg_connect import connect
from flags.change import Refused
from flags.model import Side

log = structlog.get_logger(__name__)

EVERY: Final = 0.1
"""Seconds between two marks: a session stays with legacy for that long at least after a write."""
WITHIN: Final = 5.0
LOOK_EVERY: Final = 2.0
"""Seconds between two looks at whether there is anything to tell."""

Ask = Callable[[Message], Awaitable[Message]]


async def run(store: Store, ask: Ask, context: Callable[[], Message]) -> None:
    """Until it is cancelled."""
    while True:
        try:
            telling = [_tell(ask, plot) for plot in await _wanted(store, context)]
            if telling:
                async with asyncio.timeout(LOOK_EVERY):
                    await asyncio.gather(*telling)
        except TimeoutError:
            continue
        except (StoreError, Refused, psycopg.Error, OSError) as error:
            # Sessions that have written stay with legacy meanwhile.
            log.info("freshness_not_known", message=str(error))
        await asyncio.sleep(LOOK_EVERY)


async def _wanted(store: Store, context: Callable[[], Message]) -> list[Plot]:
    known = {name: plot for name, plot in plots(context()).items() if plot.own_writes}
    if not known:
        return []
    authorities = (await store.flag_set()).authorities
    return [known[one.cutover] for one in authorities if one.cutover in known and one.side is Side.LEGACY]


async def _tell(ask: Ask, plot: Plot) -> None:
    stream = plot.streams[Side.NEW]
    async with (
        await connect(stream.source_url, NAME) as legacy,
        await connect(stream.target_url, NAME) as new,
    ):
        while True:
            upto = time.monotonic()
            if await brought(legacy, new, stream.name, WITHIN) is not None:
                await ask({"do": "fresh", "cutover": plot.name, "upto": upto})
            await asyncio.sleep(EVERY)
