"""What each side did with the requests that a weight decided: two cohorts in the same minutes.

Every instance counts since its start. What is new since the last look is the growth, instance by
instance: an instance that began anew, or counts less than it did, has all its counts new. So nothing is
seen twice and nothing is lost, however long nobody looked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeAlias

from flags.model import Side

Json: TypeAlias = Mapping[str, Any]


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


def growth(seen: Cursor, now: Cursor) -> Cohorts:
    """What all instances together have counted between `seen` and `now`."""
    new, legacy = Cohort(), Cohort()
    for name, one in now.items():
        before = seen.get(name)
        began_anew = before is None or before.started_at != one.started_at
        for side in Side:
            counted = one.cohorts.side(side)
            if before is not None and not began_anew:
                counted = _since(before.cohorts.side(side), counted)
            if side is Side.NEW:
                new = plus(new, counted)
            else:
                legacy = plus(legacy, counted)
    return Cohorts(new, legacy)


def plus(a: Cohort, b: Cohort) -> Cohort:
    return Cohort(
        a.requests + b.requests,
        a.errors + b.errors,
        {bound: a.slow.get(bound, 0) + b.slow.get(bound, 0) for bound in {**a.slow, **b.slow}},
        a.compared + b.compared,
        a.mismatches + b.mismatches,
    )


def _since(before: Cohort, now: Cohort) -> Cohort:
    grown = Cohort(
        now.requests - before.requests,
        now.errors - before.errors,
        {bound: count - before.slow.get(bound, 0) for bound, count in now.slow.items()},
        now.compared - before.compared,
        now.mismatches - before.mismatches,
    )
    counts = (grown.requests, grown.errors, grown.compared, grown.mismatches, *grown.slow.values())
    return now if min(counts) < 0 else grown


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
