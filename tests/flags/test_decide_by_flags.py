"""Decisions by flags, against an oracle that is written as people would say it."""

from __future__ import annotations

import re
import time
import timeit
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from core.http import RequestHead
from flags.attributes import reader
from flags.bucket import bucket
from flags.conditions import LONGEST_VALUE, All, Any, Condition, Not, Operator, Test, compile_condition
from flags.decide import decide
from flags.explain import explain
from flags.model import (
    AdapterUse,
    Bucketing,
    Decision,
    Flag,
    FlagSet,
    Kill,
    Override,
    Reason,
    Route,
    Rule,
    Side,
    Stage,
    Transition,
    Translation,
)
from flags.snapshot import compile_flag, compile_snapshot
from flags.stages import STAGES, settled_at
from proxy.head import parse_request
from tests.flags.strategies import flag_sets
from tests.support.facts import KnownFacts


def request(fields: str = "", *, target: str = "/items/1", method: str = "GET") -> RequestHead:
    text = f"{method} {target} HTTP/1.1\r\nHost: Shop.test:80\r\n{fields}\r\n"
    head = parse_request(
        text.encode("utf-8", "surrogateescape"), max_head=9999, max_target=9999, max_fields=99
    )
    assert isinstance(head, RequestHead)
    return head


REQUESTS = st.builds(
    request,
    st.lists(
        st.sampled_from(
            [
                "X-Tenant: a\r\n",
                "x-tenant: 2.5\r\n",
                "Cookie: a=1; sid=b\r\n",
                "Cookie: sid=\r\n",
                "Accept: */*\r\n",
            ]
        ),
        max_size=3,
    ).map("".join),
    target=st.sampled_from(["/items/1", "/items/1?q=ab", "/items/1?q=1&q=b"]),
    method=st.sampled_from(["GET", "POST"]),
)
FACTS = st.builds(
    KnownFacts,
    client=st.sampled_from(["192.0.2.7", "198.51.100.1", "2001:db8::1"]),
    known_claims=st.sampled_from([{}, {"sub": "a"}, {"sub": 2.5}, {"sub": True}, {"sub": ["a"]}]),
    known_attributes=st.sampled_from([{}, {"plan": "ab"}]),
)


def value_of(attribute: str, head: RequestHead, facts: KnownFacts) -> str | None:
    return reader(attribute)(head, facts)


def holds(condition: Condition, head: RequestHead, facts: KnownFacts) -> bool:
    match condition:
        case All(parts):
            return all(holds(part, head, facts) for part in parts)
        case Any(parts):
            return any(holds(part, head, facts) for part in parts)
        case Not(part):
            return not holds(part, head, facts)
        case Test(attribute, operator, values):
            value = value_of(attribute, head, facts)
            if value is None or operator is Operator.EXISTS:
                return value is not None
            match operator:
                case Operator.EQ | Operator.IN:
                    return value in values
                case Operator.PREFIX:
                    return value.startswith(values[0])
                case Operator.SUFFIX:
                    return value.endswith(values[0])
                case Operator.REGEX:
                    return re.fullmatch(values[0], value) is not None
                case Operator.CIDR:
                    try:
                        return any(ip_address(value) in ip_network(network) for network in values)
                    except ValueError:
                        return False
            try:
                less = float(value) < float(values[0])
                more = float(value) > float(values[0])
            except ValueError:
                return False
            return less if operator is Operator.LT else more


