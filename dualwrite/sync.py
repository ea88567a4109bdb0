"""Bring one side's tables to the other and keep them alike: prepare, copy, follow, until told to stop.

A stream is begun once: publication, slot, and a row in the target that says so. From then on any process may
take it over under a later epoch. What may pass by itself (a connection that broke, a server that starts) is
tried again; all else stops the stream with a reason that stands in the target, its position kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import psycopg

from dualwrite import heartbeat, pg_source, target
from dualwrite.apply import Applier, FollowUpError, MissingRowError, PoisonError
from dualwrite.backfill import Backfill, Progress, copy_name
from dualwrite.capture import CaptureStopped
from dualwrite.follow import Follower
from dualwrite.mapped import MappingFailedError, RowMapping, SourceTable, Touching
from dualwrite.pg_chunks import PgChunks
from dualwrite.pg_connect import connect
from dualwrite.pg_stream import PgStream
from dualwrite.plan import ContradictionError, Copying
from dualwrite.preflight import Weight, findings, must_be_resumable
from dualwrite.repair import Repairs
from dualwrite.target import FencedError, State

TRY_AGAIN: Final = 1.0
"""Seconds between two tries."""
STREAM_FOR: Final = 0.25
"""Seconds that the stream may have between two chunks of a copy."""
LOOK_FOR_REPAIRS: Final = 1.0

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

    @property
    def slot(self) -> str:
        return f"crossfade_{self.name}"

    @property
    def tables(self) -> list[tuple[str, str]]:
        parts = (name.partition(".") for name in self.sources)
        return [(schema, name) for schema, _, name in parts]


@dataclass(slots=True)
class Told:
    """What a running stream says of itself; for metrics and logs."""

    state: State = State.COPYING
    epoch: int = 0
    arrived: tuple[float, float] | None = None
    """Of the last beat at the target: when (monotonic), and how many seconds it was on its way."""
    copies: dict[str, Progress] = field(default_factory=dict)
    again: int = 0
    """How often it began again after something that passed by itself."""
    trouble: str = ""
    """Of the last time."""

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


async def run(direction: Direction, told: Told) -> None:
    """Until it is cancelled. Raises StoppedError, and FencedError where another process has taken over."""
    while True:
        try:
            await _once(direction, told)
        except CaptureStopped as stopped:
            if not stopped.passing:
                raise await _stopped(direction, told, stopped.reason, str(stopped)) from stopped
            told.trouble = f"{stopped.reason}: {stopped}"
        except tuple(_REASONS) as error:
            raise await _stopped(direction, told, _REASONS[type(error)], str(error)) from error
        except _NOT_HERE as error:
            told.trouble = f"unreachable: {error}"
        except psycopg.Error as error:
            raise await _stopped(direction, told, "refused", _said(error)) from error
        told.again += 1
        await asyncio.sleep(TRY_AGAIN)


def _said(error: psycopg.Error) -> str:
    return f"{error.diag.message_primary or error} ({error.sqlstate or type(error).__name__})"


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
            if not await target.move(looking, direction.name, epoch, State.STOPPED, reason, message):
                return FencedError(f"stream {direction.name} is not held under epoch {epoch} any more")
    return StoppedError(reason, message)


async def _once(direction: Direction, told: Told) -> None:
    async with contextlib.AsyncExitStack() as stack:
        source = await connect(direction.source_url)
        stack.push_async_callback(source.close)
        looking = await connect(direction.target_url)
        stack.push_async_callback(looking.close)
        before, whole = await _begun(direction, source, looking)
        before_this = told.epoch
        if before_this and before != before_this:
            # Trying again is no reason to take over from somebody who has taken over from us.
            raise FencedError(f"stream {direction.name} is held under epoch {before}, not {told.epoch}")
        applier = await Applier.open(direction.target_url, direction.name, before + 1)
        stack.push_async_callback(applier.close)
        told.epoch = before + 1
        await pg_source.release_slot(source, direction.slot)
        one_way = any(source.one_way for source in direction.sources.values())
        stream = await PgStream.open(
            direction.source_url, direction.slot, direction.slot, applier.applied, also_ours=one_way
        )
        stack.push_async_callback(stream.close)
        await target.move(looking, direction.name, told.epoch, State.COPYING)
        whole = whole and not (direction.over_missing_rows and not before_this)
        work = _Work(direction, told, source, looking, applier, stream, whole)
        async with _beating(direction, told.epoch, work):
            await work.run()


async def _begun(direction: Direction, source: Connection, looking: Connection) -> tuple[int, bool]:
    """The epoch that has held until now, and whether all rows were there, once the stream can go on.

    Raises CaptureStopped.
    """
    await target.prepare(looking)
    known = await target.state(looking, direction.name)
    here, server_at = await pg_source.identify(direction.source_url, direction.slot)
    if known is not None:
        slot = await pg_source.slot_facts(source, direction.slot)
        must_be_resumable(known, here, slot, server_at)
        await pg_source.must_publish(source, direction.slot, direction.tables)
        return known.epoch, known.whole
    facts = await pg_source.facts(source, direction.tables)
    stops = [one for one in findings(facts) if one.weight is Weight.STOPS]
    if stops:
        raise CaptureStopped(stops[0].reason, "; ".join(f"{one.message} ({one.remedy})" for one in stops))
    await pg_source.publish(source, direction.slot, direction.tables)
    start = await pg_source.make_slot(source, direction.slot)
    await target.create(looking, direction.name, here, start)
    return 0, False


async def begin_alike(direction: Direction) -> None:
    """Begin the stream of the way back, while the other one runs: both sides have the same rows by now.

    Only what comes this way alone will be copied. A stream that is known stays as it is. Raises
    CaptureStopped and psycopg.Error.
    """
    async with await connect(direction.source_url) as source, await connect(direction.target_url) as looking:
        await target.prepare(looking)
        if await target.state(looking, direction.name) is not None:
            return
        alike = [
            name for name, table, what in copies(direction.sources)
            if isinstance(what, Touching) or not direction.sources[table].one_way
        ]  # fmt: skip
        # Before the stream is known: whoever comes between finds all that is not to be copied.
        async with looking.cursor() as cursor:
            await cursor.executemany(
                "INSERT INTO crossfade_sync.copies (stream, copy, done) VALUES (%s, %s, true)"
                " ON CONFLICT (stream, copy) DO UPDATE SET done = true",
                [(direction.name, name) for name in alike],
            )
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
        stream: PgStream,
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
        self._sent: dict[int, float] = {}
        self._last_sent = applier.heartbeat

    def sent(self, number: int) -> None:
        """A beat is in the source's log."""
        self._sent[number] = time.monotonic()
        self._last_sent = number

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
        for name, table, what in copies(self._direction.sources):
            binary = isinstance(what, Copying) and await self._same_types(table, what)
            chunks = PgChunks(self._source, table, what, binary=binary)
            backfill = Backfill(chunks, self._applier, name, what)
            done = False
            try:
                while not done:
                    progress = await backfill.step(self._follower.recent)
                    self._told.copies[name] = progress
                    done = progress.done
                    await self._stream()
            finally:
                await chunks.close()

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
        while await self._repairs.step(self._follower.recent):
            await self._stream()

    async def _stream(self) -> None:
        """Let the stream go on for a while, as long as it has something to bring."""
        until = time.monotonic() + STREAM_FOR
        while await self._follower.step(whole=False) and time.monotonic() < until:
            self._note_lag()

    async def _until_whole(self) -> None:
        """Until the stream has brought all that was written before the copies ended.

        Before that an update may come of a row that was gone when the copy came by.
        """
        wanted = self._last_sent + 1
        while self._applier.heartbeat < wanted:
            await self._follower.step(whole=False)
            self._note_lag()

    async def _follow(self) -> None:
        """Until there is something to repair."""
        looked = time.monotonic()
        while True:
            await self._follower.step()
            self._note_lag()
            if time.monotonic() - looked > LOOK_FOR_REPAIRS:
                looked = time.monotonic()
                if await self._repairs.wanted(self._looking):
                    return

    def _note_lag(self) -> None:
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
        while True:
            await heartbeat.beat(connection, direction.name, number)
            work.sent(number)
            number += 1
            await asyncio.sleep(heartbeat.EVERY)

    beating = asyncio.create_task(beat())
    body = asyncio.current_task()
    assert body is not None
    broken = False

    def ended(task: asyncio.Task[None]) -> None:
        nonlocal broken
        if not task.cancelled():
            broken = True
            body.cancel()

    beating.add_done_callback(ended)
    try:
        yield
    except asyncio.CancelledError:
        if not broken:
            raise
        body.uncancel()
        said = f"no beat can be written: {beating.exception()}"
        raise CaptureStopped("beats_end", said, passing=True) from None
    finally:
        beating.remove_done_callback(ended)
        beating.cancel()
        await asyncio.gather(beating, return_exceptions=True)
        await connection.close()
