"""Users' mappings, made ready for one direction: changes and copied rows of one side as rows of the other.

Pure, but for the users' functions, which are called here and nowhere else. One that raises, or says what no
database could keep, stops the stream with the row named: nothing is passed over.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from functools import partial
from typing import Any, Final, TypeAlias
from uuid import UUID

from dualwrite.change import ABSENT, Change, Kind, Relation, Row, Value
from dualwrite.copy_text import copy_text, read_copy_text
from dualwrite.mapping import (
    Column,
    FollowUp,
    InvalidMappingError,
    Table,
    Values,
    name_in_new,
    qualified_name,
)
from dualwrite.plan import (
    Action,
    ContradictionError,
    Copying,
    Op,
    Pick,
    TargetTable,
    filled,
    named,
    picking,
    shown,
    unexpected_columns,
)
from flags.model import Side

Conversion: TypeAlias = Callable[[Value], Value]
Converted: TypeAlias = Sequence[tuple[int, Conversion]]
_TEXTUAL: Final = (int, float, Decimal, date, datetime, time, timedelta, UUID)


class MappingFailedError(Exception):
    """A users' function raised, or a value has no counterpart. Nothing of the row was written."""


@dataclass(frozen=True, slots=True)
class Mapped:
    """How rows of one relation become rows of one table, value by value."""

    table: TargetTable
    inputs: tuple[str, ...]
    """Names at the source, of the first of the table's columns; a mark may follow, which has none."""
    conversions: tuple[Conversion | None, ...]
    left_out: frozenset[str] = frozenset()
    only: tuple[str, bytes] | None = None
    """A column at the source, and its value in rows that exist in new."""
    mark: tuple[bytes, bytes | None] | None = None
    """What the table's last column says of a row that is there, and of one that is gone (None: it goes)."""
    back: tuple[Conversion | None, ...] | None = ()
    """Of the columns of the key, the way back; None where one has none."""
    returns: tuple[Conversion | None, ...] = ()
    """Of each of the conversions, the way back; None where there is none."""

    @property
    def read(self) -> tuple[str, ...]:
        """What has to be read of a row at the source."""
        return self.inputs if self.only is None else (*self.inputs, self.only[0])

    def trouble(self, relation: Relation) -> tuple[str, str] | None:
        return unexpected_columns(relation, self.read, self.left_out)

    def bind(self, relation: Relation) -> Callable[[Change], Sequence[Op]]:
        pick = picking(tuple(map(relation.names.index, self.inputs)))
        only = None if self.only is None else (relation.names.index(self.only[0]), self.only[1])
        ops = partial(self._ops, pick, self._converted, picking(self.table.key), only)
        return ops if self.table.quarantine is None else partial(self._ops_or_kept, ops, pick)

    def _ops_or_kept(self, ops: Callable[[Change], Sequence[Op]], pick: Pick, change: Change) -> Sequence[Op]:
        try:
            return ops(change)
        except MappingFailedError as error:
            # Without its keys a row cannot be kept; then this raises once more.
            images = [image for image in (change.old, change.new) if image is not None]
            keys = dict.fromkeys(self._key(pick(image)) for image in images)
            said = named(self.inputs, pick(images[-1]))
            row = str(error).encode(), json.dumps(said).encode()
            return [Op(Action.KEEP, self.table, key, row) for key in keys]

    def lines(self, lines: Iterable[bytes]) -> list[bytes]:
        """Lines of COPY with `read`, as lines of COPY with the table's columns."""
        rows, width, converted = [], len(self.inputs), self._converted
        for line in lines:
            row = read_copy_text(line)
            if self.only is None or row[-1] == self.only[1]:
                rows.append(self._row(row[:width], converted))
        return [copy_text(rows)]

    def _ops(
        self, pick: Pick, converted: Converted, key_of: Pick, only: tuple[int, bytes] | None, change: Change
    ) -> Sequence[Op]:
        """`pick` takes the inputs out of a row of the source, `key_of` the key out of one of the table."""
        if change.kind is Kind.TRUNCATE:
            return self._emptied(change)
        was = None if change.old is None else self._key(pick(change.old))
        if change.new is None:
            assert was is not None
            return self.gone(was)
        full = change.new if change.old is None else filled(change)
        source = pick(full)
        if only is not None:
            told = full[only[0]]
            if told is ABSENT:
                raise ContradictionError(f"a row of {change.relation} came without what marks it")
            if told != only[1]:
                key = self._key(source)
                before = self.gone(was) if was is not None and was != key else ()
                return (*before, *self.gone(key))
        row = self._row(source, converted)
        key = key_of(row)
        if ABSENT in key:
            raise ContradictionError(f"a row for {self.table} came without its key")
        moved = was is not None and was != key
        if ABSENT not in row and not self.table.partial:
            op = Op(Action.ADD if change.kind is Kind.INSERT else Action.PUT, self.table, key, row)
            return (*self.gone(was), op) if moved and was is not None else (op,)
        if moved and was is not None:
            return (Op(Action.MOVE, self.table, was, row),)
        return (Op(Action.PATCH, self.table, key, row),)

    def _emptied(self, change: Change) -> Sequence[Op]:
        if self.table.partial:
            return ()
        if self.mark is not None:
            raise ContradictionError(
                f"{change.relation} was emptied by TRUNCATE; its rows have to be marked, or are not all of"
                f" {self.table}"
            )
        return (Op(Action.EMPTY, self.table, (), ()),)

    def key_of_source(self, key: Row) -> Row:
        """The key in the table of a row with this one at the source."""
        return tuple(self._value(at, part) for at, part in zip(self.table.key, key, strict=True))

    def source_key_of(self, key: Row) -> Row | None:
        """The key at the source of a row with this one in the table; None where no function tells it."""
        if self.back is None:
            return None
        return tuple(part if way is None else way(part) for way, part in zip(self.back, key, strict=True))

    def means(self, at: int, value: Value) -> Value:
        """What a value of the table's column `at` stands for: as it would come back from the source.

        A mapping may write two values of one side alike at the other ('' and NULL): whichever of the two is
        there, the rows are alike. Where nothing tells the way back, it stands for itself.
        """
        there, back = self.conversions[at], self.returns[at]
        if there is None or back is None:
            return value
        try:
            return there(back(value))
        except Exception:  # users' code: it is none that has come from the source
            return value

    def gone(self, key: Row) -> Sequence[Op]:
        """What has to be done where the source has no such row any more."""
        if self.table.partial:
            return ()
        if self.mark is None or self.mark[1] is None:
            return (Op(Action.REMOVE, self.table, key, ()),)
        row: list[Value] = [ABSENT] * len(self.table.columns)
        for at, part in zip(self.table.key, key, strict=True):
            row[at] = part
        row[-1] = self.mark[1]
        return (Op(Action.PATCH, self.table, key, tuple(row)),)

    def _key(self, source: Row) -> Row:
        key = tuple(self._value(at, source[at]) for at in self.table.key)
        if ABSENT in key:
            raise ContradictionError(f"a row for {self.table} came without its key")
        return key

    @property
    def _converted(self) -> Converted:
        """Which of the inputs are not carried as they are, and how."""
        return tuple((at, one) for at, one in enumerate(self.conversions) if one is not None)

    def _row(self, source: Row, converted: Converted) -> Row:
        row, at = list(source), 0
        try:
            for at, convert in converted:
                if (value := row[at]) is not ABSENT:
                    row[at] = convert(value)
        except Exception as error:  # users' code
            raise self._failed(at, source[at], error) from error
        if self.mark is not None:
            row.append(self.mark[0])
        return tuple(row)

    def _value(self, at: int, value: Value) -> Value:
        conversion = self.conversions[at]
        if conversion is None or value is ABSENT:
            return value
        try:
            return conversion(value)
        except Exception as error:  # users' code
            raise self._failed(at, value, error) from error

    def _failed(self, at: int, value: Value, error: Exception) -> MappingFailedError:
        return MappingFailedError(
            f"{self.inputs[at]} to {self.table}.{self.table.columns[at]}: {shown((value,))!r}:"
            f" {type(error).__name__}: {error}"
        )


