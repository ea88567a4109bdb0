"""Follow a source: read, plan, apply, and only then confirm. One pass of the loop is one target transaction.

What may happen between any two lines is that this process ends. Then the source sends again what was not
confirmed, the target knows what it has, and what comes twice is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from dualwrite import heartbeat
from dualwrite.apply import ORIGIN, Applier, ClashError
from dualwrite.capture import A_MOMENT, Capture, CaptureStopped
from dualwrite.change import Change, Part, Position, Relation, Row
from dualwrite.mapped import SourceTable, Touching
from dualwrite.plan import ContradictionError, Op, Plan

GATHER: Final = 10_000
"""Changes that are written together, if so many are here already. A larger source transaction is still one
target transaction, and written in several goes."""
CLASHES: Final = 100
"""How often what clashes with rows that were copied is tried again with what comes next."""


class Follower:
    """Brings one stream to one target. `sources` says of each table, as schema.table, what becomes of it."""

    def __init__(
        self, stream: str, capture: Capture, applier: Applier, sources: Mapping[str, SourceTable]
    ) -> None:
        self._stream = stream
        self._capture = capture
        self._ready = capture.ready
        self._limit: Position | None = None
        self._beyond: Part | None = None
        """What lies behind the limit has come, and waits."""
        self._applier = applier
        self._sources = sources
        self.recent: list[int] = []
        """Transactions that were applied while `remember` was set: a copy has to see them (`backfill.py`)."""
        self.remember = False
        self.written = 0
        """Changes that the last step has written."""
        self._upto, self._beat = applier.applied, applier.heartbeat
        """Of all that was taken in."""
        self._ahead = _Gathered()
        self._writing = False
        self._trouble: Exception | None = None
        """Found in what was taken in while something before it was written; it is raised in its turn."""
        self._known: dict[int, _Bound] = {}
        """By the identity of a relation, which a decoder describes anew when the table changes."""
        self._described: list[Relation] = []
        """Keeps what `_known` names alive, so that no identity is given twice."""
        capture.on_arrival(self._look_ahead)

    def limit(self, position: Position | None) -> None:
        """Take in only what was committed before `position`; None: all again. Between two steps only."""
        self._limit = position
        if position is not None:
            self._ready = self._ready_below
        else:
            self._ready = self._capture.ready if self._beyond is None else self._ready_again

    @property
    def is_at_its_limit(self) -> bool:
        """All that was committed before it is applied, and nothing else."""
        return self._beyond is not None and not self._ahead.any

    def _ready_below(self) -> Part | None:
        if self._beyond is not None:
            return None
        return self._below(self._capture.ready())

    def _below(self, part: Part | None) -> Part | None:
        # A commit at the limit itself lies behind it: a slot's position is where the first record begins
        # that its snapshot does not hold.
        if part is None or self._limit is None or part.at < self._limit:
            return part
        self._beyond = part
        return None

    def _ready_again(self) -> Part | None:
        part, self._beyond, self._ready = self._beyond, None, self._capture.ready
        return part

    async def step(self, *, whole: bool = True, within: float = A_MOMENT) -> bool:
        """Apply what has come, at most some thousand changes; False if nothing has `within` seconds.

        What comes while the target writes is mapped and planned meanwhile, for the next step. `whole` as in
        `Applier.apply`. Raises CaptureStopped, MappingFailedError and what the applier raises; nothing that
        was not applied is confirmed then.
        """
        self.written = 0
        if not await self._gather(within):
            return False
        xids: list[int] = []
        more, clashes = True, 0
        while more:
            gathered = self._ahead
            more = gathered.open
            # A part of a large transaction cannot wait for what comes behind it.
            may_pass = not (whole or more or gathered.goes_on) and clashes < CLASHES
            self._ahead = _Gathered(gathered if more else None)
            end = None if more else self._upto
            touched = {} if more else gathered.touched
            self._writing = True
            try:
                await self._applier.apply(
                    gathered.ops, end, touched,
                    planned=None if gathered.plan.keeps else gathered.plan.steps(),
                    heartbeat=self._beat, whole=whole, clash_may_pass=may_pass,
                )  # fmt: skip
            except ClashError:
                clashes += 1
                await self._join(gathered)
                more = True
                continue
            finally:
                self._writing = False
            xids += gathered.xids
            self.written += len(gathered.ops)
            if more:
                # The target transaction stays open until its source transaction ends.
                await self._gather()
        if self.remember:
            self.recent += xids
        await self._capture.confirm(self._applier.applied)
        return True

    async def _join(self, gathered: _Gathered) -> None:
        """Have what was gathered, and what comes next, be written as one."""
        await self._gather()
        joined = _Gathered()
        joined.add(gathered)
        joined.add(self._ahead)
        self._ahead = joined

    async def _gather(self, within: float = A_MOMENT) -> bool:
        """Whole transactions, as many as are here, or a part of a large one; False if nothing has come.

        Trouble is raised once all is written that came before it.
        """
        ahead = self._ahead
        while True:
            self._look_at_what_is_here(ahead)
            if ahead.any and not ahead.open:
                return True
            if self._trouble is not None:
                raise self._trouble
            if ahead.any and len(ahead.ops) >= GATHER:
                return True
            # In the middle of a transaction there is nothing to apply yet, unless it is a large one.
            part = await self._next(A_MOMENT if ahead.any or ahead.open else within)
            if part is not None:
                self._take(part, ahead)
            elif not ahead.any and not ahead.open:
                return False

    async def _next(self, within: float) -> Part | None:
        return None if self._beyond is not None else self._below(await self._capture.next(within))

    def _look_ahead(self) -> None:
        if self._writing:
            self._look_at_what_is_here(self._ahead)

    def _look_at_what_is_here(self, ahead: _Gathered) -> None:
        try:
            while self._trouble is None and len(ahead.ops) < GATHER:
                part = self._ready()
                if part is None:
                    return
                self._take(part, ahead)
        except Exception as error:
            self._trouble = error

    def _take(self, part: Part, ahead: _Gathered) -> None:
        xid, _, at, origin, changes, messages, end = part
        if at >= self._upto:
            beat = self._beat
            for message in messages:
                number = heartbeat.number_of(message, self._stream)
                if number is not None:
                    beat = heartbeat.next_after(beat, number)
            if changes:
                self._map(changes, origin, ahead)
            self._beat = beat
        ahead.any = True
        if changes:
            ahead.changes = True
        if end is None:
            # A message that belongs to no transaction ends none, and begins none; beats are never such.
            ahead.open = bool(xid)
            return
        ahead.open = False
        if ahead.changes:
            ahead.xids.append(xid)
            ahead.changes = False
        self._upto = max(self._upto, end)

    def _map(self, changes: Sequence[Change], origin: str | None, ahead: _Gathered) -> None:
        ours = origin is not None and origin.startswith(ORIGIN)
        known = self._known
        ops: list[Op] = []
        touched: list[tuple[Touching, Sequence[Row]]] = []
        for change in changes:
            bound = known.get(id(change.relation)) or self._bound(change.relation)
            if ours and not bound.one_way:
                continue
            for rows_of in bound.mappings:
                ops += rows_of(change)
            if ours:
                continue  # whoever has the authority over what follows has seen to it
            for touching, touched_by in bound.touching:
                touched.append((touching, touched_by(change)))
        # All of it, or nothing: what came before has to be fit to be written.
        ahead.take(ops, touched)

    def _bound(self, relation: Relation) -> _Bound:
        source = self._sources.get(str(relation))
        if source is None:
            raise CaptureStopped("unmapped_table", f"{relation} is published, and no mapping names it")
        for mapping in source.mappings:
            if (trouble := mapping.trouble(relation)) is not None:
                reason, message = trouble
                raise CaptureStopped(
                    reason, f"{message}; nothing of it was applied: mend the mapping and go on"
                )
        bound = _Bound(
            tuple(mapping.bind(relation) for mapping in source.mappings),
            tuple((touching, touching.bind(relation)) for touching in source.touching),
            source.one_way,
        )
        self._known[id(relation)] = bound
        self._described.append(relation)
        return bound


class _Gathered:
    """Whole transactions, and perhaps a part of another one (`open`), which may have begun in what was
    gathered before. What follow-ups look at is kept until the end of a transaction, since they come last."""

    def __init__(self, before: _Gathered | None = None) -> None:
        self.ops: list[Op] = []
        self.plan = Plan()
        self.touched: dict[Touching, list[Row]] = {} if before is None else before.touched
        self.xids: list[int] = []
        self.any = False
        self.goes_on = before is not None
        """With a transaction that was begun before."""
        self.open = before is not None
        self.changes: bool = before is not None and before.changes
        """Whether the transaction that is open has any."""

    def take(self, ops: Sequence[Op], touched: Iterable[tuple[Touching, Sequence[Row]]]) -> None:
        """Raises ContradictionError; then none of it is fit to be written."""
        try:
            for op in ops:
                self.plan.add(op)
        except ContradictionError:
            self.any, self.open = False, True
            raise
        self.ops += ops
        for touching, rows in touched:
            self.touched.setdefault(touching, []).extend(rows)

    def add(self, later: _Gathered) -> None:
        """What comes behind it. Raises ContradictionError."""
        self.take(later.ops, later.touched.items())
        self.xids += later.xids
        self.any, self.open, self.changes = self.any or later.any, later.open, later.changes


class _Bound(NamedTuple):
    """What becomes of the changes of one relation as it is now."""

    mappings: tuple[Callable[[Change], Sequence[Op]], ...]
    touching: tuple[tuple[Touching, Callable[[Change], Sequence[Row]]], ...]
    one_way: bool
