"""What moves by itself: guardrails that watch and ramps that go on. Runs in the control process.

However many control processes run, one of them does it: the one whose session holds the lock in the
store. It is a lock of a transaction that stays open meanwhile, so it ends with the session, with the
process (kill -9), or with a host that vanishes (the store ends a transaction that is silent for ten
seconds), and it passes a pooler. That is for promptness only; that nothing happens twice rests on the
rows: each write says in its WHERE what was read, and a change of the flag and the row that caused it are
one transaction.

Every look reads all facts at once, and the time with them: the store's clock is the only one. Then the
guardrails, because taking back never waits; then the ramps. A look that fails is tried again. Nothing is
remembered between looks but in the store, so whoever comes next goes on where the last one was.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import log10
from typing import Final

import structlog
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from core.metrics import (
    GUARDRAIL_EVIDENCE,
    GUARDRAIL_STATE,
    RAMP_STATE,
    RAMP_STEP,
    RECONCILER_LOOKS,
    ROLLBACKS,
    Sample,
)
from crossfade.store import flag_rows, guardrails, ramps
from crossfade.store.actors import Actor, ActorType, Via
from crossfade.store.audit import Deed, Head
from crossfade.store.changes import Done
from crossfade.store.connection import StoreError
from crossfade.store.guardrails import LATCHED, Counts, Watch, WatchState
from crossfade.store.instances import FORGOTTEN_AFTER
from crossfade.store.ramps import OvertakenError, RampRow
from crossfade.store.store import Store
from flags.change import Command, KillFlag, Move, Refused
from flags.cohort import growth, taken_in, together
from flags.guardrail import (
    Action,
    Mode,
    State,
    counted,
    evidence_to_json,
    guardrail_to_json,
    has_something_to_judge,
    observe,
    verdict,
    way_back,
)
from flags.model import EVERYBODY, Flag, FlagSet, Phase
from flags.ramp import Act, Event, Facts, RampState, after, next_action, requests_moved
from flags.stages import share_of_new

log = structlog.get_logger(__name__)

EVERY: Final = 0.5
"""Seconds between two looks. A bad backend goes on for that long at most before it is seen."""
TENURE: Final = 30.0
"""Seconds after which the lock is taken anew, so that its transaction does not grow old."""
TRY_AGAIN: Final = 1.0
SEVERITY: Final = tuple(Action)


@dataclass(frozen=True, slots=True)
class World:
    """Everything that a look decides by, as the store had it."""

    now: float
    flag_set: FlagSet
    counts: Counts
    watches: Sequence[Watch]
    ramps: Sequence[RampRow] = ()

    @property
    def known_since(self) -> float:
        """Who started before this and is not remembered has been forgotten, and is no newcomer."""
        return self.now - FORGOTTEN_AFTER


@dataclass(slots=True)
class _Gauges:
    """What the last look has found, for /metrics."""

    watches: Sequence[Watch] = ()
    ramps: Sequence[RampRow] = ()
    rollbacks: dict[tuple[str, str], int] = field(default_factory=dict)
    looks: dict[str, int] = field(default_factory=dict)


class Reconciler:
    """`run` goes on until it is cancelled. `samples` are for the control process's /metrics."""

    def __init__(self, store: Store, *, every: float = EVERY) -> None:
        self._store = store
        self._every = every
        self._found = _Gauges()
        self._well = True

    async def run(self) -> None:
        while True:
            try:
                held = await self._hold_the_lock()
                self._well = True
            except StoreError as error:
                held = False
                self._count("failed")
                if self._well:
                    log.warning("reconciler_waits", reason=error.reason.value, message=str(error))
                self._well = False
            except Exception:
                # A bug of ours: guardrails that do not watch are worse than ones that try again.
                held = False
                self._count("failed")
                log.exception("reconciler_failed")
            if not held:
                self._found.watches, self._found.ramps = (), ()
                await asyncio.sleep(TRY_AGAIN * random.uniform(0.75, 1.25))

    async def _hold_the_lock(self) -> bool:
        """Look every now and then as long as the lock is ours. False where somebody else has it."""
        loop = asyncio.get_running_loop()
        until = loop.time() + TENURE
        async with self._store.transaction(TENURE * 3) as line:
            lock = func.pg_try_advisory_xact_lock(func.hashtext("crossfade.store.reconciler"))
            if not (await line.execute(select(lock))).scalar_one():
                return False
            while loop.time() < until:
                await self.look()
                await asyncio.sleep(self._every)
                await line.execute(select(1))  # the session lives, so the lock is still ours
        return True

    async def look(self) -> None:
        """Look once, and do what is to be done. Safe to be called by several at once. Raises StoreError."""
        async with self._store.transaction() as connection:
            world = await _read(connection)
        watches = [await self._watch(watch, world) for watch in world.watches]
        await self._act(watches, world)
        async with self._store.transaction() as connection:
            world = await _read(connection, with_ramps=True)
        for row in world.ramps:
            try:
                await self._go_on(row, world)
            except OvertakenError as error:
                log.info("ramp_looks_again", flag=row.flag, message=str(error))
        self._found.watches, self._found.ramps = world.watches, world.ramps
        self._count("done")

    # Guardrails.

    async def _watch(self, watch: Watch, world: World) -> Watch:
        """Take in what has been counted since the last look, and write it down unless it has to act."""
        flag = world.flag_set.flag(watch.guardrail.flag)
        if flag is None or watch.state in LATCHED:
            return watch
        seen = observed(watch, flag, world)
        if seen.state in LATCHED or seen == watch:
            return seen
        async with self._store.transaction() as connection:
            await guardrails.write_look(connection, seen)
        return seen

    async def _act(self, watches: Sequence[Watch], world: World) -> None:
        """Let those act that have tripped now: of one flag the strongest; the others are recorded."""
        before = {watch.guardrail.id: watch.state for watch in world.watches}
        tripped = [
            watch for watch in watches
            if watch.state in LATCHED and before[watch.guardrail.id] not in LATCHED
        ]  # fmt: skip
        tripped.sort(key=lambda watch: SEVERITY.index(watch.guardrail.action), reverse=True)
        acted = set()
        for watch in tripped:
            flag = world.flag_set.flag(watch.guardrail.flag)
            assert flag is not None, "flags are never removed"
            enforce = watch.state is WatchState.TRIPPED and flag.key not in acted
            try:
                await self._trip(watch, flag if enforce else None)
            except (OvertakenError, Refused) as error:
                log.info("guardrail_looks_again", guardrail=watch.guardrail.id, message=str(error))
                continue
            if enforce:
                acted.add(flag.key)

    async def _trip(self, watch: Watch, flag: Flag | None) -> None:
        """Latch, and do what the guardrail says (without `flag`: nothing else), in one transaction."""
        guardrail = watch.guardrail
        actor = Actor(ActorType.GUARDRAIL, guardrail.id, None, None, Via.GUARDRAIL)
        evidence = {
            "guardrail": guardrail_to_json(guardrail),
            "trigger": watch.trigger,
            "evidence": watch.evidence.value,
            "counts": evidence_to_json(watch.evidence),
            "share_of_requests": watch.evidence.recent_share,
        }
        would = "would have acted (dry run): " if guardrail.mode is Mode.DRY_RUN else ""
        reason = (would + watch.message)[:1000]
        command = None if flag is None else _remedy(watch, flag, reason)

        async def latch(connection: AsyncConnection) -> None:
            if not await guardrails.write_look(connection, watch):
                raise OvertakenError(f"the guardrail {guardrail.id} has been looked at")
            if command is not None:
                await ramps.trip(connection, guardrail.flag, f"guardrail {guardrail.id}: {watch.message}")
            elif flag is not None and guardrail.action is not Action.ALERT:
                await ramps.pause_for(
                    connection, guardrail.flag, f"guardrail {guardrail.id}: {watch.message}"
                )

        async def latch_with_the_change(connection: AsyncConnection, _: FlagSet) -> None:
            await latch(connection)

        async def latch_alone(connection: AsyncConnection, _: Head) -> Done[None]:
            await latch(connection)
            return Done(None, before={"state": "armed"}, after={"state": watch.state.value})

        if command is not None:
            await self._store.change(
                actor, command, reason=reason, evidence=evidence, also=latch_with_the_change
            )
            key = (guardrail.flag, guardrail.signal.value)
            self._found.rollbacks[key] = self._found.rollbacks.get(key, 0) + 1
        else:
            objects = (guardrail.flag, guardrail.id)
            deed = Deed("guardrail.trip", "guardrail", objects, reason, evidence=evidence)
            await self._store.perform(actor, deed, latch_alone)
        log.warning(
            "guardrail_tripped",
            guardrail=guardrail.id, flag=guardrail.flag, action=guardrail.action.value,
            mode=guardrail.mode.value, trigger=watch.trigger, message=watch.message,
        )  # fmt: skip

    # Ramps.

    async def _go_on(self, row: RampRow, world: World) -> None:
        flag = world.flag_set.flag(row.flag)
        assert flag is not None, "flags are never removed"
        counts, seen = world.counts.of(row.flag), row.cursor or {}
        grown = together(growth(seen, counts, world.known_since))
        moved = row.requests + requests_moved(row.ramp, grown)
        counting = replace(row, requests=moved, cursor=taken_in(seen, counts))
        act = next_action(row.ramp, facts_of(counting, flag, world), world.now)
        if act is None:
            if counting != row:
                async with self._store.transaction() as connection:
                    await ramps.write(connection, row, counting)
            return
        await self._do(row, counting, act, flag, world.now)

    async def _do(self, before: RampRow, counting: RampRow, act: Act, flag: Flag, now: float) -> None:
        state = after(before.ramp.state, act.event)
        assert state is not None, "next_action knows the table"
        if act.event is Event.ADVANCE:
            ramp = replace(before.ramp, state=state, step=act.step, step_started_at=now, held_reason=None)
            row = replace(counting, ramp=ramp, requests=0.0)
        else:
            because = None if act.event in {Event.CONTINUE, Event.FINISH} else act.reason
            row = replace(counting, ramp=replace(before.ramp, state=state, held_reason=because))
        actor = Actor(ActorType.RAMP, f"ramp {before.id} of {before.started_by}"[:200], None, None, Via.RAMP)

        async def write(connection: AsyncConnection) -> None:
            await ramps.write(connection, before, row)

        async def write_with_the_move(connection: AsyncConnection, moved: FlagSet) -> None:
            found = moved.flag(flag.key)
            if found is None or found.version != flag.version + 1 or moved.kill is not None:
                raise OvertakenError(f"{flag.key} has been changed")
            await write(connection)

        async def write_alone(connection: AsyncConnection, _: Head) -> Done[None]:
            await write(connection)
            was, becomes = ({"ramp": one.id, "state": one.ramp.state.value} for one in (before, row))
            return Done(None, before=was, after={**becomes, "because": act.reason})

        match act.event:
            case Event.ADVANCE:
                step = row.ramp.current
                assert step is not None
                move = Move(flag.key, row.ramp.plan.to, step.weight_ppm)
                evidence = {"ramp": before.id, "requests": counting.requests, "step": act.step}
                try:
                    await self._store.change(
                        actor, move, reason=act.reason, evidence=evidence, also=write_with_the_move
                    )
                except Refused as refusal:
                    if refusal.kind == "under_authority" and await self._is_walked(flag.key):
                        return  # for a moment: it is looked at again
                    # It would be refused, and recorded, at each look: a person has to see to it.
                    stop = Act(Event.PAUSE, f"the next step was refused: {refusal}"[:1000])
                    await self._do(before, counting, stop, flag, now)
                    return
            case Event.HOLD | Event.CONTINUE:
                async with self._store.transaction() as connection:
                    await write(connection)
            case _:
                action = "ramp.hold" if act.event is Event.PAUSE else "ramp.end"
                deed = Deed(action, "ramp", (flag.key,), act.reason)
                await self._store.perform(actor, deed, write_alone)
        if act.event not in {Event.HOLD, Event.CONTINUE}:
            log.info("ramp_went_on", flag=flag.key, action=act.event.value, message=act.reason)

    async def _is_walked(self, key: str) -> bool:
        """Whether a cutover is just moving the data of this flag."""
        over = (await self._store.flag_set()).authority_over(key)
        return over is not None and over.phase is not Phase.OPEN

    # Metrics.

    def samples(self) -> list[Sample]:
        """What this process knows: the states only while it is the one that looks, its own counts always."""
        return [*_samples(self._found.watches, self._found.ramps), *self._counters()]

    def _counters(self) -> Iterator[Sample]:
        known = {(watch.guardrail.flag, watch.guardrail.signal.value): 0 for watch in self._found.watches}
        for (flag, trigger), count in {**known, **self._found.rollbacks}.items():
            yield Sample(ROLLBACKS.name, (flag, trigger), count)
        for outcome in ("done", "failed"):
            yield Sample(RECONCILER_LOOKS.name, (outcome,), self._found.looks.get(outcome, 0))

    def _count(self, outcome: str) -> None:
        self._found.looks[outcome] = self._found.looks.get(outcome, 0) + 1