@dataclass(frozen=True, slots=True, eq=False)
class Touching:
    """Which rows a follow-up has to look at."""

    follow_up: FollowUp
    inputs: tuple[str, ...]
    place: int
    """Its number among the follow-ups of its direction: they run in this order."""

    @property
    def read(self) -> tuple[str, ...]:
        return self.inputs

    def bind(self, relation: Relation) -> Callable[[Change], Sequence[Row]]:
        return partial(self._rows, tuple(map(relation.names.index, self.inputs)))

    def lines(self, lines: Iterable[bytes]) -> list[bytes]:
        """Lines of COPY with `inputs`, as lines of the table of touched rows."""
        return [line.removesuffix(b"\n") + b"\tf\n" for line in lines]

    def _rows(self, places: tuple[int, ...], change: Change) -> Sequence[Row]:
        if change.kind is Kind.TRUNCATE:
            raise ContradictionError(f"{change.relation} was emptied by TRUNCATE; its follow-up cannot know")
        found: list[Row] = []
        keys = len(self.follow_up.key)
        if change.new is not None:
            full = filled(change)
            row = tuple(full[at] for at in places)
            if ABSENT in row:
                raise ContradictionError(
                    f"a change of {change.relation} came without {self.inputs[row.index(ABSENT)]}, which has"
                    f" not changed: ALTER TABLE {change.relation} REPLICA IDENTITY FULL"
                )
            found.append((*row, b"f"))
        if change.old is not None:
            key = tuple(change.old[at] for at in places[:keys])
            if not found or key != found[0][:keys]:
                found.append((*key, *(None for _ in places[keys:]), b"t"))
        return found


