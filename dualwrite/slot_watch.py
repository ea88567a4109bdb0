"""What a slot costs its source, looked at while a process works on the stream, tries to, or stands by.

On a connection of its own: how much log is held back must be known above all when the stream does not go on.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Final

import psycopg

from dualwrite import pg_source
from dualwrite.pg_connect import connect
from dualwrite.preflight import SlotFacts

LOOK_EVERY: Final = 10.0
"""Seconds."""

Tell = Callable[[SlotFacts | None], None]


@contextlib.asynccontextmanager
async def watching(url: str, slot: str, tell: Tell) -> AsyncIterator[None]:
    """While this lasts `tell` hears of the slot; None where nobody can ask, or there is none."""
    task = asyncio.create_task(_watch(url, slot, tell))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _watch(url: str, slot: str, tell: Tell) -> None:
    while True:
        # What is wrong with the source the stream says itself.
        with contextlib.suppress(psycopg.Error, OSError):
            async with await connect(url, "crossfade slot") as connection:
                while True:
                    tell(await pg_source.slot_facts(connection, slot))
                    await asyncio.sleep(LOOK_EVERY)
        tell(None)
        await asyncio.sleep(LOOK_EVERY)
