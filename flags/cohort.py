"""What each side did with the requests that a weight decided: two cohorts in the same minutes.

Every instance counts since its start. What is new since the last look is the growth, instance by
instance: one that began anew has all its counts new. So nothing is seen twice and nothing is lost, however
long nobody looked. A count that went back without a new start (who reports has not read all of it yet) is
nothing new, and is remembered as the most that it ever was: else its way up again would be seen twice.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, TypeAlias

from flags.model import Side

Json: TypeAlias = Mapping[str, Any]
SIDES: Final = (Side.NEW, Side.LEGACY)
"""In the order in which Cohorts has them."""


@dataclass(frozen=True, slots=True)
class Cohort:
    """The requests of one side. Those that legacy answered for new (fallback) are new's, as errors."""

    requests: int = 0
    errors: int = 0
    slow: Mapping[float, int] = field(default_factory=lambda: MappingProxyType({}))
    """For each bound in seconds: how many took longer."""
    compared: int = 0
    """Pairs drawn by lot, of which legacy was asked twice; the same number on both sides."""
    mismatches: int = 0
    """Those in which only this side's answer (legacy's: its second one) differs from legacy's first."""


@dataclass(frozen=True, slots=True)
class Cohorts:
    new: Cohort = Cohort()
    legacy: Cohort = Cohort()

    def side(self, side: Side) -> Cohort:
        return self.new if side is Side.NEW else self.legacy


@dataclass(frozen=True, slots=True)
class Seen:
    """What one instance had counted when it was last looked at. `started_at` is its start (Unix time)."""

    started_at: float
    cohorts: Cohorts


Cursor: TypeAlias = Mapping[str, Seen]
"""By instance: how far its counts have been taken in."""


def growth(seen: Cursor, now: Cursor, known_since: float = 0.0) -> dict[str, Cohorts]:
    """What each instance has counted between `seen` and `now`.

    Who is not in `seen` and started before `known_since` (Unix time) was forgotten meanwhile: which of its
    counts are new cannot be told, so they only count from here on.
    """
    found = {}
    for name, one in now.items():
        before = seen.get(name)
        grown = one.cohorts
        if before is None and one.started_at < known_since:
            grown = Cohorts()
        elif before is not None and before.started_at == one.started_at:
            grown = Cohorts(*(_since(before.cohorts.side(side), grown.side(side)) for side in SIDES))
        found[name] = grown
    return found


def together(grown: Mapping[str, Cohorts]) -> Cohorts:
    """What all instances have counted."""
    new, legacy = Cohort(), Cohort()
    for one in grown.values():
        new, legacy = plus(new, one.new), plus(legacy, one.legacy)
    return Cohorts(new, legacy)


def taken_in(seen: Cursor, now: Cursor) -> dict[str, Seen]:
    """The cursor after the growth from `seen` to `now`. Who is not in `now` is forgotten."""
    found = {}
    for name, one in now.items():
        before = seen.get(name)
        if before is not None and before.started_at == one.started_at:
            highest = (_highest(before.cohorts.side(side), one.cohorts.side(side)) for side in SIDES)
            one = Seen(one.started_at, Cohorts(*highest))
        found[name] = one
    return found


def plus(a: Cohort, b: Cohort) -> Cohort:
    return _each(a, b, operator.add)


def _since(before: Cohort, now: Cohort) -> Cohort:
    return _each(before, now, lambda was, count: max(0, count - was))


def _highest(before: Cohort, now: Cohort) -> Cohort:
    return _each(before, now, max)


def _each(a: Cohort, b: Cohort, of: Callable[[int, int], int]) -> Cohort:
    return Cohort(
        of(a.requests, b.requests),
        of(a.errors, b.errors),
        {bound: of(a.slow.get(bound, 0), b.slow.get(bound, 0)) for bound in {**a.slow, **b.slow}},
        of(a.compared, b.compared),
        of(a.mismatches, b.mismatches),
    )


def cohorts_from_json(counts: object) -> Cohorts:
    """Counts as an instance reports them. What is missing or is no count is zero: it may be an older one."""
    if not isinstance(counts, Mapping):
        return Cohorts()
    return Cohorts(_cohort(counts.get("new")), _cohort(counts.get("legacy")))


def _cohort(counts: object) -> Cohort:
    if not isinstance(counts, Mapping):
        return Cohort()
    slow = counts.get("slow")
    bounds = slow.items() if isinstance(slow, Mapping) else ()
    return Cohort(
        _count(counts.get("requests")),
        _count(counts.get("errors")),
        {float(bound): _count(count) for bound, count in bounds},
        _count(counts.get("compared")),
        _count(counts.get("mismatches")),
    )


def _count(value: object) -> int:
    return max(0, value) if isinstance(value, int) else 0


def cursor_to_json(cursor: Cursor) -> dict[str, Any]:
    return {
        name: {
            "started_at": one.started_at,
            "new": _to_json(one.cohorts.new),
            "legacy": _to_json(one.cohorts.legacy),
        }
        for name, one in cursor.items()
    }


def cursor_from_json(value: Json) -> Cursor:
    return {name: Seen(float(one["started_at"]), cohorts_from_json(one)) for name, one in value.items()}


def _to_json(cohort: Cohort) -> dict[str, Any]:
    return {
        "requests": cohort.requests,
        "errors": cohort.errors,
        "slow": {str(bound): count for bound, count in cohort.slow.items()},
        "compared": cohort.compared,
        "mismatches": cohort.mismatches,
    }
