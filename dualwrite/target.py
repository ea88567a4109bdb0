"""What Crossfade keeps in the database that it writes to: how far each stream was applied, and by whom.

It stands beside the rows because it has to be committed together with them. The schema is not called
`crossfade`: the schema that has the name of a user stands first in the search path of that user.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg import sql

from dualwrite import cut_states, job_states
from dualwrite.change import Position
from dualwrite.pg_stream import lsn, lsn_text
from dualwrite.stream_states import KNOWN, State, before

_CREATE: Final = f"""
    CREATE SCHEMA IF NOT EXISTS crossfade_sync;
    CREATE TABLE IF NOT EXISTS crossfade_sync.streams (
        name      text PRIMARY KEY,
        epoch     bigint NOT NULL,
        system_id text NOT NULL,
        timeline  integer NOT NULL,
        slot      text NOT NULL,
        applied   pg_lsn NOT NULL,
        heartbeat bigint NOT NULL DEFAULT 0,
        at        timestamptz NOT NULL DEFAULT now(),
        state     text NOT NULL DEFAULT '{State.COPYING}' CHECK (state IN ({KNOWN})),
        reason    text,
        message   text,
        whole     boolean NOT NULL DEFAULT false,
        watched   boolean NOT NULL DEFAULT false
    );
    CREATE TABLE IF NOT EXISTS crossfade_sync.changed (
        stream text NOT NULL,
        tbl    text NOT NULL,
        key    text[] NOT NULL,
        PRIMARY KEY (stream, tbl, key)
    );
    CREATE TABLE IF NOT EXISTS crossfade_sync.copies (
        stream text NOT NULL,
        copy   text NOT NULL,
        upto   text[],
        bound  text[],
        rows   bigint NOT NULL DEFAULT 0,
        done   boolean NOT NULL,
        PRIMARY KEY (stream, copy)
    );
    CREATE TABLE IF NOT EXISTS crossfade_sync.quarantine (
        stream  text NOT NULL,
        copy    text NOT NULL,
        key     text[] NOT NULL,
        first   pg_lsn NOT NULL,
        last    pg_lsn NOT NULL,
        changes bigint NOT NULL,
        change  text NOT NULL,
        row     jsonb NOT NULL,
        error   text NOT NULL,
        at      timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (stream, copy, key)
    );
    CREATE TABLE IF NOT EXISTS crossfade_sync.repairs (
        stream text NOT NULL,
        copy   text NOT NULL,
        key    text[] NOT NULL,
        PRIMARY KEY (stream, copy, key)
    );
    CREATE TABLE IF NOT EXISTS crossfade_sync.leases (
        stream text PRIMARY KEY,
        number integer NOT NULL DEFAULT 0,
        holder text,
        since  timestamptz,
        until  timestamptz NOT NULL DEFAULT '-infinity',
        tried  bigint NOT NULL DEFAULT 0
    );
    CREATE TABLE IF NOT EXISTS crossfade_sync.desired (
        number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        stream text NOT NULL,
        run    boolean NOT NULL,
        over_missing_rows boolean NOT NULL DEFAULT false,
        reason text NOT NULL,
        by     text NOT NULL,
        at     timestamptz NOT NULL DEFAULT clock_timestamp()
    );
    CREATE TABLE IF NOT EXISTS crossfade_sync.jobs (
        stream text NOT NULL,
        kind   text NOT NULL,
        name   text NOT NULL,
        state  text NOT NULL CHECK (state IN ({job_states.KNOWN})),
        epoch  bigint NOT NULL,
        attempts integer NOT NULL DEFAULT 1,
        began  timestamptz NOT NULL DEFAULT clock_timestamp(),
        at     timestamptz NOT NULL DEFAULT clock_timestamp(),
        rows_per_second float8,
        pauses jsonb NOT NULL DEFAULT '{{}}',
        message text,
        PRIMARY KEY (stream, kind, name)
    );
    CREATE TABLE IF NOT EXISTS crossfade_sync.cuts (
        stream  text PRIMARY KEY,
        id      text NOT NULL,
        state   text NOT NULL CHECK (state IN ({cut_states.KNOWN})),
        until   timestamptz NOT NULL,
        epoch   bigint,
        upto    pg_lsn,
        applied pg_lsn
    );
    CREATE INDEX IF NOT EXISTS desired_stream ON crossfade_sync.desired (stream, number);
