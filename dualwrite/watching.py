"""What goes on at a database beside the stream: looked at while a process works on it, tries to, or waits.

On a connection of its own: how much log is held back, or who else writes, must be known above all when the
stream does not go on.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, TypeAlias, TypeVar

import psycopg

from dualwrite.pg_connect import connect

LOOK_EVERY: Final = 10.0
"""Seconds."""

T = TypeVar("T")
Look: TypeAlias = Callable[[psycopg.AsyncConnection[Any]], Awaitable[T]]


@contextlib.asynccontextmanager
async def watching(url: str, look: Look[T], tell: Callable[[T | None], None]) -> AsyncIterator[None]:
    """While this lasts `tell` hears what `look` sees; None where nobody can ask."""
    task = asyncio.create_task(_watch(url, look, tell))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        if not task.cancelled() and (fault := task.exception()) is not None:
            raise fault


async def _watch(url: str, look: Look[T], tell: Callable[[T | None], None]) -> None:
    while True:
        # What is wrong with the database the stream says itself.
        with contextlib.suppress(psycopg.Error, OSError):
            async with await connect(url, "crossfade watch") as connection:
                while True:
                    tell(await look(connection))
                    await asyncio.sleep(LOOK_EVERY)
        tell(None)
        await asyncio.sleep(LOOK_EVERY)
