"""The checker is checked: walks that are broken on purpose must be found out by the other scenes' demands."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import psycopg
import pytest

from crossfade.embedded.postgres import EmbeddedPostgres
from crossfade.embedded.valkey import EmbeddedValkey
from tests.cutover.faults import ended, one_is_open
from tests.cutover.planted import planted
from tests.cutover.scene import Load, Night, databases, night

POSITION_BEFORE_THE_FENCE = """
    async def fence_late(self, walk, ground):
        return await cutovers.step(self._store, walk, State.CATCHING_UP)

    async def hold_the_stream_up(ground):
        # So long that what comes behind the position is not there when the authority moves.
        url, name = ground.stream.target_url, ground.stream.name
        async with await conductor.connect(url, "late") as line, line.transaction():
            await line.execute("SELECT FROM crossfade_sync.streams WHERE name = %s FOR UPDATE", (name,))
            await asyncio.sleep(3)

    async def catch_up_early(self, walk, ground):
        await ground.brought(5.0)
        self._late = asyncio.ensure_future(hold_the_stream_up(ground))
        await asyncio.sleep(0.3)
        await fence.close(ground.losing, walk.name, walk.turn, 3.0)
        turned = replace(await self._authority(walk), phase=conductor.Phase.TURN)
        return await cutovers.step_with(self._store, walk, State.TURNING, turned)

    conductor._STEPS[State.FENCING] = fence_late
    conductor._STEPS[State.CATCHING_UP] = catch_up_early
"""
NO_ACKNOWLEDGEMENT = """
    async def nobody_is_asked(self, walk):
        return []

    Conductor._acknowledged = nobody_is_asked
"""
NO_JOURNAL = """
    async def release_first(self, walk, gaining):
        await self._open(gaining, walk)
        authority = await self._authority(walk)
        moved = Authority(authority.cutover, authority.flags, walk.towards, walk.generation)
        return await cutovers.step_with(self._store, walk, State.RELEASING, moved)

    Conductor._decide = release_first
"""
NO_FENCE = """
    async def never_closed(self, walk, ground):
        return await cutovers.step(self._store, walk, State.CATCHING_UP)

    conductor._STEPS[State.FENCING] = never_closed
"""


@contextlib.asynccontextmanager
async def broken(
    fault: str,
    folder: Path,
    postgres: EmbeddedPostgres,
    store_url: str,
    bus: EmbeddedValkey,
) -> AsyncIterator[Night]:
    """A night whose control process does something else than it should."""
    with databases(postgres) as (legacy, new):
        async with night(
            folder, store_url, bus.url(), legacy, new, demanding=False, environment=planted(folder, fault)
        ) as found:
            await found.prepare()
            yield found


async def all_is_well(eve: Night, load: Load) -> None:
    """What the other scenes demand after a walk."""
    walk = await ended(eve)
    assert walk["state"] == "done", walk
    assert await one_is_open(eve) == await eve.side()
    load.must_be_fine()
    code, plan = await eve.cutover("plan")
    reasons = {one["reason"] for one in plan.get("blockers", ())}
    assert reasons <= {"lag", "workers", "long_transaction"}, (code, plan)
    await eve.nothing_is_lost(load)
    await eve.both_are_equal()


async def cron(eve: Night, until: asyncio.Event) -> None:
    """A job that writes to legacy all the time, without the proxy."""
    async with await psycopg.AsyncConnection.connect(eve.urls["legacy"], autocommit=True) as connection:
        with contextlib.suppress(psycopg.errors.ReadOnlySqlTransaction):
            while not until.is_set():
                await connection.execute("UPDATE users SET about = about || '.' WHERE user_id = 1")
                await asyncio.sleep(0.001)


Job = Callable[[Night, asyncio.Event], Awaitable[None]]


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("fault", "job", "walks", "is_found"),
    [
        ("", cron, 1, False),
        (POSITION_BEFORE_THE_FENCE, cron, 1, True),
        (NO_FENCE, cron, 1, True),
        # Something has to be under way at the moment of the fence.
        (NO_ACKNOWLEDGEMENT, None, 9, True),
        (NO_JOURNAL, None, 1, True),
    ],
    ids=["none", "the position before the fence", "no fence", "no acknowledgement", "no journal"],
)
async def test_a_broken_walk_is_found_out(
    fault: str,
    job: Job | None,
    walks: int,
    is_found: bool,
    tmp_path: Path,
    postgres: EmbeddedPostgres,
    store_url: str,
    bus: EmbeddedValkey,
) -> None:
    async with broken(fault, tmp_path, postgres, store_url, bus) as eve:
        over = asyncio.Event()
        working = None if job is None else asyncio.ensure_future(job(eve, over))
        wrong: BaseException | None = None
        async with eve.people() as load:
            await load.grows_by(50)
            for turn in range(walks):
                await eve.cutover("back" if turn % 2 else "run", "--wait", "20")
                with contextlib.suppress(TimeoutError):
                    await load.grows_by(50)
                if load.failures:
                    break
        over.set()
        if working is not None:
            await working
        try:
            async with asyncio.timeout(120):
                await all_is_well(eve, load)
        except AssertionError as error:
            wrong = error
        assert (wrong is not None) is is_found, (wrong, load.failures[:3])
