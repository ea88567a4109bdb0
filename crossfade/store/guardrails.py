"""Guardrails as rows: what each watches, how far it has counted, and what it has found.

A look is written only where nobody else has looked since (`looks` counts them), so that each request is
taken into the evidence once, however many processes look.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, TypeAlias

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Row,
    cast,
    delete,
    extract,
    func,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection

from crossfade.store import flag_rows
from crossfade.store.actors import Actor
from crossfade.store.audit import Deed, Head
from crossfade.store.changes import Done
from crossfade.store.connection import StoreError, StoreReason
from crossfade.store.store import Store
from crossfade.store.tables import guardrails, instances, shadow_counts
from flags.change import Refused
from flags.cohort import (
    Cohort,
    Cohorts,
    Cursor,
    Seen,
    cohorts_from_json,
    cursor_from_json,
    cursor_to_json,
)
from flags.guardrail import (
    Action,
    Evidence,
    Guardrail,
    InvalidGuardrailError,
    Mode,
    evidence_from_json,
    evidence_to_json,
    guardrail_from_json,
    guardrail_to_json,
    has_something_to_judge,
)
from flags.model import FlagSet
from flags.stages import share_of_new

Json: TypeAlias = Mapping[str, Any]

_ID = re.compile(r"[a-z0-9][a-z0-9._:-]{1,126}")


class WatchState(StrEnum):
    OK = "ok"
    INSUFFICIENT_DATA = "insufficient_data"
    TRIPPED = "tripped"
    """Until a person re-arms it."""
    DRY_RUN_TRIPPED = "dry_run_tripped"
    """It would have acted; nothing was done, and it is not asked again until it is re-armed."""


LATCHED = frozenset({WatchState.TRIPPED, WatchState.DRY_RUN_TRIPPED})


@dataclass(frozen=True, slots=True)
class Watch:
    """A guardrail and what it has seen since it was armed. Times are Unix times of the store's clock."""

    guardrail: Guardrail
    state: WatchState
    evidence: Evidence
    cursor: Cursor
    share_ppm: int
    """The share of the keys on new at the last look."""
    judges: bool
    """Whether there was anything to judge where the flag stood at the last look."""
    trigger: str
    message: str
    armed_at: float
    tripped_at: float | None = None
    looks: int = 0

    @property
    def stands_against(self) -> str | None:
        """Why a ramp may not go on, if this guardrail says so."""
        if self.state is not WatchState.TRIPPED or self.guardrail.action is Action.ALERT:
            return None
        name = self.guardrail.id
        return f"the guardrail {name} has tripped; look why, then: crossfade guardrail rearm {name}"

    @property
    def enforces(self) -> bool:
        """Whether a ramp has to wait until this guardrail is sure."""
        return self.guardrail.mode is Mode.ENFORCE and self.guardrail.action is not Action.ALERT


async def set_guardrail(
    store: Store,
    actor: Actor,
    flag: str,
    definition: Json,
    *,
    reason: str,
    guardrail_id: str | None = None,
    ticket: str | None = None,
    dry_run: bool = False,
    request_id: str | None = None,
) -> Watch:
    """Put a guardrail on a flag, or define it anew; it begins to count now.

    Without an id it is the one of the flag and the signal. One that has tripped must be re-armed first.
    """
    wanted = guardrail_id or f"{flag}:{definition.get('signal')}"

    async def put(connection: AsyncConnection, _: Head) -> Done[Watch]:
        flag_set, now = await flag_rows.read(connection)
        found = flag_set.flag(flag)
        if found is None or found.archived:
            raise Refused("not_found", f'there is no flag "{flag}"; crossfade flag list shows what there is')
        try:
            guardrail = guardrail_from_json(wanted, flag, definition)
        except InvalidGuardrailError as error:
            raise Refused("invalid", f"guardrail {wanted}: {error}") from None
        if not _ID.fullmatch(wanted):
            raise Refused("invalid", f"{wanted!r} cannot be a guardrail's id: a-z, 0-9 and .:_- only")
        before = await _one(connection, wanted)
        if before is not None and before.guardrail.flag != flag:
            raise Refused("exists", f"{wanted} is a guardrail of {before.guardrail.flag}; take another id")
        if before is not None and before.guardrail == guardrail:
            return Done(before, changed=False)
        if before is not None and before.state is WatchState.TRIPPED:
            raise Refused(
                "guardrail_tripped",
                f"{wanted} has tripped; look why, crossfade guardrail rearm {wanted}, then define it anew",
            )
        watch = await _armed(connection, guardrail, flag_set, now)
        if before is not None:
            # A look at the one before that is under way must not be taken for one at this.
            watch = replace(watch, looks=before.looks + 1)
        if not dry_run:
            if before is not None:
                await _remove(connection, wanted)
            await connection.execute(insert(guardrails).values(id=wanted, flag=flag, **_columns(watch)))
        was = None if before is None else guardrail_to_json(before.guardrail)
        return Done(watch, before=was, after=guardrail_to_json(guardrail))

    deed = Deed("guardrail.set", "guardrail", (flag, wanted), reason, definition, ticket, None, request_id)
    return (await store.perform(actor, deed, put, dry_run=dry_run)).value


