"""What the users at both databases must be allowed to do; each right that is missing, with what grants it.

None of it needs a superuser. A role that may do all of this through membership in another one is as good:
PostgreSQL is asked what holds, not who was granted what.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import psycopg

from dualwrite.preflight import Finding, Weight

Connection = psycopg.AsyncConnection[Any]

REASON: Final = "missing_privilege"
_PARAMETERS_SINCE: Final = 150_000
"""Before PostgreSQL 15 only a superuser could set `session_replication_role`."""
_WRITES: Final = ("SELECT", "INSERT", "UPDATE", "DELETE")
_OF_THE_APPLY: Final = (
    "pg_replication_origin_create(text)",
    "pg_replication_origin_oid(text)",
    "pg_replication_origin_session_setup(text)",
)
_OF_THE_FENCE: Final = ("pg_replication_origin_session_is_setup()",)

_WHO: Final = """
    SELECT quote_ident(r.rolname), quote_ident(current_database()), r.rolsuper,
           current_setting('server_version_num')::int,
           has_database_privilege(current_database(), 'CREATE'),
           has_database_privilege(current_database(), 'TEMPORARY'),
           pg_has_role('pg_read_all_stats', 'USAGE'),
           (SELECT quote_ident(pg_get_userbyid(nspowner)) FROM pg_namespace
             WHERE nspname = 'crossfade_sync' AND NOT pg_has_role(nspowner, 'USAGE')),
           EXISTS (SELECT FROM pg_namespace WHERE nspname = 'crossfade_sync'),
           r.rolsuper OR r.rolreplication
             OR EXISTS (SELECT FROM pg_roles
                         WHERE rolname = 'rds_replication' AND pg_has_role(oid, 'MEMBER'))
      FROM pg_roles r WHERE r.rolname = current_user
"""
"""A hosted PostgreSQL may know replication as a role that one is a member of."""
_TABLES: Final = """
    SELECT n.nspname || '.' || c.relname, format('%%I.%%I', n.nspname, c.relname), quote_ident(n.nspname),
           has_schema_privilege(n.oid, 'USAGE'),
           ARRAY(SELECT one FROM unnest(%s::text[]) one WHERE NOT has_table_privilege(c.oid, one)),
           row_security_active(c.oid), pg_has_role(c.relowner, 'USAGE'),
           quote_ident(pg_get_userbyid(c.relowner))
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE n.nspname || '.' || c.relname = ANY(%s) ORDER BY 1
"""
_FUNCTIONS: Final = "SELECT one FROM unnest(%s::text[]) one WHERE NOT has_function_privilege(one, 'EXECUTE')"
_SEQUENCES: Final = """
    SELECT DISTINCT format('%%I.%%I', n.nspname, s.relname)
      FROM pg_depend d
      JOIN pg_class s ON s.oid = d.objid AND s.relkind = 'S'
      JOIN pg_namespace n ON n.oid = s.relnamespace
      JOIN pg_class c ON c.oid = d.refobjid
      JOIN pg_namespace t ON t.oid = c.relnamespace
     WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass
       AND d.deptype IN ('a', 'i') AND t.nspname || '.' || c.relname = ANY(%s)
       AND NOT (has_sequence_privilege(s.oid, 'SELECT') AND has_sequence_privilege(s.oid, 'UPDATE'))
     ORDER BY 1
"""
_PUBLISHED: Final = """
    SELECT pg_has_role(p.pubowner, 'USAGE'), quote_ident(pg_get_userbyid(p.pubowner)),
           ARRAY(SELECT n.nspname || '.' || c.relname FROM pg_publication_rel t
                   JOIN pg_class c ON c.oid = t.prrelid JOIN pg_namespace n ON n.oid = c.relnamespace
                  WHERE t.prpubid = p.oid)
      FROM pg_publication p WHERE p.pubname = %s
