"""Adapters that are declared: paths, queries, fields, sessions, JSON shapes, errors."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legacy_adapter.declared import Declaration, DeclaredAdapter, ErrorRules, FieldRules, SessionRules
from legacy_adapter.messages import Answer, Request
from legacy_adapter.shape import ShapeRules, read, reshape, write

JSON = (("Content-Type", "application/json"),)


@pytest.mark.parametrize(("path", "becomes"), [
    ("/api/items/7", "/v2/articles/7"), ("/api/items/%2F", "/v2/articles/%2F"),
    ("/api/items/", "/api/items/"), ("/api/items/7/x", "/other/items/7/x"), ("/api/", "/other/"),
    ("/x.y", "/z"), ("/xzy", "/xzy"), ("/", "/"),
    # Spelled otherwise, and the same path to every route and to both backends.
    ("/api/./items/7", "/v2/articles/7"), ("/api/%69tems/7", "/v2/articles/7"), ("/api", "/other"),
    ("/x/../api/items/caf%c3%a9", "/v2/articles/caf%C3%A9"), ("/caf%c3%a9/1", "/coffee/1"),
    ("/caf\xc3\xa9/1", "/coffee/1"),
])  # fmt: skip
def test_the_first_template_that_matches_holds(path: str, becomes: str) -> None:
    adapter = DeclaredAdapter(
        Declaration(
            paths=(
                ("/api/items/{id}", "/v2/articles/{id}"),
                ("/api/items/", "/api/items/"),
                ("/api/**", "/other/**"),
                ("/x.y", "/z"),
                ("/café/{n}", "/coffee/{n}"),
            )
        )
    )
    assert adapter.request(Request("GET", path + "?a=b")).target == becomes + "?a=b"


@pytest.mark.parametrize(("query", "becomes"), [
    ("", "f=1%262"), ("a=1&b=2", "b2=2&f=1%262"), ("b=%20&b=+&%62=3", "b2=%20&b2=+&b2=3&f=1%262"),
    ("f=9&x&y=", "x&y=&f=1%262"), ("&", "&&f=1%262"),
])  # fmt: skip
def test_parameters_are_renamed_left_out_and_set(query: str, becomes: str) -> None:
    rules = FieldRules((("b", "b2"),), ("a",), (("f", "1&2"),))
    adapter = DeclaredAdapter(Declaration(query=rules))
    assert adapter.request(Request("GET", f"/p?{query}" if query else "/p")).query == becomes


def test_fields_are_renamed_left_out_and_set() -> None:
    rules = FieldRules((("X-Old", "X-New"),), ("x-secret",), (("X-Api", "2"),))
    adapter = DeclaredAdapter(Declaration(request_headers=rules, answer_headers=rules))
    fields = (("x-old", "1"), ("X-Secret", "s"), ("x-api", "1"), ("X-Old", "2"), ("Z", "z"))
    expected = (("X-New", "1"), ("X-New", "2"), ("Z", "z"), ("X-Api", "2"))
    assert adapter.request(Request("GET", "/", headers=fields)).headers == expected
    assert adapter.answer(Answer(200, headers=fields), Request("GET", "/")).headers == expected


COOKIES = DeclaredAdapter(Declaration(session=SessionRules("cookie", "sid", "session.token")))
TOKENS = DeclaredAdapter(Declaration(session=SessionRules("bearer", "sid", "session.token", secure=True)))
ASK = Request("POST", "/login")


def test_a_cookie_becomes_a_token_and_a_token_a_cookie_and_back() -> None:
    with_cookie = Request("GET", "/", headers=(("Cookie", "a=b; sid=abc-1"),))
    with_token = Request("GET", "/", headers=(("Cookie", "a=b"), ("Authorization", "Bearer abc-1")))
    assert COOKIES.request(with_cookie) == with_token
    assert TOKENS.request(with_token).cookie("sid") == "abc-1"
    assert TOKENS.request(with_token).header("authorization") is None
    assert COOKIES.request(TOKENS.request(with_token)) == with_token


@pytest.mark.parametrize("headers", [
    (), (("Cookie", "a=b"),), (("Authorization", "Basic dTpw"),), (("Authorization", "Bearer a b"),),
])  # fmt: skip
def test_who_is_not_logged_in_stays_so(headers: tuple[tuple[str, str], ...]) -> None:
    asked = Request("GET", "/", headers=headers)
    assert COOKIES.request(asked) == asked
    assert TOKENS.request(asked) == asked


@pytest.mark.parametrize("cookie", ["sid=", "sid=a b", "sid=a\tb"])
def test_a_cookie_that_is_no_token_is_no_session(cookie: str) -> None:
    assert COOKIES.request(Request("GET", "/", headers=(("Cookie", cookie),))).headers == ()


def test_a_session_that_begins_is_told_in_the_client_s_way() -> None:
    told = Answer(201, headers=JSON, body=b'{"session":{"token":"abc","n":1.0}}')
    set_ = COOKIES.answer(told, ASK)
    assert set_.headers[-1] == ("Set-Cookie", "sid=abc; Path=/; HttpOnly; SameSite=Lax")
    assert set_.body == told.body
    assert COOKIES.answer(set_, ASK) == set_, "who sets it already is not helped"
    answered = Answer(201, headers=(*JSON, ("Set-Cookie", "sid=abc; Path=/")), body=b'{"n":1.0}')
    spoken = TOKENS.answer(answered, ASK)
    assert spoken.headers == JSON
    assert spoken.body == b'{"n":1.0,"session":{"token":"abc"}}'
    failed = Answer(401, headers=JSON, body=b'{"session":{"token":"abc"}}')
    assert COOKIES.answer(failed, ASK) == failed


SHAPE = ShapeRules(
    rename=(("items.*.login", "items.*.author.name"), ("total", "meta.total"), ("gone", "here")),
    remove=("debug", "items.*.trace.id"),
    convert=(("items.*.price", "number"), ("meta.total", "text"), ("items.*.open", "boolean")),
    set=(("meta.version", 2),),
)


def test_json_is_reshaped_and_every_digit_kept() -> None:
    body = b"""{"items": [{"login": "a", "price": "12.50", "trace": {"id": 1, "at": 2}, "open": "1"},
        {"login": null, "price": null, "open": false}, 7], "total": 12345678901234567890.10, "debug": [1],
        "big": 0.1000000000000000055511151231257827, "e": 1E+2}"""
    assert reshape(body, SHAPE).decode() == (
        '{"items":[{"price":12.50,"trace":{"at":2},"open":true,"author":{"name":"a"}},'
        '{"price":null,"open":false,"author":{"name":null}},7],'
        '"big":0.1000000000000000055511151231257827,"e":1E+2,'
        '"meta":{"total":"12345678901234567890.10","version":2}}'
    )


@pytest.mark.parametrize("body", [b"{", b"\xff", b"", b"{}x", b'{"items": [{"price": "many"}]}'])
def test_what_cannot_be_reshaped_is_said_and_not_guessed(body: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        reshape(body, SHAPE)


@pytest.mark.parametrize(("body", "rename"), [
    (b'{"a":1,"b":"text"}', ("a", "b.c")), (b'{"a":1,"b":null}', ("a", "b.c")),
    (b'{"a":1,"b":[]}', ("a", "b.c")),
    (b'{"l":[{"a":1},{"a":2}],"m":[{}]}', ("l.*.a", "m.*.a")), (b'[{"a":1}]', ("*.a", "b.*.a")),
])  # fmt: skip
def test_what_has_no_new_place_is_not_lost(body: bytes, rename: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="no object to put it into"):
        reshape(body, ShapeRules(rename=(rename,)))


def test_a_token_that_has_no_place_is_not_lost() -> None:
    answer = Answer(200, headers=(*JSON, ("Set-Cookie", "sid=abc")), body=b"[]")
    with pytest.raises(ValueError, match="no object to put it into"):
        TOKENS.answer(answer, ASK)


def test_a_body_that_is_no_json_passes() -> None:
    adapter = DeclaredAdapter(Declaration(request_json=SHAPE, answer_json=SHAPE))
    page = Answer(200, headers=(("Content-Type", "text/html"),), body=b"{not json}")
    assert adapter.answer(page, ASK) == page


def test_errors_have_rules_of_their_own() -> None:
    adapter = DeclaredAdapter(
        Declaration(
            answer_json=ShapeRules(remove=("error",)),
            errors=ErrorRules(
                ShapeRules((("code", "error.code"), ("detail", "error.message"))), ((422, 400),)
            ),
        )
    )
    refused = Answer(422, headers=JSON, body=b'{"code":"bad","detail":"no"}')
    answer = adapter.answer(refused, ASK)
    assert (answer.status, answer.body) == (400, b'{"error":{"code":"bad","message":"no"}}')
    assert adapter.answer(Answer(404, body=b"no"), ASK) == Answer(404, body=b"no")
    fine = Answer(200, headers=JSON, body=b'{"error":1,"a":2}')
    assert adapter.answer(fine, ASK).body == b'{"a":2}'


PLAIN = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
VALUES = st.recursive(PLAIN, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


@given(VALUES)
def test_what_no_rule_names_means_the_same(value: object) -> None:
    body = json.dumps(value).encode()
    assert json.loads(write(read(body))) == value
    assert json.loads(reshape(body, ShapeRules(remove=("\x00none",)))) == value
