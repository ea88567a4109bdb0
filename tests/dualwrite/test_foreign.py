"""Who writes into the tables of a stream beside it is noted, and never harmed by that."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest

from dualwrite import fence, foreign, target
from dualwrite.apply import Applier
from dualwrite.plan import Action, Op
from tests.dualwrite.conftest import NAME, NOTES, SOURCE

Connection = psycopg.AsyncConnection[Any]
WATCHED = ["public.notes", "public.parts"]
INSERT = "INSERT INTO notes VALUES (1, 'a', 'b')"


@pytest.fixture
async def db(target_url: str) -> AsyncIterator[Connection]:
    async with await psycopg.AsyncConnection.connect(target_url, autocommit=True) as connection:
        await target.prepare(connection)
        await foreign.watch(connection, WATCHED)
        yield connection


async def kinds(db: Connection) -> list[str]:
    return [one.what for one in await foreign.seen(db) if one.table == "public.notes"]


async def test_every_kind_of_write_is_noted(db: Connection) -> None:
    async with db.cursor().copy("COPY notes FROM STDIN") as copying:
        await copying.write("7\tx\ty\n")
    assert await kinds(db) == ["INSERT"]
    await db.execute("SET session_replication_role = replica")
    await db.execute("UPDATE notes SET body = 'x'")
    await db.execute("RESET session_replication_role")
    assert await kinds(db) == ["INSERT, UPDATE"]
    await db.execute("DELETE FROM notes")
    await db.execute("TRUNCATE notes CASCADE")
    assert await kinds(db) == ["DELETE, INSERT, TRUNCATE, UPDATE"]


async def test_old_notes_go_and_what_is_late_is_what_is_told(db: Connection) -> None:
    await db.execute(INSERT)
    assert [str(one) for one in await foreign.of_late(db, WATCHED)] == [
        "crossfade (no application name) has written into public.notes beside us: INSERT"
    ]
    assert await foreign.of_late(db, ["public.parts"]) == []
    await db.execute("UPDATE crossfade_sync.foreign_writes SET at = at - interval '2 hours'")
    assert await foreign.of_late(db, WATCHED) == []
    assert await kinds(db) == ["INSERT"]
    await db.execute("UPDATE crossfade_sync.foreign_writes SET at = at - interval '31 days'")
    await foreign.watch(db, WATCHED)
    assert await kinds(db) == []


async def test_a_thousand_writes_are_one_note(db: Connection) -> None:
    for number in range(1000):
        await db.execute("INSERT INTO notes VALUES (%s, %s, 'b')", (number, str(number)))
    row = await (await db.execute("SELECT count(*) FROM crossfade_sync.foreign_writes")).fetchone()
    assert row == (1,)


async def test_our_apply_is_never_noted(db: Connection, target_url: str) -> None:
    await target.create(db, NAME, SOURCE, 0)
    applier = await Applier.open(target_url, NAME, 1)
    try:
        await applier.apply([Op(Action.ADD, NOTES, (b"1",), (b"1", b"a", b"b"))], 10)
    finally:
        await applier.close()
    assert await foreign.seen(db) == []


async def test_who_is_fenced_or_has_the_authority_is_not_noted(db: Connection) -> None:
    await fence.install(db, "shop", [("public", "notes")], is_open=True)
    await db.execute(INSERT)
    await fence.remove(db, "shop")
    await db.execute("UPDATE notes SET body = 'x'")
    assert await foreign.seen(db) == []


async def test_no_watch_is_missed_where_the_authority_has_been(db: Connection) -> None:
    await db.execute("DROP TRIGGER crossfade_watch ON notes")
    assert await foreign.unwatched(db, WATCHED) == ["public.notes"]
    await fence.install(db, "shop", [("public", "notes")], is_open=False)
    await fence.decide(db, "shop", "1 of 1", 1, fence.Outcome.SWITCHED)
    await fence.remove(db, "shop")
    assert await foreign.unwatched(db, WATCHED) == []


async def test_nobody_waits_for_another_or_fails_where_nothing_can_be_noted(
    db: Connection, target_url: str
) -> None:
    async with (
        await psycopg.AsyncConnection.connect(target_url) as one,
        await psycopg.AsyncConnection.connect(target_url) as two,
    ):
        await two.set_isolation_level(psycopg.IsolationLevel.SERIALIZABLE)
        await two.execute("SET lock_timeout = '1s'")
        await one.execute(INSERT)
        await two.execute("INSERT INTO notes VALUES (2, 'c', 'b')")
        await one.commit()
        await two.commit()
        await one.execute("LOCK TABLE crossfade_sync.foreign_writes")
        await two.execute("INSERT INTO notes VALUES (3, 'd', 'b')")
        await two.commit()
    await db.execute("DROP TABLE crossfade_sync.foreign_writes")
    await db.execute("DELETE FROM notes")


async def test_a_user_without_any_right_of_ours_is_noted_by_name(db: Connection) -> None:
    await db.execute("CREATE ROLE clerk; GRANT INSERT ON notes TO clerk")
    try:
        await db.execute("SET SESSION AUTHORIZATION clerk")
        await db.execute(INSERT)
        await db.execute("RESET SESSION AUTHORIZATION")
        assert [one.login for one in await foreign.seen(db)] == ["clerk"]
    finally:
        await db.execute("RESET SESSION AUTHORIZATION; DROP OWNED BY clerk; DROP ROLE clerk")
