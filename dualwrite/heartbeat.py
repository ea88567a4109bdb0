"""Numbered beats through the stream: they move an idle slot on, tell the lag, and prove that nothing is
missing.

A beat is a message in the source's log, in a transaction of its own; no table, no right on the users'
schema. The number is `epoch << 32 | n`: within an epoch each is one more than the last, a new epoch begins
with 1. A number that is missing means that the log which is read is not the log that was written. Between the
last beat of one epoch and the first of the next nothing is told by numbers: there the slot's own position is
compared with what was applied (`preflight.must_be_resumable`), before anything is read.
"""

from __future__ import annotations

from typing import Any, Final

import psycopg

from dualwrite.capture import CaptureStopped
from dualwrite.change import Message, Position
from dualwrite.pg_stream import lsn

EVERY: Final = 1.0
"""Seconds."""
_PREFIX: Final = "crossfade.beat."
_WRITE: Final = (
    "SELECT pg_logical_emit_message(true, %s, %s) FROM set_config('synchronous_commit', 'local', true)"
)
"""Written out at once: where commits are not, a stream would lag by the time until somebody does it."""


def first(epoch: int) -> int:
    return epoch << 32 | 1


async def beat(source: psycopg.AsyncConnection[Any], stream: str, number: int) -> None:
    """Write a beat into the source's log."""
    await source.execute(_WRITE, (_PREFIX + stream, str(number)))


async def mark(source: psycopg.AsyncConnection[Any], stream: str) -> Position:
    """The end of what the source has written by now, and something that says nothing, behind it.

    Once the stream has brought the mark, it has brought all that was committed before this was called.
    """
    cursor = await source.execute("SELECT pg_current_wal_insert_lsn()::text")
    row = await cursor.fetchone()
    assert row is not None
    await source.execute(_WRITE, (f"crossfade.mark.{stream}", ""))
    return lsn(row[0])


def number_of(message: Message, stream: str) -> int | None:
    """Which beat of this stream a message is, if it is one."""
    if message.prefix != _PREFIX + stream:
        return None
    return int(message.content)


def next_after(last: int, seen: int) -> int:
    """The last beat, now that `seen` has come. Raises CaptureStopped where one between is missing.

    What comes again, because the stream was read from an earlier position, changes nothing.
    """
    if seen <= last:
        return last
    if seen == last + 1 or (seen >> 32 > last >> 32 and seen & 0xFFFF_FFFF == 1):
        return seen
    raise CaptureStopped(
        "gap",
        f"after heartbeat {_shown(last)} came {_shown(seen)}: changes between are lost."
        " Verify and repair, then begin anew",
    )


def _shown(number: int) -> str:
    return f"{number >> 32}/{number & 0xFFFF_FFFF}"
