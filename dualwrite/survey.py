"""What both databases say of a mapping before anything is touched: what is missing, lossy or unsafe."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import psycopg

from dualwrite import pg_source
from dualwrite.change import Identity, Relation, SourceColumn
from dualwrite.mapped import Mapped, RowMapping, SourceTable, Touching
from dualwrite.pg_connect import connect
from dualwrite.plan import Copying, TargetTable
from dualwrite.preflight import Finding, SourceFacts, Weight, findings
from dualwrite.sync import Direction, copies

LONG: Final = 100
"""Characters from which on PostgreSQL may keep a value elsewhere and leave it out of a change."""

_COLUMNS: Final = """
    SELECT a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
           a.atthasdef OR a.attidentity <> '', a.attstorage::text, a.attgenerated <> ''
      FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE n.nspname = %s AND c.relname = %s AND a.attnum > 0 AND NOT a.attisdropped
     ORDER BY a.attnum
"""
_UNIQUE: Final = """
    SELECT (SELECT array_agg(a.attname::text) FROM pg_attribute a
             WHERE a.attrelid = i.indrelid AND a.attnum = ANY(i.indkey))
      FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE n.nspname = %s AND c.relname = %s AND i.indisunique AND i.indpred IS NULL AND i.indexprs IS NULL
"""
_RIGHTS: Final = """
    SELECT r.rolsuper OR (current_setting('server_version_num')::int >= 150000
                          AND has_parameter_privilege('session_replication_role', 'SET')),
           r.rolsuper OR has_function_privilege('pg_replication_origin_create(text)', 'EXECUTE'),
           has_database_privilege(current_database(), 'CREATE')
             OR EXISTS (SELECT FROM pg_namespace WHERE nspname = 'crossfade_sync')
      FROM pg_roles r WHERE r.rolname = current_user
"""
_WRITE: Final = """
    SELECT bool_and(has_table_privilege(c.oid, one))
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace,
           unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) one
     WHERE n.nspname = %s AND c.relname = %s
"""
_HOW: Final[Mapping[type, str]] = MappingProxyType(
    {Copying: "as it is", Mapped: "value by value", Touching: "SQL that follows"}
)

Connection = psycopg.AsyncConnection[Any]


@dataclass(frozen=True, slots=True)
class ColumnFacts:
    name: str
    type: str
    not_null: bool
    has_default: bool
    storage: str
    """pg_attribute.attstorage: p is never kept elsewhere."""
    generated: bool


@dataclass(frozen=True, slots=True)
class Planned:
    """One mapping or follow-up of the plan. `rows` is the source's estimate."""

    name: str
    source: str
    how: str
    rows: int


@dataclass(frozen=True, slots=True)
class Plan:
    planned: tuple[Planned, ...]
    findings: tuple[Finding, ...]

    @property
    def possible(self) -> bool:
        return all(one.weight is not Weight.STOPS for one in self.findings)


async def survey(direction: Direction) -> Plan:
    """Look at both sides. Raises psycopg.Error, CaptureStopped where one cannot be reached."""
    source = await connect(direction.source_url)
    try:
        looking = await connect(direction.target_url)
        try:
            return await _survey(direction, source, looking)
        finally:
            await looking.close()
    finally:
        await source.close()


async def _survey(direction: Direction, source: Connection, looking: Connection) -> Plan:
    facts: SourceFacts = await pg_source.facts(source, direction.tables)
    found = [*findings(facts), *await _of_rights(looking)]
    here = {name: await columns(source, name) for name in direction.sources}
    for name, table in direction.sources.items():
        if not here[name]:
            continue
        for mapping in table.mappings:
            there = await columns(looking, str(mapping.table))
            keys = [frozenset(row[0]) for row in await _all(looking, _UNIQUE, str(mapping.table))]
            may_write = await _all(looking, _WRITE, str(mapping.table))
            found += judged(name, here[name], mapping, there, keys)
            if there and not may_write[0][0]:
                found.append(
                    _stop("missing_privilege", f"the user may not write {mapping.table}",
                          f"GRANT SELECT, INSERT, UPDATE, DELETE ON {mapping.table}")
                )  # fmt: skip
        identity = next(one.identity for one in facts.tables if one.name == name)
        found += _of_follow_ups(table, here[name], identity)
    rows = {name: await pg_source.rows_about(source, name) for name in direction.sources}
    planned = tuple(
        Planned(name, table, _HOW[type(what)], rows[table]) for name, table, what in copies(direction.sources)
    )
    return Plan(planned, tuple(found))


async def columns(where: Connection, table: str) -> dict[str, ColumnFacts]:
    """By name; empty where there is no such table."""
    return {row[0]: ColumnFacts(*row) for row in await _all(where, _COLUMNS, table)}


async def _all(where: Connection, query: Any, table: str) -> list[Any]:
    schema, _, name = table.partition(".")
    return await (await where.execute(query, (schema, name))).fetchall()


