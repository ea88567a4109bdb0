"""Values of one side, mapped to the other and back, through the columns of both: what does not come home.

Each value is one that the column may hold, for its own database has taken it. It is put through the users'
function, into the column on the other side, out of it as the stream would read it, and back. Columns are
copies of the real ones, with their types and constraints, in temporary tables; at both databases all of it is
one transaction that is rolled back.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from random import Random
from typing import Any, Final

import psycopg
from psycopg import sql

from dualwrite.change import ABSENT, Value
from dualwrite.column_values import values_for
from dualwrite.mapped import Conversion, conversion, other
from dualwrite.mapping import InvalidMappingError, Table, Values, name_in_new
from dualwrite.target import qualified
from flags.model import Side

Connection = psycopg.AsyncConnection[Any]
Sides = Mapping[Side, Connection]

_COLUMNS: Final = """
    SELECT a.attname::text, a.attnotnull,
           format_type(coalesce(nullif(t.typbasetype, 0), t.oid),
                       CASE WHEN t.typbasetype <> 0 THEN t.typtypmod ELSE a.atttypmod END),
           ARRAY(SELECT e.enumlabel::text FROM pg_enum e
                  WHERE e.enumtypid = coalesce(nullif(t.typbasetype, 0), t.oid) ORDER BY e.enumsortorder),
           ARRAY(SELECT pg_get_constraintdef(k.oid) FROM pg_constraint k WHERE k.contype = 'c'
                    AND (k.conrelid = c.oid AND a.attnum = ANY(k.conkey) OR k.contypid = t.oid))
      FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_type t ON t.oid = a.atttypid
     WHERE c.oid = to_regclass(%s) AND a.attnum > 0 AND NOT a.attisdropped
"""
_FUNCTION: Final = """
    CREATE FUNCTION pg_temp.crossfade_try(place text, col text, said text, OUT taken text, OUT refusal text)
    LANGUAGE plpgsql AS $try$
    BEGIN
        EXECUTE format('INSERT INTO pg_temp.%1$I (%2$I) VALUES (%3$L)'
            ' RETURNING CASE WHEN %2$I IS NULL THEN NULL ELSE format(''%%s'', %2$I) END', place, col, said)
            INTO taken;
    EXCEPTION WHEN others THEN
        refusal := SQLERRM;
    END $try$
"""
"""What a column makes of a value, in the text that its type writes; or why it does not take it."""
_TRY: Final = """
    SELECT one.taken, one.refusal FROM unnest(%s::text[]) WITH ORDINALITY given(said, place),
           LATERAL pg_temp.crossfade_try(%s, %s, given.said) one
     ORDER BY given.place
