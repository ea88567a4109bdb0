"""One process works on a stream, and the next one as soon as that one has gone."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from typing import Any

import psycopg
import pytest

from dualwrite import desired, lease, target
from dualwrite.lease import Lease
from dualwrite.stream_states import NEXT, State, before
from dualwrite.target import FencedError
from tests.dualwrite.conftest import NAME

Connection = psycopg.AsyncConnection[Any]
HOLD = """
import asyncio, sys
from dualwrite.lease import Lease
async def hold():
    assert await Lease.take(sys.argv[1], sys.argv[2], "another process")
    print("held", flush=True)
    await asyncio.Event().wait()
asyncio.run(hold())
"""


async def test_one_has_it_and_the_next_one_when_it_is_let_go(target_url: str, looking: Connection) -> None:
    first = await Lease.take(target_url, NAME, "the first")
    assert first is not None
    assert await Lease.take(target_url, NAME, "the second") is None
    found = await lease.look(looking, NAME)
    assert (found.holder, found.alive) == ("the first", True)
    await first.release()
    assert not (await lease.look(looking, NAME)).alive
    second = await Lease.take(target_url, NAME, "the second")
    assert second is not None
    await second.release()


async def test_it_is_renewed_while_the_process_is_busy(target_url: str, looking: Connection) -> None:
    """A large transaction may keep the loop from turning for longer than a lease lasts."""
    held = await Lease.take(target_url, NAME, "busy")
    assert held is not None
    with psycopg.connect(target_url, autocommit=True) as other:
        begun = time.monotonic()
        while time.monotonic() < begun + lease.SECONDS + lease.RENEW_EVERY:
            row = other.execute("SELECT until > clock_timestamp() FROM crossfade_sync.leases").fetchone()
            assert row == (True,)
    assert await Lease.take(target_url, NAME, "the second") is None
    await held.release()


@pytest.mark.parametrize(("signum", "within"), [(signal.SIGKILL, 4.0), (signal.SIGSTOP, 30.0)])
async def test_a_process_that_is_gone_or_stands_still_is_followed(
    target_url: str, looking: Connection, signum: signal.Signals, within: float
) -> None:
    """One that was killed at once, by its session; one that stands still by the clock of the database."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HOLD, target_url, NAME, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"held\n"
        assert await Lease.take(target_url, NAME, "the next one") is None
        os.kill(process.pid, signum)
        async with asyncio.timeout(within):
            while (taken := await Lease.take(target_url, NAME, "the next one")) is None:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        # The session of the one that stands still is there yet: it must not look as if ours was free.
        assert await Lease.take(target_url, NAME, "a third one") is None
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
    assert (await lease.look(looking, NAME)).holder == "the next one"
    assert await Lease.take(target_url, NAME, "a third one") is None
    await taken.release()


async def test_who_has_lost_it_is_told_why(target_url: str, looking: Connection) -> None:
    first = await Lease.take(target_url, NAME, "the first")
    assert first is not None
    second = await Lease.take(target_url, NAME, "the second", take_over=True)
    assert second is not None
    async with asyncio.timeout(10):
        assert "another process has taken" in await first.lost
        await first.release()
        assert (await lease.look(looking, NAME)).alive, "who has lost it lets nothing go"
        await desired.say(looking, NAME, run=False, reason="the disk is full", by="ann")
        assert "shall not run" in await second.lost
    await second.release()


async def test_a_server_that_does_not_answer_keeps_no_process_from_its_end(
    target_url: str, looking: Connection
) -> None:
    held = await Lease.take(target_url, NAME, "the first")
    assert held is not None
    async with await psycopg.AsyncConnection.connect(target_url) as other:
        await other.execute("SELECT FROM crossfade_sync.leases FOR UPDATE")
        async with asyncio.timeout(20):
            while not await _sessions(looking, "AND wait_event_type = 'Lock'"):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            await held.release()
            assert await _sessions(looking), "it is not pulled away from under who waits"
            await other.rollback()
            while await _sessions(looking):  # noqa: ASYNC110
                await asyncio.sleep(0.02)


async def _sessions(looking: Connection, more: str = "") -> int:
    query = f"SELECT count(*) FROM pg_stat_activity WHERE application_name = %s {more}"
    row = await (await looking.execute(query.encode(), (f"crossfade lease {NAME}",))).fetchone()
    assert row is not None
    return int(row[0])


async def test_a_lease_whose_database_is_gone_is_lost(target_url: str, looking: Connection) -> None:
    held = await Lease.take(target_url, NAME, "the first")
    assert held is not None
    await looking.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s",
        (f"crossfade lease {NAME}",),
    )
    async with asyncio.timeout(10):
        assert "cannot be renewed" in await held.lost
    await held.release()


async def test_the_row_takes_the_steps_of_the_table_and_no_other(looking: Connection) -> None:
    for now in State:
        for then in State:
            await looking.execute("UPDATE crossfade_sync.streams SET state = %s, epoch = 3", (now.value,))
            assert await target.move(looking, NAME, 3, then), "whether it is held, and not whether it moved"
            assert not await target.move(looking, NAME, 2, then), "a later epoch holds it"
            found = await target.state(looking, NAME)
            assert found is not None
            assert found.state is (then if then in NEXT[now] else now)
            assert (now.value in before(then)) is (then in NEXT[now])
    with pytest.raises(psycopg.errors.CheckViolation):
        await looking.execute("UPDATE crossfade_sync.streams SET state = 'sleeping'")


async def test_the_epoch_fences_whoever_thinks_that_it_has_the_lease(looking: Connection) -> None:
    await target.take_over(looking, NAME, 1)
    with pytest.raises(FencedError):
        await target.take_over(looking, NAME, 1)


async def test_what_people_say_is_kept(looking: Connection, target_url: str) -> None:
    assert await desired.of(looking, NAME) is None
    await desired.say(looking, NAME, run=True, reason="begin", by="ann")
    await desired.say(looking, NAME, run=False, reason="a pause", by="bob")
    found = await desired.of(looking, NAME)
    assert found is not None
    assert (found.run, found.reason, found.by) == (False, "a pause", "bob")
    async with await psycopg.AsyncConnection.connect(target_url) as connection:
        await connection.execute("DROP SCHEMA crossfade_sync CASCADE")
        assert await desired.of(connection, NAME) is None, "a database that nobody has touched"
