"""The fence in both databases: at any moment one of two kinds of writers is refused, by the database itself.

The side that has the authority takes what everybody writes, and refuses our apply; the other side takes our
apply and nobody else. That is a trigger on each table of a cutover, which no role and no setting of a session
passes by. It asks what no snapshot hides: the last value of a sequence (1: open to everybody, 2: to our apply
only), under a lock that every writer holds, shared, until its transaction ends. Whoever closes or opens the
fence takes the lock alone, so it waits for the writers that are running, and names them if they do not end.

The journal stands in the database that gains the authority. Its row is the one point at which a cutover is
done or not: a walk has one row, whoever writes it, and who reads it knows.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import psycopg
from psycopg import errors, sql

from dualwrite import foreign
from dualwrite.pg_connect import LASTING
from dualwrite.target import prepare, qualified

Connection = psycopg.AsyncConnection[Any]
Table = tuple[str, str]
"""Schema and name."""

TRIGGER: Final = "crossfade_fence"
_CLASS: Final = 0x43524F53
"""The first half of the lock's key; the second one is the cutover's."""
OPEN, CLOSED = 1, 2
SILENT_AT_MOST: Final = 3.0
"""Seconds that who moves a fence may be silent in the middle of it."""

_CREATE: Final = """
    CREATE TABLE IF NOT EXISTS crossfade_sync.fences (
        cutover text PRIMARY KEY,
        turn    bigint NOT NULL DEFAULT 0
    );
    CREATE TABLE IF NOT EXISTS crossfade_sync.journal (
        cutover    text NOT NULL,
        walk       text NOT NULL,
        generation bigint NOT NULL,
        outcome    text NOT NULL CHECK (outcome IN ('switched', 'cancelled')),
        at         timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (cutover, walk)
    );
"""
_GUARD: Final = """
    CREATE OR REPLACE FUNCTION crossfade_sync.{guard}() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $guard$
    DECLARE
        is_open boolean;
    BEGIN
        PERFORM pg_advisory_xact_lock_shared({class}, {key});
        SELECT last_value = 1 INTO is_open FROM crossfade_sync.{fence};
        IF is_open IS NOT DISTINCT FROM pg_replication_origin_session_is_setup() THEN
            RAISE EXCEPTION USING
                ERRCODE = 'read_only_sql_transaction',
                MESSAGE = CASE WHEN is_open
                    THEN format('this database has the authority over %I.%I; nothing is applied to it',
                                TG_TABLE_SCHEMA, TG_TABLE_NAME)
                    ELSE format('%I.%I is fenced: the other database has the authority over its rows',
                                TG_TABLE_SCHEMA, TG_TABLE_NAME) END,
                HINT = {hint};
        END IF;
        RETURN NULL;
    END
    $guard$
