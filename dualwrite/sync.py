"""Bring one side's tables to the other and keep them alike: prepare, copy, follow, until told to stop.

A stream is begun once: publication, slot, and a row in the target that says so. From then on whichever
process has the lease works on it, under an epoch of its own; the others stand by. What may pass by itself (a
connection that broke, a server that starts) is tried again; all else stops the stream with a reason that
stands in the target, its position kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import psycopg
from psycopg import errors

from dualwrite import desired, fence, foreign, heartbeat, jobs, lease, pg_capture, pg_source, rights, target
from dualwrite.apply import Applier, PoisonError
from dualwrite.backfill import FEWEST, MOST, Backfill, Progress, copy_name
from dualwrite.capture import A_MOMENT, Capture, CaptureStopped, Way
from dualwrite.change import Position
from dualwrite.cut import stand
from dualwrite.follow import Follower
from dualwrite.foreign import Writer
from dualwrite.jobs import BACKFILL, REPAIR, Jobs
from dualwrite.lease import Lease, LostError
from dualwrite.mapped import MappingFailedError, RowMapping, SourceTable, Touching, by_table
from dualwrite.pace import Pace, Reason
from dualwrite.pg_chunks import PgChunks
from dualwrite.pg_connect import connect
from dualwrite.plan import ContradictionError, Copying
from dualwrite.preflight import SlotFacts, Weight, findings, must_be_resumable
from dualwrite.repair import Repairs
from dualwrite.rows import FollowUpError, MissingRowError
from dualwrite.stream_states import State
from dualwrite.target import FencedError
from dualwrite.watching import watching

LOOK_FOR_A_TURN: Final = 0.5
"""Seconds between two looks of a process that stands by."""
TRY_AGAIN: Final = 1.0
"""Seconds between two tries."""
STREAM_FOR: Final = 0.25
"""Seconds that the stream may have between two chunks of a copy."""
CAUGHT_UP: Final = 100
"""Changes of a step of the stream: after one with fewer the next chunk is copied. A source that is always
written to always has a few more, and a target transaction for each would leave the copy no time."""
LOOK_FOR_REPAIRS: Final = 1.0
TELL_EVERY: Final = 1.0
"""Seconds between two notes of how a copy goes."""

Connection = psycopg.AsyncConnection[Any]

_REASONS: Final[Mapping[type[Exception], str]] = {
    PoisonError: "poison_row",
    MissingRowError: "missing_row",
    ContradictionError: "contradiction",
    MappingFailedError: "mapping_failed",
    FollowUpError: "follow_up_failed",
}
_NOT_HERE: Final = (psycopg.OperationalError, psycopg.InterfaceError, OSError)
"""The target, or a connection of our own to the source, is not there for now."""


@dataclass(frozen=True, slots=True)
class Direction:
    """One stream: from where, to where, and what becomes of each table. `name` names slot and publication."""

    name: str
    source_url: str
    target_url: str
    sources: Mapping[str, SourceTable]
    over_missing_rows: bool = False
    """Begin by passing over updates of rows that are not at the target: a person knows, and will repair."""
    watches: bool = False
    """Whether it is noted who else writes to the target."""
    way: Way = Way.STREAM
    """How the source is read."""
    copy_rows_per_second: int | None = None
    """The most that are copied; None sets no bound."""

    @property
    def slot(self) -> str:
        return f"crossfade_{self.name}"

    @property
    def way_back(self) -> str:
        """The name of the stream the other way."""
        head, _, side = self.name.rpartition("to_")
        return f"{head}to_{'legacy' if side == 'new' else 'new'}"

    @property
    def written(self) -> list[str]:
        """The tables that it writes to, as schema.table."""
        return sorted({str(mapping.table) for _, mapping in by_table(self.sources)})

    @property
    def tables(self) -> list[tuple[str, str]]:
        parts = (name.partition(".") for name in self.sources)
        return [(schema, name) for schema, _, name in parts]


@dataclass(frozen=True, slots=True)
class Duty:
    """On what terms a process works on a stream."""

    holder: str = field(default_factory=lease.this_process)
    """By which others know it."""
    as_desired: bool = False
    """Only while people desire it (`desired.py`); a stream that stops is left until they say so again. Else
    it runs unless they desire that it does not, and ends when it stops."""
    take_over: bool = False
    """Begin by taking it from whoever works on it."""


@dataclass(slots=True)
class Told:
    """What a running stream says of itself; for metrics and logs."""

    state: State = State.COPYING
    epoch: int = 0
    """0 while this process does not work on it."""
    waits: str = ""
    """Why it does not, while it stands by."""
    arrived: tuple[float, float] | None = None
    """Of the last beat at the target: when (monotonic), and how many seconds it was on its way."""
    copies: dict[str, Progress] = field(default_factory=dict)
    pauses: Counter[Reason] = field(default_factory=Counter)
    """How often copying has waited, since this process began."""
    left: float | None = None
    """Seconds until the copy under way is done, at its rate."""
    again: int = 0
    """How often it began again after something that passed by itself."""
    trouble: str = ""
    """Of the last time."""
    quarantined: int = 0
    """Rows that wait in quarantine."""

    slot: SlotFacts | None = None
    """What the source holds back for the stream; None where nobody could ask."""
    strangers: Sequence[Writer] | None = None
    """Who else was seen to write into the stream's tables of late; None where nobody was, and not all of them
    are watched."""

    def note_slot(self, slot: SlotFacts | None) -> None:
        self.slot = slot

    def note_strangers(self, writers: Sequence[Writer] | None) -> None:
        self.strangers = writers

    def lag(self) -> float | None:
        """Seconds that the target is behind. It grows while no beat comes; None before the first one."""
        if self.arrived is None:
            return None
        when, took = self.arrived
        return max(took, time.monotonic() - when - heartbeat.EVERY)


class StoppedError(Exception):
    """The stream waits for a person. The same words stand in the target."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


