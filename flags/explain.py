"""Why a request goes where it goes, step by step, by the very functions that decide."""

from __future__ import annotations

from dataclasses import dataclass

from core.http import RequestHead
from flags.attributes import Facts, reader
from flags.bucket import bucket
from flags.conditions import compile_condition
from flags.decide import decide
from flags.model import Bucketing, Decision, Flag, FlagSet, Transition
from flags.snapshot import Snapshot
from flags.stages import described


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that was looked at; `decided` at most once, by the one that decided."""

    what: str
    decided: bool = False


@dataclass(frozen=True, slots=True)
class Explanation:
    decision: Decision
    steps: tuple[Step, ...]


def explain(snapshot: Snapshot, flag_set: FlagSet | None, request: RequestHead, facts: Facts) -> Explanation:
    """What `decide` says of `request`, and what it looked at in which order."""
    decision = decide(snapshot, request, facts)
    steps = _steps(decision, flag_set, request, facts)
    return Explanation(decision, tuple(steps))


def _steps(decision: Decision, flag_set: FlagSet | None, request: RequestHead, facts: Facts) -> list[Step]:
    if flag_set is not None and flag_set.kill is not None:
        return [Step(f"everything is killed by {flag_set.kill.by}: {flag_set.kill.reason}", decided=True)]
    flag = flag_set.flag(decision.flag) if flag_set is not None else None
    if decision.stage is None and (flag is None or flag.kill is None):
        return [Step(f"no flag decides: {decision.reason}", decided=True)]
    assert flag is not None
    if flag.kill is not None:
        return [Step(f"the flag is killed by {flag.kill.by}: {flag.kill.reason}", decided=True)]
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
    found = _key(flag.bucketing, request, facts)
    if found is None:
        by = ", ".join(flag.bucketing.by) or "nothing to bucket by"
        return Step(f"no key ({by}): stays at {transition.origin}", decided=True)
    name, number = found
    admitted = number < transition.weight_ppm
    sign, stage = ("<", transition.target) if admitted else ("≥", transition.origin)
    return Step(
        f"bucket {number:,} of {name} {sign} weight {transition.weight_ppm:,}: stage {stage}", decided=True
    )


def _key(bucketing: Bucketing, request: RequestHead, facts: Facts) -> tuple[str, int] | None:
    cookie = bucketing.assign_cookie
    for name in bucketing.by if cookie is None else (*bucketing.by, f"cookie:{cookie}"):
        key = reader(name)(request, facts)
        if key:
            return name, bucket(bucketing.salt, key)
    return None
