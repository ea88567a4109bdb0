"""The fence: of two kinds of writers one is refused, whoever writes, however, and since when."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import errors

from crossfade.embedded.postgres import EmbeddedPostgres
from dualwrite import fence, target
from dualwrite.apply import Applier
from dualwrite.fence import OldTurnError, Outcome, WritersError
from dualwrite.plan import Action, Op
from tests.dualwrite.conftest import NAME, NOTES, SOURCE

Connection = psycopg.AsyncConnection[Any]
CUTOVER = "shop"
INSERT = "INSERT INTO notes VALUES (1, 'a', 'b')"


@pytest.fixture
async def db(target_url: str) -> AsyncIterator[Connection]:
    async with await psycopg.AsyncConnection.connect(target_url, autocommit=True) as connection:
        yield connection


@contextlib.asynccontextmanager
async def another(url: str) -> AsyncIterator[Connection]:
    async with await psycopg.AsyncConnection.connect(url) as connection:
        yield connection


async def install(db: Connection, *, is_open: bool) -> None:
    await fence.install(db, CUTOVER, [("public", "notes"), ("public", "parts")], is_open=is_open)


async def test_closed_refuses_every_kind_of_write_and_open_takes_them(db: Connection) -> None:
    await db.execute(INSERT)
    await install(db, is_open=False)
    for statement in (
        "INSERT INTO notes VALUES (2, 'c', 'd')",
        "UPDATE notes SET body = 'x'",
        "DELETE FROM notes",
        "TRUNCATE notes CASCADE",
        "MERGE INTO notes n USING (VALUES (1)) v (id) ON n.id = v.id WHEN MATCHED THEN DELETE",
        "WITH gone AS (DELETE FROM notes RETURNING id) SELECT * FROM gone",
        "INSERT INTO notes VALUES (1, 'a', 'b') ON CONFLICT (id) DO UPDATE SET body = 'y'",
        "SET session_replication_role = replica; UPDATE notes SET body = 'x'",
    ):
        with pytest.raises(errors.ReadOnlySqlTransaction, match="notes is fenced"):
            await db.execute(statement.encode())
        await db.execute("RESET session_replication_role")
    with pytest.raises(errors.ReadOnlySqlTransaction):
        async with db.cursor().copy("COPY notes FROM STDIN") as copying:
            await copying.write("7\tx\ty\n")
    assert await (await db.execute("SELECT id, title FROM notes")).fetchall() == [(1, "a")]
    await fence.open_(db, CUTOVER, 1, 1.0)
    await db.execute("UPDATE notes SET body = 'x'")
    await db.execute("VACUUM notes")


async def test_a_snapshot_from_before_hides_nothing(db: Connection, target_url: str) -> None:
    await install(db, is_open=True)
    async with another(target_url) as old:
        await old.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
        await old.execute("SELECT count(*) FROM notes")
        await fence.close(db, CUTOVER, 1, 1.0)
        with pytest.raises(errors.ReadOnlySqlTransaction):
            await old.execute(INSERT)


async def test_a_pooled_session_that_has_written_before_is_refused_too(
    db: Connection, target_url: str
) -> None:
    await install(db, is_open=True)
    async with another(target_url) as pooled:
        for number in range(20):
            await pooled.execute("INSERT INTO notes VALUES (%s, %s, '')", (number, str(number)), prepare=True)
            await pooled.commit()
        await fence.close(db, CUTOVER, 1, 1.0)
        with pytest.raises(errors.ReadOnlySqlTransaction):
            await pooled.execute("INSERT INTO notes VALUES (%s, %s, '')", (99, "99"), prepare=True)


async def test_closing_waits_for_those_who_write_and_names_them(db: Connection, target_url: str) -> None:
    await install(db, is_open=True)
    async with another(target_url) as cron:
        await cron.execute("SET application_name = 'nightly'")
        await cron.execute(INSERT)
        with pytest.raises(WritersError, match=r"pid \d+ \(\w+ nightly, idle in transaction"):
            await fence.close(db, CUTOVER, 1, 0.2)
        # Nothing was changed: it may write on, and so may others.
        await cron.execute("UPDATE notes SET title = 'more'")
        closing = asyncio.create_task(fence.close(db, CUTOVER, 1, 10.0))
        await asyncio.wait((closing,), timeout=0.2)
        assert not closing.done()
        await cron.commit()
        await closing
    assert await (await db.execute("SELECT title FROM notes")).fetchall() == [("more",)]


async def test_one_that_could_not_be_closed_is_kept_open_without_waiting_for_anybody(
    db: Connection, target_url: str
) -> None:
    """Whoever writes for long is why it could not, and those who wait in the proxy must not wait for him."""
    await install(db, is_open=True)
    async with another(target_url) as cron:
        await cron.execute(INSERT)
        with pytest.raises(WritersError):
            await fence.close(db, CUTOVER, 1, 0.1)
        async with asyncio.timeout(5):
            await fence.keep_open(db, CUTOVER, 2, 60.0)
        # Nobody of before can close it any more.
        with pytest.raises(OldTurnError):
            await fence.keep_open(db, CUTOVER, 1, 1.0)
        await cron.commit()
        with pytest.raises(OldTurnError):
            await fence.close(db, CUTOVER, 1, 1.0)
        await fence.close(db, CUTOVER, 3, 1.0)
    await fence.keep_open(db, CUTOVER, 3, 1.0)
    assert (await fence.state(db, CUTOVER)).is_open


async def test_who_vanishes_while_it_moves_the_fence_keeps_nobody_waiting(
    db: Connection, target_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its session stays for as long as TCP believes in it; writers do not wait for that."""
    monkeypatch.setattr(fence, "SILENT_AT_MOST", 3.0)
    await install(db, is_open=True)
    async with another(target_url) as vanished, another(target_url) as people:
        await vanished.execute("SET application_name = 'the walker'")
        await fence._wait_at_most(vanished, 1.0, lock=fence._key(CUTOVER))
        with pytest.raises(WritersError, match=r"pid \d+ \(\w+ the walker, idle in transaction"):
            await fence.close(db, CUTOVER, 1, 0.2)
        async with asyncio.timeout(20):
            await people.execute(INSERT)
        with pytest.raises(errors.IdleInTransactionSessionTimeout):
            await vanished.execute("SELECT 1")


