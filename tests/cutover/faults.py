"""What may go wrong on the night, by a seed: which fault, when, and how it passes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
from sqlalchemy import make_url

from tests.admin.client import WHY, Client
from tests.cutover.scene import CUTOVER, Load, Night
from tests.support.crossfade_process import PATIENCE

STATES = ["preparing", "holding", "fencing", "catching_up", "turning", "deciding", "releasing"]
"""In which a fault comes; one that is over before anybody has seen it leaves it to the next."""

_SAME = {"legacy": "UPDATE users SET login = login", "new": "UPDATE accounts SET username = username"}

Fault = Callable[[Night, random.Random], Awaitable[None]]


async def kill_control(night: Night, chance: random.Random) -> None:
    """The process that walks."""
    os.kill(night.known["control_pid"], signal.SIGKILL)


async def kill_control_twice(night: Night, chance: random.Random) -> None:
    await kill_control(night, chance)
    await asyncio.sleep(chance.uniform(0.2, 1.5))
    status = await night.cf.until(lambda status: bool(status["control_pid"]))
    with contextlib.suppress(ProcessLookupError):
        os.kill(status["control_pid"], signal.SIGKILL)


async def stop_control(night: Night, chance: random.Random) -> None:
    """It sleeps, and wakes up in the middle of what it did."""
    await _asleep(night.known["control_pid"], chance.uniform(0.1, 3))


async def kill_stream(night: Night, chance: random.Random) -> None:
    towards = chance.choice(["new", "legacy"])
    await night.end_sync(towards)
    await asyncio.sleep(chance.uniform(0, 1))
    await night.sync(towards)


async def stop_stream(night: Night, chance: random.Random) -> None:
    await _asleep(night.streams[chance.choice(["new", "legacy"])].pid, chance.uniform(0.1, 3))


async def kill_worker(night: Night, chance: random.Random) -> None:
    os.kill(chance.choice(night.workers), signal.SIGKILL)


async def stop_worker(night: Night, chance: random.Random) -> None:
    await _asleep(chance.choice(night.workers), chance.uniform(0.1, 3))


async def cut_connections(night: Night, chance: random.Random) -> None:
    """Of everything of ours in one database, at once. The application's stay."""
    async with await psycopg.AsyncConnection.connect(
        night.urls[chance.choice(["legacy", "new"])], autocommit=True
    ) as connection:
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name LIKE 'crossfade%%'"
        )


async def lose_the_store(night: Night, chance: random.Random) -> None:
    """Nobody can ask it for a moment."""
    name = make_url(night.store_url).database
    async with await psycopg.AsyncConnection.connect(night.urls["new"], autocommit=True) as connection:
        await connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false".encode())
        try:
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,)
            )
            await asyncio.sleep(chance.uniform(0.1, 3))
        finally:
            await connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true".encode())


async def a_writer_passes_by(night: Night, chance: random.Random) -> None:
    """A job that writes to a database itself, without anybody asking."""
    side = chance.choice(["legacy", "new"])
    async with await psycopg.AsyncConnection.connect(night.urls[side]) as connection:
        with contextlib.suppress(psycopg.errors.ReadOnlySqlTransaction):
            await connection.execute(_SAME[side].encode())
            await asyncio.sleep(chance.uniform(0, 1))
            await connection.commit()


async def clocks_jump(night: Night, chance: random.Random) -> None:
    """Of all our processes, each by another time; they stay wrong until they jump again."""
    night.clocks.set_off(chance.uniform(-900, 900))


async def abort(night: Night, chance: random.Random) -> None:
    await Client(night.cf)("POST", f"/api/v1/cutovers/{CUTOVER}/abort", WHY)


FAULTS: list[Fault] = [
    kill_control, kill_control_twice, stop_control, kill_stream, stop_stream, kill_worker, stop_worker,
    cut_connections, lose_the_store, a_writer_passes_by, abort,
    clocks_jump,
]  # fmt: skip


async def _asleep(pid: int, seconds: float) -> None:
    os.kill(pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(seconds)
    finally:
        os.kill(pid, signal.SIGCONT)


async def one_run(night: Night, load: Load, seed: int) -> str:
    """A walk with a fault in it; what became of it. All is well afterwards, whatever that is."""
    chance = random.Random(seed)
    fault = FAULTS[seed % len(FAULTS)]
    side = await night.side()
    state = chance.choice(STATES)
    await night.look_around()
    began = asyncio.create_task(night.cutover("run" if side == "legacy" else "back", "--wait", "60"))
    load.lenient = True
    await reached(night, state)
    await fault(night, chance)
    await began
    walk = await ended(night)
    await night.follows("new")
    await night.follows("legacy")
    await load.grows_by(20)
    load.lenient = False
    now = await night.side()
    wanted = {"done": {"legacy": "new", "new": "legacy"}[side], "cancelled": side}[walk["state"]]
    assert now == wanted, (fault.__name__, seed, walk)
    assert walk["state"] == "done" or walk["message"], walk
    assert await one_is_open(night) == now, (fault.__name__, seed, walk)
    load.must_be_fine()
    return f"{fault.__name__} in {state} {seed}: {walk['state']} {walk['message'] or ''}"


async def reached(night: Night, state: str) -> None:
    """Until the walk is in this state, or beyond it."""
    later = (*STATES[STATES.index(state) :], "done", "cancelling", "cancelled")
    query = "SELECT state FROM crossfade_store.cutovers WHERE id > %s"
    async with await psycopg.AsyncConnection.connect(night.store_url, autocommit=True) as connection:
        async with asyncio.timeout(PATIENCE):
            while True:
                row = await (await connection.execute(query, (night.last_walk,))).fetchone()
                if row is not None and row[0] in later:
                    return
                await asyncio.sleep(0.001)


async def ended(night: Night) -> Any:
    """The last walk, which ends by itself."""
    async with asyncio.timeout(2 * PATIENCE):
        while True:
            done = await night.cf.command("cutover", "status", CUTOVER, "-o", "json")
            walks = json.loads(done.out)["walks"] if done.code == 0 else []
            if done.code == 0 and (not walks or walks[0]["ended_at"] is not None):
                return walks[0]
            await asyncio.sleep(0.1)


async def one_is_open(night: Night) -> str:
    """The side whose database takes what everybody writes; the other one does not."""
    found = {}
    for side, url in night.urls.items():
        async with await psycopg.AsyncConnection.connect(url) as connection:
            query = f'SELECT last_value = 1 FROM crossfade_sync."fence_{CUTOVER}"'
            row = await (await connection.execute(query.encode())).fetchone()
            assert row is not None
            found[side] = row[0]
    assert sorted(found.values()) == [False, True], found
    return next(side for side, is_open in found.items() if is_open)
