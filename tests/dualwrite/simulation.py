"""A source, a log, a target and a process that may end anywhere, in memory: one seed is one schedule.

What is tested is the product's own: the follower, the plan, the copy and their rules. What is simulated is
what they talk to. A commit is in the log at one moment and can be seen at a later one; the process is
stopped at any `await`, for good or as a zombie that goes on later; what was confirmed may come again.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from types import coroutine
from typing import Any, Final

from dualwrite import heartbeat
from dualwrite.apply import Chunk
from dualwrite.backfill import Backfill, Rows
from dualwrite.capture import CaptureStopped
from dualwrite.change import ABSENT, Change, Identity, Kind, Message, Part, Relation, Row, SourceColumn, Value
from dualwrite.copy_text import copy_text, read_copy_text
from dualwrite.follow import Follower
from dualwrite.mapped import SourceTable
from dualwrite.plan import Copying, Op, Step, TargetTable, steps
from dualwrite.preflight import SlotFacts, must_be_resumable
from dualwrite.rows import MissingRowError
from dualwrite.snapshot import Snapshot
from dualwrite.target import FencedError, Source, StreamState

NAME: Final = "simulated"
COLUMNS = (SourceColumn("id", 23, True), SourceColumn("a", 25, False), SourceColumn("body", 25, False))
RELATION = Relation("public", "t", Identity.KEY, COLUMNS)
COPYING = Copying(TargetTable("public", "t", ("id", "a", "body"), (0,)), ("id", "a", "body"))
SOURCES = {"public.t": SourceTable("public.t", (COPYING,), ())}
HERE = Source("7", 1, "slot")
KEYS: Final = 8

Table = dict[int, Row]


class WrongError(AssertionError):
    """The target is not what it must be."""


@coroutine
def pause() -> Generator[None, None, None]:
    """Anything may happen here."""
    yield


@dataclass
class Transaction:
    xid: int
    changes: list[Change]
    keys: set[int]
    logged: bool = False


@dataclass(frozen=True)
class Commit:
    xid: int
    at: int
    end: int
    changes: tuple[Change, ...]
    beat: int | None
    state: Table
    """Of the whole table, once this commit is in it."""


class SimulatedSource:
    """Writers lock what they change until their commit can be seen, as PostgreSQL's do."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._next_xid = 10
        self._open: list[Transaction] = []
        self.visible: Table = {}
        self._last: Table = {}
        self.log: list[Commit] = []
        self.confirmed = 100
        self.lost = False
        """Somebody has made the slot anew, or the log has lost a stretch: it must stop."""
        for key in range(1, KEYS, 2):
            self.visible[key] = self._last[key] = _row(key, b"0", b"old")

    @property
    def end(self) -> int:
        return self.log[-1].end if self.log else 100

    def act(self) -> None:
        """One step of some writer."""
        if len(self._open) < 3 and self._chance.random() < 0.5:
            self._begin()
            return
        if self._open:
            one = self._chance.choice(self._open)
            if one.logged:
                self._show(one)
            else:
                self._commit(one)

    def finish(self) -> None:
        while self._open:
            one = self._open[0]
            if not one.logged:
                self._commit(one)
            self._show(one)

    def beat(self, number: int) -> None:
        xid = self._new_xid()
        self._append(xid, [], number)

    def snapshot(self) -> Snapshot:
        running = frozenset(one.xid for one in self._open)
        return Snapshot(min(running, default=self._next_xid), self._next_xid, running)

    def _new_xid(self) -> int:
        self._next_xid += 1
        return self._next_xid - 1

    def _begin(self) -> None:
        locked = {key for one in self._open for key in one.keys}
        free = [key for key in range(1, KEYS + 1) if key not in locked]
        if not free:
            return
        one = Transaction(self._new_xid(), [], set())
        rows = dict(self._last)
        for key in self._chance.sample(free, min(len(free), self._chance.randint(1, 3))):
            one.keys.add(key)
            for _ in range(self._chance.choice((1, 1, 2))):
                one.changes.append(self._change(rows, key))
        self._open.append(one)

    def _change(self, rows: Table, key: int) -> Change:
        said = str(self._chance.randrange(1000)).encode()
        was = rows.get(key)
        if was is None:
            rows[key] = _row(key, said, b"body " + said)
            return Change(Kind.INSERT, RELATION, None, rows[key])
        if self._chance.random() < 0.3:
            del rows[key]
            return Change(Kind.DELETE, RELATION, (was[0], ABSENT, ABSENT), None)
        if self._chance.random() < 0.6:
            rows[key] = (was[0], said, was[2])
            return Change(Kind.UPDATE, RELATION, None, (was[0], said, ABSENT))
        rows[key] = _row(key, said, None if self._chance.random() < 0.2 else b"body " + said)
        return Change(Kind.UPDATE, RELATION, None, rows[key])

    def _commit(self, one: Transaction) -> None:
        one.logged = True
        self._append(one.xid, one.changes, None)

    def _append(self, xid: int, changes: Sequence[Change], beat: int | None) -> None:
        _carry_out(self._last, changes)
        at = self.end + 5
        self.log.append(Commit(xid, at, at + 5, tuple(changes), beat, dict(self._last)))

    def _show(self, one: Transaction) -> None:
        _carry_out(self.visible, one.changes)
        self._open.remove(one)

    def state_at(self, position: int) -> Table | None:
        return next((one.state for one in self.log if one.end == position), None)


