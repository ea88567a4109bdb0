"""Where two tables that are written alike differ: stretch by stretch along the key, from sums to rows.

The key is cut at keys that are there, drawn by lot from the source's pages, so that a segment has some
hundred rows whatever the keys look like. Both sides sum up the same segments at the same time; of those that
differ the rows' own hashes are fetched, after a large one was cut once more. Both sides are read at different
moments, so what comes out is only suspected (`verify.py` settles it).

What was found stands in a `Progress` after each stretch, and another process may go on from there.

Where the rows of neighbouring keys lie far from each other, or no index leads to them, each segment would
read the whole table: there one pass sums up by the hash of the key, and cannot go on where it ended.

Two servers may sort texts differently. Then a row counts in one segment here and in another there; both
differ, both are looked into, and it is found in both.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeAlias

import psycopg
from psycopg import sql

from dualwrite.pg_source import WHOLE_TYPES, bare_type
from dualwrite.row_hash import Column, Form, row_hash
from dualwrite.target import qualified

ROWS: Final = 256
"""Of a segment, about."""
MOST_SEGMENTS: Final = 65_536
"""Each costs the reading of a page; beyond that they get larger."""
AT_ONCE: Final = 256
"""Segments of a stretch."""
AHEAD: Final = 2
"""Stretches that are asked for while one is looked into, so that neither side waits for the other."""
CUT_ABOVE: Final = 4_096
"""Rows of a segment that differs from which on it is cut once more."""
BUCKETS: Final = 4_096
"""Of the one pass; a power of two."""
SCATTERED: Final = 0.3
"""Correlation of keys and places below which they have nothing to do with each other."""
SMALL: Final = 100_000
"""Rows of a table whose places do not matter."""

Connection = psycopg.AsyncConnection[Any]
Key = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Half:
    """One side's table as it is compared: `columns` in the order of the other's."""

    connection: Connection
    table: str
    """schema.table"""
    columns: tuple[Column, ...]
    key: tuple[Column, ...]
    utf8: bool


@dataclass(slots=True)
class Progress:
    """How far a comparison has come, in words that can be kept. `of` says of what it is."""

    of: str = ""
    upto: Key | None = None
    """All rows up to this key were compared; None: none, or, where it is done, all."""
    rows: int = 0
    """At the source, of those that were compared."""
    about: int = 0
    """Rows that there are, as the source estimates."""
    segments: int = 0
    odd: set[tuple[Key, int]] = field(default_factory=set)
    """Keys and hashes of rows that only one side has."""
    cut_short: bool = False
    """So many rows differ that it was no use to look for more."""
    done: bool = False

    def of_this(self, what: str) -> Progress:
        """Itself, emptied where it was of something else, or of nothing yet."""
        if self.of != what or (self.upto is None and not self.done):
            self.of, self.upto, self.rows, self.segments = what, None, 0, 0
            self.cut_short = self.done = False
            self.odd.clear()
        return self


class _Segment(NamedTuple):
    above: Key | None
    upto: Key | None


_Sum: TypeAlias = tuple[int, str | None]
"""How many rows, and the sum of their hashes, written out."""
_Sums: TypeAlias = tuple[list[_Sum], list[_Sum]]
"""Of the same segments, on both sides."""


async def differing(
    ours: Half,
    theirs: Half,
    form: Form,
    progress: Progress,
    most: int,
    told: Callable[[Progress], Awaitable[None]],
) -> list[Key]:
    """Keys of rows that may differ, beginning where `progress` ends; `ours` is where keys are cut.

    `told` is awaited after each stretch, while more may be asked for already. It ends early where there are
    more than `most`. Raises psycopg.Error.
    """
    if progress.done:
        return _keys(progress, most)
    sides = _Side(ours, form), _Side(theirs, form)
    there = await _places(ours)
    progress.about = max(there.rows, 0)
    if there.rows > SMALL and (there.scattered or not there.indexed or not (await _places(theirs)).indexed):
        await _in_one_pass(sides, progress)
    else:
        await _along_the_key(sides, there, progress, most, told)
        for side in sides:
            await side.by_index(on=False)
    progress.done = True
    await told(progress)
    return _keys(progress, most)


def _keys(progress: Progress, most: int) -> list[Key]:
    return sorted({key for key, _ in progress.odd})[:most]


async def _along_the_key(
    sides: tuple[_Side, _Side],
    there: _Places,
    progress: Progress,
    most: int,
    told: Callable[[Progress], Awaitable[None]],
) -> None:
    edges = [progress.upto, *await sides[0].drawn(there, progress.upto), None]
    segments = [_Segment(above, upto) for above, upto in itertools.pairwise(edges)]
    for side in sides:
        await side.by_index(on=len(segments) > 1)
    try:
        async with asyncio.TaskGroup() as asked:
            coming: deque[tuple[Sequence[_Segment], asyncio.Task[_Sums]]] = deque()
            for start in range(0, len(segments) + AHEAD * AT_ONCE, AT_ONCE):
                if some := segments[start : start + AT_ONCE]:
                    coming.append((some, asked.create_task(_sums(sides, some))))
                if start < AHEAD * AT_ONCE or not coming:
                    continue
                stretch, task = coming.popleft()
                sums = await task
                progress.rows += sum(count for count, _ in sums[0])
                progress.segments += len(stretch)
                await _look_into(sides, stretch, sums, progress, cut=True)
                progress.upto = stretch[-1].upto
                progress.done = progress.upto is None
                await told(progress)
                if len(progress.odd) > 2 * most:
                    progress.cut_short = True
                    return
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None


async def _sums(sides: tuple[_Side, _Side], stretch: Sequence[_Segment]) -> _Sums:
    return await asyncio.gather(sides[0].sums(stretch), sides[1].sums(stretch))


async def _look_into(
    sides: tuple[_Side, _Side], stretch: Sequence[_Segment], sums: _Sums, progress: Progress, *, cut: bool
) -> None:
    bad: list[_Segment] = []
    large: list[_Segment] = []
    for segment, one, other in zip(stretch, *sums, strict=True):
        if one != other:
            (large if cut and max(one[0], other[0]) > CUT_ABOVE else bad).append(segment)
    for segment in large:
        for side in sides:
            await side.by_index(on=True)
        edges = [segment.above, *await sides[0].cut(segment), segment.upto]
        finer = [_Segment(above, upto) for above, upto in itertools.pairwise(edges)]
        for start in range(0, len(finer), AT_ONCE):
            some = finer[start : start + AT_ONCE]
            await _look_into(sides, some, await _sums(sides, some), progress, cut=False)
    if bad:
        here, there = await asyncio.gather(sides[0].rows(bad), sides[1].rows(bad))
        progress.odd ^= here ^ there


async def _in_one_pass(sides: tuple[_Side, _Side], progress: Progress) -> None:
    for side in sides:
        await side.by_index(on=False)
    ours, theirs = await asyncio.gather(*(side.sums_by_hash() for side in sides))
    progress.rows = sum(count for count, _ in ours.values())
    progress.segments = BUCKETS
    bad = [bucket for bucket in ours.keys() | theirs.keys() if ours.get(bucket) != theirs.get(bucket)]
    if bad:
        one, other = await asyncio.gather(*(side.rows_by_hash(bad) for side in sides))
        progress.odd = one ^ other


class _Side:
    """What one of both is asked."""

    def __init__(self, of: Half, form: Form) -> None:
        self._connection = of.connection
        schema, _, name = of.table.partition(".")
        self._place = qualified(schema, name)
        self._hash = row_hash(form, of.columns, utf8=of.utf8)
        self._key_hash = row_hash(form, of.key, utf8=of.utf8)
        self._key = [sql.SQL("t.{}").format(sql.Identifier(column.name)) for column in of.key]
        self._types = [sql.SQL(_type_of_bounds(column.type)) for column in of.key]

    async def by_index(self, *, on: bool) -> None:
        """A segment is a small part of the table, whatever the statistics say; nothing is worth compiling."""
        await self._connection.execute("SET jit = off")
        await self._connection.execute("SET enable_seqscan = off" if on else "RESET enable_seqscan")

    async def drawn(self, there: _Places, above: Key | None) -> list[Key]:
        """Keys about `ROWS` rows apart, in the server's order."""
        wanted = min(there.rows // ROWS, MOST_SEGMENTS)
        if wanted < 2:
            return []
        a_page = max(1, round(there.rows / there.pages))
        sample = sql.SQL("{} t TABLESAMPLE SYSTEM ({})").format(
            self._place, sql.Literal(min(100.0, 100 * wanted / there.pages))
        )
        return await self._each(sample, self._within(_Segment(above, None)), a_page)

    async def cut(self, segment: _Segment) -> list[Key]:
        """Each `ROWS`th key of a segment."""
        return await self._each(sql.SQL("{} t").format(self._place), self._within(segment), ROWS)

    async def _each(self, source: sql.Composable, within: sql.Composable, step: int) -> list[Key]:
        names = [sql.Identifier(f"k{at}") for at in range(len(self._key))]
        key = sql.SQL(", ").join(self._key)
        query = sql.SQL(
            "SELECT {texts} FROM (SELECT {columns}, row_number() OVER (ORDER BY {key}) AS number"
            " FROM {source} WHERE {within}) t WHERE number % {step} = 0 ORDER BY {names}"
        ).format(
            texts=sql.SQL(", ").join(sql.SQL("t.{}::text").format(name) for name in names),
            columns=sql.SQL(", ").join(
                sql.SQL("{} AS {}").format(part, name) for part, name in zip(self._key, names, strict=True)
            ),
            key=key, source=source, within=within, step=sql.Literal(step),
            names=sql.SQL(", ").join(sql.SQL("t.{}").format(name) for name in names),
        )  # fmt: skip
        return list(await (await self._connection.execute(query)).fetchall())

    async def sums(self, segments: Sequence[_Segment]) -> list[_Sum]:
        """Of each of these."""
        wanted = sql.SQL("SELECT count(*), sum({})::text FROM {} t WHERE {}")
        closed = [one for one in segments if one.above is not None and one.upto is not None]
        found: dict[_Segment, _Sum] = {}
        if closed:
            query = sql.SQL("SELECT s.* FROM {} CROSS JOIN LATERAL ({}) s ORDER BY b.number").format(
                self._bounds(closed), wanted.format(self._hash, self._place, self._between())
            )
            rows = await (await self._connection.execute(query)).fetchall()
            found = {one: (count, total) for one, (count, total) in zip(closed, rows, strict=True)}
        for one in segments:
            if one not in found:
                query = wanted.format(self._hash, self._place, self._within(one))
                ((count, total),) = await (await self._connection.execute(query)).fetchall()
                found[one] = count, total
        return [found[one] for one in segments]

    async def rows(self, segments: Sequence[_Segment]) -> set[tuple[Key, int]]:
        """Keys and hashes of all rows in these."""
        closed = [one for one in segments if one.above is not None and one.upto is not None]
        found: set[tuple[Key, int]] = set()
        if closed:
            source = sql.SQL("{} CROSS JOIN {} t").format(self._bounds(closed), self._place)
            found |= await self._hashes(source, self._between())
        for one in set(segments) - set(closed):
            found |= await self._hashes(sql.SQL("{} t").format(self._place), self._within(one))
        return found

    async def sums_by_hash(self) -> dict[int, _Sum]:
        query = sql.SQL("SELECT {}, count(*), sum({})::text FROM {} t GROUP BY 1").format(
            self._bucket(), self._hash, self._place
        )
        return {
            bucket: (count, total)
            for bucket, count, total in await (await self._connection.execute(query)).fetchall()
        }

    async def rows_by_hash(self, buckets: Sequence[int]) -> set[tuple[Key, int]]:
        which = sql.SQL("{} = ANY({}::int[])").format(self._bucket(), sql.Literal(list(buckets)))
        return await self._hashes(sql.SQL("{} t").format(self._place), which)

    def _bucket(self) -> sql.Composed:
        return sql.SQL("({} & {})::int").format(self._key_hash, sql.Literal(BUCKETS - 1))

    async def _hashes(self, source: sql.Composable, which: sql.Composable) -> set[tuple[Key, int]]:
        query = sql.SQL("SELECT {}, {} FROM {} WHERE {}").format(
            sql.SQL(", ").join(sql.SQL("{}::text").format(part) for part in self._key),
            self._hash, source, which,
        )  # fmt: skip
        return {(row[:-1], row[-1]) for row in await (await self._connection.execute(query)).fetchall()}

    def _bounds(self, closed: Sequence[_Segment]) -> sql.Composed:
        """As a table `b` with `a0`, `a1`, … above which, and `u0`, `u1`, … up to which, and `number`."""
        arrays: list[sql.Composable] = []
        names: list[sql.Composable] = []
        for letter, keys in (("a", [one.above for one in closed]), ("u", [one.upto for one in closed])):
            for at, kind in enumerate(self._types):
                parts = [key[at] for key in keys if key is not None]
                arrays.append(sql.SQL("{}::text[]::{}[]").format(sql.Literal(parts), kind))
                names.append(sql.Identifier(f"{letter}{at}"))
        return sql.SQL("unnest({}) WITH ORDINALITY AS b({}, number)").format(
            sql.SQL(", ").join(arrays), sql.SQL(", ").join(names)
        )

    def _between(self) -> sql.Composed:
        places = range(len(self._key))
        above, upto = (
            sql.SQL(", ").join(sql.SQL("b.{}").format(sql.Identifier(f"{letter}{at}")) for at in places)
            for letter in "au"
        )
        key = sql.SQL(", ").join(self._key)
        return sql.SQL("({0}) > ({1}) AND ({0}) <= ({2})").format(key, above, upto)

    def _within(self, segment: _Segment) -> sql.Composable:
        key = sql.SQL(", ").join(self._key)
        parts = [
            sql.SQL("({}) {} ({})").format(key, sql.SQL(sign), self._values(bound))
            for sign, bound in ((">", segment.above), ("<=", segment.upto))
            if bound is not None
        ]
        return sql.SQL(" AND ").join(parts) if parts else sql.SQL("true")

    def _values(self, key: Key) -> sql.Composed:
        return sql.SQL(", ").join(
            sql.SQL("{}::text::{}").format(sql.Literal(part), kind)
            for part, kind in zip(key, self._types, strict=True)
        )


def _type_of_bounds(type_: str) -> str:
    """What a bound is read as: the other side's key may be longer."""
    bare = bare_type(type_)
    return "bigint" if bare in WHOLE_TYPES else "text" if bare == "character varying" else type_


# Where rows lie.


class _Places(NamedTuple):
    rows: int
    """About; -1 where nobody has counted yet."""
    pages: int
    indexed: bool
    """Whether an index leads to keys."""
    scattered: bool
    """Whether rows of neighbouring keys lie far from each other."""


_PLACES: Final = """
    SELECT c.reltuples::float8, c.relpages,
           pg_relation_size(c.oid) / current_setting('block_size')::int,
           EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisvalid AND i.indpred IS NULL
                      AND i.indkey[0] = a.attnum),
           (SELECT abs(s.correlation) FROM pg_stats s
             WHERE s.schemaname = n.nspname AND s.tablename = c.relname AND s.attname = a.attname)
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
      JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = %s
     WHERE n.nspname = %s AND c.relname = %s
"""


async def _places(of: Half) -> _Places:
    schema, _, name = of.table.partition(".")
    row = await (await of.connection.execute(_PLACES, (of.key[0].name, schema, name))).fetchone()
    assert row is not None
    counted, then, pages, indexed, correlation = row
    a_page = counted / then if counted > 0 and then else 50.0
    return _Places(int(a_page * pages), pages, indexed, correlation is not None and correlation < SCATTERED)
