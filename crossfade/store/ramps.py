"""Ramps as rows: starting, stopping and ending them. What moves them on is the reconciler.

A flag has at most one ramp that has not ended. Each write repeats in its WHERE what was read (state, step
and how often the row was written), so that whoever comes second changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from sqlalchemy import Row, Select, cast, extract, func, insert, select, update
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection

from crossfade.store import flag_rows, reports
from crossfade.store import guardrails as watches
from crossfade.store.actors import Actor
from crossfade.store.audit import Deed, Head
from crossfade.store.changes import Done
from crossfade.store.connection import StoreError, StoreReason
from crossfade.store.store import Store
from crossfade.store.tables import ramps
from flags.change import Move, Refused, asking_for_a_report, change
from flags.cohort import Cursor, cursor_from_json, cursor_to_json
from flags.document import InvalidFlagError
from flags.model import EVERYBODY, FlagSet, Stage
from flags.ramp import (
    ENDED,
    Event,
    InvalidRampError,
    Ramp,
    RampState,
    Step,
    Window,
    after,
    expected_transition,
    plan_for,
    plan_from_json,
    plan_to_json,
    steps_to_json,
)
from flags.stages import described

Json: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RampRow:
    """A ramp and what belongs to it. Times are Unix times of the store's clock."""

    id: int
    ramp: Ramp
    started_at: float
    started_by: str
    reason: str
    ended_at: float | None = None
    requests: float = 0.0
    """How many requests the step has moved since it began."""
    cursor: Cursor | None = None
    looks: int = 0

    @property
    def flag(self) -> str:
        return self.ramp.plan.flag


class OvertakenError(Exception):
    """Somebody else has changed the row since it was read: look again."""


async def start_ramp(
    store: Store,
    actor: Actor,
    flag: str,
    *,
    to: Stage,
    steps: Sequence[Step],
    windows: Sequence[Window] = (),
    reason: str,
    ticket: str | None = None,
    expected_version: int | None = None,
    dry_run: bool = False,
    request_id: str | None = None,
    report: str | None = None,
) -> RampRow:
    """Start a ramp; its first step comes with the reconciler's next look, if the windows allow.

    `report` is the digest of a kept report, for a flag that asks for one before its last step.
    """
    wish = {"to": to.value, "steps": steps_to_json(steps)}

    async def start(connection: AsyncConnection, _: Head) -> Done[RampRow]:
        flag_set, now = await flag_rows.read(connection)
        plan = None
        found = flag_set.flag(flag)
        if found is not None and not found.archived:
            try:
                plan = plan_for(flag, found.transition, steps, to=to, windows=windows)
            except InvalidRampError as error:
                raise Refused("invalid", str(error)) from None
        # Whatever stands against the first move stands against the ramp.
        change(flag_set, Move(flag, to, steps[0].weight_ppm if steps else EVERYBODY), now=now)
        asking = asking_for_a_report(
            flag_set, change(flag_set, Move(flag, to, steps[-1].weight_ppm), now=now)
        )
        if asking:
            await reports.check(connection, report, asking)
        assert found is not None
        assert plan is not None
        if expected_version is not None and found.version != expected_version:
            raise Refused(
                "conflict",
                f"{flag} is at version {found.version}, not {expected_version}: somebody has changed it "
                "since you looked; look again",
            )
        if flag_set.kill or found.kill:
            raise Refused("conflict", f"{flag} is killed; take the kill back first: crossfade unkill {flag}")
        if (under_way := await _active(connection, flag)) is not None:
            state = under_way.ramp.state
            raise Refused("conflict", f"{flag} has a ramp already ({state}): crossfade ramp status {flag}")
        if (against := watches.standing_against(await watches.read(connection, flag))) is not None:
            raise Refused("guardrail_tripped", f"{flag} cannot ramp: {against}")
        cursor = (await watches.counts_now(connection)).of(flag)
        ramp = Ramp(plan, RampState.RUNNING, 0, now)
        row = RampRow(0, ramp, now, actor.name, reason, cursor=cursor)
        if not dry_run:
            new = insert(ramps).values(flag=flag, started_at=_moment(now), **_columns(row))
            row = replace(row, id=(await connection.execute(new.returning(ramps.c.id))).scalar_one())
        return Done(row, after=_described(row))

    evidence = None if report is None else {"report": report}
    deed = Deed("ramp.start", "ramp", (flag,), reason, wish, ticket, evidence, request_id)
    return (await store.perform(actor, deed, start, dry_run=dry_run)).value


async def ramp_status(store: Store, flag: str) -> RampRow:
    """The flag's ramp under way, or the last one that it had. Raises Refused (not_found)."""
    wanted = _wanted().where(ramps.c.flag == flag).order_by(ramps.c.id.desc()).limit(1)
    async with store.transaction() as connection:
        row = (await connection.execute(wanted)).first()
    if row is None:
        raise Refused("not_found", f"{flag} has no ramp; crossfade ramp start {flag} begins one")
    return _read(row)


