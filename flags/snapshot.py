"""The compiled routes and flags that decisions are made from: immutable, swapped by one assignment.

For each route there is either the one decision that holds for all its requests, or a `Plan` that looks
at the request. Everything that a plan may decide is made here once, so that a decision is a choice among
objects, and the same choice is the same object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeAlias

from core.http import SAFE_METHODS, RequestHead
from flags.attributes import Facts, Reader, reader
from flags.bucket import bucket
from flags.conditions import Predicate, compile_condition
from flags.match import Matcher
from flags.model import (
    NO_ROUTE,
    AdapterUse,
    Authority,
    Bucketing,
    Decision,
    Flag,
    FlagSet,
    Phase,
    Reason,
    Route,
    Side,
    Stage,
    Transition,
    Translation,
)
from flags.stages import STAGES


class KeyReader:
    """The key of a request, by which it has its bucket: the first of its attributes that is there.

    An attribute that is there and empty counts as missing.
    """

    __slots__ = ("_cookie", "_readers", "_salt")

    def __init__(self, bucketing: Bucketing) -> None:
        cookie = bucketing.assign_cookie
        by = bucketing.by if cookie is None else (*bucketing.by, f"cookie:{cookie}")
        self._readers: tuple[Reader, ...] = tuple(map(reader, by))
        self._salt = bucketing.salt
        self._cookie = bucketing.assign_cookie

    def bucket(self, head: RequestHead, facts: Facts) -> int | None:
        """The bucket of a request that is being decided; it may be given an identity by this."""
        found = self.known_bucket(head, facts)
        if found is None and self._cookie is not None:
            return bucket(self._salt, facts.assigned_identity(self._cookie))
        return found

    def known_bucket(self, head: RequestHead, facts: Facts) -> int | None:
        """The bucket of a request by what it brought itself."""
        for read in self._readers:
            key = read(head, facts)
            if key:
                return bucket(self._salt, key)
        return None


@dataclass(frozen=True, slots=True)
class Split:
    """A transition in which both stages are occupied."""

    weight_ppm: int
    upper: Decision
    lower: Decision
    no_key: Decision


Outcome: TypeAlias = Decision | Split


@dataclass(frozen=True, slots=True)
class _Override:
    applies: Predicate
    expires_at: float | None
    decision: Decision


@dataclass(frozen=True, slots=True)
class _Rule:
    applies: Predicate
    outcome: Outcome


class Plan:
    """What one flag decides where that depends on the request: overrides, then rules, then the weight."""

    __slots__ = ("_key", "_otherwise", "_overrides", "_rules")

    def __init__(
        self,
        key: KeyReader,
        overrides: tuple[_Override, ...],
        rules: tuple[_Rule, ...],
        otherwise: Outcome,
    ) -> None:
        self._key = key
        self._overrides = overrides
        self._rules = rules
        self._otherwise = otherwise

    def decisions(self) -> Iterator[Decision]:
        """All that it may decide."""
        yield from (override.decision for override in self._overrides)
        for outcome in (self._otherwise, *(rule.outcome for rule in self._rules)):
            yield from (outcome,) if isinstance(outcome, Decision) else (outcome.upper, outcome.lower)

    def decide(self, head: RequestHead, facts: Facts) -> Decision:
        for override in self._overrides:
            expires = override.expires_at
            if (expires is None or facts.now() < expires) and override.applies(head, facts):
                return override.decision
        outcome = self._otherwise
        for rule in self._rules:
            if rule.applies(head, facts):
                outcome = rule.outcome
                break
        if isinstance(outcome, Decision):
            return outcome
        number = self._key.bucket(head, facts)
        if number is None:
            return outcome.no_key
        return outcome.upper if number < outcome.weight_ppm else outcome.lower


class Bound:
    """What changes something goes to the side that may change it; what reads goes by its own plan.

    `own` is what reads decide for a session that has written what new may not have; None where nobody asks.
    `late` is what they decide while new is further behind than the second value says, in milliseconds.
    """

    __slots__ = ("_all_read", "_cutover", "_late", "_own", "_reads", "_writes")

    def __init__(
        self,
        cutover: str,
        writes: Decision,
        reads: Decision | Plan,
        own: Decision | None,
        *,
        all_read: bool = False,
        late: tuple[Decision, int] | None = None,
    ) -> None:
        self._cutover = cutover
        self._late = late
        self._writes = writes
        self._reads = reads
        self._own = own
        self._all_read = all_read

    def decisions(self) -> Iterator[Decision]:
        """All that it may decide."""
        yield self._writes
        yield from () if self._own is None else (self._own,)
        yield from () if self._late is None else (self._late[0],)
        yield from (self._reads,) if isinstance(self._reads, Decision) else self._reads.decisions()

    def decide(self, head: RequestHead, facts: Facts) -> Decision:
        if head.method not in SAFE_METHODS and not self._all_read:
            return self._writes
        reads = self._reads
        found = reads if isinstance(reads, Decision) else reads.decide(head, facts)
        if self._own is not None and found.side is Side.NEW and facts.is_behind(self._cutover):
            return self._own
        late = self._late
        if late is not None and found.side is Side.NEW and facts.is_late(self._cutover, late[1]):
            return late[0]
        return found


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One version of routes and flags. A request is decided by exactly one snapshot."""

    version: int
    """The generation of the configuration."""
    matcher: Matcher
    plans: tuple[Decision | Plan | Bound, ...]
    """What each route decides, in the order of the routes."""
    unclaimed: Decision
    """What is decided for a request that no route matches."""
    flags_version: int = 0
    """The version of the flag set; 0 without one."""
    keys: Mapping[str, KeyReader] = field(default_factory=dict)
    """Of each flag that has something to bucket by."""
    routes: tuple[Route, ...] = ()
    mirrored: frozenset[str] = frozenset()
    """The flags of which anybody's requests may be mirrored."""

    writing: bool = False
    """Whether any route says that its requests change something whatever their method."""

    def is_safe(self, request: RequestHead) -> bool:
        """Whether `request` changes nothing, however often it is made."""
        if request.method not in SAFE_METHODS:
            return False
        return not self.writing or (route := self.route_of(request)) is None or not route.writes

    def route_of(self, request: RequestHead) -> Route | None:
        """The route that matches `request`."""
        order = self.matcher.match(request.method, request.host, request.path)
        return None if order is None else self.routes[order]


