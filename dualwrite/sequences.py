"""Sequences, which no stream brings: the side that gains the authority goes on where the other one was."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import psycopg
from psycopg import sql

from dualwrite.mapped import Mapped, SourceTable, by_table
from dualwrite.plan import TargetTable
from dualwrite.target import qualified
from dualwrite.together import together

Connection = psycopg.AsyncConnection[Any]

_OWNED: Final = """
    SELECT t.nspname || '.' || c.relname, a.attname::text, n.nspname::text, s.relname::text,
           coalesce(pg_sequence_last_value(s.oid), 0)
      FROM pg_depend d
      JOIN pg_class s ON s.oid = d.objid AND s.relkind = 'S'
      JOIN pg_namespace n ON n.oid = s.relnamespace
      JOIN pg_class c ON c.oid = d.refobjid
      JOIN pg_namespace t ON t.oid = c.relnamespace
      JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = d.refobjsubid
     WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass
       AND d.deptype IN ('a', 'i')
"""
"""Sequences that belong to a column, by serial or identity, and the last number that each gave."""

_LAST: Final = """
    SELECT n.nspname::text, c.relname::text, s.seqmax
      FROM pg_sequence s JOIN pg_class c ON c.oid = s.seqrelid JOIN pg_namespace n ON n.oid = c.relnamespace
"""
"""The last number that each sequence can give."""

Owned = dict[tuple[str, str], tuple[tuple[str, str], int]]
"""By table (schema.table) and column: the sequence's schema and name, and its last number."""


async def carry(losing: Connection, gaining: Connection, sources: Iterable[SourceTable]) -> list[str]:
    """Move each sequence of the gaining side behind all numbers that either side has given; those it moved.

    Never back, so it does no harm to do it twice, or to have done it for a cutover that is cancelled.
    """
    ours, theirs = await together(_owned(gaining), _owned(losing))
    fed, floors = [], []
    for source, mapping in by_table({one.name: one for one in sources}):
        table = mapping.table
        for at, name in enumerate(mapping.inputs):
            column = table.columns[at]
            if (str(table), column) in ours:
                converted = isinstance(mapping, Mapped) and mapping.conversions[at] is not None
                _, floor = ((), 0) if converted else theirs.get((source.name, name), ((), 0))
                fed.append((table, column))
                floors.append(floor)
    moved: dict[tuple[str, str], int] = {}
    for (table, column), floor, highest in zip(fed, floors, await _highest(gaining, fed), strict=True):
        sequence, given = ours[str(table), column]
        if (wanted := max(floor, highest)) > given:
            moved[sequence] = max(wanted, moved.get(sequence, 0))
    await _set(gaining, moved)
    return [".".join(sequence) for sequence in moved]


async def leap(where: Connection, sources: Iterable[SourceTable], by: int) -> list[str]:
    """Move the sequences of these tables behind all their numbers, and `by` more; those that it moved.

    For when the side is gone that has given the last numbers: what is given from now on is not what it gave,
    unless it gave more than that. As far as a sequence goes, and never back.
    """
    ours = await _owned(where)
    names = {one.name for one in sources}
    columns = [key for key in ours if key[0] in names]
    fed = []
    for table, column in columns:
        schema, _, name = table.partition(".")
        fed.append((TargetTable(schema, name, (column,), ()), column))
    moved: dict[tuple[str, str], int] = {}
    for key, highest in zip(columns, await _highest(where, fed), strict=True):
        sequence, given = ours[key]
        moved[sequence] = max(highest, given, moved.get(sequence, 0)) + by
    most = {(schema, name): last for schema, name, last in await (await where.execute(_LAST)).fetchall()}
    await _set(where, {sequence: min(number, most[sequence]) for sequence, number in moved.items()})
    return [".".join(sequence) for sequence in moved]


async def _owned(where: Connection) -> Owned:
    rows = await (await where.execute(_OWNED)).fetchall()
    return {(table, column): ((schema, name), given) for table, column, schema, name, given in rows}


async def _highest(where: Connection, columns: Sequence[tuple[TargetTable, str]]) -> Sequence[int]:
    """The highest number in each of these columns; 0 where there is none."""
    if not columns:
        return []
    each = (
        sql.SQL("coalesce((SELECT max({}) FROM {}), 0)").format(
            sql.Identifier(column), qualified(table.schema, table.name)
        )
        for table, column in columns
    )
    row = await (await where.execute(sql.SQL("SELECT {}").format(sql.SQL(", ").join(each)))).fetchone()
    assert row is not None
    return list(map(int, row))


async def _set(where: Connection, numbers: Mapping[tuple[str, str], int]) -> None:
    if not numbers:
        return
    each = (
        sql.SQL("setval({}::regclass, {})").format(
            sql.Literal(qualified(*sequence).as_string(where)), sql.Literal(number)
        )
        for sequence, number in numbers.items()
    )
    await where.execute(sql.SQL("SELECT {}").format(sql.SQL(", ").join(each)))
