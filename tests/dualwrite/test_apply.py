"""Writing to a real target: rows, position and epoch together, or nothing."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dualwrite import apply, target
from dualwrite.apply import Applier, PoisonError
from dualwrite.change import ABSENT, Row
from dualwrite.copy_text import copy_text
from dualwrite.pg_connect import connect
from dualwrite.plan import Action, Op, TargetTable
from dualwrite.rows import MissingRowError
from dualwrite.target import FencedError
from tests.dualwrite.conftest import NAME, NOTES

Connection = psycopg.AsyncConnection[Any]


@contextlib.asynccontextmanager
async def applying(url: str, epoch: int = 1) -> AsyncIterator[Applier]:
    applier = await Applier.open(url, NAME, epoch)
    try:
        yield applier
    finally:
        await applier.close()


async def rows(looking: Connection, table: str = "notes") -> list[Any]:
    return await (await looking.execute(f"SELECT * FROM {table} ORDER BY 1")).fetchall()


async def applied(looking: Connection) -> int:
    found = await target.state(looking, NAME)
    assert found is not None
    return found.applied


def put(key: int, title: str | None, body: str | None = None) -> Op:
    row = (b"%d" % key, *(None if one is None else one.encode() for one in (title, body)))
    return Op(Action.PUT, NOTES, row[:1], row)


def patch(key: int, title: str) -> Op:
    row: Row = (b"%d" % key, title.encode(), ABSENT)
    return Op(Action.PATCH, NOTES, row[:1], row)


def remove(key: int) -> Op:
    return Op(Action.REMOVE, NOTES, (b"%d" % key,), ())


async def test_rows_and_position_are_there_together(target_url: str, looking: Connection) -> None:
    async with applying(target_url) as applier:
        await applier.apply([put(1, "a", "x"), put(2, "b"), put(3, "c")], 200, heartbeat=5)
        await applier.apply([remove(1), patch(2, "bb"), put(3, None)], 300)
    assert await rows(looking) == [(2, "bb", None), (3, None, None)]
    found = await target.state(looking, NAME)
    assert found is not None
    assert (found.applied, found.heartbeat, found.epoch) == (300, 5, 1)


async def test_rows_that_were_made_replace_what_a_copy_has_brought(
    target_url: str, looking: Connection
) -> None:
    def add(key: int, title: str) -> Op:
        return put(key, title)._replace(action=Action.ADD)

    async with applying(target_url) as applier:
        await applier.apply([add(1, "a"), add(2, "b")], 200)
        # One of them is there already: then they go another way, for a while.
        await applier.apply([add(2, "bb"), add(3, "c")], 300)
        await applier.apply([add(3, "cc"), add(4, "d"), patch(4, "dd"), add(5, "e"), remove(5)], 400)
    assert [row[:2] for row in await rows(looking)] == [(1, "a"), (2, "bb"), (3, "cc"), (4, "dd")]


async def test_what_comes_again_is_not_done_again(target_url: str, looking: Connection) -> None:
    async with applying(target_url) as applier:
        await applier.apply([put(1, "a")], 200)
    await looking.execute("UPDATE notes SET title = 'later'")
    async with applying(target_url, 2) as applier:
        assert applier.applied == 200
        await applier.apply([put(1, "a")], 200)
    assert [row[1] for row in await rows(looking)] == ["later"]


async def test_an_update_without_a_column_leaves_it_alone(target_url: str, looking: Connection) -> None:
    async with applying(target_url) as applier:
        await applier.apply([put(1, "a", "long")], 200)
        await applier.apply([patch(1, "b")], 300)
        moved = Op(Action.MOVE, NOTES, (b"1",), (b"9", b"c", ABSENT))
        await applier.apply([moved, patch(9, "d")], 400)
    assert await rows(looking) == [(9, "d", "long")]


async def test_an_update_of_a_row_that_is_not_there_is_a_fault_once_all_is_copied(
    target_url: str, looking: Connection
) -> None:
    async with applying(target_url) as applier:
        await applier.apply([put(2, "b"), patch(1, "a")], 200, whole=False)
        with pytest.raises(MissingRowError, match=r"1 of 1 changed rows of public\.notes"):
            await applier.apply([put(3, "c"), patch(1, "a")], 300)
    assert [row[0] for row in await rows(looking)] == [2]
    assert await applied(looking) == 200


async def test_a_truncate_empties_and_what_follows_stays(target_url: str, looking: Connection) -> None:
    async with applying(target_url) as applier:
        await applier.apply([put(1, "a"), put(2, "b")], 200)
        await applier.apply([put(3, "c"), Op(Action.EMPTY, NOTES, (), ()), put(4, "d")], 300)
    assert [row[0] for row in await rows(looking)] == [4]


async def test_unique_values_may_be_swapped(target_url: str, looking: Connection) -> None:
    async with applying(target_url) as applier:
        await applier.apply([put(1, "a", "one"), put(2, "b", "two")], 200)
        await applier.apply([put(1, "b", "one"), put(2, "a", "two")], 300)
    assert await rows(looking) == [(1, "b", "one"), (2, "a", "two")]


async def test_a_swap_leaves_the_columns_that_are_not_written(target_url: str, looking: Connection) -> None:
    """Values that were not sent, columns of the target's own, and what the server makes itself."""
    await looking.execute("SET session_replication_role = replica")
    await looking.execute("ALTER TABLE notes ADD own text DEFAULT 'fresh'")
    await looking.execute("ALTER TABLE notes ADD long int GENERATED ALWAYS AS (length(body)) STORED")
    table = TargetTable("public", "notes", ("id", "title"), (0,), others=True)

    def titled(key: int, title: bytes) -> Op:
        return Op(Action.PUT, table, (b"%d" % key,), (b"%d" % key, title))

    async with applying(target_url) as applier:
        await applier.apply([put(1, "a", "one"), put(2, "b", "three")], 200)
        await looking.execute("UPDATE notes SET own = 'kept'")
        await applier.apply([titled(1, b"b"), titled(2, b"a"), titled(3, b"c")], 300)
        assert await rows(looking) == [
            (1, "b", "one", "kept", 3), (2, "a", "three", "kept", 5), (3, "c", None, "fresh", None),
        ]  # fmt: skip
        await applier.apply([patch(1, "a"), patch(2, "c"), patch(3, "b")], 400)
    assert [row[:4] for row in await rows(looking)] == [
        (1, "a", "one", "kept"), (2, "c", "three", "kept"), (3, "b", None, "fresh"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("bad", "key", "says"),
    [
        (put(2, "b", "bad"), "2", "check constraint"),
        (put(1, "a"), "1", "unique constraint"),
        (Op(Action.PUT, NOTES, (b"two",), (b"two", None, None)), "two", "invalid input syntax"),
        (put(2, "a\x00"), "2", "invalid byte sequence"),
    ],
)
async def test_a_row_that_the_target_does_not_take_is_named_and_nothing_is_written(
    target_url: str, looking: Connection, bad: Op, key: str, says: str
) -> None:
    async with applying(target_url) as applier:
        await applier.apply([put(5, "a")], 200)
        with pytest.raises(PoisonError, match=f"key {key}: .*{says}") as poison:
            await applier.apply([put(3, "c"), bad, put(4, "d")], 300)
        assert poison.value.op is bad
        assert [row[0] for row in await rows(looking)] == [5]
        assert await applied(looking) == 200
        # The session is as good as before.
        await applier.apply([put(3, "c")], 300)
    assert [row[0] for row in await rows(looking)] == [3, 5]


async def test_triggers_stay_silent_and_children_may_come_before_their_parents(
    target_url: str, looking: Connection
) -> None:
    parts = TargetTable("public", "parts", ("note", "number"), (0, 1))
    key = (b"1", b"7")
    async with applying(target_url) as applier:
        await applier.apply([Op(Action.PUT, parts, key, key), put(1, "a", "quiet")], 200)
    assert await rows(looking) == [(1, "a", "quiet")]
    assert await rows(looking, "parts") == [(1, 7)]


async def test_who_was_replaced_can_commit_nothing_more(target_url: str, looking: Connection) -> None:
    async with applying(target_url, 1) as old:
        await old.apply([put(1, "a")], 200)
        async with applying(target_url, 2) as new:
            assert new.applied == 200
            with pytest.raises((FencedError, psycopg.OperationalError)):
                await old.apply([put(2, "b")], 300)
            await new.apply([put(3, "c")], 300)
    assert [row[0] for row in await rows(looking)] == [1, 3]
    with pytest.raises(FencedError, match="epoch 2; 2 comes too late"):
        await Applier.open(target_url, NAME, 2)


async def test_one_that_sleeps_in_its_transaction_is_ended_by_who_takes_over(
    target_url: str, looking: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a process that was stopped between two statements, and whose connection stays."""
    monkeypatch.setattr(apply, "LET_GO_WITHIN", 1)
    asleep = await connect(target_url, target.session_name(NAME))
    await asleep.execute("BEGIN")
    await asleep.execute("SELECT FROM crossfade_sync.streams FOR UPDATE")
    async with applying(target_url) as new:
        await new.apply([put(1, "a")], 200)
    assert [row[0] for row in await rows(looking)] == [1]
    with pytest.raises(psycopg.OperationalError):
        await asleep.execute("COMMIT")
    await asleep.close()


async def test_an_epoch_alone_fences(target_url: str, looking: Connection) -> None:
    async with applying(target_url, 1) as old:
        await target.take_over(looking, NAME, 2)
        with pytest.raises(FencedError, match="held by epoch 2, and not by 1"):
            await old.apply([put(1, "a")], 200)
    assert await rows(looking) == []


async def test_a_session_that_is_cut_leaves_all_or_nothing(target_url: str, looking: Connection) -> None:
    async with applying(target_url) as applier:
        await applier.apply([put(1, "a")], 200)
        await looking.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name LIKE %s",
            ("crossfade apply%",),
        )
        with pytest.raises(psycopg.OperationalError):
            await applier.apply([put(2, "b")], 300)
    async with applying(target_url, 2) as again:
        assert again.applied == 200
        await again.apply([put(2, "b")], 300)
    assert [row[0] for row in await rows(looking)] == [1, 2]


async def test_a_stream_that_was_never_noted_cannot_be_taken(target_url: str, looking: Connection) -> None:
    with pytest.raises(LookupError, match="knows no stream 'other'"):
        await Applier.open(target_url, "other", 1)


texts = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=30)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.tuples(texts | st.sampled_from(["\\N", "\\.", "\\t", "\r\n"]), st.none() | texts)))
def test_copy_carries_any_text(postgres: Any, values: list[tuple[str, str | None]]) -> None:
    made = [
        (b"%d" % number, first.encode(), None if second is None else second.encode())
        for number, (first, second) in enumerate(values)
    ]
    with psycopg.connect(postgres.url()) as connection:
        connection.execute("CREATE TEMP TABLE seen (n int, a text, b text)")
        with connection.cursor().copy("COPY seen FROM STDIN") as copy:
            copy.write(copy_text(made))
        found = connection.execute("SELECT a, b FROM seen ORDER BY n").fetchall()
    assert found == values


def test_a_value_that_was_not_sent_is_never_copied_as_null() -> None:
    with pytest.raises(TypeError):
        copy_text([(b"1", ABSENT)])


async def test_what_is_computed_follows_a_row_that_changes_in_part(
    target_url: str, looking: Connection
) -> None:
    """The expression looks at a column that was not sent, as the target has it."""
    await looking.execute("ALTER TABLE notes ADD said text")
    table = replace(NOTES, computed=(("said", "SELECT given.title || ': ' || coalesce(given.body, '-')"),))
    async with applying(target_url) as applier:
        await applier.apply(
            [put(1, "a", "long")._replace(table=table), put(2, "b")._replace(table=table)], 200
        )
        await applier.apply([patch(1, "aa")._replace(table=table)], 300)
        assert [row[3] for row in await rows(looking)] == ["aa: long", "b: -"]
        # Also where rows have to make place for each other.
        swapped = [patch(1, "b")._replace(table=table), put(2, "aa", "x")._replace(table=table)]
        await applier.apply(swapped, 400)
    assert [row[1:] for row in await rows(looking)] == [("b", "long", "b: long"), ("aa", "x", "aa: x")]


LETTERS = st.sampled_from("abcd")
WRITES = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(1, 4), LETTERS),
        st.tuples(st.just("title"), st.integers(1, 4), LETTERS),
        st.tuples(st.just("key"), st.integers(1, 4), st.integers(1, 4)),
        st.tuples(st.just("swap"), st.integers(1, 4), st.integers(1, 4)),
        st.tuples(st.just("remove"), st.integers(1, 4), st.none()),
        st.tuples(st.just("part"), st.integers(1, 4), st.integers(1, 2)),
    ),
    max_size=12,
)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(WRITES, min_size=1, max_size=3))
async def test_any_history_that_a_database_allows_ends_alike_and_violates_nothing(
    target_url: str, looking: Connection, history: list[list[tuple[str, int, Any]]]
) -> None:
    """Unique values that go round, keys that follow each other, children before and after their parents."""
    await looking.execute("TRUNCATE notes, parts")
    await looking.execute("UPDATE crossfade_sync.streams SET epoch = 0, applied = '0/0'")
    parts = TargetTable("public", "parts", ("note", "number"), (0, 1))
    notes: dict[int, tuple[str, str]] = {}
    children: set[tuple[int, int]] = set()

    def free(title: str, of: int) -> bool:
        return all(key == of or there != title for key, (there, _) in notes.items())

    def moved(was: int, key: int) -> list[Op]:
        """The row and its children, by ON UPDATE CASCADE: the parent's change comes first."""
        notes[key] = notes.pop(was)
        found = [remove(was), put(key, *notes[key])]
        for one in sorted(children):
            if one[0] == was:
                children.remove(one)
                children.add((key, one[1]))
                old, new = ((b"%d" % each, b"%d" % one[1]) for each in (was, key))
                found += [Op(Action.REMOVE, parts, old, ()), Op(Action.PUT, parts, new, new)]
        return found

    async with applying(target_url) as applier:
        for number, writes in enumerate(history):
            ops: list[Op] = []
            for what, key, more in writes:
                if what == "put" and key not in notes and free(more, key):
                    notes[key] = (more, f"body {key}")
                    ops.append(put(key, *notes[key])._replace(action=Action.ADD))
                elif what == "title" and key in notes and free(more, key):
                    notes[key] = (more, notes[key][1])
                    ops.append(patch(key, more))
                elif what == "key" and key in notes and more not in notes:
                    ops += moved(key, more)
                elif what == "swap" and key in notes and more in notes and key != more:
                    titles = notes[key][0], notes[more][0]
                    # By a third value, as an application has to do it.
                    for one, title in ((key, "z"), (more, titles[0]), (key, titles[1])):
                        notes[one] = (title, notes[one][1])
                        ops.append(patch(one, title))
                elif what == "remove" and key in notes:
                    del notes[key]
                    gone = {one for one in children if one[0] == key}
                    children -= gone
                    ops.append(remove(key))
                    ops += [Op(Action.REMOVE, parts, (b"%d" % one, b"%d" % two), ()) for one, two in gone]
                elif what == "part" and key in notes and (key, more) not in children:
                    children.add((key, more))
                    row = (b"%d" % key, b"%d" % more)
                    ops.append(Op(Action.ADD, parts, row, row))
            await applier.apply(ops, 100 + number)
            assert await rows(looking) == [(key, *notes[key]) for key in sorted(notes)]
            assert set(await rows(looking, "parts")) == children
    # Nothing points to what is not there: a constraint that is made anew looks at every row.
    await looking.execute("ALTER TABLE parts DROP CONSTRAINT parts_note_fkey")
    await looking.execute(
        "ALTER TABLE parts ADD CONSTRAINT parts_note_fkey FOREIGN KEY (note) REFERENCES notes"
    )