# What is decided, without doing it.


def observed(watch: Watch, flag: Flag, world: World) -> Watch:
    """The guardrail after this look.

    Where nobody is chosen by weight, neither now nor at the last look, there are no two cohorts: what is
    counted all the same (fallbacks at a settled stage) would be failures without the successes beside them.
    """
    guardrail = watch.guardrail
    counts = world.counts.of(flag.key)
    share = share_of_new(flag.transition)
    judges = has_something_to_judge(guardrail.signal, flag.transition)
    seen = replace(watch, cursor=taken_in(watch.cursor, counts), share_ppm=share, judges=judges)
    if not (judges or watch.judges):
        return seen
    batches = {
        name: (counted(guardrail, grown.new), counted(guardrail, grown.legacy))
        for name, grown in growth(watch.cursor, counts, world.known_since).items()
    }
    # Bad answers of before the weight went down may be counted only now.
    falling_from = watch.share_ppm if watch.share_ppm > share else 0
    evidence = observe(watch.evidence, guardrail, batches, falling_from)
    found = verdict(evidence, guardrail)
    seen = replace(seen, evidence=evidence, trigger=found.trigger, message=found.message)
    if found.state is State.TRIPPED:
        dry = guardrail.mode is Mode.DRY_RUN
        state = WatchState.DRY_RUN_TRIPPED if dry else WatchState.TRIPPED
        return replace(seen, state=state, tripped_at=world.now)
    return replace(seen, state=WatchState(found.state.value))