def touched_rows(touching: Touching, rows: Iterable[Row]) -> list[Row]:
    """The last of each key."""
    keys = len(touching.follow_up.key)
    return list({row[:keys]: row for row in rows}.values())


RowMapping: TypeAlias = Copying | Mapped


@dataclass(frozen=True, slots=True)
class SourceTable:
    """All that becomes of one table of the source."""

    name: str
    """schema.table"""
    mappings: tuple[RowMapping, ...]
    touching: tuple[Touching, ...]
    one_way: bool = False
    """Nothing of it comes from the target: what our own apply has written to it goes on, too."""


def towards(side: Side, tables: Sequence[Table], follow_ups: Sequence[FollowUp]) -> dict[str, SourceTable]:
    """What becomes of each table of the other side, by schema.table. Raises InvalidMappingError."""
    mappings: dict[str, list[RowMapping]] = {}
    comes_back: set[str] = set()
    for table in tables:
        source = table.name_on(other(side))
        if table.towards in (None, side):
            mappings.setdefault(source, []).append(_compiled(table, side, tables))
        if table.towards in (None, other(side)):
            comes_back.add(source)
    touching: dict[str, list[Touching]] = {}
    for place, one in enumerate(follow_ups):
        if one.on is side:
            name = qualified_name(one.table)
            touching.setdefault(name, []).append(Touching(one, (*one.key, *one.inputs), place))
    return {
        name: SourceTable(
            name, tuple(mappings.get(name, ())), tuple(touching.get(name, ())), name not in comes_back
        )
        for name in dict.fromkeys((*mappings, *touching))
    }


def other(side: Side) -> Side:
    return Side.NEW if side is Side.LEGACY else Side.LEGACY