"""


@dataclass(frozen=True, slots=True)
class _Who:
    """Names are quoted where SQL wants them so."""

    called: str
    """In messages: both databases may have tables of one name."""
    user: str
    database: str
    is_super: bool
    version: int
    may_create: bool
    may_use_temp: bool
    sees_others: bool
    foreign_owner: str | None
    """Of the schema crossfade_sync, where that is somebody else."""
    has_schema: bool
    may_replicate: bool


@dataclass(frozen=True, slots=True)
class _Table:
    name: str
    quoted: str
    schema: str
    may_use_schema: bool
    missing: Sequence[str]
    is_filtered: bool
    """A row security policy hides rows, or refuses them."""
    is_owned: bool
    owner: str


async def of_source(source: Connection, publication: str, tables: Sequence[tuple[str, str]]) -> list[Finding]:
    """What the source's user lacks. Raises psycopg.Error."""
    who = await _who(source, "the user at the source")
    names = [f"{schema}.{name}" for schema, name in tables]
    found = [_stop(*one) for table in await _tables(source, names, ("SELECT",)) for one in _of(who, table)]
    if not who.may_replicate:
        found.append(_stop(f"{who.called} may not replicate", f"ALTER ROLE {who.user} REPLICATION"))
    row = await (await source.execute(_PUBLISHED, (publication,))).fetchone()
    if row is None and not who.may_create:
        found.append(
            _stop(
                f"{who.called} may not create the publication {publication}",
                f"GRANT CREATE ON DATABASE {who.database} TO {who.user}; or let the owner of the tables say"
                f" CREATE PUBLICATION {publication} FOR TABLE {', '.join(names)}",
            )
        )
    if row is None or set(row[2]) != set(names):
        if row is not None and not row[0]:
            found.append(
                _stop(
                    f"the publication {publication} lacks tables or has too many, and is {row[1]}'s",
                    f"GRANT {row[1]} TO {who.user}, or let {row[1]} say"
                    f" ALTER PUBLICATION {publication} SET TABLE {', '.join(names)}",
                )
            )
        found += [
            _stop(
                f"only its owner may publish {table.name}",
                f"GRANT {table.owner} TO {who.user}, or let the owner make the publication {publication}",
            )
            for table in await _tables(source, names, ())
            if not table.is_owned
        ]
    if not who.sees_others:
        found.append(
            Finding(
                Weight.WARNS,
                REASON,
                f"{who.called} does not see what others do: no message can name the transaction"
                " that something waits for",
                f"GRANT pg_read_all_stats TO {who.user}",
            )
        )
    return found


async def of_target(looking: Connection, tables: Sequence[str], *, watched: bool = False) -> list[Finding]:
    """What the target's user lacks. `tables` as schema.table; `watched`: it is noted who else writes there.

    Raises psycopg.Error.
    """
    who = await _who(looking, "the user at the target")
    found = [
        *_of_our_schema(who),
        *(_stop(*one) for table in await _tables(looking, tables, _WRITES) for one in _of(who, table)),
        *await _functions(looking, who, _OF_THE_APPLY, "mark its transactions with an origin"),
    ]
    if watched:
        found += await _of_the_watch(looking, who, tables)
    if not who.may_use_temp:
        found.append(
            _stop(
                f"{who.called} may not make temporary tables",
                f"GRANT TEMPORARY ON DATABASE {who.database} TO {who.user}",
            )
        )
    if not await _may_be_replica(looking, who):
        new = who.version >= _PARAMETERS_SINCE
        found.append(
            _stop(
                f"{who.called} may not keep triggers from doing again what the source has done",
                f"GRANT SET ON PARAMETER session_replication_role TO {who.user}"
                if new
                else f"ALTER ROLE {who.user} SUPERUSER (PostgreSQL 14 knows no smaller right)",
            )
        )
    return found


async def _of_the_watch(looking: Connection, who: _Who, tables: Sequence[str]) -> list[Finding]:
    """Without it the stream runs, and nobody notices who else writes."""
    lacks = await _functions(looking, who, _OF_THE_FENCE, "tell our apply from other writers")
    lacks += [
        _stop(
            f"{who.called} may not make a trigger on {one.name}",
            f"GRANT TRIGGER ON {one.quoted} TO {who.user}",
        )
        for one in await _tables(looking, tables, ("TRIGGER",))
        if one.missing
    ]
    return [
        replace(one, weight=Weight.WARNS, message=f"{one.message}: nobody notes who else writes there")
        for one in lacks
    ]


