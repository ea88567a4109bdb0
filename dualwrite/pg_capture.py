"""The two ways to read a PostgreSQL: what differs between them until the first change comes."""

from __future__ import annotations

from typing import Any

import psycopg

from dualwrite import pg_source
from dualwrite.capture import Capture, CaptureStopped, Way
from dualwrite.change import Position
from dualwrite.pg_peek import PgPeek
from dualwrite.pg_stream import PgStream, connect_for_replication
from dualwrite.target import Source


async def open_(way: Way, url: str, slot: str, start: Position, *, also_ours: bool) -> Capture:
    """Read the slot from `start` on; the publication has its name. Raises CaptureStopped."""
    if way is Way.PEEK:
        return await PgPeek.open(url, slot, slot, start, also_ours=also_ours)
    return await PgStream.open(url, slot, slot, start, also_ours=also_ours)


async def identify(
    way: Way, url: str, source: psycopg.AsyncConnection[Any], slot: str
) -> tuple[Source, Position]:
    """Which cluster this is, and how far its log is written. Raises CaptureStopped, psycopg.Error."""
    if way is Way.PEEK:
        return await pg_source.identify_by_sql(source, slot)
    return await pg_source.identify(url, slot)


async def refused(way: Way, url: str) -> str | None:
    """Why no replication connection is possible, where that is wanted and the host does not let us."""
    if way is Way.PEEK:
        return None
    try:
        await (await connect_for_replication(url)).close()
    except CaptureStopped as stopped:
        return str(stopped) if stopped.reason == "no_replication" else None
    return None
