"""What has to be done at the target, as few rows as can be: many changes of one key become one.

Pure. Changes come in the source's order; a target transaction holds whole source transactions, so what a
key was in between is seen by nobody and need not be written. Columns are put together one by one: an update
that does not carry a column (ABSENT) leaves what an earlier change of the same key has said of it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from operator import itemgetter
from typing import NamedTuple, TypeAlias

from dualwrite.change import ABSENT, Change, Identity, Kind, Relation, Row

Pick: TypeAlias = Callable[[Row], Row]


@dataclass(frozen=True, slots=True)
class TargetTable:
    """A table that is written to. `columns` are those that are written; `key` are positions in them.

    `others` tells that the table has columns besides, whose values are the target's own.
    """

    schema: str
    name: str
    columns: tuple[str, ...]
    key: tuple[int, ...]
    others: bool = False
    partial: bool = False
    """Rows are made and deleted by somebody else: these columns of theirs are only changed."""
    computed: tuple[tuple[str, str], ...] = ()
    """Columns besides, and the SQL expressions over the row (`given`) that they get where a row is put."""
    quarantine: str | None = None
    """Under the name of which copy rows wait that it does not take. None: such a row stops the stream."""

    def key_of(self, row: Row) -> Row:
        return tuple(row[at] for at in self.key)

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"


class Action(Enum):
    ADD = "add"
    """A row that the source has made. It may be there already, from a copy; then as PUT."""
    PUT = "put"
    """The row shall be as given, whether it was there or not."""
    PATCH = "patch"
    """Some columns of a row that is there; the others are ABSENT."""
    REMOVE = "remove"
    MOVE = "move"
    """Another key for a row of which not all columns are known."""
    EMPTY = "empty"
    """No row at all (TRUNCATE)."""
    KEEP = "keep"
    """A change of which nothing is known but its key: it goes into quarantine, and what follows it, too. The
    row is what was said against it, and what the source has said, as JSON."""


class Op(NamedTuple):
    """`key` is the key that the row has had until now."""

    action: Action
    table: TargetTable
    key: Row
    row: Row


@dataclass(slots=True)
class Work:
    """What becomes of one table in one step: first all that goes, then all that is written."""

    table: TargetTable
    removes: list[Row] = field(default_factory=list)
    adds: list[Row] = field(default_factory=list)
    puts: list[Row] = field(default_factory=list)
    patches: list[Row] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Step:
    """Tables in any order among each other, then `last`, before which all of it must be done."""

    works: tuple[Work, ...]
    last: Op | None = None


class ContradictionError(Exception):
    """Changes that cannot follow each other: something was lost on the way, or another one writes."""


@dataclass(frozen=True, slots=True)
class Copying:
    """How rows of one relation become rows of one table: the same values, perhaps under other names."""

    table: TargetTable
    inputs: tuple[str, ...]
    """Names at the source, in the order of the table's columns."""
    left_out: frozenset[str] = frozenset()
    """Columns of the source that nobody wants. Any other that is not an input stops the stream."""

    @property
    def read(self) -> tuple[str, ...]:
        """What has to be read of a row at the source."""
        return self.inputs

    def trouble(self, relation: Relation) -> tuple[str, str] | None:
        return unexpected_columns(relation, self.inputs, self.left_out)

    def bind(self, relation: Relation) -> Callable[[Change], Sequence[Op]]:
        """What becomes of the changes of the table, as it is now."""
        places = tuple(map(relation.names.index, self.inputs))
        return partial(_copied, self.table, picking(places), picking(self.table.key))

    def key_of_source(self, key: Row) -> Row:
        """The key in the table of a row with this one at the source."""
        return key

    def source_key_of(self, key: Row) -> Row | None:
        """The key at the source of a row with this one in the table."""
        return key

    def gone(self, key: Row) -> Sequence[Op]:
        """What has to be done where the source has no such row any more."""
        return (Op(Action.REMOVE, self.table, key, ()),)

    def lines(self, lines: Sequence[bytes]) -> Sequence[bytes]:
        """Lines of COPY with `read`, as lines of COPY with the table's columns."""
        return lines


def unexpected_columns(
    relation: Relation, read: Sequence[str], left_out: Collection[str]
) -> tuple[str, str] | None:
    """Why rows of a table, as it is now, cannot be copied: a reason in one word, and in more."""
    if gone := [name for name in read if name not in relation.names]:
        return "column_gone", f"{relation} has no column {', '.join(gone)} any more"
    if new := [name for name in relation.names if name not in read and name not in left_out]:
        return "column_unknown", f"{relation} has a column {', '.join(new)} that no mapping names"
    return None