async def run(direction: Direction, told: Told, duty: Duty | None = None) -> None:
    """Until it is cancelled. Raises StoppedError, unless the duty is to go on when people desire it."""

    async def slot(source: Connection) -> SlotFacts | None:
        return await pg_source.slot_facts(source, direction.slot)

    async def strangers(looking: Connection) -> Sequence[Writer] | None:
        found = await foreign.of_late(looking, direction.written)
        return found if found or not await foreign.unwatched(looking, direction.written) else None

    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(watching(direction.source_url, slot, told.note_slot))
        if direction.watches:
            await stack.enter_async_context(watching(direction.target_url, strangers, told.note_strangers))
        await _run(direction, told, duty or Duty())


async def _run(direction: Direction, told: Told, duty: Duty) -> None:
    turns = _Turns(direction, told, duty)
    while True:
        try:
            await _once(direction, told, turns)
        except (LostError, FencedError):
            await asyncio.sleep(LOOK_FOR_A_TURN)
            continue
        except StoppedError as stopped:
            if not duty.as_desired:
                raise
            turns.have_begun()
            told.trouble, told.state = f"{stopped.reason}: {stopped}", State.STOPPED
            await asyncio.sleep(TRY_AGAIN)
            continue
        except CaptureStopped as passing:
            told.trouble = f"{passing.reason}: {passing}"
        except _NOT_HERE as error:
            told.trouble = f"unreachable: {error}"
        except psycopg.Error as error:
            # The target lets nobody begin.
            message = await _why_not(direction, error)
            if not duty.as_desired:
                raise StoppedError(_refused(error), message) from error
            told.trouble = f"{_refused(error)}: {message}"
        told.again += 1
        await asyncio.sleep(TRY_AGAIN)


def _reason(error: Exception) -> str | None:
    """Why a stream stops that has ended so; None where another try may do."""
    if isinstance(error, CaptureStopped):
        return None if error.passing else error.reason
    if isinstance(error, _NOT_HERE):
        return None
    if isinstance(error, psycopg.Error):
        return _refused(error)
    return next((reason for kind, reason in _REASONS.items() if isinstance(error, kind)), None)


