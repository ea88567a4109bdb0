"""Flags as JSON: what is written is read, what is not understood is refused with its place."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flags.document import InvalidFlagError, check_flag, flag_from_json, from_json, to_json
from flags.model import Flag, FlagSet
from flags.snapshot import compile_snapshot
from tests.flags.strategies import flag_sets, flags


@given(flag_sets())
def test_what_is_written_is_read(flag_set: FlagSet) -> None:
    assert from_json(json.loads(json.dumps(to_json(flag_set)))) == flag_set


@given(flag_sets(), flag_sets())
def test_what_is_known_makes_no_difference(flag_set: FlagSet, known: FlagSet) -> None:
    document = json.loads(json.dumps(to_json(flag_set)))
    assert from_json(document, known) == flag_set
    assert from_json(document, flag_set) == flag_set


def test_what_is_known_excuses_no_mistake() -> None:
    known = from_json({"version": 1, "flags": [FLAG]})
    with pytest.raises(InvalidFlagError):
        from_json({"version": 2, "flags": [{**FLAG, "more": 1}]}, known)
    with pytest.raises(InvalidFlagError):
        from_json({"version": 2, "flags": [{**FLAG, "key": ["items.read"]}]}, known)


@given(flags())
def test_a_flag_that_was_read_can_be_compiled(flag: Flag) -> None:
    check_flag(flag)
    compile_snapshot([], 1, FlagSet(1, None, (flag,)))


FLAG: dict[str, Any] = {
    "key": "items.read",
    "transition": {"from": "shadow", "to": "live", "weight_ppm": 50_000},
    "bucketing": {"by": ["cookie:sid"]},
}


MOVE = FLAG["transition"]
ALWAYS = {"attribute": "path", "exists": True}


def moving(**change: Any) -> dict[str, Any]:
    return {"transition": {**MOVE, **change}}


def rule(**when: Any) -> dict[str, Any]:
    return {"rules": [{"id": "qa", "when": when, "transition": MOVE}]}


def override(**change: Any) -> dict[str, Any]:
    return {"overrides": [{"id": "qa", "when": ALWAYS, "stage": "new", **change}]}


@pytest.mark.parametrize(
    ("change", "path", "says"),
    [
        ({"key": "Items"}, "flag.key", "2 to 63 of a-z"),
        ({"key": "x"}, "flag.key", "2 to 63 of a-z"),
        ({"key": None}, "flag.key", "missing"),
        ({"colour": 1}, "flag.colour", "unknown"),
        ({"transition": None}, "flag.transition", "missing"),
        (moving(**{"from": "legacy"}), "flag.transition", "neighbours"),
        (moving(**{"from": "live", "to": "shadow"}), "flag.transition", "neighbours"),
        (moving(**{"from": "dark"}), "flag.transition.from", "one of legacy"),
        (moving(weight_ppm=1_000_001), "flag.transition.weight_ppm", "from 0 to 1000000"),
        (moving(weight_ppm=0.5), "flag.transition.weight_ppm", "whole number"),
        ({"bucketing": {"by": ["cookies:sid"]}}, "flag.bucketing.by[0]", "no attribute"),
        ({"bucketing": {"by": ["header:"]}}, "flag.bucketing.by[0]", "no attribute"),
        ({"bucketing": {"by": "cookie:sid"}}, "flag.bucketing.by", "a list"),
        ({"bucketing": {"by": [], "assign_cookie": "a b"}}, "flag.bucketing.assign_cookie", "no name"),
        ({"expires_on": "31.3.2027"}, "flag.expires_on", "2027-03-31"),
        ({"fallback_ppm": -1}, "flag.fallback_ppm", "from 0 to"),
        ({"archived": "no"}, "flag.archived", "true or false"),
        ({"kill": {"reason": "x"}}, "flag.kill.by", "missing"),
        (rule(attribute="path", eq="/", prefix="/"), "flag.rules[0].when", "one operator"),
        (rule(attribute="path", regex=r"(a)\1"), "flag.rules[0].when", "neither ahead nor back"),
        (rule(attribute="path", regex="(?P=x)"), "flag.rules[0].when", "no regular expression"),
        (rule(attribute="path", regex="((a{1000}){1000})"), "flag.rules[0].when", "repetition"),
        (rule(attribute="path", regex="("), "flag.rules[0].when", "no regular expression"),
        (rule(all=[]), "flag.rules[0].when", "at least one"),
        (rule(attribute="client", cidr="10.0.0.1/8"), "flag.rules[0].when", "has host bits set"),
        (rule(attribute="query:n", lt="many"), "flag.rules[0].when", "compares numbers"),
        (override(when={"attribute": "path", "exists": False}), "flag.overrides[0].when.exists", "into not"),
        (override(expires_at="2027-03-31T18:00:00"), "flag.overrides[0].expires_at", "with its zone"),
        ({"overrides": override()["overrides"] * 2}, "flag.overrides[1].id", "there twice"),
        ({"description": "\ud800"}, "flag.description", "UTF-8"),
    ],
)
def test_a_mistake_has_its_place(change: dict[str, Any], path: str, says: str) -> None:
    with pytest.raises(InvalidFlagError) as caught:
        flag_from_json({**FLAG, **change})
    assert caught.value.path == path
    assert says in caught.value.message


@pytest.mark.parametrize(
    "document",
    [
        *(None, [], 1, "flags", {}),
        {"version": 1, "flags": {}},
        {"version": -1, "flags": []},
        {"version": True, "flags": []},
        {"version": 1, "flags": [FLAG, FLAG]},
        {"version": 1, "flags": [FLAG], "more": 1},
    ],
)
def test_what_is_no_flag_set_is_refused(document: Any) -> None:
    with pytest.raises(InvalidFlagError):
        from_json(document)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*FLAG, "all", "eq"]), inner),
    max_leaves=10,
)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys([*FLAG, "rules", "overrides", "kill"], JSON)))
def test_nothing_else_than_a_refusal_comes_of_nonsense(document: Any) -> None:
    with contextlib.suppress(InvalidFlagError):
        check_flag(flag_from_json({**FLAG, **document}))
