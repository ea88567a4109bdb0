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
from typing import Any, Final

import psycopg

from dualwrite.mapped import RowMapping, SourceTable
from dualwrite.segments import Key
from dualwrite.together import together
from dualwrite.verify import Compared, Comparison, compare

AT_ONCE: Final = 2_000
ROUNDS: Final = 2
"""A row that changes between two looks was noted anew; one that is gone has to be missed twice."""

_LOOK: Final = (
    "SELECT s.watched, c.tbl, c.key FROM crossfade_sync.streams s LEFT JOIN LATERAL ("
    " SELECT tbl, key FROM crossfade_sync.changed WHERE stream = s.name AND tbl = ANY(%s) LIMIT %s) c ON true"
    " WHERE s.name = %s"
)
_TAKE: Final = (
    "DELETE FROM crossfade_sync.changed WHERE ctid = ANY(ARRAY("
    " SELECT ctid FROM crossfade_sync.changed WHERE stream = %s AND tbl = ANY(%s) LIMIT %s))"
    " RETURNING tbl, key"
)
_COUNT: Final = "SELECT count(*) FROM crossfade_sync.changed WHERE stream = %s AND tbl = ANY(%s)"
_FORGET: Final = "DELETE FROM crossfade_sync.changed WHERE stream = %s AND tbl = %s AND key = %s"

Connection = psycopg.AsyncConnection[Any]
Lane = tuple[Connection, Connection]
"""To the side that is written to, and to the one that the stream feeds."""


class EmptiedError(Exception):
    """A whole table was emptied meanwhile: everything has to be compared again."""


class UnwatchedError(Exception):
    """Somebody has ended the watch meanwhile: what has changed since is not known."""


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
    """What is left to be compared.

    Lanes work at the same time, because people wait; nobody else may use their connections.
    """

    def __init__(self, stream: str, lanes: Sequence[Lane], pairs: Sequence[Pair]) -> None:
        self._stream = stream
        self._fed = lanes[0][1]
        self._tables = sorted({pair.fed for pair in pairs})
        """The stream may write to others, which are not to be compared."""
        self._lanes: list[list[tuple[Pair, Comparison]]] = [[] for _ in lanes]
        for at, pair in enumerate(pairs):
            written, fed = lanes[at % len(lanes)]
            sides = (fed, written) if pair.backwards else (written, fed)
            comparison = Comparison(stream, *sides, pair.table.name, pair.mapping, backwards=pair.backwards)
            self._lanes[at % len(lanes)].append((pair, comparison))

    async def left(self) -> int:
        """How many rows have changed and were not compared since."""
        row = await (await self._fed.execute(_COUNT, (self._stream, self._tables))).fetchone()
        assert row is not None
        return int(row[0])

    async def compare(self) -> list[Compared]:
        """Compare some of the noted rows while both sides are written to; they are noted no more.

        Raises EmptiedError, and as `verify.compare`.
        """
        # Before they are read: a change that comes between is noted anew.
        taking = await self._fed.execute(_TAKE, (self._stream, self._tables, AT_ONCE))
        return await self._compared(await taking.fetchall(), at_rest=False)

    async def compare_at_rest(self) -> list[Compared]:
        """Compare all that is noted, while nobody writes. Raises UnwatchedError, and as `compare`."""
        found: list[Compared] = []
        while True:
            noted = await self._watched()
            found += await self._compared(noted, at_rest=True)
            async with self._fed.cursor() as cursor:
                await cursor.executemany(_FORGET, [(self._stream, table, key) for table, key in noted])
            if len(noted) < AT_ONCE:
                return found

    async def _watched(self) -> list[tuple[str, list[str]]]:
        """Some of what is noted. Raises UnwatchedError."""
        rows = await (await self._fed.execute(_LOOK, (self._tables, AT_ONCE, self._stream))).fetchall()
        if not rows or not rows[0][0]:
            raise UnwatchedError(f"the stream {self._stream} does not note any more which rows it changes")
        return [(table, key) for _, table, key in rows if table is not None]

    async def _compared(self, noted: Sequence[tuple[str, list[str]]], *, at_rest: bool) -> list[Compared]:
        keys: dict[str, list[Key]] = {}
        for table, key in noted:
            keys.setdefault(table, []).append(tuple(key))
        for table, some in keys.items():
            if () in some:
                raise EmptiedError(f"{table} was emptied (TRUNCATE) while it was compared")

        async def go_along(lane: Sequence[tuple[Pair, Comparison]]) -> list[Compared]:
            found = []
            for pair, comparison in lane:
                if here := keys.get(pair.fed):
                    wanted = list(map(pair.key_of, here))
                    found.append(await comparison.again(wanted, ROUNDS, at_rest=at_rest))
            return found

        return [one for lane in await together(*map(go_along, self._lanes)) for one in lane]
