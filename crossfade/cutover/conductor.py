"""The one who walks: it takes a walk from the store and does the work of one state after the other.

It runs in the control process. However many of these run, one walks: the one that holds a lock in the store;
that is for promptness. That nothing is done by two rests on the rows (`store/cutovers.py`), on the turn that
each fence remembers, and on the journal's key. Whatever fails before the journal has decided cancels the
walk, and says why. After that it is tried until it is done.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

import psycopg
import structlog
from sqlalchemy import func, select

from core.metrics import CUTOVER_HOLD, CUTOVERS, LATENCY_BUCKETS, Histogram, Sample
from crossfade.channel import Message
from crossfade.convergence import Convergence, Patience
from crossfade.cutover.ground import NAME, Connection, Ground, Plot, absent, plots
from crossfade.cutover.leases import WAITED_OUT
from crossfade.cutover.loss import REACHED_WITHIN
from crossfade.cutover.plan import tripped
from crossfade.cutover.walk import ENDED, HELD, NEXT, State
from crossfade.feed import Feed
from crossfade.store import cutovers, guardrails
from crossfade.store.connection import StoreError
from crossfade.store.cutovers import OvertakenError, Walk
from crossfade.store.store import Store
from dualwrite import fence, rest, sequences
from dualwrite.capture import CaptureStopped
from dualwrite.fence import OldTurnError, Outcome, WritersError
from dualwrite.mapped import MappingFailedError, other
from dualwrite.pg_connect import connect
from dualwrite.rest import EmptiedError, UnwatchedError
from dualwrite.together import together
from dualwrite.verify import Compared, NotFollowingError
from flags.change import Refused
from flags.document import one_line
from flags.model import Authority, Phase, Side

log = structlog.get_logger(__name__)

LOOK_EVERY: Final = 0.25
"""Seconds between two looks for a walk to do."""
TRY_AGAIN: Final = 0.25
KEEP_ALIVE: Final = 2.0
TENURE: Final = 24 * 3600.0

ACKNOWLEDGED_WITHIN: Final = 5.0
"""Seconds that workers have to hold, with nothing under way any more that changes something."""
FENCED_WITHIN: Final = 3.0
"""Seconds that writers who pass by the proxy have to end."""
CAUGHT_UP_WITHIN: Final = 5.0
HELD_AT_MOST: Final = 10.0
"""Seconds from the hold to the decision; then the walk is cancelled."""
CUT_FIRST: Final = 0.1
"""Seconds that hanging up on a silent database has before the step itself is given up."""
NUMBERS_LOST: Final = 10_000
"""By how many legacy's sequences leap where new is gone: it may have given some to rows that are lost."""
OPENED_WITHIN: Final = 60.0
"""Seconds in which a side that cannot be reached may come back, and has its fence opened."""
FEW: Final = 10
"""Rows that may be left for the comparison in which everybody waits."""


class CannotError(Exception):
    """The walk cannot go on, and is cancelled for this reason."""


