"""What counts as a difference between two answers, and which rule expects it."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadow.compare import Comparison, Verdict, compare
from shadow.exhibit import Answer, Body, Kind
from shadow.paths import InvalidPathError, parse, spelled, template
from shadow.rules import InvalidRuleError, Rule, RuleBook, RuleKind, rule_from_json, rule_to_json

TODAY = date(2026, 11, 24)


def answer(
    body: Any = ..., *, side: str = "legacy", status: int = 200, headers: Any = (), kind: Any = None
) -> Answer:
    text = body if isinstance(body, str) else "" if body is ... else json.dumps(body)
    kind = kind or (Kind.NONE if body is ... else Kind.JSON)
    return Answer(side, status, tuple(headers), Body(kind, text, len(text), text), 1000.0, 0.01)


def rules(*known: Rule) -> Any:
    return RuleBook(known, TODAY).of("/items")


def rule(kind: str, path: str, **more: Any) -> Rule:
    return Rule(f"{kind}-{path.encode().hex()}", RuleKind(kind), path, "a test", **more)


def between(one: Any, other: Any, *known: Rule) -> Comparison:
    return compare(answer(one), answer(other, side="new"), rules(*known))


def seen(found: Comparison) -> list[tuple[str, str]]:
    return [(difference.path, difference.kind) for difference in found.differences]


@pytest.mark.parametrize(("one", "other", "expected"), [
    ({"a": 1}, {"a": 2}, [("$.a", "value")]),
    ({"a": 1}, {"a": "1"}, [("$.a", "type")]),
    ({"a": 1}, {"a": True}, [("$.a", "type")]),
    ({"a": 1}, '{"a": 1.0}', [("$.a", "type")]),
    ('{"a": 1.50}', '{"a": 1.5}', []),
    ('{"a": 0.1}', '{"a": 0.10000000000000001}', [("$.a", "value")]),
    ('{"a": 12345678901234567890123}', '{"a": 12345678901234567890124}', [("$.a", "value")]),
    ('{"a": 1, "a": 2}', '{"a": 2}', [("$.a", "value"), ('$["a (2)"]', "missing")]),
    ({"a": None}, {}, [("$.a", "missing")]),
    ({}, {"a": None}, [("$.a", "extra")]),
    ([1, 2], [2, 1], [("$", "order")]),
    ([1, 2], [1, 2, 3], [("$", "length")]),
    ([1, 2], [1, 2], []),
    ([{"a": 1}], [{"a": 1, "b": 2}], [("$[0].b", "extra")]),
    ({"x": {"y.z": 1}}, {"x": {"y.z": 2}}, [('$.x["y.z"]', "value")]),
    ([], {}, [("$", "type")]),
    ({"b": 1, "a": 2}, {"a": 2, "b": 1}, []),
    ("[1, 2]", "[1,   2]", []),
])  # fmt: skip
def test_json(one: Any, other: Any, expected: list[tuple[str, str]]) -> None:
    found = between(one, other)
    assert seen(found) == expected
    assert found.verdict is (Verdict.DIFF if expected else Verdict.MATCH)


def test_status_and_failures() -> None:
    assert seen(compare(answer(status=200), answer(status=404))) == [("status", "status")]
    assert seen(compare(answer(status=200), answer(status=500))) == [("status", "status")]
    both = compare(answer({}, status=500), answer({}, status=503))
    assert (both.verdict, both.reason) == (Verdict.NOT_COMPARABLE, "both_failed")
    silent = replace(answer(side="new"), trouble="deadline")
    assert compare(answer(), silent).verdict is Verdict.SHADOW_ERROR
    same = rule("status", "status", values=((200, 201),))
    assert compare(answer(status=200), answer(status=201), rules(same)).verdict is Verdict.IGNORED
    assert compare(answer(status=201), answer(status=200), rules(same)).verdict is Verdict.DIFF


@pytest.mark.parametrize(("one", "other", "expected"), [
    ([("date", "a")], [("date", "b"), ("server", "x"), ("x-request-id", "1")], []),
    ([("etag", '"1"')], [("etag", '"2"')], []),
    ([("etag", '"1"')], [], ["headers.etag"]),
    ([("x-total", "1")], [("x-total", "2")], ["headers.x-total"]),
    ([], [("x-new", "1")], ["headers.x-new"]),
    ([("content-type", "text/json;charset=UTF-8")], [("content-type", "text/json; charset=utf-8")], []),
    ([("content-type", "text/html")], [("content-type", "text/plain")], ["headers.content-type"]),
    ([("vary", "Accept, Cookie")], [("vary", "cookie"), ("vary", "accept")], []),
    ([("set-cookie", "sid=1; Path=/; HttpOnly")], [("set-cookie", "sid=2; HttpOnly; path=/")], []),
    ([("set-cookie", "sid=1; Path=/; Secure")], [("set-cookie", "sid=2; Path=/")], ["headers.set-cookie"]),
    ([("x-candidate-id", "1")], [("x-candidate-id", "2")], ["headers.x-candidate-id"]),
    ([("content-length", "5")], [("content-length", "6")], []),
])  # fmt: skip
def test_headers(one: Any, other: Any, expected: list[str]) -> None:
    found = compare(answer(headers=one), answer(headers=other))
    assert [difference.path for difference in found.differences] == expected


def test_header_rules() -> None:
    ours, theirs = answer(headers=[("x-total", "1"), ("date", "a")]), answer(headers=[("x-total", "2")])
    ignoring = compare(ours, theirs, rules(rule("header", "headers.x-total")))
    assert (ignoring.verdict, len(ignoring.ignored)) == (Verdict.IGNORED, 1)
    comparing = compare(ours, theirs, rules(rule("header", "headers.date", policy="compare")))
    assert [found.path for found in comparing.differences] == ["headers.x-total", "headers.date"]


@pytest.mark.parametrize(("kind", "one", "other", "verdict"), [
    (Kind.HTML, "<p class='a b'>Hi  there</p>", '<p class="b a">Hi there\n</p>', Verdict.MATCH),
    (Kind.HTML, "<p>Hi</p>", "<p>Ho</p>", Verdict.DIFF),
    (Kind.FORM, "a=1&b=2", "b=2&a=1", Verdict.MATCH),
    (Kind.FORM, "a=1&a=2", "a=2&a=1", Verdict.DIFF),
    (Kind.TEXT, "one\ntwo", "one\r\ntwo", Verdict.MATCH),
    (Kind.TEXT, "one\ntwo", "one\nthree", Verdict.DIFF),
    (Kind.EVENTS, 'data: {"a": 1}\n\ndata: 2\n\n', 'id: 7\ndata: {"a":1}\n\ndata: 2\n\n', Verdict.MATCH),
    (Kind.EVENTS, "data: 1\n\n", "data: 2\n\n", Verdict.DIFF),
    (Kind.EVENTS, '{"a": 1}\n{"b": 2}\n', '{"a":1}\n{"b":3}\n', Verdict.DIFF),
])  # fmt: skip
def test_other_bodies(kind: Kind, one: str, other: str, verdict: Verdict) -> None:
    assert compare(answer(one, kind=kind), answer(other, kind=kind)).verdict is verdict


def test_files_are_compared_by_what_they_hash_to() -> None:
    one = replace(answer(), body=Body(Kind.BINARY, "", 10, "aa"))
    other = replace(answer(), body=Body(Kind.BINARY, "", 10, "bb"))
    assert compare(one, one).verdict is Verdict.MATCH
    assert seen(compare(one, other)) == [("body", "body")]


def test_what_cannot_be_decoded_is_not_comparable() -> None:
    one = replace(answer(), body=Body(Kind.UNREADABLE, "", 10, "aa", "bad_gzip"))
    found = compare(one, answer({}))
    assert (found.verdict, found.reason) == (Verdict.NOT_COMPARABLE, "bad_gzip")


# Rules.


@pytest.mark.parametrize(("one", "other", "known"), [
    ({"a": {"b": 1}}, {"a": {"b": 2, "c": 3}}, rule("ignore", "$.a")),
    ({"x": [{"at": 1}, {"at": 2}]}, {"x": [{"at": 3}, {"at": 4}]}, rule("ignore", "$.x[*].at")),
    ({"x": {"at": 1}}, {"x": {"at": 3}}, rule("ignore", "$..at")),
    ([3, 1, 2], [1, 2, 3], rule("unordered", "$")),
    ({"a": 1.0}, {"a": 1.001}, rule("tolerance", "$.a", absolute=0.01)),
    ({"a": 1000}, {"a": 1009}, rule("tolerance", "$.a", relative=0.01)),
    ({"a": "2026-11-24T00:00:00Z"}, {"a": "2026-11-24T00:00:01.5Z"}, rule("tolerance", "$.a", seconds=2)),
    ({"a": 1795500000}, {"a": 1795500000900}, rule("tolerance", "$.a", seconds=1)),
    ({"a": "7b0e4b3e-0000-4000-8000-000000000001"}, {"a": "7b0e4b3e-0000-4000-8000-000000000002"},
     rule("same_shape", "$.a")),
    ({"a": "OPEN"}, {"a": "open"}, rule("map_value", "$.a", values=(("OPEN", "open"),))),
    ({"a": "X"}, {"a": "x"}, rule("same", "$.a", same=lambda one, other: one.lower() == other.lower())),
])  # fmt: skip
def test_a_rule_expects_a_difference_and_says_so(one: Any, other: Any, known: Rule) -> None:
    assert between(one, other).verdict is Verdict.DIFF
    found = between(one, other, known)
    assert found.verdict is Verdict.IGNORED
    assert {by for _, by in found.ignored} == {known.id}


def test_elements_are_matched_by_their_key() -> None:
    one = [{"id": 1, "n": "a"}, {"id": 2, "n": "b"}, {"id": 3, "n": "c"}]
    other = [{"id": 3, "n": "c"}, {"id": 1, "n": "x"}, {"id": 4, "n": "d"}]
    found = between(one, other, rule("keyed_by", "$", key="id"))
    assert seen(found) == [
        ('$["[id=1]"].n', "value"), ('$["[id=2]"]', "missing"), ('$["[id=4]"]', "extra"),
    ]  # fmt: skip


def test_unordered_elements_without_what_is_ignored_in_them() -> None:
    one, other = [{"id": 1, "at": 5}, {"id": 2, "at": 6}], [{"id": 2, "at": 7}, {"id": 1, "at": 8}]
    known = (rule("unordered", "$"), rule("ignore", "$[*].at"))
    assert between(one, other, *known).verdict is Verdict.IGNORED
    assert seen(between(one, [*other, {"id": 3}], *known)) == [("$[*]", "extra")]


def test_a_rule_that_raises_does_not_apply_and_is_named() -> None:
    def broken(one: Any, other: Any) -> bool:
        raise KeyError(one)

    bad = rule("same", "$.a", same=broken)
    found = between({"a": 1}, {"a": 2}, bad)
    assert (found.verdict, found.broken_rules) == (Verdict.DIFF, (bad.id,))


def test_rules_of_other_routes_and_of_yesterday_do_not_apply() -> None:
    of_another = Rule("one", RuleKind.IGNORE, "$.a", "why", route="/orders")
    of_yesterday = Rule("two", RuleKind.IGNORE, "$.a", "why", expires_on="2026-11-23")
    of_today = Rule("three", RuleKind.IGNORE, "$.b", "why", expires_on="2026-11-24")
    book = RuleBook((of_another, of_yesterday, of_today), TODAY)
    assert book.expired == [of_yesterday]
    assert compare(answer({"a": 1}), answer({"a": 2}), book.of("/items")).verdict is Verdict.DIFF
    assert compare(answer({"b": 1}), answer({"b": 2}), book.of("/items")).verdict is Verdict.IGNORED


@pytest.mark.parametrize(("document", "words"), [
    ({"kind": "ignroe"}, "expected one of ignore, unordered"),
    ({"kind": "ignore", "path": "items"}, "expected one such as $.items"),
    ({"kind": "ignore", "path": "$.a", "reason": " "}, "expected a reason"),
    ({"kind": "keyed_by", "path": "$.a"}, "keyed_by needs key"),
    ({"kind": "tolerance", "path": "$.a"}, "needs absolute, relative or seconds"),
    ({"kind": "tolerance", "path": "$.a", "absolute": "1"}, "expected a number"),
    ({"kind": "ignore", "path": "$.a", "expires_on": "soon"}, "such as 2027-03-31"),
    ({"kind": "header", "path": "$.a"}, "names headers.NAME"),
    ({"kind": "status", "path": "$.a", "values": [[1, 2]]}, "has the path status"),
    ({"kind": "map_value", "path": "$.a", "values": [1]}, "expected pairs"),
    ({"kind": "ignore", "pth": "$.a"}, "unknown key 'pth'"),
    ({"kind": "ignore", "path": "$.a", "id": "Ü"}, "expected an id"),
])  # fmt: skip
def test_a_rule_that_is_wrong_says_what_would_be_right(document: dict[str, Any], words: str) -> None:
    with pytest.raises(
        InvalidRuleError, match=words.replace("$", r"\$").replace("[", r"\[").replace(".", r"\.")
    ):
        rule_from_json({"id": "one", "path": "$.a", "reason": "why", **document})


def test_rules_are_written_and_read() -> None:
    known = rule("tolerance", "$.a[*]", absolute=0.5, owner="ada", route="/items", expires_on="2027-01-01")
    assert rule_from_json(rule_to_json(known)) == known
    mapped = rule("map_value", "$.a", values=(("a", 1), (None, True)))
    assert rule_from_json(rule_to_json(mapped)) == mapped


# Places.


@pytest.mark.parametrize(("pattern", "place", "covers", "names"), [
    ("$.a", ("$", "a"), True, True),
    ("$.a", ("$", "a", "b"), True, False),
    ("$.date", ("$", "candidate_id"), False, False),
    ("$.a[*].b", ("$", "a", 3, "b"), True, True),
    ("$.a[*].b", ("$", "a", "x", "b"), False, False),
    ("$.a.*.b", ("$", "a", "x", "b"), True, True),
    ("$.a[1]", ("$", "a", 2), False, False),
    ("$..b", ("$", "a", 3, "b", "c"), True, False),
    ("$..b", ("$", "b"), True, True),
    ('$["a.b"]', ("$", "a.b"), True, True),
    ("headers.ETag", ("headers", "etag"), True, True),
    ("status", ("status",), True, True),
    ("$", ("status",), False, False),
])  # fmt: skip
def test_paths(pattern: str, place: Any, covers: bool, names: bool) -> None:
    found = parse(pattern)
    assert (found.covers(place), found.names(place)) == (covers, names)


@pytest.mark.parametrize("text", ["", "a", "$a", "$.", "$.a[", "$.a[x]", "$..", "$.a b", "headers.", '$["a'])
def test_what_is_no_path_is_refused(text: str) -> None:
    with pytest.raises(InvalidPathError, match=r"expected one such as"):
        parse(text)


PLACES = st.lists(st.one_of(st.integers(0, 99), st.text(max_size=5)), max_size=5).map(
    lambda parts: ("$", *parts)
)


@given(PLACES)
def test_a_place_names_itself(place: Any) -> None:
    if "[*]" not in place and ".*" not in place:
        assert parse(spelled(place)).names(place)


def test_statistics_are_kept_by_template() -> None:
    assert template(("$", "items", 3, "price")) == "$.items[*].price"
    assert template(("$", "users", "12345", "mail")) == "$.users.*.mail"
    assert template(("headers", "etag")) == "headers.etag"


# Laws.

LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.floats(-2, 2, allow_nan=False), st.text(max_size=2)
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
    ),
    max_leaves=12,
)
RULES = st.lists(
    st.sampled_from(
        [
            rule("ignore", "$.a"), rule("ignore", "$..b"), rule("unordered", "$.c"), rule("unordered", "$"),
            rule("same_shape", "$.a"), rule("tolerance", "$..a", absolute=1.0), rule("ignore", "$[*]"),
        ]
    ),
    unique_by=lambda one: one.id, max_size=4,
)  # fmt: skip
SIDES = {"missing": "extra", "extra": "missing"}


@given(VALUES, RULES)
def test_nothing_differs_from_itself(value: Any, known: list[Rule]) -> None:
    other = json.dumps(value, indent=3)
    assert between(json.dumps(value), other, *known).verdict is Verdict.MATCH


@given(VALUES, VALUES, RULES)
def test_swapping_the_sides_swaps_the_differences(one: Any, other: Any, known: list[Rule]) -> None:
    one, other = json.dumps(one), json.dumps(other)
    there, back = between(one, other, *known), between(other, one, *known)
    swapped = {(d.path, SIDES.get(d.kind, d.kind), d.new, d.legacy) for d in back.differences}
    assert {(d.path, d.kind, d.legacy, d.new) for d in there.differences} == swapped
    assert there.verdict is back.verdict
    assert between(one, other, *known) == there


@given(
    VALUES, VALUES, RULES, st.sampled_from(["ignore", "same_shape"]), st.sampled_from(["$.a", "$", "$..c"])
)
def test_one_more_rule_never_adds_a_difference(
    one: Any, other: Any, known: list[Rule], kind: str, path: str
) -> None:
    one, other = json.dumps(one), json.dumps(other)
    before = {d.place for d in between(one, other, *known).differences}
    more = Rule("one-more", RuleKind(kind), path, "a test")
    after = {d.place for d in between(one, other, *known, more).differences}
    assert all(any(place[: len(p)] == p or p[: len(place)] == place for p in before) for place in after)


def test_a_comparison_ends() -> None:
    many = [{"n": number} for number in range(20_000)]
    found = between(many, [{"n": -number - 1} for number in range(20_000)])
    assert len(found.differences) == 200
    deep = "[" * 5000 + "]" * 5000
    found = compare(answer(deep), answer(deep + " "))
    assert (found.verdict, found.reason) == (Verdict.NOT_COMPARABLE, "too_deep")