def _row(key: int, a: Value, body: Value) -> Row:
    return (str(key).encode(), a, body)


def _carry_out(rows: Table, changes: Sequence[Change]) -> None:
    for change in changes:
        row = change.new if change.new is not None else change.old
        assert row is not None
        assert isinstance(row[0], bytes)
        key = int(row[0])
        if change.new is None:
            del rows[key]
        else:
            before = rows.get(key)
            rows[key] = tuple(
                before[at] if value is ABSENT and before is not None else value
                for at, value in enumerate(change.new)
            )


class SimulatedStream:
    """What was not confirmed comes again, sometimes even what was applied."""

    def __init__(self, source: SimulatedSource, start: int, chance: random.Random) -> None:
        self._source = source
        self._chance = chance
        self._at = source.confirmed if chance.random() < 0.5 else max(source.confirmed, start)
        self._parts: list[Part] = []

    def on_arrival(self, hear: Callable[[], None]) -> None:
        self.hear = hear

    async def next(self, within: float = 0) -> Part | None:
        await pause()
        return self.ready()

    def ready(self) -> Part | None:
        if not self._parts:
            self._parts = self._read()
        if not self._parts or self._chance.random() < 0.2:
            return None
        return self._parts.pop(0)

    def _read(self) -> list[Part]:
        one = next((one for one in self._source.log if one.end > self._at), None)
        if one is None:
            return []
        self._at = one.end
        said = [] if one.beat is None else [
            Message(f"crossfade.beat.{NAME}", str(one.beat).encode(), transactional=True)
        ]  # fmt: skip
        cut = self._chance.randint(0, len(one.changes))
        pieces = [one.changes[:cut], one.changes[cut:]] if cut else [one.changes]
        return [
            Part(
                one.xid, 0.0, one.at, None, list(piece),
                said if number == len(pieces) - 1 else [],
                one.end if number == len(pieces) - 1 else None,
            )
            for number, piece in enumerate(pieces)
        ]  # fmt: skip

    async def confirm(self, position: int) -> None:
        await pause()
        self._source.confirmed = max(self._source.confirmed, position)

    async def close(self) -> None: ...


@dataclass
class SimulatedTarget:
    """What is committed there."""

    rows: Table = field(default_factory=dict)
    applied: int = 100
    heartbeat: int = 0
    epoch: int = 0
    upto: int | None = None
    bound: int | None = None
    begun: bool = False
    done: bool = False


@dataclass(frozen=True)
class Broken:
    """Ways in which a target transaction could be wrong; for testing the test."""

    epoch_unchecked: bool = False
    position_apart: bool = False
    applies_again: bool = False
    confirms_first: bool = False
    shows_parts: bool = False


