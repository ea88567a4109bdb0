"""Up to when new has everything: what workers are told, and when they are not."""

from __future__ import annotations

import asyncio
import contextlib
import time

import psycopg

from crossfade.channel import Message
from crossfade.cutover import fresh
from crossfade.cutover.ground import Plot
from crossfade.embedded.postgres import EmbeddedPostgres
from dualwrite.mapped import towards
from dualwrite.stream_states import State
from dualwrite.sync import Direction
from examples.migration import follow_ups, tables
from flags.model import Side
from tests.cutover.scene import databases
from tests.dualwrite.sample import is_, rows, until, worked_on


async def test_a_stream_that_copies_lets_nobody_back_to_new(postgres: EmbeddedPostgres) -> None:
    """It brings what is new at once, among rows that are not there yet: a lost slot is mended by a copy."""
    upto: list[float] = []

    async def ask(message: Message) -> Message:
        upto.append(message["upto"])
        return {}

    async def is_told_of_now() -> bool:
        return bool(upto) and upto[-1] > began

    with databases(postgres) as (legacy, new):
        of = Direction("to_new", legacy, new, towards(Side.NEW, tables, follow_ups))
        plot = Plot("shop", ("shop",), (), True, None, {}, {Side.NEW: of}, {})
        async with (
            worked_on(of) as told,
            await psycopg.AsyncConnection.connect(new, autocommit=True) as looking,
        ):
            await until(lambda: is_(told, State.FOLLOWING), "it follows")
            telling = asyncio.create_task(fresh._tell(ask, plot))
            try:
                began = time.monotonic()
                await until(is_told_of_now, "workers are told")
                whole = "UPDATE crossfade_sync.streams SET whole = %s"
                await looking.execute(whole, (False,))
                # One look may have been under way.
                await asyncio.sleep(2 * fresh.EVERY)
                before = len(upto)
                ((applied,),) = await rows(looking, "SELECT applied FROM crossfade_sync.streams")
                for _ in range(5):
                    moved = f"SELECT applied > '{applied}' FROM crossfade_sync.streams"
                    await until(lambda moved=moved: _is_so(looking, moved), "the stream goes on")
                    ((applied,),) = await rows(looking, "SELECT applied FROM crossfade_sync.streams")
                assert len(upto) == before
                await looking.execute(whole, (True,))
                began = time.monotonic()
                await until(is_told_of_now, "workers are told again")
            finally:
                telling.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await telling


async def _is_so(looking: psycopg.AsyncConnection, query: str) -> bool:
    return await rows(looking, query) == [(True,)]