def _copied(table: TargetTable, pick: Pick, key_of: Pick, change: Change) -> Sequence[Op]:
    old, new = change.old, change.new
    if new is None:
        if old is None:
            return (Op(Action.EMPTY, table, (), ()),)
        return (Op(Action.REMOVE, table, key_of(pick(old)), ()),)
    row = pick(new if old is None else filled(change))
    key = key_of(row)
    if ABSENT in key:
        raise ContradictionError(f"a row of {change.relation} came without its key")
    was = key if old is None else key_of(pick(old))
    whole = ABSENT not in row
    if was == key:
        action = Action.PATCH if not whole else Action.ADD if change.kind is Kind.INSERT else Action.PUT
        return (Op(action, table, key, row),)
    if whole:
        return (Op(Action.REMOVE, table, was, ()), Op(Action.PUT, table, key, row))
    return (Op(Action.MOVE, table, was, row),)


def picking(places: Sequence[int]) -> Pick:
    """What takes the values at these places out of a row. Called for every row, so it is none of Python's."""
    if len(places) == 1:
        (place,) = places
        return lambda row: (row[place],)
    return itemgetter(*places)


def filled(change: Change) -> Row:
    """The new row; values that were not sent are taken from the old one, where that is whole."""
    assert change.new is not None
    if change.old is None or change.relation.identity is not Identity.FULL or ABSENT not in change.new:
        return change.new
    return tuple(
        before if value is ABSENT else value for value, before in zip(change.new, change.old, strict=True)
    )


class Plan:
    """Put together while changes come, so that little is left to do when they are to be written."""

    def __init__(self) -> None:
        self._found: list[Step] = []
        self._open: dict[TargetTable, _Table] = {}
        self._table: TargetTable | None = None
        self._noted = _Table({}, set(), set())
        """Of `_table`, which is the one of the last operation."""
        self.keeps = False
        """Something goes into quarantine: this is not what has to be done."""

    def add(self, op: Op) -> None:
        """Raises ContradictionError."""
        if op.action is Action.KEEP:
            self.keeps = True
            return
        if op.action is Action.MOVE or op.action is Action.EMPTY:
            self._found.append(Step(_works(self._open), op))
            self._open, self._table = {}, None
            return
        table = op.table
        if table is not self._table:
            self._noted = self._open.setdefault(table, _Table({}, set(), set()))
            self._table = table
        _note(self._noted, op)

    def steps(self) -> list[Step]:
        """The least that has to be written to have the effect of all that was added."""
        return [*self._found, Step(_works(self._open))] if self._open else self._found


def steps(ops: Iterable[Op]) -> list[Step]:
    """The least that has to be written to have the effect of `ops`. Raises ContradictionError."""
    plan = Plan()
    for op in ops:
        plan.add(op)
    return plan.steps()


class _Table(NamedTuple):
    rows: dict[Row, Row | None]
    """By key: the row as it shall be, with ABSENT where it stays as it is; None: it goes."""
    removed: set[Row]
    """Keys whose row went, whatever came after."""
    added: set[Row]
    """Keys whose row was made here, and did not go again."""


def _note(table: _Table, op: Op) -> None:
    rows, key = table.rows, op.key
    if op.action is Action.REMOVE:
        rows[key] = None
        table.removed.add(key)
        table.added.discard(key)
        return
    if op.action is Action.ADD:
        rows[key] = op.row
        table.added.add(key)
        return
    if op.action is Action.PUT:
        rows[key] = op.row
        return
    before = rows.get(key, op.row)
    if before is None:
        raise ContradictionError(f"a row of {op.table} changed after it was deleted: key {shown(key)}")
    rows[key] = tuple(
        earlier if value is ABSENT else value for value, earlier in zip(op.row, before, strict=True)
    )


def _works(tables: dict[TargetTable, _Table]) -> tuple[Work, ...]:
    works = []
    for table, noted in tables.items():
        work = Work(table, removes=list(noted.removed))
        added = noted.added
        for key, row in noted.rows.items():
            if row is not None:
                if key in added:
                    work.adds.append(row)
                else:
                    (work.patches if table.partial or ABSENT in row else work.puts).append(row)
        works.append(work)
    return tuple(works)


def named(names: Sequence[str], row: Row) -> dict[str, str | None]:
    """The values of a row that were sent, as texts that any JSON can hold; for people."""
    return {
        name: None if value is None else value.decode("utf-8", "replace").replace("\0", "\ufffd")
        for name, value in zip(names, row, strict=False)
        if value is not ABSENT
    }


def shown(key: Row) -> str:
    """A key, for people."""
    return ", ".join(
        "NULL" if part is None else part.decode("utf-8", "replace") if isinstance(part, bytes) else "?"
        for part in key
    )
