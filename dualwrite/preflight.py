"""What a source has to be like before anything is touched, and before a stream goes on. Pure.

What its user may do is a matter of `rights.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from dualwrite.capture import CaptureStopped, Way
from dualwrite.change import Position
from dualwrite.pg_stream import ORIGIN_SINCE, lsn_text
from dualwrite.runbooks import runbook
from dualwrite.target import Source, StreamState

OLDEST_VERSION = 140_000
"""`messages` in pgoutput, which heartbeats need, came with PostgreSQL 14."""


WAL_STATUSES: Final = ("reserved", "extended", "unreserved", "lost")
"""Of a slot, from all is well to it is too late."""


@dataclass(frozen=True, slots=True)
class TableFacts:
    name: str
    """schema.table, as it was asked for."""
    kind: str = "r"
    """pg_class.relkind; empty where there is no such table."""
    persistence: str = "p"
    identity: str = "d"
    """pg_class.relreplident: d (primary key), i (an index), f (the whole row), n (nothing)."""
    has_primary_key: bool = True
    is_subscribed: bool = False
    """Some of its rows come by a subscription of the source itself, and bear an origin that is not ours."""


@dataclass(frozen=True, slots=True)
class SourceFacts:
    version: int
    wal_level: str
    in_recovery: bool
    free_slots: int
    free_senders: int
    keeps_wal: int | None
    """Bytes that a slot may hold back (max_slot_wal_keep_size); None: without a limit."""
    tables: tuple[TableFacts, ...]
    way: Way = Way.STREAM
    refused: str | None = None
    """Why a replication connection was refused, where one was tried."""
    slots: tuple[SlotFacts, ...] = ()
    """All that begin with `crossfade_` and belong to this database, and nobody reads."""


@dataclass(frozen=True, slots=True)
class SlotFacts:
    confirmed: Position
    wal_status: str
    """One of `WAL_STATUSES`."""
    retained: int
    """Bytes of log that the source keeps for this slot."""
    database: str
    plugin: str
    limit: int | None = None
    """Bytes that it may hold back (max_slot_wal_keep_size); None: without a limit."""
    name: str = ""

    @property
    def share(self) -> float | None:
        """Of what it may hold back; at 1 the source drops log that is still needed."""
        return None if self.limit is None else self.retained / max(self.limit, 1)


class Weight(Enum):
    STOPS = "stops"
    WARNS = "warns"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be. `reason` is one word; `remedy` is what to do about it."""

    weight: Weight
    reason: str
    message: str
    remedy: str

    @property
    def runbook(self) -> str | None:
        return runbook(self.reason)


ALARM_AT: Final = 0.5
"""Of `max_slot_wal_keep_size`."""


def near_limit(slot: SlotFacts) -> str | None:
    """What to say of a slot that has used up much of what it may hold back."""
    if slot.share is None or (slot.share < ALARM_AT and slot.wal_status in {"reserved", "extended"}):
        return None
    return (
        f"the slot {slot.name} holds back {slot.retained / 2**20:,.0f} MiB of log, {slot.share:.0%} of"
        f" max_slot_wal_keep_size ({slot.wal_status}); at 100 % the source drops it, and all is copied anew"
    )


def findings(facts: SourceFacts) -> list[Finding]:
    """All that speaks against reading these tables from this source, at once."""
    return [
        *_of_the_server(facts),
        *(one for table in facts.tables for one in _of_a_table(table, facts.version)),
    ]


def _of_the_server(facts: SourceFacts) -> list[Finding]:
    found = []

    def stop(reason: str, message: str, remedy: str) -> None:
        found.append(Finding(Weight.STOPS, reason, message, remedy))

    if facts.version < OLDEST_VERSION:
        stop(
            "version_too_old",
            f"the source is PostgreSQL {facts.version // 10_000}; 14 is the oldest that can be read",
            "upgrade the source, or capture by triggers",
        )
    if facts.in_recovery:
        stop("standby", "the source is a standby", "name the primary in data.…url")
    if facts.wal_level != "logical":
        stop(
            "wal_level",
            f"wal_level is {facts.wal_level}; logical is needed",
            "ALTER SYSTEM SET wal_level = 'logical'; then restart the source",
        )
    if facts.refused is not None:
        stop(
            "no_replication",
            facts.refused,
            "allow it, or read it in SQL: data: {legacy: {url: …, capture: peek}}",
        )
    if facts.free_slots < 1:
        stop("no_slot", "all replication slots are in use", "raise max_replication_slots, or drop one")
    if facts.free_senders < 1 and facts.way is Way.STREAM:
        stop("no_sender", "all walsenders are in use", "raise max_wal_senders")
    if facts.keeps_wal is None:
        found.append(
            Finding(
                Weight.WARNS,
                "wal_without_limit",
                "max_slot_wal_keep_size is -1: while nobody reads the slot, the source's disk can fill up",
                "ALTER SYSTEM SET max_slot_wal_keep_size = '50GB' (what the disk can spare), then reload",
            )
        )
    found += [
        Finding(
            Weight.WARNS,
            "idle_slot",
            f"nobody reads the slot {slot.name} now; the source keeps {slot.retained / 2**20:,.0f} MiB of"
            " log for it",
            f"start the crossfade sync that reads it, or SELECT pg_drop_replication_slot('{slot.name}')",
        )
        for slot in facts.slots
    ]
    return found