"""


class Outcome(StrEnum):
    SWITCHED = "switched"
    CANCELLED = "cancelled"


class WritersError(Exception):
    """Transactions that write have not ended in time; the message names them. Nothing was changed."""


class OldTurnError(Exception):
    """A later walk has moved the fence, or it is not there any more; nothing was changed."""


@dataclass(frozen=True, slots=True)
class Fence:
    """`turn` is who has moved it last: walks count up, and a later one is never undone by an earlier one."""

    is_open: bool
    turn: int
    tables: frozenset[str]
    """Those that it stands on, as schema.table."""


async def install(
    connection: Connection, cutover: str, tables: Sequence[Table], *, is_open: bool, within: float = 3.0
) -> None:
    """Put the fence on these tables, open or closed; one that is there stays as it is.

    A trigger needs a lock that waits for writers of its table, at most `within` seconds. Raises WritersError.
    """
    await prepare(connection)
    names = _names(cutover)
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock(hashtext('crossfade_sync'))")
        await connection.execute(_CREATE)
        found = await connection.execute(
            "INSERT INTO crossfade_sync.fences (cutover) VALUES (%s) ON CONFLICT DO NOTHING", (cutover,)
        )
        if found.rowcount:
            await connection.execute(
                sql.SQL(
                    "CREATE SEQUENCE IF NOT EXISTS crossfade_sync.{fence} MINVALUE 1 MAXVALUE 2 CYCLE"
                ).format(**names)
            )
            await _set(connection, cutover, OPEN if is_open else CLOSED)
        await connection.execute(sql.SQL(_GUARD).format(**names))
    for schema, name in tables:
        if await _stands_on(connection, cutover, schema, name):
            continue
        place = qualified(schema, name)
        try:
            async with connection.transaction():
                await _wait_at_most(connection, within)
                await connection.execute(
                    sql.SQL(
                        "CREATE OR REPLACE TRIGGER {} BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON {}"
                        " FOR EACH STATEMENT EXECUTE FUNCTION crossfade_sync.{}()"
                    ).format(sql.Identifier(TRIGGER), place, names["guard"])
                )
                await connection.execute(
                    sql.SQL("ALTER TABLE {} ENABLE ALWAYS TRIGGER {}").format(place, sql.Identifier(TRIGGER))
                )
        except errors.LockNotAvailable:
            raise WritersError(
                f"{schema}.{name} is in use: {await _users_of(connection, schema, name)}"
            ) from None


async def remove(connection: Connection, cutover: str, within: float = 3.0) -> None:
    """Take the fence away, for good. Raises WritersError."""
    known = await state(connection, cutover)
    if known is None:
        return
    for table in sorted(known.tables):
        schema, _, name = table.partition(".")
        try:
            async with connection.transaction():
                await _wait_at_most(connection, within)
                await connection.execute(
                    sql.SQL("DROP TRIGGER IF EXISTS {} ON {}").format(
                        sql.Identifier(TRIGGER), qualified(schema, name)
                    )
                )
                # Without the fence it would take everybody for a stranger.
                await connection.execute(
                    sql.SQL("DROP TRIGGER IF EXISTS {} ON {}").format(
                        sql.Identifier(foreign.TRIGGER), qualified(schema, name)
                    )
                )
        except errors.LockNotAvailable:
            raise WritersError(f"{table} is in use: {await _users_of(connection, schema, name)}") from None
    names = _names(cutover)
    async with connection.transaction():
        await connection.execute(sql.SQL("DROP FUNCTION IF EXISTS crossfade_sync.{guard}()").format(**names))
        await connection.execute(sql.SQL("DROP SEQUENCE IF EXISTS crossfade_sync.{fence}").format(**names))
        await connection.execute("DELETE FROM crossfade_sync.fences WHERE cutover = %s", (cutover,))


async def close(connection: Connection, cutover: str, turn: int, within: float) -> None:
    """Refuse all writers but our apply, once those that are running have ended.

    Raises WritersError, and OldTurnError where a later turn has moved the fence.
    """
    await _move(connection, cutover, turn, CLOSED, within)


async def open_(connection: Connection, cutover: str, turn: int, within: float) -> None:
    """Take what everybody writes, and nothing that we apply. Raises as `close`."""
    await _move(connection, cutover, turn, OPEN, within)


async def keep_open(connection: Connection, cutover: str, turn: int, within: float) -> None:
    """As `open_`, where it may not have been closed at all. If it is open, nobody is waited for: somebody who
    was writing may be why it could not be closed. Raises as `close`."""
    # From here on no earlier turn can close it; one that is just about to is waited for: it holds this row.
    found = await connection.execute(_TAKE, (turn, cutover, turn))
    if not found.rowcount:
        raise OldTurnError(_MOVED.format(cutover=cutover))
    known = await state(connection, cutover)
    assert known is not None
    if not known.is_open:
        await _move(connection, cutover, turn, OPEN, within)


_MOVED: Final = "the fence of {cutover} was moved by a later walk, or is gone"
_TAKE: Final = f"""
    UPDATE crossfade_sync.fences SET turn = %s FROM {LASTING} WHERE cutover = %s AND turn <= %s
"""  # noqa: S608  (a constant)
_TURN: Final = """
    WITH moved AS (
        UPDATE crossfade_sync.fences SET turn = %s WHERE cutover = %s AND turn <= %s RETURNING 1
    ) SELECT setval(format('crossfade_sync.%%I', %s::text)::regclass, %s) FROM moved
