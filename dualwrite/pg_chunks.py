"""A PostgreSQL table, read chunk by chunk by its key: each in a snapshot of its own, in COPY's text."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import psycopg
from psycopg import sql

from dualwrite.backfill import Rows, key_of
from dualwrite.copy_out import copy_out
from dualwrite.mapped import RowMapping, Touching
from dualwrite.snapshot import Snapshot
from dualwrite.target import qualified

Connection = psycopg.AsyncConnection[Any]


class PgChunks:
    """`source` is a connection in autocommit mode that nobody else uses; `table` is schema.table."""

    def __init__(
        self, source: Connection, table: str, what: RowMapping | Touching, *, binary: bool = False
    ) -> None:
        """`binary` where the target reads what the source writes so."""
        schema, _, name = table.partition(".")
        self._source = source
        self._place = qualified(schema, name)
        self._columns = sql.SQL(", ").join(map(sql.Identifier, what.read))
        self._key = [sql.Identifier(name) for name in key_of(what)]
        self._binary = binary
        self._ahead: tuple[list[str] | None, asyncio.Task[Rows]] | None = None

    async def bound(self) -> list[str] | None:
        cursor = await self._source.execute(
            sql.SQL("SELECT {} FROM {} ORDER BY {} LIMIT 1").format(
                self._key_as_text(),
                self._place,
                sql.SQL(", ").join(sql.SQL("{} DESC").format(part) for part in self._key),
            )
        )
        row = await cursor.fetchone()
        return None if row is None else list(row)

    async def snapshot(self) -> Snapshot:
        if self._ahead is not None:
            # It is on the same connection. What it has met is raised by whoever reads.
            await asyncio.wait((self._ahead[1],))
        return await shown(self._source)

    async def read(self, above: list[str] | None, bound: list[str], rows: int) -> Rows:
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            found = await ahead[1]
            if ahead[0] == above:
                return found
        return await self._read(above, bound, rows)

    def read_ahead(self, above: list[str], bound: list[str], rows: int) -> None:
        self._ahead = above, asyncio.create_task(self._read(above, bound, rows))

    async def close(self) -> None:
        if self._ahead is not None:
            self._ahead[1].cancel()
            await asyncio.gather(self._ahead[1], return_exceptions=True)

    async def _read(self, above: list[str] | None, bound: list[str], rows: int) -> Rows:
        began = time.monotonic()
        async with self._source.transaction():
            await self._source.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            snapshot = await shown(self._source)
            cursor = await self._source.execute(
                sql.SQL("SELECT {} FROM {} WHERE {} ORDER BY {} OFFSET {} LIMIT 1").format(
                    self._key_as_text(),
                    self._place,
                    self._between(above, bound),
                    sql.SQL(", ").join(self._key),
                    sql.Literal(rows - 1),
                )
            )
            last = await cursor.fetchone()
            upto = None if last is None else list(last)
            query = sql.SQL("COPY (SELECT {} FROM {} WHERE {}) TO STDOUT (FORMAT {})").format(
                self._columns,
                self._place,
                self._between(above, upto or bound),
                sql.SQL("binary" if self._binary else "text"),
            )
            lines = await copy_out(self._source, query.as_string(self._source))
        return Rows(snapshot, upto, lines, self._binary, time.monotonic() - began)

    def _key_as_text(self) -> sql.Composed:
        # Named otherwise than the columns: ORDER BY would take the text for the column.
        return sql.SQL(", ").join(
            sql.SQL("{}::text AS {}").format(part, sql.Identifier(f"{at} as text"))
            for at, part in enumerate(self._key)
        )

    def _between(self, above: list[str] | None, upto: list[str]) -> sql.Composed:
        key = sql.SQL(", ").join(self._key)

        def values(of: list[str]) -> sql.Composed:
            return sql.SQL(", ").join(map(sql.Literal, of))

        found = sql.SQL("({}) <= ({})").format(key, values(upto))
        return found if above is None else sql.SQL("{} AND ({}) > ({})").format(found, key, values(above))


async def shown(source: Connection) -> Snapshot:
    """What the transaction that is open here can see, or would if it began now."""
    row = await (await source.execute("SELECT pg_current_snapshot()::text")).fetchone()
    assert row is not None
    return Snapshot.of(row[0])