class Conductor:
    """`run` goes on until it is cancelled."""

    def __init__(self, store: Store, feed: Feed, context: Callable[[], Message]) -> None:
        self._store = store
        self._feed = feed
        self._context = context
        self._ended: dict[tuple[str, str, str], int] = {}
        self._holds = [0] * (len(LATENCY_BUCKETS) + 1)
        self._held_seconds = 0.0
        self._plots: dict[str, Plot] = {}
        self._times: dict[str, float] = {}
        """How long each state of the walk took, as far as this process has walked it."""

    async def run(self) -> None:
        while True:
            try:
                for walk in await cutovers.under_way(self._store):
                    await self._try_to_walk(walk)
            except StoreError as error:
                log.info("conductor_waits", message=str(error))
            except Exception:
                # A bug of ours: a walk that is tried again is better than one that nobody walks.
                log.exception("conductor_failed")
            await asyncio.sleep(LOOK_EVERY)

    async def _try_to_walk(self, walk: Walk) -> None:
        """Unless somebody else does."""
        async with self._store.transaction(TENURE) as line:
            # One for all cutovers: what is noted for the rest of a comparison is noted for one walk.
            lock = func.pg_try_advisory_xact_lock(func.hashtext("crossfade.store.cutover"))
            if not (await line.execute(select(lock))).scalar_one():
                return
            taken = await cutovers.take(self._store, walk)
            if taken is None:
                return
            walking = asyncio.create_task(self._walk(taken))
            try:
                while not walking.done():
                    await asyncio.wait((walking,), timeout=KEEP_ALIVE)
                    await line.execute(select(1))
                await walking
            finally:
                walking.cancel()
                await asyncio.gather(walking, return_exceptions=True)

    async def _walk(self, walk: Walk) -> None:
        """Until it has ended, or somebody else walks."""
        log.info("walk", walk=walk.id, cutover=walk.name, towards=walk.towards.value, state=walk.state.value)
        self._times = {}
        try:
            while walk.state not in ENDED:
                walk = await self._go_on(walk)
        except OldTurnError as error:
            log.warning("walk_overtaken", walk=walk.id, message=str(error))
        else:
            self._note_end(walk)

    async def _go_on(self, walk: Walk) -> Walk:
        """As far as it gets with these connections. Raises OldTurnError where somebody else walks."""
        try:
            plot = self._plot(walk)
            if walk.state is State.RELEASING:
                return await self._release(walk, plot)
            if walk.loses and walk.state is State.CANCELLING:
                return await self._take_back_without(walk, plot)
            if walk.loses and walk.state in _STEPS_WITHOUT:
                return await self._one_step(walk, partial(_STEPS_WITHOUT[walk.state], self, walk, plot))
            if walk.state is State.CANCELLING:
                # Whatever has become of the other side: this one is not to wait for it.
                async with await connect(plot.urls[other(walk.towards)], NAME) as losing:
                    return await self._take_back(walk, losing, plot)
            if walk.state is State.DECIDING:
                async with await connect(plot.urls[walk.towards], NAME) as gaining:
                    return await self._decide(walk, gaining)
            async with self._on_ground(walk, plot) as ground:
                while walk.state in (State.PREPARING, *HELD):
                    with self._cut_in_time(walk, ground):
                        walk = await self._one_step(walk, partial(_STEPS[walk.state], self, walk, ground))
                if walk.state is State.DECIDING:
                    walk = await self._decide(walk, ground.gaining)
        except OvertakenError:
            walk = await self._reread(walk)
            if walk.abort is not None:
                return await self._fail(walk, f"aborted: {walk.abort}")
        except OldTurnError as error:
            await self._reread(walk)
            # It is ours all the same: somebody without the store has moved the fence.
            return await self._fail(walk, str(error))
        except (CannotError, Refused) as error:
            return await self._fail(walk, str(error))
        except (psycopg.Error, OSError) as error:
            return await self._fail(walk, f"a database does not do what it is asked: {error}")
        except StoreError as error:
            log.warning("walk_waits", walk=walk.id, state=walk.state.value, message=str(error))
            await asyncio.sleep(TRY_AGAIN)
            return await self._reread(walk)
        return walk

    def _plot(self, walk: Walk) -> Plot:
        """As the configuration says; what was begun is ended by what it said then.

        Raises CannotError and Refused.
        """
        known = self._plots.get(walk.name)
        try:
            found = plots(self._context()).get(walk.name)
        except Refused:
            if known is None:
                raise
            found = None
        plot = found or known
        if plot is None:
            raise CannotError(f"the configuration knows no cutover {walk.name} any more")
        self._plots[walk.name] = plot
        return plot

    async def _fail(self, walk: Walk, why: str) -> Walk:
        """Cancel what can be cancelled; what has been decided, or is taken back already, is tried again."""
        if walk.state in (State.PREPARING, *HELD):
            return await self._cancel(walk, why)
        log.warning("walk_waits", walk=walk.id, state=walk.state.value, message=why)
        await asyncio.sleep(TRY_AGAIN)
        return await self._reread(walk)

    async def _one_step(self, walk: Walk, do: Callable[[], Awaitable[Walk]]) -> Walk:
        if walk.abort is not None:
            raise CannotError(f"aborted: {walk.abort}")
        began = time.monotonic()
        try:
            seconds = self._may_take(walk)
            async with asyncio.timeout(None if seconds is None else seconds + CUT_FIRST):
                return await do()
        except TimeoutError:
            raise CannotError(f"it has been held for {HELD_AT_MOST:g} s, in {walk.state}") from None
        finally:
            self._times[walk.state.value] = round(time.monotonic() - began, 4)

    @contextlib.asynccontextmanager
    async def _on_ground(self, walk: Walk, plot: Plot) -> AsyncIterator[Ground]:
        """Raises CannotError where somebody waits, and it cannot be reached in time."""
        async with contextlib.AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(self._may_take(walk)):
                    ground = await stack.enter_async_context(Ground.of(plot, walk.towards))
            except TimeoutError:
                raise CannotError(f"it has been held for {HELD_AT_MOST:g} s, in {walk.state}") from None
            yield ground

    @contextlib.contextmanager
    def _cut_in_time(self, walk: Walk, ground: Ground) -> Iterator[None]:
        """A database that has fallen silent is hung up on: to give up waiting for it would take it, too."""
        seconds = self._may_take(walk)
        if seconds is None:
            yield
            return
        cutting = asyncio.get_running_loop().call_later(seconds, ground.cut)
        try:
            yield
        finally:
            cutting.cancel()

    def _may_take(self, walk: Walk) -> float | None:
        """Seconds that the step has, so that nobody waits for too long; None where nobody waits."""
        if walk.state not in HELD:
            return None
        assert walk.held_at is not None
        return max(0.0, walk.held_at + HELD_AT_MOST - walk.now)

    # The work of each state. All of it does no harm when it is done again.

    async def _prepare(self, walk: Walk, ground: Ground) -> Walk:
        """Compare everything, and then what has changed meanwhile, until little is left."""
        stream = ground.stream.name
        armed = await self._authority(walk)
        if armed.phase is Phase.ARM:
            # Whoever walked before has died. Comparing may take hours, in which nobody shall need a lease.
            walk = await cutovers.step_with(
                self._store, walk, State.PREPARING, replace(armed, phase=Phase.OPEN)
            )
        await rest.watch(ground.gaining, stream, on=True)
        # What was applied before it was watched is seen by the comparison.
        if await ground.brought(CAUGHT_UP_WITHIN) is None:
            raise CannotError(f"the stream {stream} does not bring what is written")
        rows = 0
        for pair in ground.plot.pairs(walk.towards):
            urls = ground.stream.source_url, ground.stream.target_url
            found = await _sure(rest.compare_all(stream, *urls, pair))
            rows += found.rows
            _must_not_differ([found], walk)
        before, left = None, await ground.rest.left()
        while left > FEW and (before is None or left < before):
            before = left
            _must_not_differ(await _sure(ground.rest.compare()), walk)
            left = await ground.rest.left()
        lag = await ground.brought(CAUGHT_UP_WITHIN)
        back = await ground.brought_back(CAUGHT_UP_WITHIN)
        if lag is None or back is None:
            raise CannotError(f"the stream {stream if lag is None else ground.way_back.name} is behind")
        await self._must_be_well(walk, ground.plot)
        walk = cutovers.also_noted(walk, compared=rows, lag=round(lag, 4))
        authority = await self._authority(walk)
        if authority.side is walk.towards:
            raise CannotError(f"{walk.towards} has the authority already")
        walk = await self._arm(walk, authority)
        held = replace(authority, phase=Phase.HOLD)
        return await cutovers.step_with(self._store, walk, State.HOLDING, held)

    async def _must_be_well(self, walk: Walk, plot: Plot) -> None:
        """Comparing may take hours. Raises CannotError where the side that gains is not well any more."""
        if (why := await absent(plot, walk.towards)) is not None:
            raise CannotError(why)
        watches = await guardrails.list_guardrails(self._store) if walk.towards is Side.NEW else []
        for one in tripped([one for one in watches if one.guardrail.flag in plot.flags]):
            raise CannotError(f"the guardrail {one.guardrail.id} has tripped: {one.message}")

    async def _arm(self, walk: Walk, authority: Authority) -> Walk:
        """From here on nobody sends what changes something without a lease, so that nobody is waited for
        who vanishes. Nobody waits yet, and who does not say that it is armed is a reason not to begin."""
        armed = replace(authority, phase=Phase.ARM)
        walk = await cutovers.step_with(self._store, walk, State.PREPARING, armed)
        found = await self._converged(walk, ACKNOWLEDGED_WITHIN)
        if not found.complete:
            raise CannotError(f"not all workers are armed for the hold: {'; '.join(found.missing)}")
        return cutovers.also_noted(walk, armed=int(walk.document["version"]))

    async def _hold(self, walk: Walk, _: object) -> Walk:
        outlasted = await self._acknowledged(walk)
        return await cutovers.step(self._store, walk, State.FENCING, outlasted=outlasted)

    async def _fence(self, walk: Walk, ground: Ground) -> Walk:
        try:
            await fence.close(ground.losing, walk.name, walk.turn, FENCED_WITHIN)
        except WritersError as error:
            raise CannotError(str(error)) from error
        return await cutovers.step(self._store, walk, State.CATCHING_UP)

    async def _catch_up(self, walk: Walk, ground: Ground) -> Walk:
        # The position is read behind the fence: nothing of ours comes after it.
        took, authority = await together(ground.brought(CAUGHT_UP_WITHIN), self._authority(walk))
        if took is None:
            raise CannotError(f"the stream {ground.stream.name} has not caught up in {CAUGHT_UP_WITHIN:g} s")
        turned = replace(authority, phase=Phase.TURN)
        return await cutovers.step_with(self._store, walk, State.TURNING, turned, caught_up_in=round(took, 4))

    async def _turn(self, walk: Walk, ground: Ground) -> Walk:
        compared, moved, outlasted = await together(
            _sure(ground.rest.compare_at_rest()),
            sequences.carry(ground.losing, ground.gaining, ground.sources.values()),
            self._acknowledged(walk),
        )
        _must_not_differ(compared, walk, at_rest=True)
        seen = sum(one.suspected for one in compared)
        walk = cutovers.also_noted(walk, compared_at_rest=seen, sequences=moved, outlasted=outlasted)
        if walk.rehearsal:
            raise CannotError("rehearsed: everything up to the decision was done")
        return await cutovers.step(self._store, walk, State.DECIDING)

    async def _decide(self, walk: Walk, gaining: Connection) -> Walk:
        """The point of no return."""
        wanted = Outcome.SWITCHED if walk.abort is None else Outcome.CANCELLED
        found = await fence.decide(gaining, walk.name, walk.token, walk.generation, wanted)
        if found is Outcome.CANCELLED:
            return await self._cancel(walk, f"aborted: {walk.abort}")
        _, authority = await together(self._open(gaining, walk), self._authority(walk))
        moved = replace(authority, side=walk.towards, generation=walk.generation, phase=Phase.OPEN)
        return await cutovers.step_with(self._store, walk, State.RELEASING, moved)

    async def _release(self, walk: Walk, plot: Plot) -> Walk:
        await self._forget(walk, plot)
        found = await self._converged(walk, ACKNOWLEDGED_WITHIN)
        late = "; ".join(found.missing)
        message = one_line(f"not told yet: {late}", 500) if late else None
        if walk.loses:
            fenced = "" if walk.document["fenced"] else "new's fence is still open; "
            message = f"{fenced}what new still has is not taken: runbooks/new-is-gone.md"
        times = dict(self._times)
        return await cutovers.step(self._store, walk, State.DONE, message=message, times=times)

    async def _take_back(self, walk: Walk, losing: Connection, plot: Plot) -> Walk:
        """First the fence, then those who wait behind it."""
        authority = await self._authority(walk)
        message = None
        if authority.side is not walk.towards:  # else another walk has moved it, and its fence is not ours
            try:
                await self._open(losing, walk, fence.keep_open)
            except OldTurnError as error:
                await self._reread(walk)
                message = f"{walk.message}; {error}, and is left as it is: crossfade cutover plan {walk.name}"
        walk = await cutovers.step_with(
            self._store, walk, State.CANCELLED, replace(authority, phase=Phase.OPEN), message=message
        )
        await self._forget(walk, plot)
        return walk

    async def _forget(self, walk: Walk, plot: Plot) -> None:
        """Which rows have changed: nobody asks any more. The next walk begins with this, too."""
        stream = plot.streams[walk.towards]
        with contextlib.suppress(psycopg.Error, OSError):
            async with await connect(stream.target_url, NAME) as fed:
                await rest.watch(fed, stream.name, on=False)

    async def _open(
        self, where: Connection, walk: Walk, move: Callable[..., Awaitable[None]] = fence.open_
    ) -> None:
        """A reader of the fence's lock ends soon: it is our apply, or a writer that is refused."""
        while True:
            try:
                return await move(where, walk.name, walk.turn, FENCED_WITHIN)
            except WritersError as error:
                log.warning("walk_waits", walk=walk.id, message=str(error))

    # The way back without new: nothing of it is asked but to close its fence, if it hears that.

    async def _prepare_without(self, walk: Walk, _: Plot) -> Walk:
        authority = await self._authority(walk)
        if authority.side is walk.towards:
            raise CannotError(f"{walk.towards} has the authority already")
        walk = await self._arm(walk, authority)
        return await cutovers.step_with(
            self._store, walk, State.HOLDING, replace(authority, phase=Phase.HOLD)
        )

    async def _fence_without(self, walk: Walk, plot: Plot) -> Walk:
        fenced = False
        try:
            async with asyncio.timeout(REACHED_WITHIN + FENCED_WITHIN):
                async with await connect(plot.urls[other(walk.towards)], NAME) as losing:
                    await fence.close(losing, walk.name, walk.turn, FENCED_WITHIN)
                    fenced = True
        except WritersError as error:
            raise CannotError(str(error)) from error
        except (psycopg.Error, OSError, TimeoutError) as error:
            log.warning("fence_left_open", walk=walk.id, side=other(walk.towards).value, message=str(error))
        return await cutovers.step(self._store, walk, State.CATCHING_UP, fenced=fenced)

    async def _catch_up_without(self, walk: Walk, _: Plot) -> Walk:
        turned = replace(await self._authority(walk), phase=Phase.TURN)
        return await cutovers.step_with(self._store, walk, State.TURNING, turned)

    async def _turn_without(self, walk: Walk, plot: Plot) -> Walk:
        async with await connect(plot.urls[walk.towards], NAME) as gaining:
            sources = plot.sources(other(walk.towards)).values()
            moved, outlasted = await together(
                sequences.leap(gaining, sources, NUMBERS_LOST), self._acknowledged(walk)
            )
        return await cutovers.step(self._store, walk, State.DECIDING, sequences=moved, outlasted=outlasted)

    async def _take_back_without(self, walk: Walk, plot: Plot) -> Walk:
        """New keeps the authority. Nobody waits until its fence is open, which may have been closed."""
        authority = await self._authority(walk)
        is_open = authority.side is walk.towards or await self._could_open(walk, plot)
        message = None if is_open else f"{walk.message}; new's fence is not open: runbooks/new-is-gone.md"
        walk = await cutovers.step_with(
            self._store, walk, State.CANCELLED, replace(authority, phase=Phase.OPEN), message=message
        )
        until = time.monotonic() + OPENED_WITHIN
        while not is_open and time.monotonic() < until:
            await asyncio.sleep(TRY_AGAIN)
            is_open = await self._could_open(walk, plot)
        return walk

    async def _could_open(self, walk: Walk, plot: Plot) -> bool:
        with contextlib.suppress(psycopg.Error, OSError, TimeoutError, WritersError):
            async with asyncio.timeout(REACHED_WITHIN + FENCED_WITHIN):
                async with await connect(plot.urls[other(walk.towards)], NAME) as losing:
                    await fence.keep_open(losing, walk.name, walk.turn, FENCED_WITHIN)
                    return True
        return False

    # What the steps share.

    async def _authority(self, walk: Walk) -> Authority:
        found = (await self._store.flag_set()).authority(walk.name)
        if found is None:
            raise CannotError(f"{walk.name} is not prepared any more")
        return found

    async def _acknowledged(self, walk: Walk) -> list[str]:
        """Until all obey; of those that have vanished, until their leases have ended: those are returned."""
        found = await self._converged(walk, ACKNOWLEDGED_WITHIN)
        if not found.safe:
            raise CannotError(f"not all workers have acknowledged: {'; '.join(found.missing)}")
        if found.outlasted:
            log.warning("leases_waited_out", walk=walk.id, state=walk.state.value, workers=found.missing)
        return sorted(found.outlasted)

    async def _converged(self, walk: Walk, within: float) -> Convergence:
        # What the store has by now was committed before this was begun to be counted.
        known = walk.document
        patience = None
        if "armed" in known:
            patience = Patience(known["armed"], WAITED_OUT, frozenset(known.get("outlasted", ())))
        return await self._feed.converged(int(known["version"]), within, patience)

    async def _cancel(self, walk: Walk, why: str) -> Walk:
        """Whatever it takes: nobody shall wait for a walk that goes nowhere."""
        message = one_line(why, 900)
        while State.CANCELLING in NEXT[walk.state]:
            log.warning("walk_cancelled", walk=walk.id, state=walk.state.value, message=message)
            try:
                return await cutovers.step(self._store, walk, State.CANCELLING, message=message)
            except (StoreError, OvertakenError) as error:
                log.warning("walk_waits", walk=walk.id, message=str(error))
                await asyncio.sleep(TRY_AGAIN)
                known = await self._reread(walk)
                if known.state not in (walk.state, State.CANCELLING):
                    return known  # the step before has been done after all
                walk = known
        return walk

    async def _reread(self, walk: Walk) -> Walk:
        """As the store has it; what was written before its answer was lost is in it."""
        while True:
            with contextlib.suppress(StoreError):
                found = await cutovers.read(self._store, walk.id)
                if found.epoch != walk.epoch:
                    raise OldTurnError(f"walk {walk.id} is walked by somebody else")
                return found
            await asyncio.sleep(TRY_AGAIN)

    def _note_end(self, walk: Walk) -> None:
        labels = (walk.name, walk.towards.value, walk.state.value)
        self._ended[labels] = self._ended.get(labels, 0) + 1
        held = None
        until = walk.released_at if walk.state is State.DONE else walk.ended_at
        if walk.held_at is not None and until is not None:
            held = until - walk.held_at
            place = next(
                (at for at, most in enumerate(LATENCY_BUCKETS) if held <= most), len(LATENCY_BUCKETS)
            )
            self._holds[place] += 1
            self._held_seconds += held
        log.info("walk_ended", walk=walk.id, cutover=walk.name, state=walk.state.value,
                 held=held, message=walk.message)  # fmt: skip

    def samples(self) -> list[Sample]:
        found = [Sample(CUTOVERS.name, labels, count) for labels, count in self._ended.items()]
        found.append(Sample(CUTOVER_HOLD.name, (), Histogram(tuple(self._holds), self._held_seconds)))
        return found


