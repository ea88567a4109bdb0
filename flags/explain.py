"""Why a request goes where it goes, step by step, by the very functions that decide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from core.http import RequestHead
from flags.attributes import Facts, reader
from flags.bucket import bucket
from flags.conditions import compile_condition
from flags.decide import decide
from flags.model import Bucketing, Decision, Flag, FlagSet, Kill, Reason, Route, Transition
from flags.snapshot import Snapshot
from flags.stages import described, percent


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that was looked at; `decided` at most once, by the one that decided."""

    what: str
    decided: bool = False


@dataclass(frozen=True, slots=True)
class Explanation:
    decision: Decision
    steps: tuple[Step, ...]


def explain(
    snapshot: Snapshot,
    routes: Sequence[Route],
    flag_set: FlagSet | None,
    request: RequestHead,
    facts: Facts,
) -> Explanation:
    """What `decide` says of `request`, and what it looked at in which order.

    `snapshot` is made of `routes` and `flag_set`.
    """
    decision = decide(snapshot, request, facts)
    order = snapshot.matcher.match(request.method, request.host, request.path)
    route = None if order is None else routes[order]
    matched = "no route matches" if order is None or route is None else _matched(order, route)
    if decision.reason is Reason.AUTHORITY:
        what = "changes data" if decision.writes else "reads data"
        held = "; it waits for the cutover" if decision.hold and not decision.leased else ""
        why = Step(f"it {what} over which {decision.side} has the authority{held}", decided=True)
        return Explanation(decision, (Step(matched), why))
    if decision.reason is Reason.OWN_WRITES:
        why = Step("its session has written what new may not have yet: legacy answers", decided=True)
        return Explanation(decision, (Step(matched), why))
    return Explanation(decision, (Step(matched), *_steps(route, flag_set, request, facts)))


def _matched(order: int, route: Route) -> str:
    methods = ",".join(sorted(route.methods)) or "any method"
    host = f" on {route.host}" if route.host else ""
    return f"route {order + 1} matches: {methods} {route.path}{host}, flag {route.flag}"


def _killed(what: str, kill: Kill) -> Step:
    return Step(f"{what} is killed by {kill.by} since {kill.at}: {kill.reason}", decided=True)


def _steps(route: Route | None, flag_set: FlagSet | None, request: RequestHead, facts: Facts) -> list[Step]:
    if flag_set is not None and flag_set.kill is not None:
        return [_killed("everything", flag_set.kill)]
    if route is None:
        return [Step("legacy answers what nobody has claimed", decided=True)]
    flag = flag_set.flag(route.flag) if flag_set is not None else None
    if flag is None or flag.archived:
        state = "is not known" if flag is None else "is archived"
        return [Step(f"the flag {state}, so the route's own target holds: {route.side}", decided=True)]
    if flag.kill is not None:
        return [_killed("the flag", flag.kill)]
    steps = []
    for override in flag.overrides:
        if override.expires_at is not None and facts.now() >= override.expires_at:
            steps.append(Step(f"override {override.id}: expired"))
        elif compile_condition(override.when)(request, facts):
            return [*steps, Step(f"override {override.id}: applies, stage {override.stage}", decided=True)]
        else:
            steps.append(Step(f"override {override.id}: does not apply"))
    for rule in flag.rules:
        if compile_condition(rule.when)(request, facts):
            steps.append(Step(f"rule {rule.id}: applies, {described(rule.transition)}"))
            return [*steps, _weighed(flag, rule.transition, request, facts)]
        steps.append(Step(f"rule {rule.id}: does not apply"))
    return [*steps, _weighed(flag, flag.transition, request, facts)]


def _weighed(flag: Flag, transition: Transition, request: RequestHead, facts: Facts) -> Step:
    if transition.settled is not None:
        return Step(f"stage {transition.settled} holds for everybody", decided=True)
    name, key = _key(flag.bucketing, request, facts)
    cookie = flag.bucketing.assign_cookie
    if key is None and cookie is None:
        by = ", ".join(flag.bucketing.by) or "nothing to bucket by"
        return Step(f"no key ({by}): stays at {transition.origin}", decided=True)
    given = ""
    if key is None:
        key = facts.assigned_identity(cookie or "")
        given = (
            f"no key: the client is given an identity as cookie {cookie}; "
            f"{percent(transition.weight_ppm)} of such are at {transition.target}; for this one: "
        )
        name = f"cookie:{cookie}"
    number = bucket(flag.bucketing.salt, key)
    admitted = number < transition.weight_ppm
    sign, stage = ("<", transition.target) if admitted else ("≥", transition.origin)
    weighed = f"bucket {number:,} of {name} {sign} weight {transition.weight_ppm:,}"
    return Step(f"{given}{weighed}: stage {stage}", decided=True)


def _key(bucketing: Bucketing, request: RequestHead, facts: Facts) -> tuple[str, str | None]:
    """The first attribute that the request has, and its value."""
    cookie = bucketing.assign_cookie
    for name in bucketing.by if cookie is None else (*bucketing.by, f"cookie:{cookie}"):
        key = reader(name)(request, facts)
        if key:
            return name, key
    return "", None