def _of_a_table(table: TableFacts, version: int) -> list[Finding]:
    name = table.name

    def stop(reason: str, message: str, remedy: str) -> list[Finding]:
        return [Finding(Weight.STOPS, reason, message, remedy)]

    if not table.kind:
        return stop("no_table", f"there is no table {name}", "correct its name in the mapping")
    if table.kind not in {"r", "p"}:
        return stop("no_table", f"{name} is a view or a foreign table", "name the tables that it reads")
    if table.persistence != "p":
        return stop("not_logged", f"{name} is unlogged or temporary", f"ALTER TABLE {name} SET LOGGED")
    found = []
    if table.identity == "n" or (table.identity == "d" and not table.has_primary_key):
        # Published as it is, the application's own UPDATE and DELETE would fail from then on.
        found += stop(
            "no_identity",
            f"{name} has no key: once it is published, the application's own updates would fail",
            f"give it a primary key, or ALTER TABLE {name} REPLICA IDENTITY FULL",
        )
    if table.kind == "p":
        found.append(
            Finding(
                Weight.WARNS,
                "partitioned",
                f"{name} is partitioned: rows that come or go with a whole partition (ATTACH, DETACH, DROP,"
                " TRUNCATE of one) are no changes of rows, and do not come over",
                "DELETE rows, and fill partitions once they are attached; or data verify, then data repair",
            )
        )
    if table.is_subscribed and version >= ORIGIN_SINCE:
        # Left out as if our own apply had written it, and nobody would notice.
        found += stop(
            "subscribed",
            f"rows of {name} come by a subscription of the source, and such rows are not sent on",
            "name the database in data: that they come from, or drop the subscription",
        )
    return found


def must_be_resumable(
    state: StreamState,
    here: Source,
    slot: SlotFacts | None,
    server_at: Position,
    slot_limit: int | None = None,
) -> None:
    """Raises CaptureStopped unless the slot holds all that comes after what was applied.

    While another process may be at work, `slot` is to be looked at first, then `state`, then `server_at`.
    A slot that was dropped and made again, or a server that is another one, answers as if nothing had
    happened.
    """
    source = state.source
    if here.system_id != source.system_id:
        raise CaptureStopped(
            "other_source",
            f"this is another database cluster ({here.system_id}) than the stream was begun on"
            f" ({source.system_id}); begin anew with a copy, or name the right one",
        )
    if server_at < state.applied:
        raise CaptureStopped(
            "target_ahead",
            f"the source stands at {lsn_text(server_at)}, before what was applied"
            f" ({lsn_text(state.applied)}): it was set back, or a standby took over without its last writes;"
            " verify and repair before going on",
        )
    if slot is None:
        raise CaptureStopped(
            "slot_missing",
            f"the slot {source.slot} is gone; what was written since then has to be copied anew",
        )
    if slot.wal_status == "lost":
        raise CaptureStopped(
            "slot_lost",
            f"the source has dropped log that the slot {source.slot} needed (max_slot_wal_keep_size"
            f"{'' if slot_limit is None else f' is {slot_limit} bytes'}); it has to be copied anew",
        )
    if slot.confirmed > state.applied:
        raise CaptureStopped(
            "gap",
            f"the slot {source.slot} begins at {lsn_text(slot.confirmed)}, after what was applied"
            f" ({lsn_text(state.applied)}): it was made anew or moved on, and changes between are lost;"
            " verify and repair, then begin anew",
        )
    if here.timeline != source.timeline:
        raise CaptureStopped(
            "other_timeline",
            f"the source is on timeline {here.timeline}, the stream was begun on {source.timeline}: a standby"
            " has taken over; verify before going on",
        )


def missing_tables(published: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """Tables that the publication does not hold: their changes would never come."""
    return sorted(set(wanted) - set(published))