async def test_a_later_walk_is_never_undone_by_an_earlier_one(db: Connection) -> None:
    await install(db, is_open=True)
    await fence.close(db, CUTOVER, 7, 1.0)
    await fence.open_(db, CUTOVER, 9, 1.0)
    with pytest.raises(OldTurnError):
        await fence.close(db, CUTOVER, 8, 1.0)
    assert (await fence.state(db, CUTOVER)) == fence.Fence(
        True, 9, frozenset({"public.notes", "public.parts"})
    )


async def test_our_apply_is_taken_exactly_where_others_are_not(db: Connection, target_url: str) -> None:
    await target.prepare(db)
    await target.create(db, NAME, SOURCE, 0)
    await install(db, is_open=False)
    applier = await Applier.open(target_url, NAME, 1)
    try:
        row = (b"1", b"a", b"b")
        await applier.apply([Op(Action.ADD, NOTES, (b"1",), row)], 10)
        await fence.open_(db, CUTOVER, 1, 1.0)
        with pytest.raises(
            errors.ReadOnlySqlTransaction, match=r"this database has the authority over public\.notes; "
        ):
            await applier.apply([Op(Action.PUT, NOTES, (b"1",), (b"1", b"a", b"later"))], 20)
    finally:
        await applier.close()
    assert await (await db.execute("SELECT body FROM notes")).fetchall() == [("b",)]


async def test_it_is_put_up_again_without_harm_and_taken_away_whole(db: Connection, target_url: str) -> None:
    await install(db, is_open=False)
    await install(db, is_open=True)  # what stands stays as it is
    state = await fence.state(db, CUTOVER)
    assert state is not None
    assert not state.is_open
    async with another(target_url) as reader:
        await reader.execute("LOCK TABLE parts IN SHARE MODE")
        with pytest.raises(WritersError, match="parts is in use: pid"):
            await fence.remove(db, CUTOVER, within=0.2)
    await fence.remove(db, CUTOVER)
    await fence.remove(db, CUTOVER)
    assert await fence.state(db, CUTOVER) is None
    await db.execute(INSERT)


async def test_a_walk_has_one_outcome_whoever_writes_it(db: Connection, target_url: str) -> None:
    await install(db, is_open=True)
    assert await fence.decided(db, CUTOVER, "7") is None

    async def decide(outcome: Outcome) -> Outcome:
        async with await psycopg.AsyncConnection.connect(target_url, autocommit=True) as other:
            return await fence.decide(other, CUTOVER, "7", 1, outcome)

    found = await asyncio.gather(*(decide(one) for one in (*Outcome, *Outcome, *Outcome)))
    assert len(set(found)) == 1
    assert await fence.newest(db, CUTOVER) == (1 if found[0] is Outcome.SWITCHED else 0)
    # A walk that was cancelled leaves its generation to the next one.
    assert await fence.decide(db, CUTOVER, "8", 1, Outcome.SWITCHED) is Outcome.SWITCHED
    assert await fence.newest(db, CUTOVER) == 1


async def test_a_prepared_transaction_is_waited_for_and_named(tmp_path: Path) -> None:
    """Nobody is connected that holds it; it survives its session, and even the server."""
    with EmbeddedPostgres(tmp_path / "pg", durable=False) as server:
        async with await psycopg.AsyncConnection.connect(server.url(), autocommit=True) as admin:
            await admin.execute("ALTER SYSTEM SET max_prepared_transactions = 5")
    with EmbeddedPostgres(tmp_path / "pg", durable=False) as server:
        async with await psycopg.AsyncConnection.connect(server.url(), autocommit=True) as db:
            await db.execute("CREATE TABLE notes (id int PRIMARY KEY, title text, body text)")
            await fence.install(db, CUTOVER, [("public", "notes")], is_open=True)
            async with await psycopg.AsyncConnection.connect(server.url()) as job:
                await job.execute(INSERT)
                await job.execute("PREPARE TRANSACTION 'payroll'")
            with pytest.raises(WritersError, match=r"a prepared transaction \(payroll\)"):
                await fence.close(db, CUTOVER, 1, 0.2)
            await db.execute("COMMIT PREPARED 'payroll'")
            await fence.close(db, CUTOVER, 1, 1.0)
            with pytest.raises(errors.ReadOnlySqlTransaction):
                await db.execute("DELETE FROM notes")