"""


async def _move(connection: Connection, cutover: str, turn: int, to: int, within: float) -> None:
    try:
        async with connection.transaction():
            await _wait_at_most(connection, within, lock=_key(cutover))
            # The sequence is not undone by a rollback; who has come so far commits, or is asked again by its
            # successor.
            found = await connection.execute(_TURN, (turn, cutover, turn, f"fence_{cutover}", to))
            if not found.rowcount:
                raise OldTurnError(_MOVED.format(cutover=cutover))
    except errors.LockNotAvailable:
        who = "; ".join(await writers(connection, cutover)) or "they have ended by now"
        raise WritersError(f"transactions that write have not ended within {within:g} s: {who}") from None


async def state(connection: Connection, cutover: str) -> Fence | None:
    """How the fence stands; None where there is none."""
    there = await (await connection.execute("SELECT to_regclass('crossfade_sync.fences')")).fetchone()
    if there is None or there[0] is None:
        return None
    row = await (
        await connection.execute("SELECT turn FROM crossfade_sync.fences WHERE cutover = %s", (cutover,))
    ).fetchone()
    if row is None:
        return None
    names = _names(cutover)
    value = await (
        await connection.execute(sql.SQL("SELECT last_value FROM crossfade_sync.{fence}").format(**names))
    ).fetchone()
    assert value is not None
    rows = await (
        await connection.execute(
            "SELECT n.nspname || '.' || c.relname FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid"
            " JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_proc p ON p.oid = t.tgfoid"
            " JOIN pg_namespace o ON o.oid = p.pronamespace"
            " WHERE t.tgname = %s AND t.tgenabled = 'A' AND o.nspname = 'crossfade_sync' AND p.proname = %s",
            (TRIGGER, _guard(cutover)),
        )
    ).fetchall()
    return Fence(value[0] == OPEN, row[0], frozenset(one for (one,) in rows))


async def is_closed(connection: Connection) -> bool:
    """Whether fences stand here, and all of them are closed: this database has the authority over nothing."""
    found = await _all(connection)
    return bool(found) and not any(one.is_open for one in found)


async def open_tables(connection: Connection) -> frozenset[str]:
    """The fenced tables, as schema.table, over whose rows this database has the authority."""
    return frozenset().union(*(one.tables for one in await _all(connection) if one.is_open))


async def _all(connection: Connection) -> list[Fence]:
    there = await (await connection.execute("SELECT to_regclass('crossfade_sync.fences')")).fetchone()
    if there is None or there[0] is None:
        return []
    names = await (await connection.execute("SELECT cutover FROM crossfade_sync.fences")).fetchall()
    states = [await state(connection, name) for (name,) in names]
    return [one for one in states if one is not None]


async def writers(connection: Connection, cutover: str) -> list[str]:
    """Who has written to the fenced tables, or moves the fence, and not ended its transaction, by name."""
    rows = await (
        await connection.execute(
            "SELECT l.pid, coalesce(a.usename, '?'), coalesce(a.application_name, ''), coalesce(a.state, ''),"
            " extract(epoch FROM clock_timestamp() - a.xact_start), p.gid"
            " FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid"
            " LEFT JOIN pg_locks x ON l.pid IS NULL AND x.pid IS NULL AND x.locktype = 'transactionid'"
            "   AND x.virtualtransaction = l.virtualtransaction"
            " LEFT JOIN pg_prepared_xacts p ON p.transaction = x.transactionid"
            " WHERE l.locktype = 'advisory' AND l.classid = %s AND l.objid = %s::bigint::oid"
            "   AND l.mode IN ('ShareLock', 'ExclusiveLock') AND l.granted"
            "   AND l.pid IS DISTINCT FROM pg_backend_pid()",
            (_CLASS, _key(cutover) % 2**32),
        )
    ).fetchall()
    return [
        f"a prepared transaction ({gid or 'see pg_prepared_xacts'})"
        if pid is None
        else f"pid {pid} ({user} {name}, {doing}, {age or 0:.0f} s)"
        for pid, user, name, doing, age, gid in rows
    ]


# The journal.

_DECIDE: Final = f"""
    INSERT INTO crossfade_sync.journal (cutover, walk, generation, outcome)
    SELECT %s, %s, %s, %s FROM {LASTING} ON CONFLICT DO NOTHING RETURNING outcome
