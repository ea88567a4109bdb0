"""Whether a stream shall run: what people have said of it, the newest last. Nothing of it is overwritten.

It stands in the database that the stream writes to, as all that is known of a stream: each host finds it
there, whether or not the store is to be had, and a database of which nobody has said anything is left alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg

from dualwrite import target

Connection = psycopg.AsyncConnection[Any]


@dataclass(frozen=True, slots=True)
class Desire:
    number: int
    run: bool
    over_missing_rows: bool
    """Begin by passing over updates of rows that the target lacks."""
    reason: str
    by: str
    at: datetime


async def of(looking: Connection, stream: str) -> Desire | None:
    """What was said last; None where nobody has said anything."""
    there = await (await looking.execute("SELECT to_regclass('crossfade_sync.desired')")).fetchone()
    if there is None or there[0] is None:
        return None
    cursor = await looking.execute(
        "SELECT number, run, over_missing_rows, reason, by, at FROM crossfade_sync.desired"
        " WHERE stream = %s ORDER BY number DESC LIMIT 1",
        (stream,),
    )
    row = await cursor.fetchone()
    return None if row is None else Desire(*row)


async def say(
    looking: Connection, stream: str, *, run: bool, reason: str, by: str, over_missing_rows: bool = False
) -> int:
    """Have a stream run, or not any more; the number of what was said. Raises psycopg.Error."""
    await target.prepare(looking)
    cursor = await looking.execute(
        "INSERT INTO crossfade_sync.desired (stream, run, over_missing_rows, reason, by)"
        " VALUES (%s, %s, %s, %s, %s) RETURNING number",
        (stream, run, over_missing_rows, reason, by),
    )
    row = await cursor.fetchone()
    assert row is not None
    return int(row[0])