async def list_ramps(store: Store, *, ended: bool = False) -> list[RampRow]:
    """The ramps under way; with `ended` also those of before, the latest first."""
    async with store.transaction() as connection:
        if not ended:
            return await active(connection)
        wanted = _wanted().order_by(ramps.c.id.desc()).limit(500)
        return [_read(row) for row in await connection.execute(wanted)]


async def pause_ramp(
    store: Store,
    actor: Actor,
    flag: str,
    *,
    reason: str,
    ticket: str | None = None,
    request_id: str | None = None,
) -> RampRow:
    """Stop where it is; the weight stays."""

    async def pause(connection: AsyncConnection, _: Head) -> Done[RampRow]:
        before = await _needed(connection, flag)
        state = _next(before, Event.PAUSE)
        row = replace(before, ramp=replace(before.ramp, state=state, held_reason=f"{actor.name}: {reason}"))
        await write(connection, before, row)
        return Done(row, before=_described(before), after=_described(row))

    deed = Deed("ramp.pause", "ramp", (flag,), reason, {}, ticket, None, request_id)
    return (await store.perform(actor, deed, pause)).value


async def resume_ramp(
    store: Store,
    actor: Actor,
    flag: str,
    *,
    reason: str,
    ticket: str | None = None,
    request_id: str | None = None,
) -> RampRow:
    """Go on with the step where it was paused; its time and its requests begin anew."""

    async def resume(connection: AsyncConnection, _: Head) -> Done[RampRow]:
        before = await _needed(connection, flag)
        state = _next(before, Event.RESUME)
        flag_set, now = await flag_rows.read(connection)
        found = flag_set.flag(flag)
        assert found is not None, "flags are never removed"
        if flag_set.kill or found.kill:
            raise Refused("conflict", f"{flag} is killed; take the kill back first: crossfade unkill {flag}")
        if (against := watches.standing_against(await watches.read(connection, flag))) is not None:
            raise Refused("guardrail_tripped", f"the ramp of {flag} cannot go on: {against}")
        ramp = replace(before.ramp, state=state, step_started_at=now, held_reason=None)
        cursor = (await watches.counts_now(connection)).of(flag)
        row = replace(before, ramp=ramp, requests=0.0, cursor=cursor)
        await write(connection, before, row)
        return Done(row, before=_described(before), after=_described(row))

    deed = Deed("ramp.resume", "ramp", (flag,), reason, {}, ticket, None, request_id)
    return (await store.perform(actor, deed, resume)).value


async def abort_ramp(
    store: Store,
    actor: Actor,
    flag: str,
    *,
    reason: str,
    stay: bool = False,
    ticket: str | None = None,
    request_id: str | None = None,
) -> RampRow:
    """End the ramp and take everybody back to where it began, or with `stay` leave the weight as it is.

    A flag that somebody has moved in the meantime stays where they have put it.
    """
    async with store.transaction() as connection:
        seen = await _active(connection, flag)
        flag_set, _ = await flag_rows.read(connection)
    if seen is not None and not stay and _goes_back(seen.ramp, flag_set):
        ended: list[RampRow] = []

        async def end_with_it(connection: AsyncConnection, _: FlagSet) -> None:
            before = await _needed(connection, flag)
            if before.id != seen.id:
                raise Refused("conflict", f"{flag} has another ramp by now; look again")
            ended.append(await _aborted(connection, before, actor, reason))

        move = Move(flag, seen.ramp.plan.origin, EVERYBODY)
        await store.change(actor, move, reason=reason, ticket=ticket, request_id=request_id, also=end_with_it)
        return ended[0]

    async def end(connection: AsyncConnection, _: Head) -> Done[RampRow]:
        before = await _needed(connection, flag)
        row = await _aborted(connection, before, actor, reason)
        return Done(row, before=_described(before), after=_described(row))

    deed = Deed("ramp.abort", "ramp", (flag,), reason, {"stay": stay}, ticket, None, request_id)
    return (await store.perform(actor, deed, end)).value


def _goes_back(ramp: Ramp, flag_set: FlagSet) -> bool:
    """Whether there is anything to take back, and nobody else has moved the flag."""
    flag = flag_set.flag(ramp.plan.flag)
    if flag is None or flag.transition != expected_transition(ramp):
        return False
    return flag.transition.settled is not ramp.plan.origin


async def _aborted(connection: AsyncConnection, before: RampRow, actor: Actor, reason: str) -> RampRow:
    state = _next(before, Event.ABORT)
    row = replace(before, ramp=replace(before.ramp, state=state, held_reason=f"{actor.name}: {reason}"))
    await write(connection, before, row)
    return row


def _next(row: RampRow, event: Event) -> RampState:
    state = after(row.ramp.state, event)
    if state is None:
        what = f"the ramp of {row.flag} is {row.ramp.state}"
        raise Refused("conflict", f"{what}, so there is nothing to {event}: crossfade ramp status {row.flag}")
    return state