"""  # noqa: S608  (a constant)


async def decide(
    connection: Connection, cutover: str, walk: str, generation: int, outcome: Outcome
) -> Outcome:
    """Write the row of this walk, unless it is there; what it says. The point of no return."""
    written = await connection.execute(_DECIDE, (cutover, walk, generation, outcome.value))
    row = await written.fetchone()
    found = Outcome(row[0]) if row is not None else await decided(connection, cutover, walk)
    assert found is not None
    return found


async def decided(connection: Connection, cutover: str, walk: str) -> Outcome | None:
    row = await (
        await connection.execute(
            "SELECT outcome FROM crossfade_sync.journal WHERE cutover = %s AND walk = %s",
            (cutover, walk),
        )
    ).fetchone()
    return None if row is None else Outcome(row[0])


async def newest(connection: Connection, cutover: str) -> int:
    """The highest generation that has switched to this database; 0 if none has."""
    there = await (await connection.execute("SELECT to_regclass('crossfade_sync.journal')")).fetchone()
    if there is None or there[0] is None:
        return 0
    row = await (
        await connection.execute(
            "SELECT coalesce(max(generation), 0) FROM crossfade_sync.journal"
            " WHERE cutover = %s AND outcome = 'switched'",
            (cutover,),
        )
    ).fetchone()
    assert row is not None
    return int(row[0])


# Details.


def _key(cutover: str) -> int:
    """A signed 32-bit number."""
    return zlib.crc32(cutover.encode()) - 2**31


def _guard(cutover: str) -> str:
    return f"guard_{cutover}"


def _names(cutover: str) -> dict[str, sql.Composable]:
    return {
        "guard": sql.Identifier(_guard(cutover)),
        "fence": sql.Identifier(f"fence_{cutover}"),
        "class": sql.Literal(_CLASS),
        "key": sql.Literal(_key(cutover)),
        "hint": sql.Literal(f"crossfade cutover status {cutover}"),
    }


async def _set(connection: Connection, cutover: str, value: int) -> None:
    await connection.execute(
        "SELECT setval(format('crossfade_sync.%%I', %s::text)::regclass, %s)", (f"fence_{cutover}", value)
    )


async def _wait_at_most(connection: Connection, seconds: float, *, lock: int | None = None) -> None:
    """And let what is moved outlive a crash of the server. With `lock`, wait for that one then.

    Writers wait behind these locks: of one who vanishes without a word the server takes them back.
    """
    limits = (
        "set_config('lock_timeout', %s, true),"
        f" set_config('idle_in_transaction_session_timeout', %s, true), {LASTING}"
    )
    within, silent = f"{seconds * 1000:.0f}ms", f"{SILENT_AT_MOST * 1000:.0f}ms"
    if lock is None:
        await connection.execute(f"SELECT {limits}", (within, silent))
        return
    # OFFSET 0: the limits are set before the lock is asked for.
    query = f"SELECT pg_advisory_xact_lock(%s, %s) FROM (SELECT {limits} OFFSET 0) limits"  # noqa: S608
    await connection.execute(query, (_CLASS, lock, within, silent))


async def _stands_on(connection: Connection, cutover: str, schema: str, name: str) -> bool:
    known = await state(connection, cutover)
    return known is not None and f"{schema}.{name}" in known.tables


async def _users_of(connection: Connection, schema: str, name: str) -> str:
    rows = await (
        await connection.execute(
            "SELECT DISTINCT a.pid, coalesce(a.usename, '?'), coalesce(a.application_name, ''), a.state"
            " FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid"
            " WHERE l.relation = to_regclass(format('%%I.%%I', %s::text, %s::text))"
            "   AND l.granted AND a.pid <> pg_backend_pid()",
            (schema, name),
        )
    ).fetchall()
    return "; ".join(f"pid {pid} ({user} {app}, {doing})" for pid, user, app, doing in rows) or "nobody now"