"""


class Outcome(StrEnum):
    """What has become of a value."""

    RAISES = "raises"
    """The function towards the other side has raised."""
    REFUSED = "refused"
    """The column on the other side does not take what became of it."""
    RAISES_BACK = "raises_back"
    REFUSED_BACK = "refused_back"
    CHANGED = "changed"
    """It came home as something else."""
    NOT_TRIED = "not_tried"
    """Nobody could think of a value that the column takes."""


@dataclass(frozen=True, slots=True)
class Unfit:
    """`column` is table.column on the side that it came from; `said` is what became of it, or why nothing."""

    mapping: str
    column: str
    outcome: Outcome
    value: str | None
    said: str | None

    def __str__(self) -> str:
        if self.outcome is Outcome.NOT_TRIED:
            return f"{self.column}: not tried: {self.said}"
        return f"{self.column}: {_shown(self.value)} {self.outcome.value.replace('_', ' ')}: {self.said}"


@dataclass(frozen=True, slots=True)
class Tried:
    """What was tried, and all that is not as it should be."""

    columns: int
    values: int
    unfit: tuple[Unfit, ...]


@dataclass(frozen=True, slots=True)
class _Column:
    not_null: bool
    type: str
    labels: Sequence[str]
    checks: Sequence[str]


async def try_mappings(
    sides: Sides,
    tables: Iterable[Table],
    holds: Mapping[str, Sequence[str | None]],
    lossy: Iterable[str],
    seed: int,
) -> Tried:
    """All columns of all tables. `holds` are values in place of those that are thought up, by table.column.

    `lossy` are columns whose values may come home as others. Raises psycopg.Error, and InvalidMappingError
    where a name in either is none.
    """
    tables, lossy = list(tables), frozenset(lossy)
    _must_be_columns({*holds, *lossy}, tables)
    columns = values = 0
    found: list[Unfit] = []
    async with _rolled_back(sides[Side.LEGACY]), _rolled_back(sides[Side.NEW]):
        for place, table in enumerate(tables):
            trial = _Trial(sides, table, f"crossfade_{place}", Random(seed))
            await trial.prepare()
            for name in table.pairs:
                label = trial.label(name)
                count, unfit = await trial.column(name, holds.get(label))
                columns, values = columns + 1, values + count
                found += (one for one in unfit if one.outcome is not Outcome.CHANGED or label not in lossy)
    return Tried(columns, values, tuple(found))


class _Trial:
    def __init__(self, sides: Sides, table: Table, place: str, chance: Random) -> None:
        self._sides = sides
        self._table = table
        self._place = place
        self._chance = chance
        self._start = Side.NEW if table.towards is Side.LEGACY else Side.LEGACY
        self._known: dict[Side, dict[str, _Column]] = {}

    async def prepare(self) -> None:
        for side, connection in self._sides.items():
            schema, _, name = self._table.name_on(side).partition(".")
            rows = await (
                await connection.execute(_COLUMNS, (qualified(schema, name).as_string(connection),))
            ).fetchall()
            self._known[side] = {row[0]: _Column(*row[1:]) for row in rows}
            if not rows:
                raise InvalidMappingError(f"{side.value}'s database has no table {schema}.{name}")
            place = sql.Identifier(self._place)
            await connection.execute(
                sql.SQL("CREATE TEMP TABLE {} (LIKE {} INCLUDING CONSTRAINTS)").format(
                    place, qualified(schema, name)
                )
            )
            # One column at a time is filled; whether it may be NULL is told beside.
            for column, one in self._known[side].items():
                if one.not_null:
                    await connection.execute(
                        sql.SQL("ALTER TABLE pg_temp.{} ALTER {} DROP NOT NULL").format(
                            place, sql.Identifier(column)
                        )
                    )

    def label(self, name: str) -> str:
        table, column = (
            (self._table.legacy, name) if self._start is Side.LEGACY else (self._table.new, self._new(name))
        )
        return f"{table}.{column}"

    async def column(self, name: str, held: Sequence[str | None] | None) -> tuple[int, list[Unfit]]:
        """How many values were tried of a column, by its name in legacy, and those that are unfit."""
        start, there = self._start, other(self._start)
        names = {Side.LEGACY: name, Side.NEW: self._new(name)}
        for side, one in names.items():
            if one not in self._known[side]:
                raise InvalidMappingError(f"{self._table.name_on(side)} has no column {one}")
        wanted = self._candidates(name, names[start]) if held is None else held
        given = [taken for taken, refusal in await self._put(start, names[start], wanted) if refusal is None]
        given = list(dict.fromkeys(given))
        if all(value is None for value in given):
            why = "no value that could be thought of is one that it takes; name some in Project(holds=…)"
            return 0, [self._unfit(name, Outcome.NOT_TRIED, None, why)]

        found: list[Unfit] = []
        forth, back = self._ways(name)
        gone = await self._leg(
            name,
            forth,
            there,
            names[there],
            [(one, one) for one in given],
            Outcome.RAISES,
            Outcome.REFUSED,
            found,
        )
        if back is not None:
            home = await self._leg(
                name, back[0], start, names[start], gone, Outcome.RAISES_BACK, Outcome.REFUSED_BACK, found
            )
            found += (
                self._unfit(name, Outcome.CHANGED, value, f"came home as {_shown(came)}")
                for value, came in home
                if value != came
            )
        return len(given), found

    def _ways(self, name: str) -> tuple[Conversion | None, tuple[Conversion | None] | None]:
        """The way to the other side, and the way back, if there is one."""
        spec, start = self._table.pairs[name], self._start
        forth = conversion(self._table, name, spec, other(start))
        if self._table.towards is not None:
            return forth, None
        return forth, (conversion(self._table, name, spec, start),)

    async def _leg(
        self,
        name: str,
        way: Conversion | None,
        side: Side,
        column: str,
        pairs: Sequence[tuple[str | None, str | None]],
        raises: Outcome,
        refused: Outcome,
        found: list[Unfit],
    ) -> list[tuple[str | None, str | None]]:
        """Each value as it began with what it is after this way; what does not get there is noted."""
        went: list[tuple[str | None, str | None]] = []
        for value, now in pairs:
            try:
                went.append((value, _text(_bytes(now) if way is None else way(_bytes(now)))))
            except Exception as error:  # users' code
                found.append(self._unfit(name, raises, value, f"{type(error).__name__}: {error}"))
        put = await self._put(side, column, [now for _, now in went])
        came = []
        for (value, _), (taken, refusal) in zip(went, put, strict=True):
            if refusal is not None:
                found.append(self._unfit(name, refused, value, refusal))
            else:
                came.append((value, taken))
        return came

    def _candidates(self, name: str, column: str) -> list[str | None]:
        spec, known = self._table.pairs[name], self._known[self._start][column]
        if isinstance(spec, Values):
            # Whatever else there is stops the stream, and is meant to.
            return list(spec.values if self._start is Side.LEGACY else spec.values.values())
        thought: list[str | None] = [*values_for(known.type, known.labels, known.checks, self._chance)]
        return thought if known.not_null else [None, *thought]

    async def _put(
        self, side: Side, column: str, values: Sequence[str | None]
    ) -> list[tuple[str | None, str | None]]:
        """What the column makes of each, or why it takes it not."""
        asked = (list(values), self._place, column)
        rows = await (await self._sides[side].execute(_TRY, asked)).fetchall()
        never_null = self._known[side][column].not_null
        return [
            (None, f"{column} may not be NULL")
            if never_null and refusal is None and taken is None
            else (taken, refusal)
            for taken, refusal in rows
        ]

    def _new(self, name: str) -> str:
        return name_in_new(self._table.pairs[name])

    def _unfit(self, name: str, outcome: Outcome, value: str | None, said: str) -> Unfit:
        return Unfit(str(self._table), self.label(name), outcome, value, said)


def _must_be_columns(names: Iterable[str], tables: Sequence[Table]) -> None:
    known = {f"{one.legacy}.{name}" for one in tables for name in one.pairs}
    known |= {f"{one.new}.{name_in_new(spec)}" for one in tables for spec in one.pairs.values()}
    if unknown := sorted(set(names) - known):
        raise InvalidMappingError(f"holds or lossy names {unknown[0]}, which is no column of a mapping")


@contextlib.asynccontextmanager
async def _rolled_back(connection: Connection) -> AsyncIterator[None]:
    async with connection.transaction(force_rollback=True):
        await connection.execute("SET LOCAL search_path = pg_catalog, public")
        await connection.execute(_FUNCTION.encode())
        yield


def _bytes(value: str | None) -> Value:
    return None if value is None else value.encode()


def _text(value: Value) -> str | None:
    assert value is not ABSENT
    return None if value is None else value.decode()


def _shown(value: str | None) -> str:
    if value is None:
        return "NULL"
    return repr(value) if len(value) <= 60 else f"{value[:40]!r}… ({len(value)} characters)"