def compile_snapshot(routes: Sequence[Route], version: int, flag_set: FlagSet | None = None) -> Snapshot:
    """Compile `routes` under `flag_set`, which must have been checked (`flags.document`).

    Without a flag set, and for a route whose flag it does not have, the route's own side holds. Raises
    `flags.match.InvalidRouteError` for a route that cannot be compiled.
    """
    unclaimed = Decision(Side.LEGACY, Reason.NO_ROUTE, NO_ROUTE, version)
    known: dict[str, Flag] = {}
    if flag_set is not None:
        known = {flag.key: flag for flag in flag_set.flags if not flag.archived}
        if flag_set.kill is not None:
            unclaimed = replace(unclaimed, reason=Reason.GLOBAL_KILL, version=flag_set.version)
    compiled: dict[tuple[str, tuple[AdapterUse, ...]], Decision | Plan] = {}
    bound: dict[tuple[str, tuple[AdapterUse, ...], bool | None], Decision | Plan | Bound] = {}
    plans: list[Decision | Plan | Bound] = []
    for route in routes:
        flag = known.get(route.flag)
        same = (route.flag, route.adapters)
        if flag_set is not None and flag_set.kill is not None:
            plan: Decision | Plan = _translated(
                Decision(Side.LEGACY, Reason.GLOBAL_KILL, route.flag, flag_set.version), route.adapters
            )
            plan = compiled.setdefault(same, plan)
        elif flag is None or flag_set is None:
            plan = _translated(Decision(route.side, Reason.ROUTE, route.flag, version), route.adapters)
        else:
            # Routes of one flag share its plan, and so its decisions, where they have the same adapters.
            if same not in compiled:
                off = flag_set.shadow_off is not None
                compiled[same] = compile_flag(flag, flag_set.version, route.adapters, shadow_off=off)
            plan = compiled[same]
        authority = None if flag_set is None else flag_set.authority_over(route.flag)
        if authority is not None and flag_set is not None:
            kind = (*same, _changes(route))
            if kind not in bound:
                bound[kind] = _bound(authority, route, plan, flag_set.version)
            plans.append(bound[kind])
            continue
        plans.append(plan)
    return Snapshot(
        version=version,
        matcher=Matcher(routes),
        plans=tuple(plans),
        unclaimed=unclaimed,
        flags_version=flag_set.version if flag_set is not None else 0,
        keys={
            key: KeyReader(flag.bucketing)
            for key, flag in known.items()
            if flag.bucketing.by or flag.bucketing.assign_cookie
        },
        routes=tuple(routes),
        writing=any(route.writes for route in routes),
        mirrored=frozenset(route.flag for route, plan in zip(routes, plans, strict=True) if _mirrors(plan)),
    )


