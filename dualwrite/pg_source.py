"""What a PostgreSQL source is like, asked of the source itself; and the publication and slot that are made
on it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from typing import Any, Final

import psycopg
from psycopg import errors, sql

from dualwrite.capture import CaptureStopped, Way
from dualwrite.change import Position
from dualwrite.pg_stream import connect_for_replication, lsn
from dualwrite.preflight import SlotFacts, SourceFacts, TableFacts, missing_tables
from dualwrite.target import Source, qualified

Connection = psycopg.AsyncConnection[Any]

SLOT_WITHIN: Final = 30
"""Seconds for making a slot, which waits for every transaction that is running."""

PLAIN_TYPES: Final = frozenset(
    {
        "smallint", "integer", "bigint", "numeric", "real", "double precision", "boolean", "text",
        "character varying", "character", "date", "timestamp without time zone", "timestamp with time zone",
        "uuid", "bytea",
    }
)  # fmt: skip
"""Types that every server writes in binary, and within a major version hashes, alike."""
WHOLE_TYPES: Final = frozenset({"smallint", "integer", "bigint"})
_IN_BRACKETS: Final = re.compile(r"\(.*?\)")

_SERVER: Final = """
    SELECT current_setting('server_version_num')::int, current_setting('wal_level'), pg_is_in_recovery(),
           current_setting('max_replication_slots')::int - (SELECT count(*) FROM pg_replication_slots)::int,
           current_setting('max_wal_senders')::int
               - (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walsender')::int,
           (SELECT CASE WHEN setting::bigint < 0 THEN NULL ELSE setting::bigint * 1024 * 1024 END
              FROM pg_settings WHERE name = 'max_slot_wal_keep_size')
"""
_TABLE: Final = """
    SELECT c.relkind::text, c.relpersistence::text, c.relreplident::text,
           EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary),
           EXISTS (SELECT FROM pg_subscription_rel s WHERE s.srrelid = c.oid)
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE n.nspname = %s AND c.relname = %s
"""
_SLOTS: Final = """
    SELECT confirmed_flush_lsn::text, wal_status,
           coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), 0)::bigint, database, plugin,
           (SELECT CASE WHEN setting::bigint < 0 THEN NULL ELSE setting::bigint * 1024 * 1024 END
              FROM pg_settings WHERE name = 'max_slot_wal_keep_size'), slot_name::text
      FROM pg_replication_slots
"""
_SLOT: Final = f"{_SLOTS} WHERE slot_name = %s"
_IDLE: Final = (
    rf"{_SLOTS} WHERE slot_name LIKE 'crossfade\_%%' AND slot_name <> %s AND NOT active"
    " AND database = current_database() AND wal_status <> 'lost' ORDER BY slot_name"
)
_OLDEST: Final = """
    SELECT pid, coalesce(usename, '?'), coalesce(application_name, ''), extract(epoch FROM now() - xact_start)
      FROM pg_stat_activity
     WHERE xact_start IS NOT NULL AND pid <> pg_backend_pid() AND backend_xid IS NOT NULL
     ORDER BY xact_start LIMIT 3
"""
_PREPARED: Final = """
    SELECT gid, owner, extract(epoch FROM now() - prepared) FROM pg_prepared_xacts
     WHERE database = current_database() ORDER BY prepared LIMIT 3
"""
"""Transactions of nobody's session, which stay open over restarts until somebody ends them."""


async def identify(url: str, slot: str) -> tuple[Source, Position]:
    """Which cluster this is, and how far its log is written. Raises CaptureStopped."""
    connection = await connect_for_replication(url)
    try:
        row = await (await connection.execute("IDENTIFY_SYSTEM")).fetchone()
    finally:
        await connection.close()
    assert row is not None
    return Source(str(row[0]), int(row[1]), slot), lsn(str(row[2]))