def facts_of(row: RampRow, flag: Flag, world: World) -> Facts:
    """What a ramp decides by."""
    mine = [watch for watch in world.watches if watch.guardrail.flag == flag.key]
    judging = [
        watch for watch in mine
        if watch.enforces and has_something_to_judge(watch.guardrail.signal, flag.transition)
    ]  # fmt: skip
    unsure = next((watch for watch in judging if watch.state is WatchState.INSUFFICIENT_DATA), None)
    return Facts(
        flag.transition,
        int(row.requests),
        killed=bool(flag.kill or world.flag_set.kill),
        archived=flag.archived,
        watched=bool(mine),
        unsure=None if unsure is None else f"guardrail {unsure.guardrail.id}: {unsure.message}",
        tripped=guardrails.standing_against(mine),
    )


def _remedy(watch: Watch, flag: Flag, reason: str) -> Command | None:
    """What takes the clients away from new; None where nothing is to be taken away."""
    action = watch.guardrail.action
    if action not in {Action.ROLLBACK, Action.KILL} or flag.archived:
        return None
    back = way_back(flag.transition)
    if action is Action.ROLLBACK and back is not None:
        return None if flag.transition.settled is back else Move(flag.key, back, EVERYBODY)
    if flag.kill:
        return None
    return KillFlag(flag.key, reason, f"guardrail {watch.guardrail.id}")


async def _read(connection: AsyncConnection, *, with_ramps: bool = False) -> World:
    """The rows that writes are guarded by first, then what they are judged by, which may only be newer.

    The other way round, a ramp that somebody else has just moved on would look like a flag moved by hand.
    """
    under_way = await ramps.active(connection) if with_ramps else []
    watches = await guardrails.read(connection)
    counts = await guardrails.counts_now(connection)
    flag_set, now = await flag_rows.read(connection)
    return World(now, flag_set, counts, watches, under_way)


def _samples(watches: Sequence[Watch], under_way: Sequence[RampRow]) -> Iterator[Sample]:
    for watch in watches:
        labels = (watch.guardrail.flag, watch.guardrail.id)
        for state in WatchState:
            yield Sample(GUARDRAIL_STATE.name, (*labels, state.value), float(watch.state is state))
        yield Sample(GUARDRAIL_EVIDENCE.name, labels, log10(max(1e-30, watch.evidence.value)))
    for row in under_way:
        yield Sample(RAMP_STEP.name, (row.flag,), row.ramp.step)
        for one in RampState:
            yield Sample(RAMP_STATE.name, (row.flag, one.value), float(row.ramp.state is one))