# For the reconciler.


async def active(connection: AsyncConnection) -> list[RampRow]:
    """The ramps that have not ended, by flag."""
    wanted = _wanted().where(ramps.c.ended_at.is_(None)).order_by(ramps.c.flag)
    return [_read(row) for row in await connection.execute(wanted)]


async def write(connection: AsyncConnection, before: RampRow, row: RampRow) -> None:
    """Write a ramp that was read as `before`. Raises OvertakenError where it is not so any more."""
    values = _columns(replace(row, looks=before.looks + 1))
    if row.ramp.state in ENDED:
        values["ended_at"] = func.clock_timestamp()
    as_read = (
        ramps.c.id == before.id,
        ramps.c.ended_at.is_(None),
        ramps.c.state == before.ramp.state.value,
        ramps.c.step == before.ramp.step,
        ramps.c.document["looks"].as_integer() == before.looks,
    )
    if (await connection.execute(update(ramps).where(*as_read).values(**values))).rowcount != 1:
        raise OvertakenError(f"the ramp of {before.flag} has been changed")


async def trip(connection: AsyncConnection, flag: str, because: str) -> None:
    """End the flag's ramp, if it has one, because a guardrail takes everybody back."""
    await _stop(connection, flag, Event.TRIP, because)


async def pause_for(connection: AsyncConnection, flag: str, because: str) -> None:
    """Stop the flag's ramp, if it has one, because a guardrail says so."""
    await _stop(connection, flag, Event.PAUSE, because)


async def _stop(connection: AsyncConnection, flag: str, event: Event, because: str) -> None:
    """By state alone, without understanding the plan: a guardrail acts whatever is written there."""
    for state in RampState:
        becomes = after(state, event)
        if becomes is None:
            continue
        values: dict[str, Any] = {"state": becomes.value, "held_reason": because}
        if becomes in ENDED:
            values["ended_at"] = func.clock_timestamp()
        here = (ramps.c.flag == flag, ramps.c.ended_at.is_(None), ramps.c.state == state.value)
        await connection.execute(update(ramps).where(*here).values(**values))


async def _needed(connection: AsyncConnection, flag: str) -> RampRow:
    found = await _active(connection, flag)
    if found is None:
        raise Refused("not_found", f"{flag} has no ramp under way; crossfade ramp status shows the last one")
    return found


async def _active(connection: AsyncConnection, flag: str) -> RampRow | None:
    wanted = _wanted().where(ramps.c.flag == flag, ramps.c.ended_at.is_(None)).with_for_update()
    row = (await connection.execute(wanted)).first()
    return None if row is None else _read(row)


def _wanted() -> Select[Any]:
    times = (ramps.c.step_started_at, ramps.c.started_at, ramps.c.ended_at)
    others = (ramps.c.id, ramps.c.flag, ramps.c.state, ramps.c.steps, ramps.c.step, ramps.c.held_reason)
    return select(*others, ramps.c.document, *(extract("epoch", time).label(time.name) for time in times))


def _columns(row: RampRow) -> dict[str, Any]:
    ramp = row.ramp
    document = {
        "plan": plan_to_json(ramp.plan),
        "started_by": row.started_by,
        "reason": row.reason,
        "requests": row.requests,
        "cursor": cursor_to_json(row.cursor or {}),
        "looks": row.looks,
    }
    return {
        "state": ramp.state.value,
        "steps": cast(steps_to_json(ramp.plan.steps), JSONB),
        "step": ramp.step,
        "step_started_at": _moment(ramp.step_started_at),
        "held_reason": ramp.held_reason,
        "document": cast(document, JSONB),
    }


def _moment(at: float) -> Any:
    return func.to_timestamp(at)


def _read(row: Row[Any]) -> RampRow:
    document = row.document
    try:
        plan = plan_from_json(row.flag, document["plan"], row.steps)
    except (InvalidRampError, InvalidFlagError) as error:
        raise StoreError(
            StoreReason.UNREADABLE,
            f"the ramp of {row.flag} cannot be understood on this machine ({error}); run the Crossfade that "
            "wrote it. Its guardrails watch all the same",
        ) from None
    ramp = Ramp(plan, RampState(row.state), row.step, float(row.step_started_at), row.held_reason)
    return RampRow(
        row.id, ramp, float(row.started_at), document["started_by"], document["reason"],
        None if row.ended_at is None else float(row.ended_at),
        document["requests"], cursor_from_json(document["cursor"]), document["looks"],
    )  # fmt: skip


def _described(row: RampRow) -> dict[str, Any]:
    """A ramp as the audit keeps it."""
    ramp = row.ramp
    return {
        "ramp": row.id,
        "state": ramp.state.value,
        "step": ramp.step,
        "at": described(expected_transition(ramp)),
        "because": ramp.held_reason,
        "to": ramp.plan.to.value,
        "steps": steps_to_json(ramp.plan.steps),
    }