_STEPS: Final[Mapping[State, Callable[[Conductor, Walk, Ground], Awaitable[Walk]]]] = {
    State.PREPARING: Conductor._prepare,
    State.HOLDING: Conductor._hold,
    State.FENCING: Conductor._fence,
    State.CATCHING_UP: Conductor._catch_up,
    State.TURNING: Conductor._turn,
}
"""Those that need both databases."""
_STEPS_WITHOUT: Final[Mapping[State, Callable[[Conductor, Walk, Plot], Awaitable[Walk]]]] = {
    State.PREPARING: Conductor._prepare_without,
    State.HOLDING: Conductor._hold,
    State.FENCING: Conductor._fence_without,
    State.CATCHING_UP: Conductor._catch_up_without,
    State.TURNING: Conductor._turn_without,
}
"""The same where new is gone."""


async def _sure(comparing: Awaitable[Any]) -> Any:
    """Raises CannotError where a comparison cannot be made."""
    try:
        return await comparing
    except (NotFollowingError, MappingFailedError, CaptureStopped, EmptiedError, UnwatchedError) as error:
        raise CannotError(f"it cannot be compared: {error}") from error


def _must_not_differ(found: Sequence[Compared], walk: Walk, *, at_rest: bool = False) -> None:
    """Raises CannotError. What has changed while it was compared was noted, and is compared again."""
    for one in found:
        if one.differences:
            first = one.differences[0]
            what = ", ".join((first.kind, *first.columns))
            raise CannotError(
                f"{one.name}: {len(one.differences)} rows differ, such as key {', '.join(first.key)}"
                f" ({what}); crossfade data repair --towards {walk.towards}, then again"
            )
        if one.unsettled and at_rest:
            raise CannotError(f"{one.name}: {one.unsettled} rows change although both sides are fenced")