class SimulatedApplier:
    def __init__(self, target: SimulatedTarget, source: SimulatedSource, epoch: int, broken: Broken) -> None:
        self._target = target
        self._source = source
        self._epoch = epoch
        self._broken = broken
        target.epoch = epoch
        self.applied = target.applied
        self.heartbeat = target.heartbeat
        self._open: Table | None = None
        """Rows of a target transaction of which more follows."""

    def _lock(self) -> None:
        if self._target.epoch != self._epoch and not self._broken.epoch_unchecked:
            raise FencedError("a later epoch holds")

    async def apply(
        self,
        ops: Sequence[Op],
        end: int | None,
        touched: Mapping[Any, Any],
        *,
        planned: Sequence[Step],
        heartbeat: int | None = None,
        whole: bool = True,
        clash_may_pass: bool = False,  # nothing is unique here but the key
    ) -> None:
        assert not touched
        again = self._open is None and end is not None and end <= self.applied
        if again and not self._broken.applies_again:
            return
        assert planned == steps(ops)
        if self._broken.confirms_first and end is not None:
            self._source.confirmed = max(self._source.confirmed, end)
        await pause()
        self._lock()
        rows = dict(self._target.rows if self._open is None else self._open)
        for step in planned:
            assert step.last is None
            for work in step.works:
                for key in work.removes:
                    rows.pop(_number(key[0]), None)
            for work in step.works:
                for row in (*work.adds, *work.puts):
                    rows[_number(row[0])] = row
                for row in work.patches:
                    before = rows.get(_number(row[0]))
                    if before is None:
                        if whole:
                            raise MissingRowError(str(row[0]))
                        continue
                    rows[_number(row[0])] = tuple(
                        one if new is ABSENT else new for one, new in zip(before, row, strict=True)
                    )
        if end is None:
            self._open = rows
            if self._broken.shows_parts:
                self._target.rows = rows
            await pause()
            return
        self._open = None
        self._target.rows = rows
        if self._broken.position_apart:
            await pause()
        self._target.applied = end
        if heartbeat is not None:
            self._target.heartbeat = self.heartbeat = heartbeat
        self.applied = end
        if whole and rows != self._source.state_at(end):
            raise WrongError(f"at {end} the target has {rows}, the source had {self._source.state_at(end)}")
        await pause()

    async def chunk(self, copy: str) -> Chunk | None:
        assert copy == "t"
        await pause()
        known = self._target
        if not known.begun:
            return None
        return Chunk(None if known.upto is None else [str(known.upto)], [str(known.bound)], known.done)

    async def begin_copy(self, copy: str, bound: list[str] | None) -> Chunk:
        assert copy == "t"
        await pause()
        self._lock()
        self._target.begun = True
        self._target.bound = None if bound is None else int(bound[0])
        self._target.done = bound is None
        await pause()
        return Chunk(None, bound or [], bound is None)

    async def copy_chunk(
        self,
        copy: str,
        what: Copying,
        upto: list[str] | None,
        lines: Sequence[bytes],
        *,
        binary: bool = False,
        clash_may_pass: bool = False,
    ) -> int:
        assert copy == "t"
        assert not binary
        made = [read_copy_text(line) for line in what.lines(lines)]
        await pause()
        self._lock()
        for row in made:
            self._target.rows.setdefault(_number(row[0]), row)
        self._target.upto = self._target.bound if upto is None else int(upto[0])
        self._target.done = upto is None
        await pause()
        return len(made)


def _number(value: Value) -> int:
    assert isinstance(value, bytes)
    return int(value)


class SimulatedChunks:
    def __init__(self, source: SimulatedSource) -> None:
        self._source = source
        self._ahead: tuple[Snapshot, Table] | None = None

    async def bound(self) -> list[str] | None:
        await pause()
        return [str(max(self._source.visible))] if self._source.visible else None

    async def snapshot(self) -> Snapshot:
        await pause()
        return self._source.snapshot()

    def read_ahead(self, above: list[str], bound: list[str], rows: int) -> None:
        del above, bound, rows
        self._ahead = self._source.snapshot(), dict(self._source.visible)

    async def read(self, above: list[str] | None, bound: list[str], rows: int) -> Rows:
        await pause()
        snapshot, seen = self._ahead or (self._source.snapshot(), dict(self._source.visible))
        self._ahead = None
        await pause()
        low = 0 if above is None else int(above[0])
        keys = sorted(key for key in seen if low < key <= int(bound[0]))
        last = [str(keys[rows - 1])] if len(keys) >= rows else None
        taken = keys[:rows] if last is not None else keys
        return Rows(snapshot, last, [copy_text([seen[key]]) for key in taken])