async def of_cutover(where: Connection, tables: Sequence[tuple[str, str]]) -> list[Finding]:
    """What a user lacks for the fence on these tables and for their sequences. Raises psycopg.Error."""
    who = await _who(where, "the user")
    names = [f"{schema}.{name}" for schema, name in tables]
    found = [
        *_of_our_schema(who),
        *await _functions(where, who, _OF_THE_FENCE, "tell our apply from other writers"),
    ]
    found += [
        _stop(f"only its owner may fence {table.name}", f"GRANT {table.owner} TO {who.user}")
        for table in await _tables(where, names, ())
        if not table.is_owned
    ]
    rows = await (await where.execute(_SEQUENCES, (names,))).fetchall()
    found += [
        _stop(
            f"{who.called} may not read and set the sequence {name}",
            f"GRANT SELECT, UPDATE ON SEQUENCE {name} TO {who.user}",
        )
        for (name,) in rows
    ]
    return found


def stops(found: Sequence[Finding]) -> str:
    """All that is missing, in one text; empty where nothing that matters is."""
    missing = [one for one in found if one.weight is Weight.STOPS]
    return "; ".join(f"{one.message} ({one.remedy})" for one in missing)


def _of_our_schema(who: _Who) -> Iterator[Finding]:
    if who.foreign_owner is not None:
        yield _stop(
            f"the schema crossfade_sync is {who.foreign_owner}'s",
            f"GRANT {who.foreign_owner} TO {who.user}, or have {who.foreign_owner} in the URL",
        )
    elif not who.has_schema and not who.may_create:
        yield _stop(
            f"{who.called} may not create the schema crossfade_sync",
            f"GRANT CREATE ON DATABASE {who.database} TO {who.user}",
        )


def _of(who: _Who, table: _Table) -> Iterator[tuple[str, str]]:
    if not table.may_use_schema:
        yield (
            f"{who.called} may not use the schema {table.schema}",
            f"GRANT USAGE ON SCHEMA {table.schema} TO {who.user}",
        )
    if table.missing:
        may = " and ".join(table.missing)
        yield (
            f"{who.called} may not {may} on {table.name}",
            f"GRANT {', '.join(table.missing)} ON {table.quoted} TO {who.user}",
        )
    if table.is_filtered:
        yield (
            f"row security hides rows of {table.name} from {who.called}",
            f"ALTER ROLE {who.user} BYPASSRLS",
        )


async def _who(where: Connection, called: str) -> _Who:
    row = await (await where.execute(_WHO)).fetchone()
    assert row is not None
    return _Who(called, *row)


async def _tables(where: Connection, names: Sequence[str], rights: Sequence[str]) -> list[_Table]:
    """Those that there are; `missing` is which of `rights` the user lacks."""
    rows = await (await where.execute(_TABLES, (list(rights), list(names)))).fetchall()
    return [_Table(*row) for row in rows]


async def _functions(where: Connection, who: _Who, names: Sequence[str], what: str) -> list[Finding]:
    rows = await (await where.execute(_FUNCTIONS, (list(names),))).fetchall()
    return [
        _stop(f"{who.called} may not {what} ({name})", f"GRANT EXECUTE ON FUNCTION {name} TO {who.user}")
        for (name,) in rows
    ]


async def _may_be_replica(where: Connection, who: _Who) -> bool:
    if who.is_super or who.version < _PARAMETERS_SINCE:
        return who.is_super
    row = await (
        await where.execute("SELECT has_parameter_privilege('session_replication_role', 'SET')")
    ).fetchone()
    return row is not None and bool(row[0])


def _stop(message: str, remedy: str) -> Finding:
    return Finding(Weight.STOPS, REASON, message, remedy)