def oracle(flag_set: FlagSet, head: RequestHead, facts: KnownFacts) -> tuple[Stage | None, Reason]:
    """The order of the issue, said once more."""
    if flag_set.kill:
        return None, Reason.GLOBAL_KILL
    flag = flag_set.flag("items.read")
    if flag is None or flag.archived:
        return None, Reason.ROUTE
    if flag.kill:
        return None, Reason.FLAG_KILL
    for override in flag.overrides:
        alive = override.expires_at is None or facts.now() < override.expires_at
        if alive and holds(override.when, head, facts):
            return override.stage, Reason.OVERRIDE
    transition, by_weight, by_stage = flag.transition, Reason.WEIGHT, Reason.STAGE
    for rule in flag.rules:
        if holds(rule.when, head, facts):
            transition, by_weight, by_stage = rule.transition, Reason.RULE, Reason.RULE
            break
    if transition.weight_ppm == 0:
        return transition.origin, by_stage
    if transition.weight_ppm == 1_000_000:
        return transition.target, by_stage
    attributes = [*flag.bucketing.by]
    if flag.bucketing.assign_cookie:
        attributes.append(f"cookie:{flag.bucketing.assign_cookie}")
    keys = [value_of(attribute, head, facts) for attribute in attributes]
    key = next((key for key in keys if key), None)
    if key is None and flag.bucketing.assign_cookie:
        key = facts.identity
    if key is None:
        return transition.origin, Reason.NO_KEY
    admitted = bucket(flag.bucketing.salt, key) < transition.weight_ppm
    return (transition.target if admitted else transition.origin), by_weight


ROUTES = [Route("items.read", "/items/{id}", side=Side.NEW)]


def with_key(flag_set: FlagSet, keep: bool) -> FlagSet:
    """Have the first flag be the one of the route."""
    if not keep or not flag_set.flags:
        return flag_set
    first, *others = flag_set.flags
    return replace(flag_set, flags=(replace(first, key="items.read"), *others))


@given(flag_sets(), st.booleans(), REQUESTS, FACTS)
def test_the_order_of_decision(flag_set: FlagSet, keep: bool, head: RequestHead, facts: KnownFacts) -> None:
    flag_set = with_key(flag_set, keep)
    snapshot = compile_snapshot(ROUTES, 7, flag_set)

    decision = decide(snapshot, head, facts)

    stage, reason = oracle(flag_set, head, facts)
    assert (decision.stage, decision.reason) == (stage, reason)
    if stage is not None:
        assert decision.side is STAGES[stage].answers
        known = flag_set.flag("items.read")
        mirrors = flag_set.shadow_off is None and known is not None and known.mirror_ppm > 0
        assert decision.mirror is (STAGES[stage].mirror if mirrors else None)
    else:
        assert decision.side is (Side.NEW if reason is Reason.ROUTE else Side.LEGACY)
    # All of a decision is of one version.
    assert decision.version == (7 if reason is Reason.ROUTE else flag_set.version)
    assert decide(snapshot, head, facts) is decision


@given(flag_sets(), st.booleans(), REQUESTS, FACTS)
def test_an_explanation_is_of_the_very_decision(
    flag_set: FlagSet, keep: bool, head: RequestHead, facts: KnownFacts
) -> None:
    flag_set = with_key(flag_set, keep)
    snapshot = compile_snapshot(ROUTES, 7, flag_set)
    found = explain(snapshot, ROUTES, flag_set, head, facts)
    assert found.decision is decide(snapshot, head, facts)
    assert [step.decided for step in found.steps].count(True) == 1
    last = found.steps[-1]
    assert last.decided
    if found.decision.stage is not None:
        # The last stage that is named is the one that was decided.
        named = re.findall("legacy|shadow|live|new", last.what)
        assert named[-1] == found.decision.stage
    assert ("killed" in last.what) == (found.decision.reason in (Reason.GLOBAL_KILL, Reason.FLAG_KILL))
    assert ("the route's own" in last.what) == (found.decision.reason is Reason.ROUTE)


def test_an_explanation_tells_what_becomes_of_a_client_without_a_key() -> None:
    """It would be given an identity, and that decides: not the absence of a key."""
    bucketing = Bucketing(("header:x-tenant",), "items.read", "cf_id")
    for weight, stage in ((1, Stage.SHADOW), (999_999, Stage.LIVE)):
        between = Transition(Stage.SHADOW, Stage.LIVE, weight)
        flag_set = FlagSet(1, None, (Flag("items.read", 1, between, bucketing),))
        found = explain(compile_snapshot(ROUTES, 1, flag_set), ROUTES, flag_set, request(), KnownFacts())
        assert found.decision.reason is Reason.WEIGHT
        assert found.decision.stage is stage
        assert "given an identity as cookie cf_id" in found.steps[-1].what
        assert found.steps[-1].what.endswith(f"stage {stage}")