def _changes(route: Route) -> bool | None:
    """Whether requests of `route` change something; None where it depends on their method."""
    if route.writes:
        return True
    if not route.methods:
        return None
    safe = {method.encode() in SAFE_METHODS for method in route.methods}
    return None if len(safe) > 1 else not safe.pop()


def _bound(
    authority: Authority, route: Route, plan: Decision | Plan, version: int
) -> Decision | Plan | Bound:
    """`plan` as far as the authority leaves it anything to say."""
    changes = _changes(route)
    watched = authority.own_writes and not authority.read_from_new
    at = Decision(authority.side, Reason.AUTHORITY, route.flag, version, writes=True, noted=watched)
    armed = authority.phase is Phase.ARM
    writes = _translated(replace(at, hold=authority.holds or armed, leased=armed), route.adapters)
    own = None
    if watched:
        own = Decision(Side.LEGACY, Reason.OWN_WRITES, route.flag, version, noted=True)
        own = _translated(own, route.adapters)
    late = None
    if authority.max_lag_ms is not None and not authority.read_from_new:
        behind = Decision(Side.LEGACY, Reason.LAG, route.flag, version, noted=watched)
        late = _translated(behind, route.adapters), authority.max_lag_ms
    reads = plan
    if authority.read_from_new:
        reads = _translated(Decision(Side.NEW, Reason.AUTHORITY, route.flag, version), route.adapters)
    if changes:
        return writes
    if changes is None or own is not None or late is not None:
        return Bound(authority.cutover, writes, reads, own, all_read=changes is False, late=late)
    return reads


def _mirrors(plan: Decision | Plan | Bound) -> bool:
    decisions = [plan] if isinstance(plan, Decision) else plan.decisions()
    return any(decision.mirror is not None for decision in decisions)


def compile_flag(
    flag: Flag, version: int, adapters: tuple[AdapterUse, ...] = (), *, shadow_off: bool = False
) -> Decision | Plan:
    """What `flag` decides as part of the flag set `version`, for routes with these `adapters`."""
    if flag.kill is not None:
        return _translated(Decision(Side.LEGACY, Reason.FLAG_KILL, flag.key, version), adapters)
    at = partial(_at, replace(flag, mirror_ppm=0) if shadow_off else flag, version, adapters)
    otherwise = _outcome(flag.transition, at, Reason.STAGE, Reason.WEIGHT)
    if not flag.overrides and not flag.rules and isinstance(otherwise, Decision):
        return otherwise
    return Plan(
        KeyReader(flag.bucketing),
        tuple(
            _Override(
                compile_condition(override.when), override.expires_at, at(override.stage, Reason.OVERRIDE)
            )
            for override in flag.overrides
        ),
        tuple(
            _Rule(compile_condition(rule.when), _outcome(rule.transition, at, Reason.RULE, Reason.RULE))
            for rule in flag.rules
        ),
        otherwise,
    )


def _outcome(
    transition: Transition,
    at: Callable[[Stage, Reason], Decision],
    when_settled: Reason,
    in_between: Reason,
) -> Outcome:
    stage = transition.settled
    if stage is not None:
        return at(stage, when_settled)
    return Split(
        transition.weight_ppm,
        upper=at(transition.target, in_between),
        lower=at(transition.origin, in_between),
        no_key=at(transition.origin, Reason.NO_KEY),
    )


def _at(flag: Flag, version: int, adapters: tuple[AdapterUse, ...], stage: Stage, reason: Reason) -> Decision:
    row = STAGES[stage]
    decision = Decision(row.answers, reason, flag.key, version, stage)
    if row.mirror is not None and flag.mirror_ppm:
        adapter = next((use.adapter for use in adapters if use.side is row.mirror), None)
        decision = replace(decision, mirror=row.mirror, mirror_ppm=flag.mirror_ppm, mirror_adapter=adapter)
    if row.answers is Side.NEW and flag.fallback_ppm is not None:
        instead = Decision(Side.LEGACY, Reason.FALLBACK, flag.key, version, stage)
        decision = replace(decision, fallback=_translated(instead, adapters), fallback_ppm=flag.fallback_ppm)
    return _translated(decision, adapters)


def _translated(decision: Decision, adapters: tuple[AdapterUse, ...]) -> Decision:
    """`decision` with the adapter that its side needs."""
    for use in adapters:
        if use.side is decision.side:
            return replace(
                decision, translation=Translation(use.adapter, decision if use.untranslated else None)
            )
    return decision