async def identify_by_sql(source: Connection, slot: str) -> tuple[Source, Position]:
    """The same, asked of an ordinary connection. Raises psycopg.Error."""
    row = await (
        await source.execute(
            "SELECT (SELECT system_identifier::text FROM pg_control_system()),"
            " pg_walfile_name(pg_current_wal_insert_lsn()), pg_current_wal_flush_lsn()::text"
        )
    ).fetchone()
    assert row is not None
    # The name of a file of the log begins with its timeline; what the last checkpoint says may be older.
    return Source(row[0], int(row[1][:8], 16), slot), lsn(row[2])


async def facts(
    source: Connection,
    tables: Sequence[tuple[str, str]],
    way: Way = Way.STREAM,
    slot: str = "",
    refused: str | None = None,
) -> SourceFacts:
    """What `preflight.findings` judges. `tables` are schema and name; `slot` is the one that will be used."""
    server = await (await source.execute(_SERVER)).fetchone()
    assert server is not None
    found = []
    for schema, name in tables:
        row = await (await source.execute(_TABLE, (schema, name))).fetchone()
        shown = f"{schema}.{name}"
        found.append(TableFacts(shown, kind="") if row is None else TableFacts(shown, *row))
    version, wal_level, in_recovery, slots, senders, keeps = server
    idle = [_slot(row) for row in await (await source.execute(_IDLE, (slot,))).fetchall()]
    return SourceFacts(
        version, wal_level, in_recovery, slots, senders, keeps, tuple(found), way, refused, tuple(idle)
    )


async def slot_facts(source: Connection, slot: str) -> SlotFacts | None:
    row = await (await source.execute(_SLOT, (slot,))).fetchone()
    if row is None:
        return None
    return _slot(row)


def _slot(row: Sequence[Any]) -> SlotFacts:
    return SlotFacts(lsn(row[0]) if row[0] else 0, row[1] or "lost", *row[2:])


async def publish(source: Connection, publication: str, tables: Sequence[tuple[str, str]]) -> None:
    """Let these tables be read, and no others. Never FOR ALL TABLES: that would break updates of some.

    A publication that is right stays as it is: only the owner of the tables may change it.
    """
    places = sql.SQL(", ").join(qualified(schema, name) for schema, name in tables)
    cursor = await source.execute("SELECT 1 FROM pg_publication WHERE pubname = %s", (publication,))
    there = await cursor.fetchone() is not None
    if there and set(await _published(source, publication)) == {f"{one}.{name}" for one, name in tables}:
        return
    name = sql.Identifier(publication)
    if there:
        await source.execute(sql.SQL("ALTER PUBLICATION {} SET TABLE {}").format(name, places))
        await source.execute(sql.SQL("ALTER PUBLICATION {} SET ({})").format(name, sql.SQL(_BY_ROOT)))
    else:
        made = sql.SQL("CREATE PUBLICATION {} FOR TABLE {} WITH ({})")
        await source.execute(made.format(name, places, sql.SQL(_BY_ROOT)))


_BY_ROOT: Final = "publish_via_partition_root = true"
"""Changes of a partition are told of the table that the mapping names."""


async def publish_more(source: Connection, publication: str, tables: Sequence[str]) -> None:
    """Let these (schema.table) be read as well, if any, from the next change on."""
    if not tables:
        return
    parts = (table.partition(".") for table in tables)
    places = sql.SQL(", ").join(qualified(schema, name) for schema, _, name in parts)
    adding = sql.SQL("ALTER PUBLICATION {} ADD TABLE {}").format(sql.Identifier(publication), places)
    await source.execute(adding)


async def unpublished(
    source: Connection, publication: str, tables: Sequence[tuple[str, str]]
) -> Sequence[str]:
    """Those of these tables that the publication lacks, as schema.table."""
    published = await _published(source, publication)
    return missing_tables(published, [f"{schema}.{name}" for schema, name in tables])


async def must_publish(source: Connection, publication: str, tables: Sequence[tuple[str, str]]) -> None:
    """Raises CaptureStopped where the publication lacks a table: its changes would never come."""
    if missing := await unpublished(source, publication, tables):
        raise CaptureStopped(
            "not_published",
            f"the publication {publication} lacks {', '.join(missing)}; changes of it are lost",
        )