def flag(transition: Transition, **more: object) -> FlagSet:
    one = Flag("items.read", 1, transition, Bucketing(("cookie:sid",), "items.read"), **more)  # type: ignore[arg-type]
    return FlagSet(5, None, (one,))


def by(flag_set: FlagSet, head: RequestHead, facts: KnownFacts) -> Decision:
    return decide(compile_snapshot(ROUTES, 1, flag_set), head, facts)


def test_an_override_ends_at_its_time() -> None:
    when = Test("header:x-qa", Operator.EXISTS)
    flag_set = flag(settled_at(Stage.LEGACY), overrides=(Override("qa", when, Stage.NEW, 2_000.0),))
    head = request("X-QA: 1\r\n")
    assert by(flag_set, head, KnownFacts(time=1_999.9)).reason is Reason.OVERRIDE
    assert by(flag_set, head, KnownFacts(time=2_000.0)).reason is Reason.STAGE


def test_an_identity_is_given_only_where_it_is_needed() -> None:
    between = Transition(Stage.SHADOW, Stage.LIVE, 500_000)
    bucketing = Bucketing(("header:x-tenant",), "items.read", "cf_id")
    for transition, fields, asked in (
        (between, "", ["cf_id"]),
        (between, "Cookie: cf_id=known\r\n", []),
        (between, "X-Tenant: a\r\n", []),
        (settled_at(Stage.LIVE), "", []),
    ):
        facts = KnownFacts()
        by(FlagSet(1, None, (Flag("items.read", 1, transition, bucketing),)), request(fields), facts)
        assert facts.identities == asked


class NoFacts(KnownFacts):
    """Whoever asks gets an error: facts cost something."""

    def __getattribute__(self, name: str) -> object:
        raise AssertionError(f"{name} was asked for")


def test_what_holds_for_everybody_asks_for_nothing() -> None:
    for stage in Stage:
        by(flag(settled_at(stage)), request(), NoFacts())
    by(flag(settled_at(Stage.NEW), kill=Kill("x", "y", "z")), request(), NoFacts())


@pytest.mark.parametrize(("ppm", "wanted"), [(None, None), (250_000, 250_000)])
def test_fallback_is_for_what_new_answers(ppm: int | None, wanted: int | None) -> None:
    for stage in Stage:
        decision = by(flag(settled_at(stage), fallback_ppm=ppm), request(), KnownFacts())
        instead = decision.fallback
        if wanted is None or decision.side is Side.LEGACY:
            assert instead is None
        else:
            assert instead is not None
            assert (instead.side, instead.reason, decision.fallback_ppm) == (
                Side.LEGACY,
                Reason.FALLBACK,
                wanted,
            )


def test_who_is_asked_besides_follows_from_the_stage_the_share_and_whether_mirroring_is_off() -> None:
    for stage in Stage:
        decision = by(flag(settled_at(stage), mirror_ppm=70_000), request(), KnownFacts())
        assert decision.mirror is STAGES[stage].mirror
        assert decision.mirror is None or decision.mirror_ppm == 70_000
        assert by(flag(settled_at(stage), mirror_ppm=0), request(), KnownFacts()).mirror is None
        off = replace(flag(settled_at(stage)), shadow_off=Kill("new is down", "ada", "now"))
        (plan,) = compile_snapshot([Route("items.read", "/**")], 1, off).plans
        assert isinstance(plan, Decision)
        assert (plan.side, plan.mirror) == (STAGES[stage].answers, None)


def test_the_side_that_is_asked_besides_is_spoken_to_by_its_own_adapter() -> None:
    uses = (AdapterUse(Side.NEW, "tokens"),)
    shadow = compile_flag(flag(settled_at(Stage.SHADOW)).flags[0], 1, uses)
    live = compile_flag(flag(settled_at(Stage.LIVE)).flags[0], 1, uses)
    assert isinstance(shadow, Decision)
    assert isinstance(live, Decision)
    assert (shadow.mirror_adapter, shadow.translation) == ("tokens", None)
    assert (live.mirror_adapter, live.translation) == (None, Translation("tokens"))


