"""Copy what was there before the stream began, chunk by chunk, between two steps of the stream.

While a chunk is read and written the stream stands still, so nothing can be applied in between. What is
left is the moment in which a commit is in the log and not yet visible (`snapshot.py`): a chunk whose
snapshot hides a transaction that was already applied is thrown away and read again. With that, a row that
the stream has brought is never older than the chunk's, and stays; every other row comes from the chunk, and
the stream changes it later.

Where a table is and how far it is copied stands in the target, in the transaction of the chunk's rows. The
upper bound is fixed at the start: what is written above it comes with the stream.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import psycopg
from psycopg import sql

from dualwrite.apply import Applier, Chunk
from dualwrite.mapped import RowMapping, Touching
from dualwrite.snapshot import Snapshot
from dualwrite.target import qualified

AIM: Final = 0.25
"""Seconds for which a chunk may hold the stream up."""
FEWEST, MOST = 100, 50_000
"""Rows of a chunk."""
LOOK_AGAIN: Final = 0.02
"""Seconds, where a snapshot hides what was applied."""

Connection = psycopg.AsyncConnection[Any]
Read: TypeAlias = tuple[list[str] | None, list[bytes]]
"""A chunk's last key (None: the table's end) and its lines."""


@dataclass(frozen=True, slots=True)
class Progress:
    copied: int
    done: bool
    rows_a_second: float
    again: int
    """Chunks that were read again because their snapshot hid what was applied."""


def copy_name(table: str, what: RowMapping | Touching) -> str:
    """Under which name the target knows how far this copy has come."""
    return f"after {table}, {what.place}" if isinstance(what, Touching) else f"{table} to {what.table}"


class Backfill:
    """Copies one table for one mapping or follow-up. `source` is in autocommit mode and nobody else's."""

    def __init__(
        self, source: Connection, applier: Applier, table: str, what: RowMapping | Touching, rows: int = 2_000
    ) -> None:
        """`table` is schema.table at the source."""
        schema, _, name = table.partition(".")
        self.name = copy_name(table, what)
        self._source = source
        self._applier = applier
        self._place = qualified(schema, name)
        self._what = what
        self._key = [sql.Identifier(name) for name in key_of(what)]
        self._rows = rows
        self._began = time.monotonic()
        self._copied = 0
        self._again = 0
        self._settled: int | None = None

    async def step(self, applied: list[int]) -> Progress:
        """Copy one chunk. `applied` are transactions (32 bits) that the stream has brought; the list is
        emptied once a snapshot has shown them all, for then every later one does.

        Raises psycopg.Error, and FencedError as the applier does; what was not committed is copied again.
        """
        chunk = await self._applier.chunk(self.name)
        if chunk is None:
            bound = await self._bound()
            chunk = await self._applier.begin_copy(self.name, bound)
        if chunk.done:
            return self._progress(done=True)
        began = time.monotonic()
        read = await self._read(chunk, applied)
        while read is None:
            self._again += 1
            await asyncio.sleep(LOOK_AGAIN)
            read = await self._read(chunk, applied)
        applied.clear()
        upto, lines = read
        written = await self._applier.copy_chunk(self.name, self._what, upto, lines)
        self._copied += written
        self._rows = _next_size(self._rows, time.monotonic() - began)
        return self._progress(done=upto is None)

    def _progress(self, done: bool) -> Progress:
        took = max(time.monotonic() - self._began, 1e-9)
        return Progress(self._copied, done, self._copied / took, self._again)

    async def _bound(self) -> list[str] | None:
        """The greatest key that there is."""
        async with self._source.transaction():
            cursor = await self._source.execute(
                sql.SQL("SELECT {} FROM {} ORDER BY {} LIMIT 1").format(
                    self._key_as_text(), self._place, sql.SQL(", ").join(_down(part) for part in self._key)
                )
            )
            row = await cursor.fetchone()
        return None if row is None else list(row)

    async def _read(self, chunk: Chunk, applied: Sequence[int]) -> Read | None:
        """None where the snapshot is too old."""
        async with self._source.transaction():
            await self._source.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            row = await (await self._source.execute("SELECT pg_current_snapshot()::text")).fetchone()
            assert row is not None
            snapshot = Snapshot.of(row[0])
            if self._settled is None:
                # What an earlier process has applied is not known here. All of it had begun by now.
                self._settled = snapshot.xmax
            if snapshot.xmin < self._settled or snapshot.hides(applied):
                return None
            where = self._between(chunk.upto, chunk.bound)
            cursor = await self._source.execute(
                sql.SQL("SELECT {} FROM {} WHERE {} ORDER BY {} OFFSET {} LIMIT 1").format(
                    self._key_as_text(), self._place, where, self._ordered(), sql.Literal(self._rows - 1)
                )
            )
            last = await cursor.fetchone()
            upto = None if last is None else list(last)
            inputs = sql.SQL(", ").join(map(sql.Identifier, self._what.read))
            async with self._source.cursor().copy(
                sql.SQL("COPY (SELECT {} FROM {} WHERE {}) TO STDOUT").format(
                    inputs, self._place, self._between(chunk.upto, upto or chunk.bound)
                )
            ) as copy:
                lines = [bytes(line) async for line in copy]
        return upto, lines

    def _ordered(self) -> sql.Composed:
        return sql.SQL(", ").join(self._key)

    def _key_as_text(self) -> sql.Composed:
        # Named otherwise than the columns: ORDER BY would take the text for the column.
        return sql.SQL(", ").join(
            sql.SQL("{}::text AS {}").format(part, sql.Identifier(f"{at} as text"))
            for at, part in enumerate(self._key)
        )

    def _between(self, above: list[str] | None, upto: list[str]) -> sql.Composed:
        key = self._ordered()

        def values(of: list[str]) -> sql.Composed:
            return sql.SQL(", ").join(map(sql.Literal, of))

        found = sql.SQL("({}) <= ({})").format(key, values(upto))
        return found if above is None else sql.SQL("{} AND ({}) > ({})").format(found, key, values(above))


def key_of(what: RowMapping | Touching) -> Sequence[str]:
    """Names at the source."""
    if isinstance(what, Touching):
        return what.follow_up.key
    return [what.inputs[at] for at in what.table.key]


def _down(part: sql.Identifier) -> sql.Composed:
    return sql.SQL("{} DESC").format(part)


def _next_size(rows: int, took: float) -> int:
    """So many rows as fit the aim, but never more than twice or less than half of the last."""
    wanted = rows * AIM / max(took, 1e-3)
    return int(min(max(wanted, rows / 2, FEWEST), rows * 2, MOST))