async def rearm(
    store: Store,
    actor: Actor,
    guardrail_id: str,
    *,
    reason: str,
    ticket: str | None = None,
    request_id: str | None = None,
) -> Watch:
    """Let a guardrail watch again, from now on, with nothing remembered."""

    async def arm(connection: AsyncConnection, _: Head) -> Done[Watch]:
        before = await _existing(connection, guardrail_id)
        flag_set, now = await flag_rows.read(connection)
        watch = await _armed(connection, before.guardrail, flag_set, now)
        watch = replace(watch, looks=before.looks + 1)
        await connection.execute(
            update(guardrails).where(guardrails.c.id == guardrail_id).values(**_columns(watch))
        )
        was = {"state": before.state.value, "trigger": before.trigger, "message": before.message}
        objects = (before.guardrail.flag, guardrail_id)
        return Done(watch, objects=objects, before=was, after={"state": watch.state.value})

    deed = Deed("guardrail.rearm", "guardrail", (guardrail_id,), reason, {}, ticket, None, request_id)
    return (await store.perform(actor, deed, arm)).value


async def delete_guardrail(
    store: Store,
    actor: Actor,
    guardrail_id: str,
    *,
    reason: str,
    ticket: str | None = None,
    request_id: str | None = None,
) -> None:
    """Take a guardrail away."""

    async def remove(connection: AsyncConnection, _: Head) -> Done[None]:
        before = await _existing(connection, guardrail_id)
        await _remove(connection, guardrail_id)
        was = {**guardrail_to_json(before.guardrail), "state": before.state.value}
        return Done(None, objects=(before.guardrail.flag, guardrail_id), before=was)

    deed = Deed("guardrail.delete", "guardrail", (guardrail_id,), reason, {}, ticket, None, request_id)
    await store.perform(actor, deed, remove)


async def list_guardrails(store: Store, flag: str | None = None) -> list[Watch]:
    """All guardrails, or those of one flag, by their ids."""
    async with store.transaction() as connection:
        return await read(connection, flag)


async def get_guardrail(store: Store, guardrail_id: str) -> Watch:
    """One guardrail. Raises Refused (not_found)."""
    async with store.transaction() as connection:
        return await _existing(connection, guardrail_id)


# For the reconciler and for ramps.


async def read(connection: AsyncConnection, flag: str | None = None) -> list[Watch]:
    wanted = select(guardrails).order_by(guardrails.c.id)
    if flag is not None:
        wanted = wanted.where(guardrails.c.flag == flag)
    return [_read(row) for row in await connection.execute(wanted)]


async def write_look(connection: AsyncConnection, watch: Watch) -> bool:
    """Write what a look has found; False where somebody else has looked, or changed it, meanwhile."""
    seen_before = guardrails.c.evidence["looks"].as_integer() == watch.looks
    the_same = guardrails.c.definition == cast(guardrail_to_json(watch.guardrail), JSONB)
    row = (
        update(guardrails)
        .where(guardrails.c.id == watch.guardrail.id, seen_before, the_same)
        .values(**_columns(replace(watch, looks=watch.looks + 1)))
    )
    return (await connection.execute(row)).rowcount == 1


@dataclass(frozen=True, slots=True)
class Counts:
    """What all instances have counted so far, and the pairs of the last hours."""

    instances: Mapping[str, tuple[float, Json]]
    """By instance: when it started, and what it says of each flag."""
    pairs: Mapping[str, Cursor]
    """By flag and hour: an hour only grows and then is forgotten, as if it were an instance that ended."""

    def of(self, flag: str) -> dict[str, Seen]:
        """Who says nothing of the flag has counted nothing: it is there all the same, to be remembered."""
        told = {
            name: Seen(started_at, cohorts_from_json(said.get(flag)))
            for name, (started_at, said) in self.instances.items()
        }
        return {**told, **self.pairs.get(flag, {})}