async def _of_rights(looking: Connection) -> Sequence[Finding]:
    row = await (await looking.execute(_RIGHTS)).fetchone()
    assert row is not None
    found = []
    if not row[0]:
        found.append(
            _stop(
                "missing_privilege",
                "the user at the target may not keep triggers from doing again what the source has done",
                "GRANT SET ON PARAMETER session_replication_role TO … (PostgreSQL 15), or a superuser",
            )
        )
    if not row[1]:
        found.append(
            _stop(
                "missing_privilege",
                "the user at the target may not mark its transactions with an origin",
                "GRANT EXECUTE ON FUNCTION pg_replication_origin_create, …_oid, …_session_setup TO …",
            )
        )
    if not row[2]:
        found.append(
            _stop(
                "missing_privilege",
                "the user at the target may not create the schema crossfade_sync",
                "GRANT CREATE ON DATABASE … TO …",
            )
        )
    return found


def judged(
    source: str,
    here: Mapping[str, ColumnFacts],
    mapping: RowMapping,
    there: Mapping[str, ColumnFacts],
    keys: Sequence[frozenset[str]],
) -> list[Finding]:
    """What speaks against one mapping. `keys` are the columns of the target's unique indexes. Pure."""
    target = mapping.table
    if not there:
        return [_stop("no_table", f"the target has no table {target}", "create it, or correct its name")]
    found = []
    names = [name for name, one in here.items() if not one.generated]
    schema, _, name = source.partition(".")
    relation = Relation(schema, name, Identity.KEY, tuple(SourceColumn(name, 0, False) for name in names))
    if (trouble := mapping.trouble(relation)) is not None:
        reason, message = trouble
        found.append(
            _stop(reason, message, "name it in columns, or in legacy_only or new_only if nobody wants it")
        )
    written = (*target.columns, *(name for name, _ in target.computed))
    if missing := [name for name in written if name not in there]:
        found.append(
            _stop("column_missing", f"{target} has no column {', '.join(missing)}", "correct the mapping")
        )
    if not target.partial:
        found += _of_what_is_left(target, written, there)
        if frozenset(target.columns[at] for at in target.key) not in keys:
            key = ", ".join(target.columns[at] for at in target.key)
            found.append(
                _stop("no_key", f"{target} has no unique index on ({key})", "create one, or name another key")
            )
    found += _lossy(source, here, mapping, there)
    return found


def _of_what_is_left(
    target: TargetTable, written: Sequence[str], there: Mapping[str, ColumnFacts]
) -> Iterator[Finding]:
    for name, one in there.items():
        if name not in written and one.not_null and not one.has_default and not one.generated:
            yield _stop(
                "column_unfilled",
                f"{target}.{name} may not be NULL, has no default, and no mapping fills it",
                "give it a default, or name it in columns or computed",
            )


def _lossy(
    source: str, here: Mapping[str, ColumnFacts], mapping: RowMapping, there: Mapping[str, ColumnFacts]
) -> Iterator[Finding]:
    conversions = (None,) * len(mapping.inputs) if isinstance(mapping, Copying) else mapping.conversions
    for from_, to, conversion in zip(mapping.inputs, mapping.table.columns, conversions, strict=False):
        one, other = here.get(from_), there.get(to)
        if one is None or other is None or conversion is not None:
            continue
        if (why := narrower(one.type, other.type)) is not None:
            yield Finding(
                Weight.WARNS,
                "lossy",
                f"{source}.{from_} ({one.type}) to {mapping.table}.{to} ({other.type}): {why}",
                "convert it, or widen the column; a value that does not fit stops the stream",
            )
        if one.not_null is False and other.not_null:
            yield Finding(
                Weight.WARNS,
                "null",
                f"{source}.{from_} may be NULL, {mapping.table}.{to} may not",
                "convert NULL to something; one stops the stream",
            )


_WHOLE: Final = {"smallint": 1, "integer": 2, "bigint": 3}
_LIMIT: Final = re.compile(r"character(?: varying)?\((\d+)\)")


def narrower(one: str, other: str) -> str | None:
    """Why a value of the first type may not fit into the second, if so. Pure."""
    if one in _WHOLE and other in _WHOLE and _WHOLE[one] > _WHOLE[other]:
        return "numbers may be too large"
    limits = [_LIMIT.fullmatch(name) for name in (one, other)]
    long = limits[1] is not None and (limits[0] is None or int(limits[0][1]) > int(limits[1][1]))
    if long and one.startswith(("text", "character")):
        return "texts may be too long"
    if "without time zone" in one and "with time zone" in other:
        return "moments are read as UTC, whatever they meant"
    if "with time zone" in one and "without time zone" in other:
        return "moments lose their zone, and become UTC's"
    if one in {"double precision", "numeric"} and other in {"real", *_WHOLE}:
        return "digits may be lost"
    return None


def _of_follow_ups(table: SourceTable, here: Mapping[str, ColumnFacts], identity: str) -> Iterator[Finding]:
    for touching in table.touching:
        for name in touching.inputs:
            one = here.get(name)
            if one is None:
                yield _stop("column_missing", f"{table.name} has no column {name}", "correct the follow-up")
                continue
            limit = _LIMIT.fullmatch(one.type)
            short = one.storage == "p" or (limit is not None and int(limit[1]) < LONG)
            if identity != "f" and not short:
                yield Finding(
                    Weight.WARNS,
                    "may_be_left_out",
                    f"a change of {table.name} may come without {name}, where that is long and unchanged",
                    f"ALTER TABLE {table.name} REPLICA IDENTITY FULL",
                )


def _stop(reason: str, message: str, remedy: str) -> Finding:
    return Finding(Weight.STOPS, reason, message, remedy)
