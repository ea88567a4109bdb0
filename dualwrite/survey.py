"""What both databases say of a mapping before anything is touched: what is missing, lossy or unsafe."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import psycopg
from psycopg import errors, sql

from dualwrite import pg_capture, pg_source, rights, target
from dualwrite.backfill import copy_name
from dualwrite.capture import CaptureStopped
from dualwrite.change import Identity, Relation, SourceColumn
from dualwrite.mapped import Mapped, RowMapping, SourceTable, Touching, by_table
from dualwrite.pg_connect import connect
from dualwrite.plan import Copying, TargetTable
from dualwrite.preflight import Finding, Weight, findings, must_be_resumable, near_limit
from dualwrite.sync import Direction, copies

SPACE: Final = "and why the stream does not go on; raise max_slot_wal_keep_size meanwhile"
LONG: Final = 100
"""Characters from which on PostgreSQL may keep a value elsewhere and leave it out of a change."""

_COLUMNS: Final = """
    SELECT a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
           a.atthasdef OR a.attidentity <> '', a.attstorage::text, a.attgenerated <> '',
           (SELECT t.typcategory::text FROM pg_type t WHERE t.oid = a.atttypid)
      FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE n.nspname = %s AND c.relname = %s AND a.attnum > 0 AND NOT a.attisdropped
     ORDER BY a.attnum
"""
_UNIQUE: Final = """
    SELECT (SELECT array_agg(a.attname::text) FROM pg_attribute a
             WHERE a.attrelid = i.indrelid AND a.attnum = ANY((i.indkey::int2[])[0:i.indnkeyatts - 1]))
      FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE n.nspname = %s AND c.relname = %s AND i.indisunique AND i.indpred IS NULL AND i.indexprs IS NULL
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
    category: str
    """pg_type.typcategory: N is a number, S a text, D a moment, and so on."""


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
    of_source = await rights.of_source(source, direction.slot, direction.tables)
    refused = None
    if not rights.stops(of_source):
        refused = await pg_capture.refused(direction.way, direction.source_url)
    facts = await pg_source.facts(source, direction.tables, direction.way, direction.slot, refused)
    found = [
        *findings(facts),
        *await _of_what_stands(direction, source, looking),
        *await _of_rows_there(direction, source, looking),
        *of_source,
        *await rights.of_target(looking, direction.written, watched=direction.watches),
    ]
    here = {name: await columns(source, name) for name in direction.sources}
    for name, table in direction.sources.items():
        if not here[name]:
            continue
        for mapping in table.mappings:
            there = await columns(looking, str(mapping.table))
            keys = [frozenset(row[0]) for row in await _all(looking, _UNIQUE, str(mapping.table))]
            found += judged(name, here[name], mapping, there, keys)
            ours = [frozenset(row[0]) for row in await _all(source, _UNIQUE, name)]
            found += _of_the_key(name, mapping, ours)
        identity = next(one.identity for one in facts.tables if one.name == name)
        found += _of_follow_ups(table, here[name], identity)
    found += _of_shared_tables(direction.sources)
    rows = {name: await pg_source.rows_about(source, name) for name in direction.sources}
    planned = tuple(
        Planned(name, table, _HOW[type(what)], rows[table]) for name, table, what in copies(direction.sources)
    )
    return Plan(planned, tuple(found))


async def _of_what_stands(direction: Direction, source: Connection, looking: Connection) -> list[Finding]:
    """Of a stream that was begun already: whether it can go on, and what it costs the source."""
    found = []
    slot = await pg_source.slot_facts(source, direction.slot)
    if slot is not None and (said := near_limit(slot)) is not None:
        found.append(Finding(Weight.WARNS, "slot_near_limit", said, f"crossfade data status, {SPACE}"))
    row = await (await looking.execute("SELECT to_regclass('crossfade_sync.streams')")).fetchone()
    try:
        known = None if row is None or row[0] is None else await target.state(looking, direction.name)
        if known is None:
            if slot is not None:
                found.append(
                    _stop(
                        "slot_exists",
                        f"the slot {slot.name} exists already, and this target knows nothing of it",
                        f"if no other target needs it: SELECT pg_drop_replication_slot('{slot.name}')",
                    )
                )
            return found
        here, at = await pg_capture.identify(direction.way, direction.source_url, source, direction.slot)
        must_be_resumable(known, here, slot, at, None if slot is None else slot.limit)
    except errors.InsufficientPrivilege:
        pass  # what is missing is found by name
    except CaptureStopped as stopped:
        if not stopped.passing and stopped.reason != "no_replication":
            found.append(_stop(stopped.reason, str(stopped), "as the runbook says"))
    return found


async def _of_rows_there(direction: Direction, source: Connection, looking: Connection) -> list[Finding]:
    """The target's tables that have rows before a copy of theirs was begun."""
    if await _is_known(source, direction.way_back):
        return []  # both sides are alike by the other stream
    begun: set[str] = set()
    if await _is_known(looking, direction.name):
        cursor = await looking.execute(
            "SELECT copy FROM crossfade_sync.copies WHERE stream = %s", (direction.name,)
        )
        begun = {name for (name,) in await cursor.fetchall()}
    tables = {
        str(mapping.table): mapping.table
        for source_, mapping in by_table(direction.sources)
        if not mapping.table.partial and copy_name(source_.name, mapping) not in begun
    }
    found = []
    for name, table in sorted(tables.items()):
        try:
            query = sql.SQL("SELECT EXISTS (SELECT FROM {})").format(
                target.qualified(table.schema, table.name)
            )
            row = await (await looking.execute(query)).fetchone()
        except (errors.InsufficientPrivilege, errors.UndefinedTable):
            continue  # told by name elsewhere
        if row is not None and row[0]:
            found.append(name)
    if not found:
        return []
    return [
        Finding(
            Weight.WARNS,
            "not_empty",
            f"{', '.join(found)} at the target: rows are there already, and a copy leaves them alone",
            "empty the tables, or mend those that differ afterwards: crossfade data verify, data repair",
        )
    ]