async def counts_now(connection: AsyncConnection) -> Counts:
    columns = (instances.c.id, extract("epoch", instances.c.started_at), instances.c.counts)
    told = {
        name: (float(started_at), counts)
        for name, started_at, counts in await connection.execute(select(*columns))
    }
    pairs: dict[str, dict[str, Seen]] = {}
    for flag, hour, compared, new, legacy in await connection.execute(_PAIRS):
        cohorts = Cohorts(
            Cohort(compared=compared, mismatches=new), Cohort(compared=compared, mismatches=legacy)
        )
        pairs.setdefault(flag, {})[f"pairs of {hour:.0f}"] = Seen(float(hour), cohorts)
    return Counts(told, pairs)


def _sum_of(name: str) -> ColumnElement[int]:
    return cast(func.coalesce(func.sum(cast(shadow_counts.c.counts[name].astext, BigInteger)), 0), BigInteger)


_HOUR = func.date_trunc("hour", shadow_counts.c.minute)
_COMPARED = _sum_of("drawn_equal") + _sum_of("drawn_judged")
_PAIRS = (
    select(
        shadow_counts.c.flag,
        extract("epoch", _HOUR),
        _COMPARED,
        _sum_of("drawn_new"),
        _sum_of("drawn_legacy"),
    )
    .where(
        # Whole hours: one that lost its minutes one by one would not only grow.
        shadow_counts.c.minute >= func.date_trunc("hour", func.now()) - text("interval '2 hours'"),
        shadow_counts.c.route != "",
    )
    .group_by(shadow_counts.c.flag, _HOUR)
    .having(_COMPARED > 0)
)
"""Of the pairs drawn by lot, by flag and hour: how many there were, in how many only new differs from
legacy's first answer, and in how many only legacy's second one does."""


async def _armed(connection: AsyncConnection, guardrail: Guardrail, flag_set: FlagSet, now: float) -> Watch:
    flag = flag_set.flag(guardrail.flag)
    return Watch(
        guardrail, WatchState.INSUFFICIENT_DATA, Evidence(),
        (await counts_now(connection)).of(guardrail.flag),
        0 if flag is None else share_of_new(flag.transition),
        flag is not None and has_something_to_judge(guardrail.signal, flag.transition),
        "none", "nothing seen yet", now,
    )  # fmt: skip


async def _existing(connection: AsyncConnection, guardrail_id: str) -> Watch:
    found = await _one(connection, guardrail_id) if _ID.fullmatch(guardrail_id) else None
    if found is None:
        raise Refused("not_found", f"there is no guardrail {guardrail_id!r}; see: crossfade guardrail list")
    return found


async def _one(connection: AsyncConnection, guardrail_id: str) -> Watch | None:
    wanted = select(guardrails).where(guardrails.c.id == guardrail_id).with_for_update()
    row = (await connection.execute(wanted)).first()
    return None if row is None else _read(row)


async def _remove(connection: AsyncConnection, guardrail_id: str) -> None:
    await connection.execute(delete(guardrails).where(guardrails.c.id == guardrail_id))


def _columns(watch: Watch) -> dict[str, Any]:
    seen = {
        "looks": watch.looks,
        "seen": evidence_to_json(watch.evidence),
        "cursor": cursor_to_json(watch.cursor),
        "share_ppm": watch.share_ppm,
        "judges": watch.judges,
        "trigger": watch.trigger,
        "message": watch.message,
        "armed_at": watch.armed_at,
        "tripped_at": watch.tripped_at,
    }
    return {
        "definition": guardrail_to_json(watch.guardrail),
        "state": watch.state.value,
        "evidence": cast(seen, JSONB),
        "updated_at": func.clock_timestamp(),
    }


def _read(row: Row[Any]) -> Watch:
    seen = row.evidence
    try:
        guardrail = guardrail_from_json(row.id, row.flag, row.definition)
    except InvalidGuardrailError as error:
        raise StoreError(
            StoreReason.UNREADABLE,
            f"this Crossfade cannot understand the guardrail {row.id} ({error}); run the one that wrote it. "
            "Until then no guardrail watches and no ramp goes on",
        ) from error
    return Watch(
        guardrail,
        WatchState(row.state),
        evidence_from_json(seen["seen"]),
        cursor_from_json(seen["cursor"]),
        seen["share_ppm"],
        seen["judges"],
        seen["trigger"],
        seen["message"],
        seen["armed_at"],
        seen["tripped_at"],
        seen["looks"],
    )


def standing_against(watches: Sequence[Watch]) -> str | None:
    """The first reason among the guardrails of a flag why it may not go up by itself."""
    return next((why for watch in watches if (why := watch.stands_against) is not None), None)
