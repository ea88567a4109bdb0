"""Follow a source: read, plan, apply, and only then confirm. One pass of the loop is one target transaction.

What may happen between any two lines is that this process ends. Then the source sends again what was not
confirmed, the target knows what it has, and what comes twice is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from dualwrite import heartbeat
from dualwrite.apply import ORIGIN, Applier
from dualwrite.capture import Capture, CaptureStopped
from dualwrite.change import Change, Part, Relation, Row
from dualwrite.mapped import SourceTable, Touching
from dualwrite.plan import Op

GATHER: Final = 10_000
"""Changes that go into one target transaction, if so many are here already. A larger source transaction is
still one target transaction."""


class Follower:
    """Brings one stream to one target. `sources` says of each table, as schema.table, what becomes of it."""

    def __init__(
        self, stream: str, capture: Capture, applier: Applier, sources: Mapping[str, SourceTable]
    ) -> None:
        self._stream = stream
        self._capture = capture
        self._applier = applier
        self._sources = sources
        self.recent: list[int] = []
        """Transactions that were applied while `remember` was set: a copy has to see them (`backfill.py`)."""
        self.remember = False
        self._known: dict[int, _Bound] = {}
        """By the identity of a relation, which a decoder describes anew when the table changes."""
        self._described: list[Relation] = []
        """Keeps what `_known` names alive, so that no identity is given twice."""

    async def step(self, *, whole: bool = True) -> bool:
        """Apply what has come, at most some thousand changes; False if nothing has.

        `whole` as in `Applier.apply`. Raises CaptureStopped, MappingFailedError and what the applier raises;
        nothing that was not applied is confirmed then.
        """
        first = await self._capture.next()
        if first is None:
            return False
        ops: list[Op] = []
        touched: dict[Touching, list[Row]] = {}
        end, beat = self._applier.applied, self._applier.heartbeat
        part: Part | None = first
        open_ = changes = False
        xids: list[int] = []
        while part is not None or open_:
            if part is None:
                # In the middle of a transaction there is nothing to apply yet.
                part = await self._capture.next()
                continue
            if part.at >= self._applier.applied:
                self._take(part, ops, touched)
                for message in part.messages:
                    number = heartbeat.number_of(message, self._stream)
                    if number is not None:
                        beat = heartbeat.next_after(beat, number)
            # A message that belongs to no transaction ends none, and begins none; beats are never such.
            open_ = part.end is None and bool(part.xid)
            changes = changes or bool(part.changes)
            if part.end is not None:
                if self.remember and changes:
                    xids.append(part.xid)
                changes = False
            end = max(end, part.end or 0)
            part = None if len(ops) >= GATHER and not open_ else self._capture.ready()
        await self._applier.apply(ops, end, touched, heartbeat=beat, whole=whole)
        self.recent += xids
        await self._capture.confirm(self._applier.applied)
        return True

    def _take(self, part: Part, ops: list[Op], touched: dict[Touching, list[Row]]) -> None:
        ours = part.origin is not None and part.origin.startswith(ORIGIN)
        for change in part.changes:
            bound = self._known.get(id(change.relation)) or self._bound(change.relation)
            if ours and not bound.one_way:
                continue
            for rows_of in bound.mappings:
                ops.extend(rows_of(change))
            if ours:
                continue  # whoever has the authority over what follows has seen to it
            for touching, touched_by in bound.touching:
                touched.setdefault(touching, []).extend(touched_by(change))

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


class _Bound(NamedTuple):
    """What becomes of the changes of one relation as it is now."""

    mappings: tuple[Callable[[Change], Sequence[Op]], ...]
    touching: tuple[tuple[Touching, Callable[[Change], Sequence[Row]]], ...]
    one_way: bool
