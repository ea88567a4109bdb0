"""Whether a route is ready to be moved, by what was compared, and why. Pure.

A route is ready when enough pairs were compared, nothing is open, and the share of pairs that differ cannot
be larger than what is allowed. It is not ready when something is open. Else there is not enough evidence.

A path where legacy differs from itself is judged by how often new differs alone beyond how often legacy does,
among the pairs that were drawn by lot; every other path by each confirmed difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from shadow.statistics import excess_p_value, excess_upper_bound, two_stage_upper_bound


class Mark(StrEnum):
    """What a reviewer has said of a category."""

    OPEN = "open"
    ACCEPTED = "accepted"
    BUG = "bug"
    NEEDS_RULE = "needs_rule"


@dataclass(frozen=True, slots=True)
class Gate:
    """What a release asks for."""

    rate: float = 0.001
    """The largest share of pairs that may differ."""
    pairs: int = 1000
    """The fewest pairs that say anything."""
    alpha: float = 0.05
    noisy_rate: float = 0.05
    """By how much more than legacy new may differ in a place where legacy differs from itself."""


SHAPE = "shape"
"""The kind of a difference in a noisy place by another kind of value: never noise."""


@dataclass(frozen=True, slots=True)
class PathCounts:
    """Of the pairs drawn by lot: in how many new, legacy's second answer, or both differ from its first."""

    new_only: int = 0
    legacy_only: int = 0
    both: int = 0

    @property
    def is_volatile(self) -> bool:
        return self.legacy_only + self.both > 0


@dataclass(frozen=True, slots=True)
class Category:
    """All differences of one kind in one place of one route."""

    path: str
    kind: str
    count: int
    mark: Mark = Mark.OPEN
    mark_reason: str = ""
    ruled: str = ""
    """By which rules every sample that is kept is expected today, in words."""

    @property
    def is_decided(self) -> bool:
        """A person has said what it is: accepted, or a fault that no rule takes away."""
        return self.mark in (Mark.ACCEPTED, Mark.BUG)

    @property
    def is_accepted(self) -> bool:
        return self.mark is Mark.ACCEPTED or bool(self.ruled)


@dataclass(frozen=True, slots=True)
class RouteFacts:
    """What was counted of one route. `inspected` of the `unequal` pairs were looked at closer."""

    flag: str
    route: str
    equal: int = 0
    unequal: int = 0
    inspected: int = 0
    verdicts: Mapping[str, int] = field(default_factory=dict)
    """Of the inspected ones, by verdict; `not_comparable:lag` and the like carry their reason."""
    drawn: int = 0
    paths: Mapping[str, PathCounts] = field(default_factory=dict)
    categories: Sequence[Category] = ()
    latency: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """By side: how many answers took as long as each bucket of `core.metrics.LATENCY_BUCKETS` says."""

    methods: Mapping[str, int] = field(default_factory=dict)
    statuses: Mapping[str, int] = field(default_factory=dict)
    """Of legacy's answers; `0` is none."""
    operations: Mapping[str, int] = field(default_factory=dict)
    """Pairs by operation of the OpenAPI document, where there is one; `none` is in it nowhere."""

    @property
    def pairs(self) -> int:
        return self.equal + self.unequal


class Readiness(StrEnum):
    READY = "ready"
    NOT_READY = "not_ready"
    NOT_ENOUGH_EVIDENCE = "not_enough_evidence"


@dataclass(frozen=True, slots=True)
class Judgement:
    readiness: Readiness
    reasons: tuple[str, ...]
    pairs: int
    upper_bound: float
    """The share of pairs that differ is at most this, but for one in 1/alpha samples."""
    open: tuple[Category, ...] = ()
    noise: tuple[Category, ...] = ()
    """Categories in places where legacy differs from itself as often."""
    accepted: tuple[Category, ...] = ()


def judgement(facts: RouteFacts, gate: Gate) -> Judgement:
    accepted = tuple(one for one in facts.categories if one.is_accepted)
    found, noise = _open_and_noise(facts, gate)
    errors = sum(count for name, count in facts.verdicts.items() if name.startswith("shadow_error"))
    # Where every difference is noise, a pair in which only noise differs is no bad one.
    bad = errors + (facts.verdicts.get("diff", 0) if found else 0)
    bound = two_stage_upper_bound(facts.unequal, facts.pairs, bad, facts.inspected, gate.alpha)
    reasons = [f"{one.path} differs ({one.kind}), {one.count:,} times" for one in found]
    if errors and bound > gate.rate:
        said = f"{errors:,} of {facts.inspected:,} inspected pairs lack an answer of the side asked besides"
        reasons.append(said)
    readiness = Readiness.NOT_READY if reasons else Readiness.READY
    if not reasons:
        if facts.pairs < gate.pairs:
            reasons.append(f"{facts.pairs:,} pairs were compared; {gate.pairs:,} are wanted")
        elif bound > gate.rate:
            reasons.append(f"up to {bound:.3%} of the pairs may differ; at most {gate.rate:.3%} may")
        reasons += _unproven(facts, gate)
        if reasons:
            readiness = Readiness.NOT_ENOUGH_EVIDENCE
    return Judgement(readiness, tuple(reasons), facts.pairs, bound, tuple(found), tuple(noise), accepted)


def _unproven(facts: RouteFacts, gate: Gate) -> Iterator[str]:
    """Noisy places of which too few pairs were drawn: a regression could hide in the noise."""
    for path, counts in sorted(facts.paths.items()):
        if counts.is_volatile:
            most = excess_upper_bound(counts.new_only, counts.legacy_only, facts.drawn, gate.alpha)
            if most > gate.noisy_rate:
                yield (
                    f"{path} differs in legacy's own answers too; by {facts.drawn:,} pairs drawn by lot, "
                    f"new may differ in {most:.1%} more, at most {gate.noisy_rate:.0%} may: raise "
                    "shadow.ask_again"
                )


def _open_and_noise(facts: RouteFacts, gate: Gate) -> tuple[list[Category], list[Category]]:
    volatile = {path for path, counts in facts.paths.items() if counts.is_volatile}

    def exceeds(path: str) -> bool:
        counts = facts.paths[path]
        # As many tests as there are noisy paths: each gets its part of what may go wrong.
        return excess_p_value(counts.new_only, counts.legacy_only) <= gate.alpha / len(volatile)

    found: list[Category] = []
    noise: list[Category] = []
    for one in facts.categories:
        if not one.is_accepted:
            quiet = one.kind != SHAPE and one.path in volatile and not exceeds(one.path)
            (noise if quiet else found).append(one)
    known = {one.path for one in facts.categories}
    found += (
        Category(path, "more often than legacy", facts.paths[path].new_only)
        for path in sorted(volatile - known)
        if exceeds(path)
    )
    return found, noise