class Process:
    """What `dualwrite.sync` does with a stream, over what is simulated."""

    def __init__(
        self, source: SimulatedSource, target: SimulatedTarget, chance: random.Random, broken: Broken
    ) -> None:
        self._source, self._target, self._chance = source, target, chance
        self._epoch = target.epoch + 1
        self._applier = SimulatedApplier(target, source, self._epoch, broken)
        self._beats = 0
        self.whole = False
        self._stream: SimulatedStream | None = None
        self._life: Coroutine[Any, Any, None] | None = self._live()

    @property
    def lives(self) -> bool:
        return self._life is not None

    def go_on(self) -> None:
        """To the next moment in which anything may happen. Raises CaptureStopped and WrongError."""
        assert self._life is not None
        if self._stream is not None and self._chance.random() < 0.5:
            # Something comes while the process waits for something else.
            self._stream.hear()
        try:
            self._life.send(None)
        except (FencedError, StopIteration):
            self._life = None
        except CaptureStopped:
            self._life = None
            # What one believes that another has taken over from is nobody's concern (`sync._stopped`).
            if self._target.epoch == self._epoch:
                raise

    def end(self) -> None:
        if self._life is not None:
            self._life.close()
            self._life = None
            if (
                self.whole
                and not self._source.lost
                and self._target.rows != self._source.state_at(self._target.applied)
            ):
                raise WrongError(
                    f"what is left of {self._epoch} is at {self._target.applied} {self._target.rows}"
                )

    def beat(self) -> None:
        self._beats += 1
        self._source.beat(heartbeat.first(self._epoch) + self._beats - 1)

    async def _live(self) -> None:
        state = StreamState(NAME, self._epoch, HERE, self._target.applied, self._target.heartbeat)
        slot = SlotFacts(self._source.confirmed, "reserved", 0, "x", "pgoutput")
        must_be_resumable(state, HERE, slot, self._source.end)
        stream = self._stream = SimulatedStream(self._source, self._applier.applied, self._chance)
        follower = Follower(NAME, stream, self._applier, SOURCES)  # type: ignore[arg-type]
        follower.remember = True
        backfill = Backfill(SimulatedChunks(self._source), self._applier, "t", COPYING, rows=2)  # type: ignore[arg-type]
        done = False
        while not done:
            done = (await backfill.step(follower.recent)).done
            for _ in range(self._chance.randint(0, 2)):
                await follower.step(whole=False)
        follower.remember = False
        wanted = heartbeat.first(self._epoch) + self._beats
        while self._applier.heartbeat < wanted:
            await follower.step(whole=False)
        self.whole = True
        while True:
            await follower.step()


def play(seed: int, broken: Broken = Broken(), events: int = 120) -> str:
    """One schedule; how it ended: "alike" or "stopped". Raises WrongError where it must not end so."""
    chance = random.Random(seed)
    source, target = SimulatedSource(chance), SimulatedTarget()
    process = Process(source, target, chance, broken)
    zombies: list[Process] = []
    faulty = chance.random() < 0.1
    try:
        for _ in range(events):
            what = chance.random()
            if what < 0.35:
                source.act()
            elif what < 0.41:
                process.beat()
            elif what < 0.43:
                process.end()
            elif what < 0.44:
                zombies.append(process)
                process = Process(source, target, chance, broken)
            elif what < 0.47 and zombies:
                _go_on(chance.choice(zombies))
            elif what < 0.475 and faulty:
                _lose(source, target, chance)
            elif process.lives:
                process.go_on()
            else:
                process = Process(source, target, chance, broken)
        source.finish()
        for zombie in zombies:
            for _ in range(10):
                _go_on(zombie)
        return _ended(source, target, process, chance, broken)
    except CaptureStopped as stopped:
        if not source.lost:
            raise WrongError(f"it stopped for nothing: {stopped}") from stopped
        return "stopped"
    finally:
        for one in (process, *zombies):
            one.end()


def _go_on(zombie: Process) -> None:
    if zombie.lives:
        zombie.go_on()


def _lose(source: SimulatedSource, target: SimulatedTarget, chance: random.Random) -> None:
    """The slot is made anew, or the log loses what had not come yet: a stretch with a beat in it."""
    left = [number for number, one in enumerate(source.log) if one.end > target.applied]
    if not left or source.lost:
        return
    if chance.random() < 0.5:
        if source.end > target.applied:
            source.confirmed, source.lost = source.end, True
        return
    beats = [(number, beat) for number in left if (beat := source.log[number].beat) is not None]
    # Another process begins to count anew: only what is lost before a later beat of the same one is told.
    told = [number for (number, beat), (_, later) in pairwise(beats) if later == beat + 1]
    if told:
        del source.log[left[0] : chance.choice(told) + 1]
        source.lost = True


def _ended(
    source: SimulatedSource, target: SimulatedTarget, process: Process, chance: random.Random, broken: Broken
) -> str:
    for number in range(4_000):
        if not process.lives:
            process = Process(source, target, chance, broken)
        if number % 40 == 0:
            process.beat()
        process.go_on()
        if process.whole and target.applied == source.end:
            break
    else:
        raise WrongError("it does not come to an end")
    expected = source.visible
    if target.rows != expected:
        raise WrongError(f"the target has {target.rows}, the source {expected}")
    return "alike"
