"""Many changes of a key become one, and the table ends as if all had been made one after the other."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualwrite.change import ABSENT, Change, Identity, Kind, Relation, Row, SourceColumn
from dualwrite.plan import Action, ContradictionError, Copying, Op, Step, TargetTable, steps

COLUMNS = (SourceColumn("id", 23, True), SourceColumn("a", 25, False), SourceColumn("b", 25, False))
BY_KEY = Relation("public", "t", Identity.KEY, COLUMNS)
WHOLE = Relation("public", "t", Identity.FULL, COLUMNS)
TABLE = TargetTable("public", "t", ("id", "a", "b"), (0,))
COPYING = Copying(TABLE, ("id", "a", "b"))


def ops_of(copying: Copying, change: Change) -> Sequence[Op]:
    return copying.bind(change.relation)(change)


Table = dict[Row, Row]


def one_by_one(table: Table, op: Op) -> None:
    """What an operation means, in the simplest words."""
    match op.action:
        case Action.EMPTY:
            table.clear()
        case Action.REMOVE:
            table.pop(op.key, None)
        case Action.PUT | Action.ADD:
            table[op.key] = op.row
        case Action.PATCH | Action.MOVE:
            if (before := table.pop(op.key, None)) is not None:
                table[op.row[:1]] = _patched(before, op.row)


def carried_out(table: Table, done: list[Step]) -> None:
    """What the apply does with steps: what goes, what is put, what is patched, and then the last."""
    for step in done:
        for work in step.works:
            for key in work.removes:
                table.pop(key, None)
            for row in (*work.adds, *work.puts):
                table[row[:1]] = row
            for row in work.patches:
                if row[:1] in table:
                    table[row[:1]] = _patched(table[row[:1]], row)
        if step.last is not None:
            one_by_one(table, step.last)


def _patched(before: Row, row: Row) -> Row:
    return tuple(old if new is ABSENT else new for old, new in zip(before, row, strict=True))


@st.composite
def histories(draw: st.DrawFn) -> tuple[Table, list[Change]]:
    """Rows that are there, and what an application then did: only what a database allows."""
    keys = [b"1", b"2", b"3"]
    values = st.sampled_from([b"x", b"y", b"z", None])
    start: Table = {(key,): (key, draw(values), draw(values)) for key in keys if draw(st.booleans())}
    table, made = dict(start), []
    relation = draw(st.sampled_from([BY_KEY, WHOLE]))
    for _ in range(draw(st.integers(0, 12))):
        key = (draw(st.sampled_from(keys)),)
        if draw(st.integers(0, 15)) == 0:
            made.append(Change(Kind.TRUNCATE, relation, None, None))
            table.clear()
        elif key not in table:
            row: Row = (*key, draw(values), draw(values))
            made.append(Change(Kind.INSERT, relation, None, row))
            table[key] = row
        elif draw(st.booleans()):
            gone = table.pop(key)
            old: Row | None = gone if relation is WHOLE else (*key, None, None)
            made.append(Change(Kind.DELETE, relation, old, None))
        else:
            before = table.pop(key)
            free = [other for other in keys if (other,) not in table]
            row = (draw(st.sampled_from(free)), draw(values), before[2])
            sent = (*row[:2], ABSENT if draw(st.booleans()) else row[2])
            moved = row[:1] != key
            old = before if relation is WHOLE else (*key, None, None) if moved else None
            made.append(Change(Kind.UPDATE, relation, old, sent))
            table[row[:1]] = row
    return start, made


@given(histories())
def test_less_work_has_the_same_effect(history: tuple[Table, list[Change]]) -> None:
    start, made = history
    ops = [op for change in made for op in ops_of(COPYING, change)]
    slow, quick = dict(start), dict(start)
    for op in ops:
        one_by_one(slow, op)
    carried_out(quick, steps(ops))
    assert quick == slow


@given(histories())
def test_the_table_ends_as_the_source_has_it(history: tuple[Table, list[Change]]) -> None:
    start, made = history
    source = dict(start)
    for change in made:
        if change.kind is Kind.TRUNCATE:
            source.clear()
            continue
        if change.kind is Kind.DELETE:
            assert change.old is not None
            source.pop(change.old[:1])
            continue
        assert change.new is not None
        was = change.old[:1] if change.old is not None else change.new[:1]
        before = source.pop(was, change.new)
        source[change.new[:1]] = _patched(before, change.new)
    target = dict(start)
    carried_out(target, steps(op for change in made for op in ops_of(COPYING, change)))
    assert target == source


def test_a_key_is_written_once_however_often_it_changed() -> None:
    rows = [(b"1", b"%d" % number, None) for number in range(100)]
    (step,) = steps(Op(Action.PUT, TABLE, (b"1",), row) for row in rows)
    assert step.works[0].puts == [rows[-1]]


def test_an_insert_and_an_update_that_leaves_a_large_value_alone_keep_that_value() -> None:
    insert = Change(Kind.INSERT, BY_KEY, None, (b"1", b"a", b"large"))
    update = Change(Kind.UPDATE, BY_KEY, None, (b"1", b"b", ABSENT))
    (step,) = steps(op for change in (insert, update) for op in ops_of(COPYING, change))
    assert (step.works[0].adds, step.works[0].patches) == ([(b"1", b"b", b"large")], [])


def test_with_the_old_row_nothing_is_absent() -> None:
    update = Change(Kind.UPDATE, WHOLE, (b"1", b"a", b"large"), (b"1", b"b", ABSENT))
    (op,) = ops_of(COPYING, update)
    assert op == Op(Action.PUT, TABLE, (b"1",), (b"1", b"b", b"large"))


def test_names_may_differ_and_columns_may_be_left_out() -> None:
    copying = Copying(TargetTable("new", "things", ("name", "number"), (1,)), ("a", "id"))
    (op,) = ops_of(copying, Change(Kind.INSERT, BY_KEY, None, (b"1", b"x", b"y")))
    assert op == Op(Action.ADD, copying.table, (b"1",), (b"x", b"1"))


def test_a_change_after_a_deletion_is_a_contradiction() -> None:
    delete = Change(Kind.DELETE, BY_KEY, (b"1", None, None), None)
    update = Change(Kind.UPDATE, BY_KEY, None, (b"1", b"b", ABSENT))
    with pytest.raises(ContradictionError, match=r"public\.t changed after it was deleted: key 1"):
        steps(op for change in (delete, update) for op in ops_of(COPYING, change))
