"""Random flags, flag sets and conditions for laws."""

from __future__ import annotations

from hypothesis import strategies as st

from flags.conditions import All, Any, Condition, Not, Operator, Test
from flags.model import (
    EVERYBODY,
    Bucketing,
    Flag,
    FlagSet,
    Kill,
    Override,
    Rule,
    Stage,
    Transition,
)
from flags.stages import ORDER

KEYS = st.from_regex(r"[a-z0-9][a-z0-9._-]{1,6}", fullmatch=True)
WEIGHTS = st.one_of(st.sampled_from([0, 1, EVERYBODY - 1, EVERYBODY]), st.integers(0, EVERYBODY))
TRANSITIONS = st.builds(
    lambda n, weight: Transition(ORDER[n], ORDER[n + 1], weight), st.integers(0, 2), WEIGHTS
)
VALUES = st.sampled_from(["a", "b", "ab", "1", "2.5", ""])
ATTRIBUTES = st.sampled_from(
    ["header:x-tenant", "cookie:sid", "query:q", "claim:sub", "attr:plan", "method", "host", "path", "client"]
)
KILLS = st.builds(Kill, st.just("it burns"), st.just("ada"), st.just("2026-11-23T18:00:00.000+00:00"))


@st.composite
def tests(draw: st.DrawFn) -> Test:
    attribute, operator = draw(ATTRIBUTES), draw(st.sampled_from(list(Operator)))
    match operator:
        case Operator.EXISTS:
            return Test(attribute, operator)
        case Operator.CIDR:
            return Test(attribute, operator, ("192.0.2.0/24", "2001:db8::/32"))
        case Operator.IN:
            return Test(attribute, operator, tuple(draw(st.lists(VALUES, min_size=1, max_size=3))))
        case Operator.LT | Operator.GT:
            return Test(attribute, operator, (draw(st.sampled_from(["1", "2.5", "-3"])),))
        case Operator.REGEX:
            return Test(attribute, operator, (draw(st.sampled_from(["a.*", "[ab]+", "1|2"])),))
        case _:
            return Test(attribute, operator, (draw(VALUES),))


CONDITIONS: st.SearchStrategy[Condition] = st.recursive(
    tests(),
    lambda inner: st.one_of(
        st.builds(Not, inner),
        st.builds(All, st.lists(inner, min_size=1, max_size=3).map(tuple)),
        st.builds(Any, st.lists(inner, min_size=1, max_size=3).map(tuple)),
    ),
    max_leaves=5,
)
OVERRIDES = st.builds(
    Override, KEYS, CONDITIONS, st.sampled_from(Stage), st.one_of(st.none(), st.floats(0, 2_000_000))
)
RULES = st.builds(Rule, KEYS, CONDITIONS, TRANSITIONS)


@st.composite
def flags(draw: st.DrawFn, key: str | None = None) -> Flag:
    key = key or draw(KEYS)
    by = tuple(draw(st.lists(ATTRIBUTES, min_size=1, max_size=2, unique=True)))
    return Flag(
        key=key,
        version=draw(st.integers(0, 99)),
        transition=draw(TRANSITIONS),
        bucketing=Bucketing(by, draw(st.sampled_from([key, "salt"])), draw(st.sampled_from([None, "cf_id"]))),
        owner=draw(st.sampled_from(["", "ada"])),
        ticket=draw(st.sampled_from(["", "OPS-1"])),
        expires_on=draw(st.sampled_from([None, "2027-03-31"])),
        description=draw(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=5)),
        kill=draw(st.one_of(st.none(), KILLS)),
        overrides=tuple(draw(st.lists(OVERRIDES, max_size=2, unique_by=lambda one: one.id))),
        rules=tuple(draw(st.lists(RULES, max_size=2, unique_by=lambda one: one.id))),
        fallback_ppm=draw(st.one_of(st.none(), WEIGHTS)),
        mirror_ppm=draw(WEIGHTS),
        needs_report=draw(st.booleans()),
        archived=draw(st.booleans()),
    )


@st.composite
def flag_sets(draw: st.DrawFn) -> FlagSet:
    keys = sorted(draw(st.sets(KEYS, max_size=4)))
    return FlagSet(
        draw(st.integers(1, 99)),
        draw(st.one_of(st.none(), KILLS)),
        tuple(draw(flags(key)) for key in keys),
        draw(st.one_of(st.none(), KILLS)),
    )