def _refused(error: psycopg.Error) -> str:
    return rights.REASON if isinstance(error, errors.InsufficientPrivilege) else "refused"


def _said(error: psycopg.Error) -> str:
    said = f"{error.diag.message_primary or error} ({error.sqlstate or type(error).__name__})"
    may_not = isinstance(error, errors.InsufficientPrivilege)
    return f"{said}; crossfade data plan names what is missing" if may_not else said


async def _why_not(direction: Direction, error: psycopg.Error) -> str:
    """What the target has said; where that is a missing right, each that is missing, by its name."""
    if isinstance(error, errors.InsufficientPrivilege):
        with contextlib.suppress(psycopg.Error, OSError):
            async with await connect(direction.target_url) as looking:
                return rights.stops(await rights.of_target(looking, direction.written)) or _said(error)
    return _said(error)


async def _stopped(direction: Direction, told: Told, reason: str, message: str) -> Exception:
    """What to raise, once the target knows why; nothing is noted of a stream that another process holds."""
    with contextlib.suppress(psycopg.Error, OSError):
        async with await connect(direction.target_url) as looking:
            epoch = told.epoch
            if not epoch:
                # It was never ours. Whoever has it may be well, and is not to be called stopped.
                known = await target.state(looking, direction.name)
                if known is None or await target.is_held(looking, direction.name):
                    return StoppedError(reason, message)
                epoch = known.epoch
            await jobs.fail(looking, direction.name, epoch, f"{reason}: {message}")
            if not await target.move(looking, direction.name, epoch, State.STOPPED, reason, message):
                return FencedError(f"stream {direction.name} is not held under epoch {epoch} any more")
    return StoppedError(reason, message)


async def _once(direction: Direction, told: Told, turns: _Turns) -> None:
    async with contextlib.AsyncExitStack() as stack:
        looking = await connect(direction.target_url)
        stack.push_async_callback(looking.close)
        held = await turns.wait(looking)
        stack.push_async_callback(held.release)
        try:
            async with _beside(_lost(held)):
                while not await _held(direction, told, looking, turns):  # noqa: ASYNC110  (a server says it)
                    await asyncio.sleep(LOOK_FOR_A_TURN)
        except Exception as error:
            # While the lease is ours: whoever stands by is not to try what was tried.
            reason = _reason(error)
            if reason is None:
                raise
            message = _said(error) if isinstance(error, psycopg.Error) else str(error)
            raise await _stopped(direction, told, reason, message) from error


async def _held(direction: Direction, told: Told, looking: Connection, turns: _Turns) -> bool:
    """One process's time with a stream, from its beginning. False: the one before still has the slot.

    It is fenced, and has to notice: the lease is kept meanwhile, or the next one would have to wait as well.
    """
    async with contextlib.AsyncExitStack() as stack:
        # What it was before counts no more: others may have had it meanwhile.
        told.epoch = 0
        source = await connect(direction.source_url)
        stack.push_async_callback(source.close)
        before, whole = await _begun(direction, source, looking)
        applier = await Applier.open(direction.target_url, direction.name, before + 1)
        stack.push_async_callback(applier.close)
        told.epoch, told.waits = before + 1, ""
        if direction.watches:
            await foreign.watch(looking, direction.written)
        await pg_source.release_slot(source, direction.slot)
        one_way = any(source.one_way for source in direction.sources.values())
        try:
            stream = await pg_capture.open_(
                direction.way, direction.source_url, direction.slot, applier.applied, also_ours=one_way
            )
        except CaptureStopped as stopped:
            if stopped.reason != "slot_in_use":
                raise
            told.trouble = f"{stopped.reason}: {stopped}"
            return False
        stack.push_async_callback(stream.close)
        await target.move(looking, direction.name, told.epoch, State.COPYING)
        whole = whole and not turns.over_missing_rows
        turns.have_begun()
        work = _Work(direction, told, source, looking, applier, stream, whole)
        async with _beating(direction, told.epoch, work):
            await work.run()
    return True