async def _is_known(where: Connection, stream: str) -> bool:
    row = await (await where.execute("SELECT to_regclass('crossfade_sync.streams')")).fetchone()
    try:
        return row is not None and row[0] is not None and await target.state(where, stream) is not None
    except errors.InsufficientPrivilege:
        return False


async def columns(where: Connection, table: str) -> dict[str, ColumnFacts]:
    """By name; empty where there is no such table."""
    return {row[0]: ColumnFacts(*row) for row in await _all(where, _COLUMNS, table)}


async def _all(where: Connection, query: Any, table: str) -> list[Any]:
    schema, _, name = table.partition(".")
    return await (await where.execute(query, (schema, name))).fetchall()


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
        return [
            _stop("no_table", f"the target has no table {target}", "create it there, or correct its name")
        ]
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
            _stop(
                "column_missing",
                f"the target's {target} has no column {', '.join(missing)}",
                "correct the mapping",
            )
        )
    if not target.partial:
        found += _of_what_is_left(target, written, there)
        if frozenset(target.columns[at] for at in target.key) not in keys:
            key = ", ".join(target.columns[at] for at in target.key)
            found.append(
                _stop(
                    "no_key",
                    f"the target's {target} has no unique index on ({key})",
                    "create one there, or name another key",
                )
            )
    found += _lossy(source, here, mapping, there)
    return found


def _of_the_key(source: str, mapping: RowMapping, keys: Sequence[frozenset[str]]) -> Iterator[Finding]:
    """Of two rows with one key the target would have one. `keys` are of the source's unique indexes. Pure."""
    key = [mapping.inputs[at] for at in mapping.table.key]
    if not any(one <= frozenset(key) for one in keys):
        yield _stop(
            "no_key",
            f"the source's {source} has no unique index on ({', '.join(key)}): rows with one key would become"
            " one row",
            "create one there, or name another key",
        )


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
        place = f"{source}.{from_} ({one.type}) to {mapping.table}.{to} ({other.type})"
        if (unfit := foreign(one, other)) is not None:
            weight, said = unfit
            yield Finding(weight, "type_unfit", f"{place}: {said}", "say in columns how it is converted")
            continue
        if (why := narrower(one.type, other.type)) is not None:
            yield Finding(
                Weight.WARNS,
                "lossy",
                f"{place}: {why}",
                "convert it, or widen the column; a value that does not fit stops the stream",
            )
        if one.not_null is False and other.not_null:
            yield Finding(
                Weight.WARNS,
                "null",
                f"{source}.{from_} may be NULL, {mapping.table}.{to} may not",
                "convert NULL to something; one stops the stream",
            )


_SAME_WORDS: Final = (frozenset({"json", "jsonb"}), frozenset({"inet", "cidr"}))
"""Types that write and read the same text, though neither is a text."""


def foreign(one: ColumnFacts, other: ColumnFacts) -> tuple[Weight, str] | None:
    """Why a value's text may be none that the other type reads, if so. Pure."""
    plain = [re.sub(r"\(.*?\)", "", column.type) for column in (one, other)]
    if plain[0] == "oid" and other.category == "N":
        return Weight.WARNS, "a large object stays where it is; only its number comes over"
    if plain[0] == plain[1] or other.category == "S" or frozenset(plain) in _SAME_WORDS:
        return None
    if one.category == "S":
        return Weight.WARNS, f"each text has to read as {plain[1]}; one that does not stops the stream"
    if one.category == other.category and one.category in {"N", "D"}:
        if plain[0].startswith("time ") or plain[1].startswith("time "):
            return Weight.STOPS, f"no {plain[0]} reads as {plain[1]}"
        return None
    if (one.category, other.category) == ("N", "B"):
        return Weight.WARNS, "only 0 and 1 read as boolean"
    if one.category == other.category == "E":
        return Weight.WARNS, f"a label that {plain[1]} does not have stops the stream"
    return Weight.STOPS, f"no {plain[0]} reads as {plain[1]}"


_WHOLE: Final = {"smallint": 1, "integer": 2, "bigint": 3}
_DIGITS: Final = re.compile(r"numeric\((\d+),(\d+)\)")
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
    digits = [_DIGITS.fullmatch(name) for name in (one, other)]
    if digits[1] is not None and one.startswith("numeric"):
        (before, after), (whole, scale) = (
            (int(said[1]) - int(said[2]), int(said[2])) if said else (10**6, 10**6) for said in digits
        )
        if before > whole or after > scale:
            return "digits may be lost, or numbers be too large"
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


def _of_shared_tables(sources: Mapping[str, SourceTable]) -> Iterator[Finding]:
    """Several tables become one: a key of one must not be a key of another."""
    shared: dict[str, list[str]] = {}
    for source, mapping in by_table(sources):
        if isinstance(mapping, Mapped) and mapping.mark is not None and mapping.mark[1] is None:
            shared.setdefault(str(mapping.table), []).append(source.name)
    for table, names in shared.items():
        if len(names) > 1:
            yield Finding(
                Weight.WARNS,
                "keys_may_meet",
                f"{', '.join(names)} become rows of {table}: of two with the same key one is written over",
                "give their keys one sequence, or numbers that never meet, before anybody writes to them",
            )


def _stop(reason: str, message: str, remedy: str) -> Finding:
    return Finding(Weight.STOPS, reason, message, remedy)
