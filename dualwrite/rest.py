"""The rest of a comparison: rows that have changed since everything was compared.

A cutover compares all rows while both sides are written to, which may take hours, and has the apply note from
before that on which rows it changes. These are compared again, in rounds, until few are left; the last ones
while nobody writes, so what differs then is a difference. The keys stand in the database that the stream goes
to and are committed with the rows. While both sides are written to, keys are taken before their rows are
read, and who comes after a crash compares everything anew; at rest they are taken afterwards, so that no
crash loses one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, LiteralString

import psycopg

from dualwrite.mapped import RowMapping, SourceTable
from dualwrite.verify import Compared, Comparison, Key, compare

AT_ONCE: Final = 2_000
ROUNDS: Final = 2
"""A row that changes between two looks was noted anew; one that is gone has to be missed twice."""

_LOOK: Final = "SELECT tbl, key FROM crossfade_sync.changed WHERE stream = %s AND tbl = ANY(%s) LIMIT %s"
_TAKE: Final = (
    "DELETE FROM crossfade_sync.changed WHERE ctid = ANY(ARRAY("
    " SELECT ctid FROM crossfade_sync.changed WHERE stream = %s AND tbl = ANY(%s) LIMIT %s))"
    " RETURNING tbl, key"
)
_COUNT: Final = "SELECT count(*) FROM crossfade_sync.changed WHERE stream = %s AND tbl = ANY(%s)"
_FORGET: Final = "DELETE FROM crossfade_sync.changed WHERE stream = %s AND tbl = %s AND key = %s"

Connection = psycopg.AsyncConnection[Any]


class EmptiedError(Exception):
    """A whole table was emptied meanwhile: everything has to be compared again."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two tables that are to be alike, by `mapping`; `backwards` as in `verify.compare`."""

    table: SourceTable
    mapping: RowMapping
    backwards: bool

    @property
    def fed(self) -> str:
        """The one that the stream writes to, as schema.table."""
        return self.table.name if self.backwards else str(self.mapping.table)

    def key_of(self, key: Key) -> Key:
        """The key by which it is compared of a row that was written under this one."""
        if not self.backwards:
            return key
        found = self.mapping.key_of_source(tuple(part.encode() for part in key))
        return tuple(part.decode() if isinstance(part, bytes) else "" for part in found)


async def watch(fed: Connection, stream: str, *, on: bool) -> None:
    """Have the apply note which rows it changes, from its next transaction on; or no more, and forget."""
    async with fed.transaction():
        await fed.execute("UPDATE crossfade_sync.streams SET watched = %s WHERE name = %s", (on, stream))
        await fed.execute("DELETE FROM crossfade_sync.changed WHERE stream = %s", (stream,))


async def compare_all(stream: str, written_url: str, fed_url: str, pair: Pair) -> Compared:
    """Everything, while both sides are written to. Raises as `verify.compare`."""
    urls = (fed_url, written_url) if pair.backwards else (written_url, fed_url)
    return await compare(stream, *urls, pair.table, pair.mapping, rounds=ROUNDS, backwards=pair.backwards)


class Rest:
    """What is left to be compared, by two connections that stay open for it."""

    def __init__(self, stream: str, written: Connection, fed: Connection, pairs: Sequence[Pair]) -> None:
        self._stream = stream
        self._fed = fed
        self._tables = sorted({pair.fed for pair in pairs})
        """The stream may write to others, which are not to be compared."""
        self._pairs = [
            (
                pair,
                Comparison(
                    stream,
                    *((fed, written) if pair.backwards else (written, fed)),
                    pair.table.name,
                    pair.mapping,
                    backwards=pair.backwards,
                ),
            )
            for pair in pairs
        ]

    async def left(self) -> int:
        """How many rows have changed and were not compared since."""
        row = await (await self._fed.execute(_COUNT, (self._stream, self._tables))).fetchone()
        assert row is not None
        return int(row[0])

    async def compare(self, *, at_rest: bool) -> Sequence[Compared]:
        """Compare some of the noted rows, which are noted no more then; none are left where it is empty.

        Raises EmptiedError, and as `verify.compare`.
        """
        if not at_rest:
            # Before they are read: a change that comes between is noted anew.
            return await self._compared(await self._noted(_TAKE), at_rest=False)
        noted = await self._noted(_LOOK)
        found = await self._compared(noted, at_rest=True)
        async with self._fed.cursor() as cursor:
            await cursor.executemany(_FORGET, [(self._stream, table, key) for table, key in noted])
        return found

    async def _noted(self, query: LiteralString) -> list[tuple[str, list[str]]]:
        return await (await self._fed.execute(query, (self._stream, self._tables, AT_ONCE))).fetchall()

    async def _compared(self, noted: Sequence[tuple[str, list[str]]], *, at_rest: bool) -> Sequence[Compared]:
        keys: dict[str, list[Key]] = {}
        for table, key in noted:
            keys.setdefault(table, []).append(tuple(key))
        found = []
        for pair, comparison in self._pairs:
            here = keys.get(pair.fed, [])
            if () in here:
                raise EmptiedError(f"{pair.fed} was emptied (TRUNCATE) while it was compared")
            if here:
                wanted = list(map(pair.key_of, here))
                found.append(await comparison.again(wanted, ROUNDS, at_rest=at_rest))
        return found
