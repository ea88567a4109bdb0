"""Who else writes into the tables that a stream feeds, while no fence stands there yet.

A trigger on each of them notes who has written, once a minute for each table, user and application. It must
never harm that application: it only adds rows, so it waits for nobody's transaction; whatever goes wrong in
it is passed over; and it reads nothing in a serializable transaction, which could fail for it. A table with a
fence is left to the fence.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import psycopg
from psycopg import errors, sql

from dualwrite.target import qualified

Connection = psycopg.AsyncConnection[Any]

TRIGGER: Final = "crossfade_watch"
LATE: Final = "1 hour"
"""For so long who has written counts as somebody who writes."""
KEPT_FOR: Final = "30 days"
_MAY_TELL: Final = "SELECT has_function_privilege('pg_replication_origin_session_is_setup()', 'EXECUTE')"
_WAIT: Final = "200ms"
"""For the lock that a trigger needs: writers queue behind whoever waits for it."""
_CREATE: Final = """
    CREATE TABLE IF NOT EXISTS crossfade_sync.foreign_writes (
        tbl         text NOT NULL,
        login       text NOT NULL,
        application text NOT NULL,
        what        text NOT NULL,
        at          timestamptz NOT NULL DEFAULT clock_timestamp()
    );
    CREATE OR REPLACE FUNCTION crossfade_sync.note_foreign_write() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog SET lock_timeout = '100ms' AS $note$
    DECLARE
        place text := TG_TABLE_SCHEMA || '.' || TG_TABLE_NAME;
        app text := current_setting('application_name');
    BEGIN
        IF pg_replication_origin_session_is_setup()
            OR EXISTS (SELECT FROM pg_trigger WHERE tgrelid = TG_RELID AND tgname = 'crossfade_fence')
        THEN
            RETURN NULL;
        END IF;
        IF current_setting('transaction_isolation') <> 'serializable' THEN
            IF EXISTS (
                SELECT FROM crossfade_sync.foreign_writes f
                WHERE f.tbl = place AND f.login = session_user AND f.application = app AND f.what = TG_OP
                    AND f.at > clock_timestamp() - interval '1 minute'
            ) THEN
                RETURN NULL;
            END IF;
        END IF;
        INSERT INTO crossfade_sync.foreign_writes (tbl, login, application, what)
        VALUES (place, session_user, app, TG_OP);
        RETURN NULL;
    EXCEPTION WHEN OTHERS THEN
        RETURN NULL;
    END
    $note$
"""


@dataclass(frozen=True, slots=True)
class Writer:
    """Somebody who has written into a table that a stream feeds."""

    table: str
    login: str
    application: str
    what: str
    """INSERT, UPDATE, DELETE, TRUNCATE: each that was seen."""
    first: datetime
    last: datetime
    age: float
    """Seconds since the last, by the database's clock."""

    def __str__(self) -> str:
        name = self.application or "no application name"
        return f"{self.login} ({name}) has written into {self.table} beside us: {self.what}"


async def watch(connection: Connection, tables: Sequence[str]) -> None:
    """Put the trigger on those of these tables (schema.name) that have none, where we may.

    A table that is in use, or on which we may make no trigger, stays unwatched until the next beginning, and
    every table once a cutover has moved the authority to this side. No table's fault is raised: it must not
    stop what it watches.
    """
    with contextlib.suppress(psycopg.Error):
        await connection.execute(
            "DELETE FROM crossfade_sync.foreign_writes WHERE at < clock_timestamp() - %s::interval",
            (KEPT_FOR,),
        )
    if await _has_had_the_authority(connection):
        return
    with contextlib.suppress(psycopg.Error):
        async with connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock(hashtext('crossfade_sync'))")
            await connection.execute(_CREATE)
    for table in await unwatched(connection, tables):
        schema, _, name = table.partition(".")
        place = qualified(schema, name)
        with contextlib.suppress(psycopg.Error):
            async with connection.transaction():
                await connection.execute("SELECT set_config('lock_timeout', %s, true)", (_WAIT,))
                await connection.execute(
                    sql.SQL(
                        "CREATE TRIGGER {} AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON {}"
                        " FOR EACH STATEMENT EXECUTE FUNCTION crossfade_sync.note_foreign_write()"
                    ).format(sql.Identifier(TRIGGER), place)
                )
                try:
                    async with connection.transaction():
                        await connection.execute(
                            sql.SQL("ALTER TABLE {} ENABLE ALWAYS TRIGGER {}").format(
                                place, sql.Identifier(TRIGGER)
                            )
                        )
                except errors.InsufficientPrivilege:
                    pass  # Only an owner may; session_replication_role = replica passes it by then.


async def _has_had_the_authority(connection: Connection) -> bool:
    there = await (await connection.execute("SELECT to_regclass('crossfade_sync.journal')")).fetchone()
    if there is None or there[0] is None:
        return False
    found = await connection.execute("SELECT FROM crossfade_sync.journal WHERE outcome = 'switched' LIMIT 1")
    return bool(found.rowcount)


async def unwatched(connection: Connection, tables: Sequence[str]) -> list[str]:
    """Those of these tables (schema.name) on which neither the trigger nor a fence stands, though one should:
    none once a cutover has moved the authority to this side, whose own application writes there then. All of
    them where the trigger could not tell our apply from others."""
    if await _has_had_the_authority(connection):
        return []
    may = await (await connection.execute(_MAY_TELL)).fetchone()
    if may is None or not may[0]:
        return sorted(tables)
    rows = await (
        await connection.execute(
            "SELECT n.nspname || '.' || c.relname FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid"
            " JOIN pg_namespace n ON n.oid = c.relnamespace WHERE t.tgname = ANY(%s)",
            ([TRIGGER, "crossfade_fence"],),
        )
    ).fetchall()
    return sorted(set(tables) - {row[0] for row in rows})


async def of_late(connection: Connection, tables: Sequence[str]) -> list[Writer]:
    """Who has written into these tables (schema.name) within `LATE`, latest first."""
    return [one for one in await seen(connection, LATE) if one.table in tables]


async def seen(connection: Connection, within: str = KEPT_FOR) -> list[Writer]:
    """Who has written, latest first. `within` is an interval of PostgreSQL's."""
    there = await (await connection.execute("SELECT to_regclass('crossfade_sync.foreign_writes')")).fetchone()
    if there is None or there[0] is None:
        return []
    rows = await (
        await connection.execute(
            "SELECT tbl, login, application, string_agg(DISTINCT what, ', '), min(at), max(at),"
            " extract(epoch FROM clock_timestamp() - max(at))::float8"
            " FROM crossfade_sync.foreign_writes WHERE at > clock_timestamp() - %s::interval"
            " GROUP BY 1, 2, 3 ORDER BY max(at) DESC",
            (within,),
        )
    ).fetchall()
    return [Writer(*row) for row in rows]