"""


class FencedError(Exception):
    """Another process has taken the stream over, with a later epoch; this one must write no more."""


@dataclass(frozen=True, slots=True)
class Source:
    """Which log a position belongs to: the same number means something else in any other."""

    system_id: str
    timeline: int
    slot: str


@dataclass(frozen=True, slots=True)
class StreamState:
    name: str
    epoch: int
    source: Source
    applied: Position
    heartbeat: int
    """Number of the last heartbeat that was applied."""
    state: State = State.COPYING
    reason: str | None = None
    message: str | None = None
    """Why it has stopped, in one word and in more."""
    whole: bool = False
    """All rows were there: from then on an update of one that is not is a fault, whoever goes on."""
    age: float = 0.0
    """Seconds since something was applied, by the target's clock."""
    at: float = 0.0
    """When that was: Unix time by the same clock."""


async def prepare(connection: psycopg.AsyncConnection[Any]) -> None:
    """Create what is kept here, unless it is there. Two processes may do so at once."""
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock(hashtext('crossfade_sync'))")
        await connection.execute(_CREATE)


async def create(
    connection: psycopg.AsyncConnection[Any], name: str, source: Source, start: Position
) -> None:
    """Note a new stream that begins at `start`. One that is known stays as it is."""
    await connection.execute(
        "INSERT INTO crossfade_sync.streams (name, epoch, system_id, timeline, slot, applied)"
        " VALUES (%s, 0, %s, %s, %s, %s::pg_lsn) ON CONFLICT DO NOTHING",
        (name, source.system_id, source.timeline, source.slot, lsn_text(start)),
    )


async def state(connection: psycopg.AsyncConnection[Any], name: str) -> StreamState | None:
    cursor = await connection.execute(
        "SELECT epoch, system_id, timeline, slot, applied::text, heartbeat, state, reason, message, whole,"
        " extract(epoch FROM clock_timestamp() - at)::float8, extract(epoch FROM at)::float8"
        " FROM crossfade_sync.streams WHERE name = %s",
        (name,),
    )
    row = await cursor.fetchone()
    if row is None:
        return None
    return StreamState(
        name, row[0], Source(row[1], row[2], row[3]), lsn(row[4]), row[5], State(row[6]), *row[7:]
    )


async def move(
    connection: psycopg.AsyncConnection[Any],
    name: str,
    epoch: int,
    to: State,
    reason: str | None = None,
    message: str | None = None,
) -> bool:
    """Note where a stream stands now; False where another epoch holds it, and nothing was noted.

    A step that `stream_states.py` does not know changes nothing.
    """
    cursor = await connection.execute(
        "UPDATE crossfade_sync.streams SET state = %s, reason = %s, message = %s"
        " WHERE name = %s AND epoch = %s AND state = ANY(%s)",
        (to.value, reason, message, name, epoch, before(to)),
    )
    if cursor.rowcount:
        return True
    cursor = await connection.execute(
        "SELECT FROM crossfade_sync.streams WHERE name = %s AND epoch = %s", (name, epoch)
    )
    return await cursor.fetchone() is not None


async def set_whole(connection: psycopg.AsyncConnection[Any], name: str, epoch: int, *, whole: bool) -> bool:
    """Note whether all rows are there; False where another epoch holds the stream."""
    cursor = await connection.execute(
        "UPDATE crossfade_sync.streams SET whole = %s WHERE name = %s AND epoch = %s", (whole, name, epoch)
    )
    return bool(cursor.rowcount)


async def is_held(connection: psycopg.AsyncConnection[Any], name: str) -> bool:
    """Whether a process is connected that writes this stream."""
    cursor = await connection.execute(
        "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = %s)", (session_name(name),)
    )
    row = await cursor.fetchone()
    return row is not None and bool(row[0])


async def rows_copied(connection: psycopg.AsyncConnection[Any], name: str, copy: str) -> int:
    """How many rows one copy has written, whoever has worked on it."""
    cursor = await connection.execute(
        "SELECT rows FROM crossfade_sync.copies WHERE stream = %s AND copy = %s", (name, copy)
    )
    row = await cursor.fetchone()
    return 0 if row is None else int(row[0])


def session_name(name: str) -> str:
    """By which the session that writes a stream is known to the target."""
    return f"crossfade apply {name}"


async def take_over(connection: psycopg.AsyncConnection[Any], name: str, epoch: int) -> StreamState:
    """Become the one who writes, under `epoch`. Whoever wrote before can commit nothing any more.

    Waits for a transaction of the one before. Raises FencedError where a later epoch, or the same one, holds.
    """
    cursor = await connection.execute(
        "UPDATE crossfade_sync.streams SET epoch = %s WHERE name = %s AND epoch < %s", (epoch, name, epoch)
    )
    found = await state(connection, name)
    if found is None:
        raise LookupError(f"the target knows no stream {name!r}; it has to be created first")
    if not cursor.rowcount:
        raise FencedError(f"stream {name} is held under epoch {found.epoch}; {epoch} comes too late")
    return found


def qualified(schema: str, name: str) -> sql.Composed:
    return sql.SQL("{}.{}").format(sql.Identifier(schema), sql.Identifier(name))