class _Turns:
    """When this process may work on the stream."""

    def __init__(self, direction: Direction, told: Told, duty: Duty) -> None:
        self._direction = direction
        self._told = told
        self.duty = duty
        self._take_over = duty.take_over
        self.over_missing_rows = direction.over_missing_rows
        """Whether to begin by passing over them."""
        self._may_try = True
        """A stream that has stopped is tried once by each process that begins, and for each new desire."""

    def have_begun(self) -> None:
        """What was asked for the beginning is done. Until then it stands: the slot may be in use for now."""
        self._take_over = self.over_missing_rows = self._may_try = False

    async def wait(self, looking: Connection) -> Lease:
        """The lease. Raises psycopg.Error."""
        stream = self._direction.name
        prepared = False
        while True:
            desire = await desired.of(looking, stream)
            stopped = None
            if (why := self._not_desired(desire)) is None:
                if not prepared:
                    await target.prepare(looking)
                    prepared = True
                why = stopped = await self._stopped(looking, 0 if desire is None else desire.number)
            if why is None:
                found = await lease.look(looking, stream)
                number = 0 if desire is None else desire.number
                taken = None
                if self._take_over or not found.alive or await lease.is_free(looking, stream, found.number):
                    taken = await Lease.take(
                        self._direction.target_url, stream, self.duty.holder,
                        desire=number, take_over=self._take_over,
                    )  # fmt: skip
                if taken is not None:
                    if desire is not None and found.tried < number:
                        self.over_missing_rows |= desire.over_missing_rows
                    self._may_try = True
                    return taken
                why = f"{found.holder} works on it"
                self._may_try = False
            self._stand_by(why, stopped=stopped is not None)
            await asyncio.sleep(LOOK_FOR_A_TURN)

    def _not_desired(self, desire: desired.Desire | None) -> str | None:
        if desire is None:
            return "nobody has said that it shall run" if self.duty.as_desired else None
        return None if desire.run else f"{desire.by} has said that it shall not run: {desire.reason}"

    async def _stopped(self, looking: Connection, desire: int) -> str | None:
        """A stream that has stopped since waits for a person, and not for the next host to try it."""
        if self._may_try or not self.duty.as_desired:
            return None
        known = await target.state(looking, self._direction.name)
        if known is None or known.state is not State.STOPPED:
            return None
        tried = (await lease.look(looking, self._direction.name)).tried
        return None if tried < desire else f"it has stopped ({known.reason}): {known.message}"

    def _stand_by(self, why: str, *, stopped: bool) -> None:
        told = self._told
        told.waits, told.epoch, told.arrived = why, 0, None
        told.copies.clear()
        told.left = None
        if not stopped:
            told.state = State.COPYING


async def _lost(held: Lease) -> None:
    """Raises LostError."""
    raise LostError(await asyncio.shield(held.lost))


async def _begun(direction: Direction, source: Connection, looking: Connection) -> tuple[int, bool]:
    """The epoch that has held until now, and whether all rows were there, once the stream can go on.

    Raises CaptureStopped.
    """
    missing = [
        *await rights.of_source(source, direction.slot, direction.tables),
        *await rights.of_target(looking, direction.written),
    ]
    if said := rights.stops(missing):
        raise CaptureStopped(rights.REASON, said)
    await target.prepare(looking)
    if await target.state(looking, direction.name) is not None:
        # In this order: the one before may still be at work, and what it applies and confirms meanwhile must
        # look neither like a slot that has moved on nor like a source that was set back.
        slot = await pg_source.slot_facts(source, direction.slot)
        known = await target.state(looking, direction.name)
        assert known is not None
        here, server_at = await _identify(direction, source)
        must_be_resumable(known, here, slot, server_at)
        await _take_in_new_ones(direction, source, looking)
        await pg_source.must_publish(source, direction.slot, direction.tables)
        return known.epoch, known.whole
    here, _ = await _identify(direction, source)
    facts = await pg_source.facts(source, direction.tables, direction.way)
    stops = [one for one in findings(facts) if one.weight is Weight.STOPS]
    if stops:
        raise CaptureStopped(stops[0].reason, "; ".join(f"{one.message} ({one.remedy})" for one in stops))
    await pg_source.publish(source, direction.slot, direction.tables)
    start = await pg_source.make_slot(source, direction.slot)
    await target.create(looking, direction.name, here, start)
    return 0, False