def _compiled(table: Table, side: Side, tables: Sequence[Table]) -> RowMapping:
    pairs = table.pairs
    to_new = side is Side.NEW
    names = {legacy: name_in_new(column) for legacy, column in pairs.items()}
    inputs = tuple(pairs if to_new else names.values())
    columns = tuple(names.values() if to_new else pairs)
    key = tuple(list(pairs).index(name) for name in table.key)
    conversions = tuple(conversion(table, name, column, side) for name, column in pairs.items())
    marked = table.marked
    only: tuple[str, bytes] | None = None
    mark: tuple[bytes, bytes | None] | None = None
    if marked is not None:
        if to_new:
            only = (marked.column, marked.alive.encode())
        elif table.part_of is not side:
            columns = (*columns, marked.column)
            mark = (marked.alive.encode(), marked.gone.encode())
    if table.only is not None:
        if to_new:
            only = (table.only.column, table.only.value.encode())
        else:
            columns = (*columns, table.only.column)
            mark = (table.only.value.encode(), None)
    schema, _, name = table.name_on(side).partition(".")
    ways_back = _ways_back(table, side)
    quarantine = None
    if table.on_poison == "quarantine":
        if ways_back is None:
            raise InvalidMappingError(
                f"{table}: on_poison='quarantine' wants a key with a way back, by which a row is written anew"
            )
        quarantine = f"{table.name_on(other(side))} to {schema}.{name}"
    target = TargetTable(
        schema, name, columns, key,
        others=_has_others(table, side, tables),
        partial=table.part_of is side,
        computed=tuple(table.computed.get(side, {}).items()), quarantine=quarantine,
    )  # fmt: skip
    left_out = frozenset(_left_out(table, side, tables))
    if not any(conversions) and only is None and mark is None and not target.partial:
        return Copying(target, inputs, left_out)
    returns = tuple(_way_back(table, name, side) for name in pairs)
    return Mapped(target, inputs, conversions, left_out, only, mark, ways_back, returns)


def _way_back(table: Table, name: str, side: Side) -> Conversion | None:
    """Of a column by its name in legacy."""
    try:
        return conversion(table, name, table.pairs[name], other(side))
    except InvalidMappingError:
        return None


def _ways_back(table: Table, side: Side) -> tuple[Conversion | None, ...] | None:
    try:
        return tuple(conversion(table, name, table.pairs[name], other(side)) for name in table.key)
    except InvalidMappingError:
        return None


def _left_out(table: Table, side: Side, tables: Sequence[Table]) -> Iterable[str]:
    """Columns of the source that this mapping does not read, and that are known nevertheless."""
    source = other(side)
    yield from table.legacy_only if side is Side.NEW else table.new_only
    yield from table.computed.get(source, {})
    for one in tables:
        if one.name_on(source) == table.name_on(source):
            yield from one.pairs if source is Side.LEGACY else map(name_in_new, one.pairs.values())
            if one.marked is not None and source is Side.LEGACY:
                yield one.marked.column
            if one.only is not None and source is Side.LEGACY:
                yield one.only.column


def _has_others(table: Table, side: Side, tables: Sequence[Table]) -> bool:
    """Whether rows of this table have columns that this mapping does not write."""
    return bool(
        (table.legacy_only if side is Side.LEGACY else table.new_only)
        or any(one is not table and one.name_on(side) == table.name_on(side) for one in tables)
    )


def conversion(table: Table, name: str, column: Column, side: Side) -> Conversion | None:
    if isinstance(column, str):
        return None
    if isinstance(column, Values):
        return _of_values(column, side)
    function = column.to_new if side is Side.NEW else column.to_legacy
    if function is None:
        raise InvalidMappingError(
            f"{table}: {name} is converted to new and not back; give it to_legacy, or name"
            " the table towards=Side.NEW"
        )
    return partial(_converted, function)


def _of_values(column: Values, side: Side) -> Conversion:
    known: dict[Value, Value] = {}
    for legacy, new in column.values.items():
        one, another = (legacy, new) if side is Side.NEW else (new, legacy)
        known.setdefault(_value(one), _value(another))

    def look_up(value: Value) -> Value:
        if value not in known:
            raise LookupError("this value is not named in Values")
        return known[value]

    return look_up


def _converted(function: Callable[[str | None], Any], value: Value) -> Value:
    assert value is not ABSENT
    return _value(function(None if value is None else value.decode()))


def _value(found: Any) -> Value:
    """As PostgreSQL reads it."""
    if found is None:
        return None
    if isinstance(found, str):
        if "\0" in found:
            raise ValueError("PostgreSQL keeps no NUL in a text")
        return found.encode()
    if isinstance(found, bool):
        return b"t" if found else b"f"
    if isinstance(found, bytes):
        return b"\\x" + found.hex().encode()
    if isinstance(found, _TEXTUAL):
        return str(found).encode()
    raise TypeError(f"a function of a mapping returned a {type(found).__name__}")


def by_table(sources: Mapping[str, SourceTable]) -> Iterable[tuple[SourceTable, RowMapping]]:
    for source in sources.values():
        for mapping in source.mappings:
            yield source, mapping
