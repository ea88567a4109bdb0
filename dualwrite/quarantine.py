"""Rows that the target does not take, or a mapping fails on, where the table's policy lets all others go on.

They wait in the target, each with what was said against it, and so does every later change of the same key:
applied without the one before, it would make a row that never was. Whoever has mended the cause has the rows
written anew from the source as it is then (`repair.py`); what was kept is for people to look at, and never
applied itself. The process that holds the stream is the only one that writes here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple

import psycopg

from dualwrite.change import ABSENT, Position, Row
from dualwrite.pg_stream import lsn, lsn_text
from dualwrite.plan import Action, Op, named

Connection = psycopg.AsyncConnection[Any]
Held = frozenset[tuple[str, Row]]
"""Copies and keys at the target."""

FOLLOWS: Final = "follows a change that waits here"

_KEEP: Final = """
    INSERT INTO crossfade_sync.quarantine AS q (stream, copy, key, first, last, changes, change, row, error)
    VALUES (%(stream)s, %(copy)s, %(key)s, %(at)s::pg_lsn, %(at)s::pg_lsn, 1, %(change)s, %(row)s, %(error)s)
    ON CONFLICT (stream, copy, key) DO UPDATE SET
        last = EXCLUDED.last, changes = q.changes + 1, change = EXCLUDED.change,
        row = CASE WHEN EXCLUDED.change IN ('patch', 'move') THEN q.row || EXCLUDED.row ELSE EXCLUDED.row END,
        error = CASE WHEN EXCLUDED.error = %(follows)s THEN q.error ELSE EXCLUDED.error END
"""


class Kept(NamedTuple):
    """One change that was not applied."""

    copy: str
    key: Row
    """At the target."""
    change: str
    row: str
    """As JSON: columns and their texts."""
    error: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """A row in quarantine."""

    copy: str
    key: list[str]
    """At the target."""
    first: Position
    """How far the stream was applied with the first change that was kept, and with the last one."""
    last: Position
    changes: int
    change: str
    """What the last one was: put, patch, move, remove, or keep where the mapping has failed."""
    row: dict[str, str | None]
    error: str
    at: datetime


def kept(op: Op, error: str = FOLLOWS) -> list[Kept]:
    """What is noted of a change: with another key it concerns two rows."""
    copy = op.table.quarantine
    assert copy is not None
    if op.action is Action.KEEP:
        said, row = op.row
        assert isinstance(said, bytes)
        assert isinstance(row, bytes)
        return [Kept(copy, op.key, op.action.value, row.decode(), said.decode())]
    row_ = json.dumps(named(op.table.columns, op.row))
    return [Kept(copy, key, op.action.value, row_, error) for key in keys_of(op)]


def keys_of(op: Op) -> list[Row]:
    """Of the rows that it changes."""
    keys = [op.key]
    if op.row and op.action is not Action.KEEP:
        there = op.table.key_of(op.row)
        if there != op.key and ABSENT not in there:
            keys.append(there)
    return keys


def sifted(ops: Iterable[Op], held: Held) -> tuple[list[Op], list[Kept], Held]:
    """What can be applied, what has to wait with what waits already, and all that waits then."""
    rest: list[Op] = []
    kept_: list[Kept] = []
    now = set(held)
    for op in ops:
        copy = op.table.quarantine
        if copy is not None and op.action is not Action.EMPTY:
            keys = [(copy, key) for key in keys_of(op)]
            if op.action is Action.KEEP or any(key in now for key in keys):
                now.update(keys)
                kept_ += kept(op)
                continue
        rest.append(op)
    return rest, kept_, frozenset(now)


async def keep(connection: Connection, stream: str, at: Position, kept_: Sequence[Kept]) -> None:
    """Note them, in the transaction that applies all else."""
    async with connection.cursor() as cursor:
        await cursor.executemany(
            _KEEP,
            [
                {
                    "stream": stream, "copy": one.copy, "key": _texts(one.key), "at": lsn_text(at),
                    "change": one.change, "row": one.row, "error": one.error, "follows": FOLLOWS,
                }
                for one in kept_
            ],
        )  # fmt: skip


async def settle(connection: Connection, stream: str, copy: str, keys: Iterable[Row]) -> None:
    """These rows are as at the source."""
    async with connection.cursor() as cursor:
        await cursor.executemany(
            "DELETE FROM crossfade_sync.quarantine WHERE stream = %s AND copy = %s AND key = %s",
            [(stream, copy, _texts(key)) for key in keys],
        )


async def held(connection: Connection, stream: str) -> Held:
    cursor = await connection.execute(
        "SELECT copy, key FROM crossfade_sync.quarantine WHERE stream = %s", (stream,)
    )
    return frozenset((copy, tuple(part.encode() for part in key)) for copy, key in await cursor.fetchall())


async def waiting(looking: Connection, stream: str, copy: str | None = None) -> list[Waiting]:
    """All that waits, the oldest first. An older target has no such table: then nothing does."""
    there = await (await looking.execute("SELECT to_regclass('crossfade_sync.quarantine')")).fetchone()
    if there is None or there[0] is None:
        return []
    cursor = await looking.execute(
        "SELECT copy, key, first::text, last::text, changes, change, row, error, at"
        " FROM crossfade_sync.quarantine q WHERE stream = %s AND copy = coalesce(%s, copy)"
        " ORDER BY q.first, copy, key",
        (stream, copy),
    )
    return [Waiting(row[0], row[1], lsn(row[2]), lsn(row[3]), *row[4:]) for row in await cursor.fetchall()]


def _texts(key: Row) -> list[str]:
    return [part.decode("utf-8", "replace") if isinstance(part, bytes) else "" for part in key]
