"""Write rows anew that a comparison has found different: a copy of single rows, in the one apply path.

Keys wait in the target until the process that holds the stream comes by. It reads the rows as they are at the
source now, by the rule of every copy (`snapshot.py`), and writes them over what is there; a row that is no
more goes. What the stream brings later stays right, because it is later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import psycopg
from psycopg import sql

from dualwrite.apply import Applier
from dualwrite.backfill import LOOK_AGAIN, key_of
from dualwrite.mapped import RowMapping, Touching
from dualwrite.pg_chunks import shown
from dualwrite.snapshot import View
from dualwrite.target import qualified

AT_ONCE: Final = 500
"""Rows."""

Connection = psycopg.AsyncConnection[Any]
Copies = Sequence[tuple[str, str, RowMapping | Touching]]


async def ask_for(looking: Connection, stream: str, copy: str, keys: Sequence[Sequence[str]]) -> None:
    """Have these rows written anew, by their keys at the source."""
    async with looking.transaction(), looking.cursor() as cursor:
        await cursor.executemany(
            "INSERT INTO crossfade_sync.repairs (stream, copy, key) VALUES (%s, %s, %s)"
            " ON CONFLICT DO NOTHING",
            [(stream, copy, list(key)) for key in keys],
        )


async def waiting(looking: Connection, stream: str) -> int:
    """How many rows wait to be written anew."""
    row = await (
        await looking.execute("SELECT count(*) FROM crossfade_sync.repairs WHERE stream = %s", (stream,))
    ).fetchone()
    assert row is not None
    return int(row[0])


class Repairs:
    """Of one stream, for the process that holds it. `source` is in autocommit mode."""

    def __init__(self, stream: str, source: Connection, applier: Applier, copies: Copies) -> None:
        self._stream = stream
        self._source = source
        self._applier = applier
        self._view = View()
        self._copies = {name: (table, what) for name, table, what in copies}

    def begin(self) -> None:
        """From now on it is known what is applied; what was before has to be seen by every snapshot."""
        self._view = View()

    async def wanted(self, looking: Connection) -> bool:
        return await waiting(looking, self._stream) > 0

    async def step(self, applied: list[int]) -> bool:
        """Write some rows anew, or none where it cannot see yet what was applied; False if none waits.

        `applied` as of a backfill.

        Raises what `Applier.copy_chunk` raises; nothing of the step was written then.
        """
        found = await self._applier.repairs(AT_ONCE)
        if found is None:
            return False
        name, keys = found
        known = self._copies.get(name)
        lines: list[bytes] = []
        if known is not None:
            table, what = known
            read = await self._read(table, what, keys, applied)
            if read is None:
                await asyncio.sleep(LOOK_AGAIN)
                return True
            applied.clear()
            lines = read
        await self._applier.repair(name, None if known is None else known[1], keys, lines)
        return True

    async def _read(
        self, table: str, what: RowMapping | Touching, keys: Sequence[Sequence[str]], applied: Sequence[int]
    ) -> list[bytes] | None:
        """The rows as they are now; None where the snapshot hides what was applied."""
        async with self._source.transaction():
            await self._source.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            if self._view.is_too_old(await shown(self._source), applied):
                return None
            return await read_rows(self._source, table, what, keys)


async def read_rows(
    source: Connection,
    table: str,
    what: RowMapping | Touching,
    keys: Sequence[Sequence[str]],
    also: Sequence[str] = (),
) -> list[bytes]:
    """Lines of COPY with what is read of the rows that have these keys, and `also` that, in no order."""
    schema, _, name = table.partition(".")
    query = sql.SQL("COPY (SELECT {} FROM {} t WHERE ({}) IN ({})) TO STDOUT").format(
        sql.SQL(", ").join(_of_t(one) for one in (*what.read, *also)),
        qualified(schema, name),
        sql.SQL(", ").join(_of_t(one) for one in key_of(what)),
        sql.SQL(", ").join(sql.SQL("({})").format(sql.SQL(", ").join(map(sql.Literal, one))) for one in keys),
    )
    async with source.cursor().copy(query) as copy:
        return [bytes(line) async for line in copy]


def _of_t(name: str) -> sql.Composed:
    return sql.SQL("t.{}").format(sql.Identifier(name))