async def _take_in_new_ones(direction: Direction, source: Connection, looking: Connection) -> None:
    """Publish tables that were mapped since it was begun: nothing of them was copied yet, so what has been
    written to them until now comes with their copies.

    Raises CaptureStopped where their rows are the other side's to say.
    """
    begun = await _begun_copies(looking, direction.name)
    new = {table for name, table, _ in copies(direction.sources) if name not in begun}
    owned = sorted(table for table in new if not direction.sources[table].one_way)
    if owned and await fence.is_closed(source):
        raise CaptureStopped(
            "not_alike",
            f"{', '.join(owned)}: mapped after the fences were put up, by which the other side has the"
            " authority over its rows; crossfade cutover prepare NAME, which copies nothing back, then again",
        )
    missing = await pg_source.unpublished(source, direction.slot, direction.tables)
    await pg_source.publish_more(source, direction.slot, [table for table in missing if table in new])


async def _begun_copies(looking: Connection, stream: str) -> set[str]:
    cursor = await looking.execute("SELECT copy FROM crossfade_sync.copies WHERE stream = %s", (stream,))
    return {copy for (copy,) in await cursor.fetchall()}


async def _identify(direction: Direction, source: Connection) -> tuple[target.Source, Position]:
    return await pg_capture.identify(direction.way, direction.source_url, source, direction.slot)


async def begin_alike(direction: Direction) -> None:
    """Begin the stream of the way back, while the other one runs: both sides have the same rows by now.

    Only what comes this way alone will be copied. Where the stream is known, this is said of tables that were
    mapped since. Raises CaptureStopped and psycopg.Error.
    """
    async with await connect(direction.source_url) as source, await connect(direction.target_url) as looking:
        await target.prepare(looking)
        known = await target.state(looking, direction.name) is not None
        begun = await _begun_copies(looking, direction.name) if known else set[str]()
        alike = {
            name: table for name, table, what in copies(direction.sources)
            if name not in begun and (isinstance(what, Touching) or not direction.sources[table].one_way)
        }  # fmt: skip
        if known:
            # Before they count as begun: of such ones, those that are not published have lost changes.
            missing = await pg_source.unpublished(source, direction.slot, direction.tables)
            await pg_source.publish_more(
                source, direction.slot, [table for table in missing if table in alike.values()]
            )
        # Before the stream is known: whoever comes between finds all that is not to be copied.
        async with looking.cursor() as cursor:
            await cursor.executemany(
                "INSERT INTO crossfade_sync.copies (stream, copy, done) VALUES (%s, %s, true)"
                " ON CONFLICT (stream, copy) DO UPDATE SET done = true",
                [(direction.name, name) for name in alike],
            )
        if not known:
            await _begun(direction, source, looking)


