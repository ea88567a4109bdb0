"""What was done or tried, by whom and why, as a chain in which each row holds the hash of the one before.

A row's hash covers everything in it and the hash before it, so no row can be changed, removed, put in or
moved without its hash, or the next row's, being wrong. The last hash also stands in `flag_set`: a row
that was cut off at the end is missed there.

What the chain cannot show: somebody who may write everything in the database can compute the whole
chain anew. Against that, keep the last hash (`audit verify` prints it) where the database's owner
cannot write, and look whether it is still in the chain.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final, TypeAlias

from sqlalchemy import Row, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from crossfade.store.actors import Actor
from crossfade.store.connection import Database
from crossfade.store.tables import audit, flag_set

GENESIS: Final = "0" * 64
"""What the first row holds as the hash before it."""
LONGEST_TEXT = 2000
LONGEST_COMMAND = 32_768
"""Of a refused command more than this is kept as its hash: refusing costs nothing, so it may be much."""
CHUNK = 500

Json: TypeAlias = Mapping[str, Any]


class Outcome(StrEnum):
    APPLIED = "applied"
    DENIED = "denied"
    """The actor may not do that."""
    REJECTED = "rejected"
    """Nobody can do that, or not now."""


@dataclass(frozen=True, slots=True)
class Deed:
    """What somebody wants to do, and why.

    `objects` are the keys of what it is done to, `command` is the wish in full.
    """

    action: str
    kind: str
    objects: tuple[str, ...]
    reason: str
    command: Json = field(default_factory=dict)
    ticket: str | None = None
    evidence: Json | None = None
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class AuditRow:
    seq: int
    at: datetime
    actor: Json
    action: str
    kind: str
    objects: tuple[str, ...]
    command: Json
    outcome: Outcome
    refusal: str | None
    from_version: int | None
    to_version: int | None
    before: Json | None
    after: Json | None
    reason: str
    ticket: str | None
    evidence: Json | None
    request_id: str | None
    prev_hash: str
    hash: str


@dataclass(frozen=True, slots=True)
class Head:
    """The row that everybody who changes something holds the lock of, as it was when it was locked."""

    version: int
    kill: Json | None
    audit_seq: int
    audit_hash: str


@dataclass(frozen=True, slots=True)
class Verified:
    """Every row is as it was written. `hash` is the last one, to be kept elsewhere."""

    rows: int
    hash: str


@dataclass(frozen=True, slots=True)
class Broken:
    """The chain breaks at `seq`; what stands before it is as it was written."""

    seq: int
    why: str


async def lock(connection: AsyncConnection) -> Head:
    """Wait until nobody else changes anything, and be the one who does until the transaction ends."""
    columns = (flag_set.c.version, flag_set.c.kill, flag_set.c.audit_seq, flag_set.c.audit_hash)
    row = (await connection.execute(select(*columns).with_for_update())).one()
    return Head(*row)


async def append(
    connection: AsyncConnection,
    head: Head,
    actor: Actor,
    deed: Deed,
    outcome: Outcome,
    *,
    refusal: str | None = None,
    from_version: int | None = None,
    to_version: int | None = None,
    before: Json | None = None,
    after: Json | None = None,
) -> int:
    """Write one row behind `head`, whose lock the transaction holds. Returns its number."""
    command = _plain(deed.command)
    if outcome is not Outcome.APPLIED and len(written := _canonical(command)) > LONGEST_COMMAND:
        command = {"bytes": len(written), "sha256": hashlib.sha256(written).hexdigest()}
    row: dict[str, Any] = {
        "seq": head.audit_seq + 1,
        "at": (await connection.execute(select(func.clock_timestamp()))).scalar_one(),
        "actor": {
            "type": actor.type.value,
            "name": actor.name,
            "role": None if actor.role is None else actor.role.value,
            "address": actor.address,
            "via": actor.via.value,
        },
        "action": deed.action,
        "kind": deed.kind,
        "objects": [_storable(name) for name in deed.objects],
        "command": command,
        "outcome": outcome.value,
        "refusal": _storable_or_none(refusal),
        "from_version": from_version,
        "to_version": to_version,
        "before": _plain(before),
        "after": _plain(after),
        "reason": _storable(deed.reason),
        "ticket": _storable_or_none(deed.ticket),
        "evidence": _plain(deed.evidence),
        "request_id": _storable_or_none(deed.request_id),
        "prev_hash": head.audit_hash,
    }
    row["hash"] = chained(row)
    await connection.execute(insert(audit).values(row))
    await connection.execute(update(flag_set).values(audit_seq=row["seq"], audit_hash=row["hash"]))
    return head.audit_seq + 1


def chained(row: Json) -> str:
    """The hash of a row: SHA-256 over the canonical JSON of all its other columns, `prev_hash` among them."""
    content = {name: value for name, value in row.items() if name != "hash"}
    content["at"] = row["at"].astimezone(UTC).isoformat(timespec="microseconds")
    return hashlib.sha256(_canonical(content)).hexdigest()


async def tail(
    database: Database,
    after_seq: int | None = None,
    limit: int = 50,
    *,
    kinds: Sequence[str] = (),
    object_key: str | None = None,
    outcome: Outcome | None = None,
) -> list[AuditRow]:
    """Rows in their order: the next `limit` behind `after_seq`, or the last ones there are."""
    wanted = select(audit)
    if kinds:
        wanted = wanted.where(audit.c.kind.in_(kinds))
    if object_key is not None:
        wanted = wanted.where(audit.c.objects.contains([_storable(object_key)]))
    if outcome is not None:
        wanted = wanted.where(audit.c.outcome == outcome.value)
    if after_seq is None:
        wanted = wanted.order_by(audit.c.seq.desc())
    else:
        wanted = wanted.where(audit.c.seq > after_seq).order_by(audit.c.seq)
    async with database.transaction() as connection:
        rows = [_read(row) for row in await connection.execute(wanted.limit(limit))]
    return rows[::-1] if after_seq is None else rows


async def of_request(database: Database, request_id: str) -> AuditRow | None:
    """The first act that was applied under that id."""
    wanted = (
        select(audit)
        .where(audit.c.request_id == _storable(request_id), audit.c.outcome == Outcome.APPLIED.value)
        .order_by(audit.c.seq)
        .limit(1)
    )
    async with database.transaction() as connection:
        row = (await connection.execute(wanted)).first()
    return None if row is None else _read(row)


async def verify(database: Database) -> Verified | Broken:
    """Walk the whole chain. Rows that are written in the meantime are verified too, or not yet."""
    seq, last = 0, GENESIS
    while True:
        wanted = select(audit).order_by(audit.c.seq).limit(CHUNK)
        if seq:  # the first chunk has no lower bound: a row before the first one would be found
            wanted = wanted.where(audit.c.seq > seq)
        async with database.transaction() as connection:
            rows = (await connection.execute(wanted)).all()
            if not rows:
                if (end := await _end(connection, seq, last)) is not None:
                    return end
                continue
        for row in rows:
            seq += 1
            if row.seq != seq:
                # A row with a number below the expected one can only be one too many.
                why = "it is missing" if row.seq > seq else "it stands before the first row"
                return Broken(min(seq, row.seq), why)
            if row.prev_hash != last:
                return Broken(seq, "it does not follow the row before it")
            if chained(dict(row._mapping)) != row.hash:
                return Broken(seq, "its content is not what its hash was made of")
            last = row.hash


async def _end(connection: AsyncConnection, seq: int, last: str) -> Verified | Broken | None:
    """Whether the chain ends where its last writer said; None where it has grown in the meantime."""
    beyond = select(func.count()).where(audit.c.seq > seq).scalar_subquery()
    columns = (flag_set.c.audit_seq, flag_set.c.audit_hash, beyond)
    noted, noted_hash, more = (await connection.execute(select(*columns))).one()
    if noted > seq:
        return None if more else Broken(seq + 1, f"it is missing at the end: {noted} rows were written")
    if noted < seq or more:
        return Broken(noted + 1, f"it was put in at the end: {noted} rows were written")
    if noted_hash != last:
        return Broken(seq, "it is not the row that was written last")
    return Verified(seq, last)


def _read(row: Row[Any]) -> AuditRow:
    fields = dict(row._mapping)
    fields["objects"] = tuple(fields["objects"])
    fields["outcome"] = Outcome(fields["outcome"])
    return AuditRow(**fields)


def _canonical(value: object) -> bytes:
    """One spelling for one value. ASCII, so that a text that PostgreSQL cannot store is kept escaped."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _plain(value: Json | None) -> Any:
    """`value` as it will be read back: lists for tuples, texts for keys and for infinite numbers."""
    return None if value is None else json.loads(json.dumps(value), parse_constant=str)


def _storable(text: str) -> str:
    """A text without what PostgreSQL refuses (NUL, half a surrogate pair), and not endless."""
    return text[:LONGEST_TEXT].encode("utf-8", "replace").decode().replace("\0", "\ufffd")


def _storable_or_none(text: str | None) -> str | None:
    return None if text is None else _storable(text)
