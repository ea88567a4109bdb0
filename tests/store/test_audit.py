"""The chain of the audit: what it keeps, what the database refuses, and what it shows of tampering."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, LiteralString

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossfade.store import audit
from crossfade.store.actors import Actor, ActorType, Role, Via
from crossfade.store.audit import Broken, Deed, Outcome, Verified, append, lock, tail, verify
from crossfade.store.connection import Database

ADA = Actor(ActorType.HUMAN, "ada", Role.OPERATOR, "192.0.2.1", Via.CLI)


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[Database]:
    opened = Database(store_url)
    yield opened
    await opened.close()


async def record(database: Database, deed: Deed, outcome: Outcome = Outcome.APPLIED) -> int:
    async with database.transaction() as connection:
        return await append(
            connection, await lock(connection), ADA, deed, outcome,
            before={"weight": 0.1}, after={"weight": 1e22, "zero": -0.0, "many": 12345678901234567890},
        )  # fmt: skip


async def seven(database: Database) -> None:
    for number in range(1, 8):
        assert await record(database, Deed("flag.move", "flag", (f"f{number % 2}",), f"{number}")) == number


TAMPERING: dict[str, tuple[LiteralString, int]] = {
    "changed reason": ("UPDATE crossfade_store.audit SET reason = 'all good' WHERE seq = 4", 4),
    "changed actor": (
        "UPDATE crossfade_store.audit SET actor = replace(actor::text, 'ada', 'eve')::json WHERE seq = 2", 2,
    ),
    "changed time": ("UPDATE crossfade_store.audit SET at = at + interval '1 us' WHERE seq = 5", 5),
    "null for nothing": ("UPDATE crossfade_store.audit SET before = NULL WHERE seq = 7", 7),
    "removed first": ("DELETE FROM crossfade_store.audit WHERE seq = 1", 1),
    "removed in the middle": ("DELETE FROM crossfade_store.audit WHERE seq = 4", 4),
    "removed at the end": ("DELETE FROM crossfade_store.audit WHERE seq >= 6", 6),
    "removed all": ("DELETE FROM crossfade_store.audit", 1),
    "removed and closed up": (
        "DELETE FROM crossfade_store.audit WHERE seq = 3;"
        "UPDATE crossfade_store.audit SET seq = seq - 1 WHERE seq > 3", 3,
    ),
    "reordered": (
        "UPDATE crossfade_store.audit SET seq = -1 WHERE seq = 2;"
        "UPDATE crossfade_store.audit SET seq = 2 WHERE seq = 3;"
        "UPDATE crossfade_store.audit SET seq = 3 WHERE seq = -1", 2,
    ),
    "put in before": (
        "CREATE TEMP TABLE x AS SELECT * FROM crossfade_store.audit WHERE seq = 1; UPDATE x SET seq = 0;"
        "INSERT INTO crossfade_store.audit SELECT * FROM x", 0,
    ),
    "put in at the end": (
        "CREATE TEMP TABLE x AS SELECT * FROM crossfade_store.audit WHERE seq = 7; UPDATE x SET seq = 8;"
        "INSERT INTO crossfade_store.audit SELECT * FROM x", 8,
    ),
    "put in with a fitting hash before it": (
        "CREATE TEMP TABLE x AS SELECT * FROM crossfade_store.audit WHERE seq = 7;"
        "UPDATE x SET seq = 8, prev_hash = hash;"
        "INSERT INTO crossfade_store.audit SELECT * FROM x", 8,
    ),
    "put in in the middle": (
        "CREATE TEMP TABLE x AS SELECT * FROM crossfade_store.audit WHERE seq = 4;"
        "UPDATE crossfade_store.audit SET seq = seq + 100 WHERE seq >= 4;"
        "UPDATE crossfade_store.audit SET seq = seq - 99 WHERE seq > 100;"
        "INSERT INTO crossfade_store.audit SELECT * FROM x", 5,
    ),
}  # fmt: skip


async def test_tampering_is_found_where_it_was_done(
    store: Database, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "CHUNK", 3)  # seven rows and borders between them
    await seven(store)
    with psycopg.connect(store_url, autocommit=True) as superuser:
        superuser.execute("CREATE TABLE written AS SELECT * FROM crossfade_store.audit")
        superuser.execute("ALTER TABLE crossfade_store.audit DISABLE TRIGGER ALL")
        for how, (statements, seq) in TAMPERING.items():
            superuser.execute(statements)
            found = await verify(store)
            assert isinstance(found, Broken), how
            assert found.seq == seq, (how, found)
            superuser.execute("DELETE FROM crossfade_store.audit; DROP TABLE IF EXISTS pg_temp.x")
            superuser.execute("INSERT INTO crossfade_store.audit SELECT * FROM written")
            assert isinstance(await verify(store), Verified), how


REWRITING: list[LiteralString] = [
    "UPDATE crossfade_store.audit SET reason = 'x'",
    "UPDATE crossfade_store.audit SET reason = 'x' WHERE false",
    "DELETE FROM crossfade_store.audit WHERE seq = 2",
    "TRUNCATE crossfade_store.audit",
    "SET session_replication_role = replica; DELETE FROM crossfade_store.audit",
]


async def test_the_database_refuses_to_change_what_was_written(store: Database, store_url: str) -> None:
    await seven(store)
    for statement in REWRITING:
        with psycopg.connect(store_url) as superuser, pytest.raises(psycopg.errors.InsufficientPrivilege):
            superuser.execute(statement)
    assert await verify(store) == Verified(7, (await tail(store))[-1].hash)


async def test_an_empty_audit_is_whole(store: Database) -> None:
    assert await verify(store) == Verified(0, audit.GENESIS)


async def test_writers_at_once_make_one_chain_while_it_is_verified(store: Database, store_url: str) -> None:
    other = Database(store_url)
    verified = 0

    async def write(database: Database, name: str) -> None:
        for number in range(10):
            await record(database, Deed("flag.move", "flag", (name,), f"{number}"))

    async with asyncio.TaskGroup() as group:
        writers = [
            group.create_task(write(database, f"{at}")) for at, database in enumerate((store, other, store))
        ]
        while not all(writer.done() for writer in writers):
            assert isinstance(await verify(other), Verified)
            verified += 1
    assert verified, "beside them, however long one takes"
    rows = await tail(store, 0, 100)
    assert [row.seq for row in rows] == list(range(1, 31))
    assert await verify(store) == Verified(30, rows[-1].hash)
    for name in "012":
        assert [row.reason for row in rows if row.objects == (name,)] == [str(n) for n in range(10)]
    await other.close()


async def test_the_tail_is_read_forwards_backwards_and_by_object(store: Database) -> None:
    await seven(store)
    await record(store, Deed("person.add", "person", ("f1",), "new"), Outcome.DENIED)
    assert [row.seq for row in await tail(store, limit=3)] == [6, 7, 8]
    assert [row.seq for row in await tail(store, 2, 3)] == [3, 4, 5]
    assert [row.seq for row in await tail(store, object_key="f1")] == [1, 3, 5, 7, 8]
    assert [row.seq for row in await tail(store, object_key="f1", kinds=["flag"])] == [1, 3, 5, 7]
    assert [row.seq for row in await tail(store, outcome=Outcome.DENIED)] == [8]
    assert await tail(store, 8) == []
    assert await tail(store, object_key="\0") == []


async def test_a_row_says_who_when_why_and_what(store: Database) -> None:
    wish: dict[Any, Any] = {"to": "live", "by": ("header:x", "\0\ud800"), 7: float("inf")}
    deed = Deed("flag.move", "flag", ("f",), "b\0ad\ud800", wish, "T-1", {"e": [0.1]}, "r-1")
    await record(store, deed)
    (row,) = await tail(store)
    assert row.actor == {
        "type": "human", "name": "ada", "role": "operator", "address": "192.0.2.1", "via": "cli",
    }  # fmt: skip
    assert row.command == {"to": "live", "by": ["header:x", "\0\ud800"], "7": "Infinity"}
    assert (row.reason, row.ticket, row.evidence, row.request_id) == (
        "b\ufffdad?", "T-1", {"e": [0.1]}, "r-1",
    )  # fmt: skip
    assert row.after == {"weight": 1e22, "zero": -0.0, "many": 12345678901234567890}
    assert isinstance(await verify(store), Verified)


async def test_of_a_refused_command_only_so_much_is_kept(store: Database) -> None:
    huge = {"flags": ["x" * 1000] * 100}
    await record(store, Deed("flags.apply", "flag", (), "try", huge), Outcome.REJECTED)
    await record(store, Deed("flags.apply", "flag", (), "do", huge))
    refused, applied = await tail(store)
    assert refused.command.keys() == {"bytes", "sha256"}
    assert applied.command == huge
    assert isinstance(await verify(store), Verified)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(values, values)
def test_two_values_have_one_spelling_only_if_they_are_one(one: object, other: object) -> None:
    """What the hash is made of: equal spellings read back to the same value, type by type."""
    alike = audit._canonical(one) == audit._canonical(other)
    assert alike == (repr(_ordered(one)) == repr(_ordered(other)))


def _ordered(value: object) -> object:
    if isinstance(value, dict):
        return {key: _ordered(value[key]) for key in sorted(value)}
    return [_ordered(item) for item in value] if isinstance(value, list) else value