class _Work:
    """One process's time with a stream."""

    def __init__(
        self,
        direction: Direction,
        told: Told,
        source: Connection,
        looking: Connection,
        applier: Applier,
        stream: Capture,
        whole: bool,
    ) -> None:
        self._whole = whole
        self._direction = direction
        self._told = told
        self._source = source
        self._looking = looking
        self._applier = applier
        self._follower = Follower(direction.name, stream, applier, direction.sources)
        self._repairs = Repairs(direction.name, source, applier, copies(direction.sources))
        self._jobs = Jobs(looking, direction.name, told.epoch)
        self._told_at = 0.0
        self._pace = Pace(direction.copy_rows_per_second, told.pauses)
        self._sent: dict[int, float] = {}

    def sent(self, number: int, took: float) -> None:
        """A beat is in the source's log, where it was committed in `took` seconds."""
        self._pace.committed(took)
        self._sent[number] = time.monotonic()

    async def run(self) -> None:
        while True:
            if not (self._whole and await self._nothing_is_left()):
                await self._make_whole()
            await self._move(State.FOLLOWING)
            self._told.state = State.FOLLOWING
            await self._follow()
            await self._move(State.COPYING)

    async def _nothing_is_left(self) -> bool:
        """Whether all was copied, and nothing is to be repaired. A mapping may be new."""
        names = [name for name, _, _ in copies(self._direction.sources)]
        chunks = [await self._applier.chunk(name) for name in names]
        return all(chunk is not None and chunk.done for chunk in chunks) and not await self._repairs.wanted(
            self._looking
        )

    async def _make_whole(self) -> None:
        self._whole = False
        await target.set_whole(self._looking, self._direction.name, self._told.epoch, whole=False)
        self._follower.remember = True
        self._told.state = State.COPYING
        await self._copy()
        self._repairs.begin()
        await self._repair()
        self._follower.remember = False
        self._follower.recent.clear()
        await self._until_whole()
        self._whole = await target.set_whole(
            self._looking, self._direction.name, self._told.epoch, whole=True
        )

    async def _move(self, to: State) -> None:
        await target.move(self._looking, self._direction.name, self._told.epoch, to)

    async def _copy(self) -> None:
        ceiling = self._direction.copy_rows_per_second
        for name, table, what in copies(self._direction.sources):
            copied = await self._applier.chunk(name)
            if copied is not None and copied.done:
                # Whoever copied the last of it may have ended before it said so.
                await self._jobs.done(BACKFILL, name)
                continue
            about = await pg_source.rows_about(self._source, table)
            await self._jobs.begin(BACKFILL, name)
            binary = (
                isinstance(what, Copying)
                and what.table.quarantine is None  # what waits there is kept as text
                and await self._same_types(table, what)
            )
            chunks = PgChunks(self._source, table, what, binary=binary)
            most = MOST if ceiling is None else min(MOST, max(FEWEST, ceiling))
            backfill = Backfill(chunks, self._applier, name, what, most=most)
            done = False
            try:
                while not done:
                    await self._wait_for_a_good_moment(name)
                    progress = await backfill.step(self._follower.recent)
                    self._pace.copied(progress.read, progress.took, time.monotonic())
                    self._told.copies[name] = progress
                    done = progress.done
                    await self._tell(name, about)
                    # Where a chunk was not taken the stream has to bring what stands against it.
                    await self._stream(0 if progress.read else A_MOMENT)
            finally:
                await chunks.close()
            await self._jobs.done(BACKFILL, name)
        self._told.left = None

    async def _wait_for_a_good_moment(self, name: str) -> None:
        """The stream goes on meanwhile."""
        while (pause := self._pace.pause(time.monotonic(), self._told.lag())) is not None:
            until = time.monotonic() + pause.seconds
            while time.monotonic() < until:
                await self._follower.step(whole=False)
                self._note_lag()
            await self._tell(name, None)

    async def _tell(self, name: str, about: int | None) -> None:
        """How it goes, now and then. `about`: of how many rows it is the copy."""
        now = time.monotonic()
        if now - self._told_at < TELL_EVERY:
            return
        self._told_at = now
        rate = self._pace.rate(now)
        if about is not None:
            copied = await target.rows_copied(self._looking, self._direction.name, name)
            # A table without statistics, or one that has grown since, cannot say what is left.
            self._told.left = (about - copied) / rate if rate and about > copied else None
        pauses = {
            reason.value: {"times": times, "seconds": self._pace.waited[reason] / 1000}
            for reason, times in self._pace.pauses.items()
        }
        await self._jobs.note(BACKFILL, name, rate, pauses)

    async def _same_types(self, table: str, what: Copying) -> bool:
        """Whether the target reads what the source writes in binary."""
        ours = await pg_source.column_types(self._source, table)
        theirs = await pg_source.column_types(self._looking, str(what.table))
        pairs = zip(what.inputs, what.table.columns, strict=True)
        return all(
            (kind := ours.get(one)) is not None
            and kind == theirs.get(other)
            and pg_source.bare_type(kind) in pg_source.PLAIN_TYPES
            for one, other in pairs
        )

    async def _repair(self) -> None:
        if not await self._repairs.wanted(self._looking):
            return
        await self._jobs.begin(REPAIR, "rows")
        while await self._repairs.step(self._follower.recent):
            await self._stream(A_MOMENT)
        await self._jobs.done(REPAIR, "rows")

    async def _stream(self, within: float) -> None:
        """Let the stream catch up; for a while only, if it brings much. `within` as of `Follower.step`."""
        until = time.monotonic() + STREAM_FOR
        while await self._follower.step(whole=False, within=within):
            self._note_lag()
            if self._follower.written < CAUGHT_UP or time.monotonic() > until:
                return

    async def _until_whole(self) -> None:
        """Until the stream has brought all that was written before the copies ended.

        Before that an update may come of a row that was gone when the copy came by.
        """
        written = await heartbeat.mark(self._source, self._direction.name)
        while self._applier.applied < written:
            await self._follower.step(whole=False)
            self._note_lag()

    async def _follow(self) -> None:
        """Until there is something to repair. For one moment of both sides it stands still."""
        looked = time.monotonic()
        while True:
            await self._follower.step()
            self._note_lag()
            if time.monotonic() - looked > LOOK_FOR_REPAIRS:
                looked = time.monotonic()
                if await self._repairs.wanted(self._looking):
                    return
                await stand(
                    self._looking, self._direction.name, self._follower, self._applier, self._told.epoch
                )

    def _note_lag(self) -> None:
        self._told.quarantined = len(self._applier.held)
        for number in [number for number in self._sent if number <= self._applier.heartbeat]:
            now = time.monotonic()
            self._told.arrived = now, now - self._sent.pop(number)


