"""One row that cannot be brought over waits, with what was said against it; all others go on."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crossfade.embedded.postgres import EmbeddedPostgres
from dualwrite import quarantine, target
from dualwrite.apply import PoisonError
from dualwrite.change import ABSENT, Change, Identity, Kind, Relation, Row, SourceColumn
from dualwrite.copy_text import copy_text
from dualwrite.mapped import MappingFailedError, towards
from dualwrite.mapping import Convert, InvalidMappingError, Table
from dualwrite.plan import Action, Copying, Op
from dualwrite.quarantine import Waiting
from flags.model import Side
from tests.dualwrite.conftest import NAME, NOTES
from tests.dualwrite.sample import until
from tests.dualwrite.test_apply import applying, rows
from tests.dualwrite.test_commands import data, stands, syncing

Connection = psycopg.AsyncConnection[Any]
COPY = "public.notes to public.notes"
PATIENT = replace(NOTES, quarantine=COPY)
COPYING = Copying(PATIENT, PATIENT.columns)


def put(key: int, title: str | None, body: str | None = None) -> Op:
    row: Row = (b"%d" % key, *(None if one is None else one.encode() for one in (title, body)))
    return Op(Action.PUT, PATIENT, row[:1], row)


def patch(key: int, title: str) -> Op:
    return Op(Action.PATCH, PATIENT, (b"%d" % key,), (b"%d" % key, title.encode(), ABSENT))


def remove(key: int) -> Op:
    return Op(Action.REMOVE, PATIENT, (b"%d" % key,), ())


async def waiting(looking: Connection) -> list[Waiting]:
    return await quarantine.waiting(looking, NAME)


async def test_a_refused_row_waits_and_the_rest_of_its_transaction_is_applied(
    target_url: str, looking: Connection
) -> None:
    async with applying(target_url) as applier:
        await applier.apply([put(1, "a"), put(2, "b", "bad"), put(3, "c"), put(4, "d\0")], 200)
        assert [row[0] for row in await rows(looking)] == [1, 3]
        bad, nul = await waiting(looking)
        assert (bad.copy, bad.key, bad.changes, bad.change) == (COPY, ["2"], 1, "put")
        assert bad.row == {"id": "2", "title": "b", "body": "bad"}
        assert "check constraint" in bad.error
        assert (nul.key, nul.row["title"]) == (["4"], "d\ufffd")
        assert len(applier.held) == 2
    found = await target.state(looking, NAME)
    assert found is not None
    assert found.applied == 200


async def test_what_follows_a_change_that_waits_waits_too_whoever_goes_on(
    target_url: str, looking: Connection
) -> None:
    """Even what the target would take: without the change before it would make a row that never was."""
    async with applying(target_url) as applier:
        await applier.apply([put(1, "a", "x"), put(2, "b")], 200)
        await applier.apply([put(1, "a", "bad"), patch(1, "aa"), put(2, "bb")], 300)
    async with applying(target_url, 2) as applier:
        await applier.apply([patch(1, "aaa"), put(3, "c")], 400)
        await applier.apply([put(2, "bbb")], 500)
    assert await rows(looking) == [(1, "a", "x"), (2, "bbb", None), (3, "c", None)]
    (one,) = await waiting(looking)
    assert (one.first, one.last, one.changes, one.change) == (300, 400, 3, "patch")
    assert one.row == {"id": "1", "title": "aaa", "body": "bad"}
    assert "check constraint" in one.error


async def test_a_row_that_gets_another_key_while_it_waits_is_told_by_both(
    target_url: str, looking: Connection
) -> None:
    moved = Op(Action.MOVE, PATIENT, (b"1",), (b"9", b"z", ABSENT))
    async with applying(target_url) as applier:
        await applier.apply([put(1, "a", "bad")], 200)
        await applier.apply([moved, patch(9, "zz"), put(2, "b")], 300)
    assert [row[0] for row in await rows(looking)] == [2]
    assert [one.key for one in await waiting(looking)] == [["1"], ["9"]]


async def test_the_policy_of_one_table_is_not_that_of_another(target_url: str, looking: Connection) -> None:
    poison = Op(Action.PUT, NOTES, (b"2",), (b"2", b"b", b"bad"))
    async with applying(target_url) as applier:
        with pytest.raises(PoisonError, match="key 2"):
            await applier.apply([put(1, "a", "bad"), poison], 200)
        assert applier.held == frozenset()
    assert await waiting(looking) == []


async def test_a_large_transaction_that_is_given_up_leaves_nothing_in_quarantine(
    target_url: str, looking: Connection
) -> None:
    async with applying(target_url) as applier:
        await applier.apply([put(1, "a", "bad"), put(2, "b")], None)
        with pytest.raises(PoisonError):
            await applier.apply([Op(Action.PUT, NOTES, (b"3",), (b"3", b"b", b"bad"))], 200)
        assert applier.held == frozenset()
        assert await waiting(looking) == []
        await applier.apply([put(1, "a", "bad"), put(2, "b")], None)
        await applier.apply([put(1, "aa"), put(3, "c")], 200)
    assert [row[0] for row in await rows(looking)] == [2, 3]
    assert [one.changes for one in await waiting(looking)] == [2]


async def test_a_repair_settles_what_the_target_takes_and_keeps_what_it_does_not(
    target_url: str, looking: Connection
) -> None:
    async with applying(target_url) as applier:
        await applier.apply([put(1, "a", "bad"), put(2, "b", "bad"), put(3, "c", "bad")], 200)
        now = [copy_text([row]) for row in ((b"1", b"a", b"good"), (b"2", b"bb", b"bad"))]
        await applier.repair(COPY, COPYING, [["1"], ["2"], ["3"]], now)
        assert await rows(looking) == [(1, "a", "good")]
        (one,) = await waiting(looking)
        assert (one.key, one.row["title"]) == (["2"], "bb")
        # What is settled goes on.
        await applier.apply([put(1, "aa"), put(2, "x"), put(3, "cc")], 300)
    assert [row[:2] for row in await rows(looking)] == [(1, "aa"), (3, "cc")]


async def test_a_copy_goes_on_without_the_rows_that_are_refused(target_url: str, looking: Connection) -> None:
    def line(key: int) -> bytes:
        return copy_text([(b"%d" % key, b"title %d" % key, b"bad" if key % 50 == 7 else b"x")])

    async with applying(target_url) as applier:
        await applier.begin_copy(COPY, ["200"])
        assert await applier.copy_chunk(COPY, COPYING, None, [line(key) for key in range(1, 201)]) == 196
        await applier.apply([patch(7, "later"), patch(8, "later")], 200)
    assert len(await rows(looking)) == 196
    assert [one.key for one in await waiting(looking)] == [["107"], ["157"], ["57"], ["7"]]


KEYS = st.integers(1, 4)
OPS = st.one_of(
    st.builds(put, KEYS, st.sampled_from("abcdef"), st.sampled_from(["bad", "x", None])),
    st.builds(remove, KEYS),
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.lists(OPS, min_size=1, max_size=6), min_size=1, max_size=4))
async def test_no_row_is_there_that_never_was_and_a_repair_ends_alike(
    target_url: str, looking: Connection, batches: list[list[Op]]
) -> None:
    """Titles are unique at the target only: who comes second waits, and what it says is never half there."""
    await looking.execute("DELETE FROM notes")
    await looking.execute("DELETE FROM crossfade_sync.quarantine")
    await looking.execute("UPDATE crossfade_sync.streams SET epoch = 0, applied = '0/0'")
    source: dict[Row, Row] = {}
    states: set[Row] = set()
    async with applying(target_url) as applier:
        for number, ops in enumerate(batches):
            for op in ops:
                if op.action is Action.REMOVE:
                    source.pop(op.key, None)
                else:
                    source[op.key] = op.row
                    states.add(op.row)
            await applier.apply(ops, 100 + number)
            held = {key for _, key in applier.held}
            there = {as_text(row)[:1]: as_text(row) for row in await rows(looking)}
            assert set(there.values()) <= states
            assert {key: row for key, row in there.items() if key not in held} == {
                key: row for key, row in source.items() if key not in held
            }
        # Somebody mends the rows at the source.
        mended = {key: (*key, b"mended " + (key[0] or b""), None) for key in source}  # type: ignore[operator]
        keys = [[part.decode() for part in key] for _, key in applier.held]  # type: ignore[union-attr]
        if keys:
            lines = [copy_text([row]) for row in mended.values() if [row[0].decode()] in keys]
            await applier.repair(COPY, COPYING, keys, lines)
        assert await waiting(looking) == []
        assert applier.held == frozenset()
    assert {as_text(row)[:1] for row in await rows(looking)} == set(source)


def as_text(row: Iterable[Any]) -> Row:
    return tuple(None if value is None else str(value).encode() for value in row)


# A mapping that fails.

RELATION = Relation("public", "t", Identity.KEY, (SourceColumn("id", 23, True), SourceColumn("n", 25, False)))


def mapping(on_poison: Any, key: Callable[[Any], Any] | None = None) -> Table:
    number = Convert("n", int, lambda text: text)
    id_ = "id" if key is None else Convert("id", key, key)
    return Table("t", "t", key=["id"], columns={"id": id_, "n": number}, on_poison=on_poison)


def test_a_row_that_a_function_fails_on_waits_under_its_keys_with_what_the_source_said() -> None:
    (source,) = towards(Side.NEW, [mapping("quarantine")], []).values()
    ops = source.mappings[0].bind(RELATION)(Change(Kind.UPDATE, RELATION, (b"1", ABSENT), (b"2", b"many")))
    assert [(op.action, op.key) for op in ops] == [(Action.KEEP, (b"1",)), (Action.KEEP, (b"2",))]
    (kept,) = quarantine.kept(ops[1])
    assert json.loads(kept.row) == {"id": "2", "n": "many"}
    assert "n to public.t.n: 'many': ValueError" in kept.error


def test_a_row_without_a_key_cannot_wait() -> None:
    (source,) = towards(Side.NEW, [mapping("quarantine", key=lambda _: 1 // 0)], []).values()
    with pytest.raises(MappingFailedError, match="ZeroDivisionError"):
        source.mappings[0].bind(RELATION)(Change(Kind.INSERT, RELATION, None, (b"2", b"1")))


def test_only_a_key_with_a_way_back_can_wait() -> None:
    one_way = Table(
        "t", "t", key=["id"], columns={"id": Convert("id", str)}, towards=Side.NEW, on_poison="quarantine"
    )
    with pytest.raises(InvalidMappingError, match="a key with a way back"):
        towards(Side.NEW, [one_way], [])
    with pytest.raises(InvalidMappingError, match="on_poison is 'wait'"):
        mapping("wait")


# As somebody sees it.

MIGRATION = """
from crossfade import Convert, Project, Table
number = Convert("amount", lambda text: int(text), lambda text: text)
project = Project(
    tables=[
        Table("bills", "bills", key=["id"], columns={"id": "id", "said": number, "note": "note"},
              on_poison="quarantine"),
    ],
)
"""


@contextlib.asynccontextmanager
async def two(postgres: EmbeddedPostgres) -> AsyncIterator[tuple[Connection, Connection]]:
    async with await psycopg.AsyncConnection.connect(postgres.url(), autocommit=True) as admin:
        for name in ("bills_old", "bills_new"):
            await admin.execute(f"CREATE DATABASE {name}")
        try:
            async with (
                await psycopg.AsyncConnection.connect(postgres.url("bills_old"), autocommit=True) as legacy,
                await psycopg.AsyncConnection.connect(postgres.url("bills_new"), autocommit=True) as new,
            ):
                yield legacy, new
        finally:
            async with asyncio.timeout(20):
                while True:
                    try:
                        await admin.execute(
                            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots"
                            " WHERE slot_name = 'crossfade_to_new'"
                        )
                        break
                    except psycopg.errors.ObjectInUse:
                        continue
            for name in ("bills_old", "bills_new"):
                await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
            await admin.execute("SELECT pg_replication_origin_drop(roname) FROM pg_replication_origin")


async def test_from_the_poison_to_the_retry(postgres: EmbeddedPostgres, tmp_path: Path) -> None:
    async with two(postgres) as (legacy, new):
        await legacy.execute("CREATE TABLE bills (id int PRIMARY KEY, said text, note text)")
        await new.execute("CREATE TABLE bills (id int PRIMARY KEY, amount int CHECK (amount > 0), note text)")
        await legacy.execute("INSERT INTO bills VALUES (1, '5', 'a'), (2, 'five', 'b'), (3, '7', 'c')")
        (tmp_path / "migration.py").write_text(MIGRATION)
        config = tmp_path / "crossfade.yaml"
        config.write_text(
            json.dumps({
                "targets": {"legacy": {"url": "http://127.0.0.1:1"}, "new": {"url": "http://127.0.0.1:2"}},
                "code": "migration.py",
                "data": {
                    "legacy": {"url": postgres.url("bills_old")}, "new": {"url": postgres.url("bills_new")},
                },
            })
        )  # fmt: skip

        async def there(expected: list[tuple[int, int]]) -> None:
            async def come() -> bool:
                query = "SELECT id, amount FROM bills ORDER BY id"
                return await (await new.execute(query)).fetchall() == expected

            await until(come, f"{expected} are there")

        async with syncing(config):
            await until(lambda: stands(config, "following"), "it follows")
            # One that no function understands was copied past; another comes that the target refuses.
            await legacy.execute("INSERT INTO bills VALUES (4, '-4', 'd'), (5, '9', 'e')")
            await legacy.execute("UPDATE bills SET note = 'later' WHERE id IN (3, 4)")
            await there([(1, 5), (3, 7), (5, 9)])
            await legacy.execute("INSERT INTO bills VALUES (6, '6', 'f')")
            await there([(1, 5), (3, 7), (5, 9), (6, 6)])
            assert (await data(config, "status"))["quarantined"] == 2
            listed = (await data(config, "quarantine", "list"))["waiting"]
            assert [(one["key"], one["changes"]) for one in listed] == [(["2"], 1), (["4"], 2)]
            assert "'five': ValueError" in listed[0]["error"]
            assert listed[1]["row"] == {"id": "4", "amount": "-4", "note": "later"}

            # Tried too early, it stays; mended at the source, it comes.
            await legacy.execute("UPDATE bills SET said = '2' WHERE id = 2")
            assert [one["key"] for one in (await data(config, "quarantine", "retry", code=6))["waiting"]] == [
                ["4"]
            ]
            await there([(1, 5), (2, 2), (3, 7), (5, 9), (6, 6)])
            await legacy.execute("DELETE FROM bills WHERE id = 4")
            assert (await data(config, "quarantine", "retry", "--table", "bills"))["waiting"] == []
            assert (await data(config, "status"))["quarantined"] == 0
            assert (await data(config, "verify"))["equal"]