@example(["sid=x"])
@given(st.lists(st.sampled_from(["sid=x", "sid=y", "xsid=z", "a=sid=q", "sid", ""]), max_size=4))
def test_the_first_cookie_of_that_name_counts(pairs: list[str]) -> None:
    named = [pair.partition("=")[2] for pair in pairs if pair.startswith("sid=")]
    head = request(f"Cookie: {'; '.join(pairs)}\r\n")
    assert reader("cookie:sid")(head, KnownFacts()) == (named[0] if named else None)


def test_attributes_are_read_as_they_are_spelled() -> None:
    head = request("X-Tenant:  acme \r\nx-tenant: other\r\n", target="/items/1?q=a%20b&q=c&n=")
    facts = KnownFacts(
        known_claims={"sub": 7, "admin": True, "roles": ["a"], "half": "a\ud800"},
        known_attributes={"plan": "pro", "half": "\udce9"},
    )
    for spelling, value in {
        "header:X-Tenant": "acme", "header:tenant": None, "cookie:sid": None, "query:q": "a b", "query:n": "",
        "query:x": None, "method": "GET", "host": "shop.test", "path": "/items/1", "client": "192.0.2.1",
        "claim:sub": "7", "claim:admin": "true", "claim:roles": None, "claim:x": None, "attr:plan": "pro",
        "attr:x": None, "claim:half": None, "attr:half": None,
    }.items():  # fmt: skip
        assert reader(spelling)(head, facts) == value, spelling


def test_a_settled_flag_costs_what_a_route_costs_and_a_bucket_little_more() -> None:
    """Ratios of best times, with room: a decision is microseconds, and the machine is shared."""
    head, facts = request("Cookie: theme=dark; sid=abcdef\r\n"), KnownFacts()
    rules = tuple(
        Rule(f"rule-{n}", Test("header:x-tenant", Operator.EQ, (str(n),)), settled_at(Stage.NEW))
        for n in range(3)
    )
    between = Transition(Stage.SHADOW, Stage.LIVE, 500_000)
    sets = {"route": None, "settled": flag(settled_at(Stage.LIVE)), "bucket": flag(between),
            "rules": flag(between, rules=rules)}  # fmt: skip
    snapshots = {name: compile_snapshot(ROUTES, 1, found) for name, found in sets.items()}
    best = dict.fromkeys(snapshots, float("inf"))
    for _ in range(15):  # alternately, so that a slow moment hits all
        for name, snapshot in snapshots.items():
            taken = timeit.timeit(
                lambda snapshot=snapshot: decide(snapshot, head, facts),  # type: ignore[misc]
                timer=time.thread_time,
                number=500,
            )
            best[name] = min(best[name], taken)
    assert best["settled"] < best["route"] * 1.5
    assert best["bucket"] < best["route"] * 12
    assert best["rules"] < best["route"] * 20


@pytest.mark.parametrize(
    "pattern", ["(a+)+b", "((a+))+b", "(a|a)+b", "(a|ab)*c", "a*a*a*a*a*b", "(.*)(.*)(.*)(.*)z"]
)
def test_no_regular_expression_takes_longer_than_its_value_is_long(pattern: str) -> None:
    """Python's own would take from seconds to more than the age of the universe."""
    decide = compile_condition(Test("header:x-a", Operator.REGEX, (pattern,)))
    head = request(f"X-A: {'a' * LONGEST_VALUE}\r\n")
    began = time.process_time()
    assert not any(decide(head, KnownFacts()) for _ in range(50))
    assert time.process_time() - began < 2.0


def test_a_value_that_is_no_utf_8_matches_or_not_and_breaks_nothing() -> None:
    decide = compile_condition(Test("header:x-a", Operator.REGEX, ("[a-z]+\\x{e9}?",)))
    assert decide(request("X-A: caf\u00e9\r\n"), KnownFacts())
    assert not decide(request("X-A: caf\udce9\r\n"), KnownFacts())