def copies(sources: Mapping[str, SourceTable]) -> Sequence[tuple[str, str, RowMapping | Touching]]:
    """What has to be copied, in its order: all tables, and then what follows them. Name, table, how."""
    rows = [(source.name, mapping) for source in sources.values() for mapping in source.mappings]
    after = sorted(
        ((source.name, one) for source in sources.values() for one in source.touching),
        key=lambda pair: pair[1].place,
    )
    return [(copy_name(table, what), table, what) for table, what in (*rows, *after)]


@contextlib.asynccontextmanager
async def _beating(direction: Direction, epoch: int, work: _Work) -> AsyncIterator[None]:
    """Beats go into the source's log while this lasts. Where they cannot, the work inside ends."""
    connection = await connect(direction.source_url)

    async def beat() -> None:
        number = heartbeat.first(epoch)
        try:
            while True:
                began = time.monotonic()
                await heartbeat.beat(connection, direction.name, number)
                work.sent(number, time.monotonic() - began)
                number += 1
                await asyncio.sleep(heartbeat.EVERY)
        except (psycopg.Error, OSError) as error:
            raise CaptureStopped("beats_end", f"no beat can be written: {error}", passing=True) from error

    try:
        async with _beside(beat()):
            yield
    finally:
        await connection.close()


@contextlib.asynccontextmanager
async def _beside(story: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run `story` while this lasts. What it raises ends the work inside, and is raised here."""
    telling = asyncio.create_task(story)
    body = asyncio.current_task()
    assert body is not None
    broken = told = False

    def ended(task: asyncio.Task[None]) -> None:
        nonlocal broken
        if not task.cancelled():
            broken = True
            body.cancel()

    telling.add_done_callback(ended)
    try:
        yield
    except asyncio.CancelledError:
        if not broken:
            raise
        told = True
        if body.uncancel():
            raise  # somebody else has cancelled it, too
        await telling
    finally:
        telling.remove_done_callback(ended)
        if broken and not told:
            # It had ended by a fault of its own before it was told.
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0)
            body.uncancel()
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)
