"""What people have done to the source, what they were told, and what somebody has seen at the target; and a
judgement of it all. Pure, and knows nothing of the product: no mapping, no plan, no apply.

Every transaction writes values that nobody else writes, at the end of lists. So what is lost, comes twice,
comes from nowhere or in another order can be seen in the values themselves. A transaction of which nobody
knows how it ended ("maybe") may have happened or not, but all of it or nothing.

The judgement's names are those of the invariants:

I1 nothing lost, I2 nothing twice, I3 nothing from nowhere, I4 both sides alike, I5 no half transactions,
I6 the source's order, I10 rows and position are of one moment and never go back, and the source forgets
nothing that was not applied, I11 what is lost or spoiled is reported, and nothing else, I12 the source takes
no harm, I13 after the faults it goes on, or has stopped with a reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

Items = Mapping[str, Sequence[str]]
"""Values of each list, in their order."""


class Wrong(NamedTuple):
    invariant: str
    text: str


@dataclass(frozen=True, slots=True)
class Done:
    """A transaction of one writer. Positions are of the source's log: its commit is behind `before`."""

    writer: str
    wrote: tuple[tuple[str, str], ...]
    """List and value."""
    before: int
    after: int | None
    """Not behind this; None: nobody knows whether it happened."""


@dataclass(frozen=True, slots=True)
class Seen:
    """The target in one snapshot, and what the source had been told before."""

    applied: int
    confirmed: int | None
    epoch: int
    whole: bool
    """All rows were there, so that the target was as the source at `applied`."""
    total: int
    items: Items


@dataclass(slots=True)
class History:
    done: list[Done] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    harmed: list[str] = field(default_factory=list)
    """Statements of the application that failed for no reason of their own."""


@dataclass(frozen=True, slots=True)
class End:
    """Both sides at rest. Rows of tables, the source's as the mapping has to make them."""

    wanted: Mapping[str, Sequence[Any]]
    found: Mapping[str, Sequence[Any]]
    source_items: Items
    target_items: Items
    retained: int = 0
    """Bytes of log that the source keeps for the stream."""


RETAINED: int = 64 << 20


def judge(history: History, end: End, total: int) -> list[Wrong]:
    """All that is wrong; nothing if all is well."""
    return [
        *_alike(end),
        *_lost_or_double(history, end),
        *_order(history, end),
        *_each_look(history, end, total),
        *_look_by_look(history.seen),
        *(Wrong("I12", text) for text in history.harmed),
        *([Wrong("I12", f"{end.retained} bytes of log are kept")] if end.retained > RETAINED else []),
    ]


def _alike(end: End) -> Iterable[Wrong]:
    for table, wanted in end.wanted.items():
        found = end.found.get(table, ())
        missing, extra = Counter(wanted) - Counter(found), Counter(found) - Counter(wanted)
        if missing or extra:
            yield Wrong("I4", f"{table}: missing {_some(missing)}, too many {_some(extra)}")


def _lost_or_double(history: History, end: End) -> Iterable[Wrong]:
    known = {pair: one for one in history.done for pair in one.wrote}
    there = Counter((key, value) for key, values in end.target_items.items() for value in values)
    for pair, one in known.items():
        if one.after is not None and not there[pair]:
            yield Wrong("I1", f"{pair} of {one.writer} was committed, and is not there")
    for pair, times in there.items():
        if times > 1:
            yield Wrong("I2", f"{pair} is there {times} times")
        if pair not in known:
            yield Wrong("I3", f"{pair} is there, and nobody has written it")
    for one in history.done:
        if len({there[pair] > 0 for pair in one.wrote}) > 1:
            yield Wrong("I5", f"of {one.wrote} only a part is there")


def _order(history: History, end: End) -> Iterable[Wrong]:
    written = {pair: number for number, one in enumerate(history.done) for pair in one.wrote}
    writers = {pair: one.writer for one in history.done for pair in one.wrote}
    for key, values in end.target_items.items():
        if list(values) != list(end.source_items.get(key, ())):
            yield Wrong("I6", f"list {key}: {_some(values)}; the source has {_some(end.source_items[key])}")
        last: dict[str, int] = {}
        for pair in ((key, value) for value in values):
            if pair in written:
                writer, number = writers[pair], written[pair]
                if number < last.get(writer, -1):
                    yield Wrong("I6", f"{pair} of {writer} came after what it wrote later")
                last[writer] = number


def _each_look(history: History, end: End, total: int) -> Iterable[Wrong]:
    for seen in history.seen:
        if seen.confirmed is not None and seen.confirmed > seen.applied:
            yield Wrong("I10", f"the source was told {seen.confirmed:X}, applied is {seen.applied:X}")
        if not seen.whole:
            continue
        if seen.total != total:
            yield Wrong("I5", f"at {seen.applied:X} there were {seen.total} cents of {total}")
        there = {(key, value) for key, values in seen.items.items() for value in values}
        for one in history.done:
            some = [pair for pair in one.wrote if pair in there]
            if some and len(some) < len(one.wrote):
                yield Wrong("I5", f"at {seen.applied:X} of {one.wrote} only {some} was there")
            if some and one.before >= seen.applied:
                yield Wrong("I10", f"{some[0]} was there at {seen.applied:X}, and came behind {one.before:X}")
            if not some and one.after is not None and one.after <= seen.applied:
                yield Wrong("I10", f"{one.wrote} was not there at {seen.applied:X}; it was at {one.after:X}")
        for key, values in seen.items.items():
            if list(values) != list(end.source_items.get(key, ()))[: len(values)]:
                yield Wrong("I6", f"at {seen.applied:X} list {key} was {_some(values)}")


def _look_by_look(seen: Sequence[Seen]) -> Iterable[Wrong]:
    for one, next_ in pairwise(seen):
        if next_.applied < one.applied:
            yield Wrong("I10", f"the position went from {one.applied:X} back to {next_.applied:X}")
        if next_.epoch < one.epoch:
            yield Wrong("I10", f"the epoch went from {one.epoch} back to {next_.epoch}")


def _some(things: Iterable[Any]) -> str:
    found = list(things)
    return f"{found[:3]}{f' and {len(found) - 3} more' if len(found) > 3 else ''}"