async def _published(source: Connection, publication: str) -> list[str]:
    cursor = await source.execute(
        "SELECT schemaname || '.' || tablename FROM pg_publication_tables WHERE pubname = %s", (publication,)
    )
    return [row[0] for row in await cursor.fetchall()]


async def make_slot(source: Connection, slot: str, within: float = SLOT_WITHIN) -> Position:
    """Make the slot from which the stream is read; the position that it begins at.

    It waits for transactions that are running. Raises CaptureStopped (`long_transaction`, with who it is, and
    nothing is left behind; `slot_exists`).
    """
    try:
        async with source.transaction():
            await source.execute(
                "SELECT set_config('statement_timeout', %s, true)", (f"{within * 1000:.0f}ms",)
            )
            cursor = await source.execute(
                "SELECT lsn::text FROM pg_create_logical_replication_slot(%s, 'pgoutput')", (slot,)
            )
            row = await cursor.fetchone()
    except errors.QueryCanceled:
        raise await waits_for(source) from None
    except errors.DuplicateObject:
        raise CaptureStopped(
            "slot_exists",
            f"the slot {slot} exists already, and this target knows nothing of it: a stream to another target"
            " may need it. If none does (a process may have ended while it began), drop it:"
            f" SELECT pg_drop_replication_slot('{slot}')",
        ) from None
    assert row is not None
    return lsn(row[0])


async def waits_for(source: Connection) -> CaptureStopped:
    """What to raise where making a slot has waited too long: who it waits for."""
    oldest = await (await source.execute(_OLDEST)).fetchall()
    prepared = await (await source.execute(_PREPARED)).fetchall()
    who = "; ".join(
        [
            *(f"pid {pid} ({user} {name}, {age:.0f} s)" for pid, user, name, age in oldest),
            *(f"the prepared transaction '{gid}' ({user}, {age:.0f} s)" for gid, user, age in prepared),
        ]
    )
    return CaptureStopped(
        "long_transaction",
        f"making a slot waits for transactions that are open: {who or 'they have ended by now'};"
        " try again when they have ended",
        passing=True,
    )


async def rows_about(where: Connection, table: str) -> int:
    """About how many rows a table has. `table` is schema.table."""
    schema, _, name = table.partition(".")
    cursor = await where.execute(
        "SELECT greatest(c.reltuples, 0)::bigint FROM pg_class c"
        " JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = %s AND c.relname = %s",
        (schema, name),
    )
    row = await cursor.fetchone()
    return 0 if row is None else int(row[0])


async def release_slot(source: Connection, slot: str) -> None:
    """End the session that reads the slot. Only for one who has taken the stream over: it is the one before.

    Where that one sleeps (SIGSTOP, a machine that was paused) its connection stays, and the server would wait
    for it until `wal_sender_timeout`. Without the right to end it, so does the caller.
    """
    with contextlib.suppress(errors.InsufficientPrivilege):
        await source.execute(
            "SELECT pg_terminate_backend(active_pid, 5000) FROM pg_replication_slots"
            " WHERE slot_name = %s AND active_pid IS NOT NULL",
            (slot,),
        )


async def column_types(where: Connection, table: str) -> dict[str, str]:
    """By the columns' names, as format_type writes them. `table` is schema.table."""
    schema, _, name = table.partition(".")
    cursor = await where.execute(
        "SELECT a.attname, format_type(a.atttypid, a.atttypmod) FROM pg_attribute a"
        " JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname = %s AND c.relname = %s AND a.attnum > 0 AND NOT a.attisdropped",
        (schema, name),
    )
    return {str(name): str(kind) for name, kind in await cursor.fetchall()}


def bare_type(type_: str) -> str:
    """Without length, precision and scale."""
    return _IN_BRACKETS.sub("", type_)
