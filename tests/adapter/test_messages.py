"""Messages in the hands of adapters: changed copies, in which nothing else changes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from core.http import RequestHead, ResponseHead
from legacy_adapter.messages import Answer, Request
from proxy.adapted import answer_of, outgoing_answer, outgoing_request, request_of
from proxy.config import Limits
from proxy.head import parse_request, parse_response
from tests.support.world import get, plain

ASKED = Request(
    "GET", "/a?b=c&d",
    headers=(("Host", "x"), ("Cookie", "a=1; b=2"), ("X-A", "1"), ("cookie", "c=3"), ("x-a", "2")),
)  # fmt: skip


def test_fields_are_found_in_any_case_and_changed_in_their_place() -> None:
    assert ASKED.header("x-A") == "1"
    assert ASKED.header_values("X-a") == ["1", "2"]
    assert ASKED.header("x-b") is None
    assert [name for name, _ in ASKED.with_header("X-a", "3").headers] == ["Host", "Cookie", "X-a", "cookie"]
    assert ASKED.with_header("X-B", "3").headers[-1] == ("X-B", "3")
    assert ASKED.without_header("X-A").header("x-a") is None


def test_cookies_of_all_fields_are_one_list() -> None:
    assert [ASKED.cookie(name) for name in "abcd"] == ["1", "2", "3", None]
    assert ASKED.without_cookie("d") is ASKED
    assert ASKED.without_cookie("b").header_values("cookie") == ["a=1; c=3"]
    assert ASKED.with_cookie("a", "9").header_values("cookie") == ["b=2; c=3; a=9"]
    assert Request("GET", "/", headers=(("Cookie", "a=1"),)).without_cookie("a").headers == ()
    assert Request("GET", "/").with_cookie("a", "1").headers == (("Cookie", "a=1"),)


def test_path_and_query_change_apart() -> None:
    assert (ASKED.path, ASKED.query) == ("/a", "b=c&d")
    assert ASKED.with_path("/z").target == "/z?b=c&d"
    assert ASKED.with_query("").target == "/a"
    assert ASKED.with_query("q=1").target == "/a?q=1"


def test_json_is_what_says_that_it_is() -> None:
    body = Answer(200).with_json({"é": [1]})
    assert body.body == '{"é":[1]}'.encode()
    assert body.is_json
    assert body.header("content-type") == "application/json"
    problem = Answer(400, headers=(("Content-Type", "application/problem+json; charset=utf-8"),))
    assert not problem.is_json, "there is no body"
    assert problem.with_json({}).header("content-type") == "application/problem+json; charset=utf-8"


def test_cookies_that_are_set() -> None:
    answer = Answer(200, headers=(("Set-Cookie", "sid=a=b; Path=/"), ("set-cookie", " x=y"), ("A", "sid=c")))
    assert answer.set_cookie("sid") == "a=b"
    assert answer.set_cookie("x") == "y"
    assert answer.set_cookie("Path") is None
    assert answer.without_set_cookie("sid").headers == (("set-cookie", " x=y"), ("A", "sid=c"))


NAMES = st.text("abcXYZ-", min_size=1, max_size=8).map(lambda name: "Q-" + name)
VALUES = st.text(
    st.characters(min_codepoint=0x21, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=12
)
FIELDS = st.lists(st.tuples(NAMES, VALUES.filter(lambda v: v == v.strip(" \t")))).map(tuple)


def raw(start: bytes, fields: tuple[tuple[str, str], ...]) -> bytes:
    lines = [start, *(f"{name}: {value}".encode("latin-1") for name, value in fields), b"", b""]
    return b"\r\n".join(lines)


@given(fields=FIELDS, body=st.binary(max_size=20))
def test_what_no_adapter_changes_goes_out_as_it_came(
    fields: tuple[tuple[str, str], ...], body: bytes
) -> None:
    came = parse_request(
        raw(b"POST /a%%20?b HTTP/1.1\r\nHost: x\r\nContent-Length: %d" % len(body), fields),
        max_head=9999, max_target=9999, max_fields=999,
    )  # fmt: skip
    assert isinstance(came, RequestHead)
    asked = request_of(came, body)
    assert asked == Request("POST", "/a%20?b", headers=(("Host", "x"), *fields), body=body)
    head, sent = outgoing_request(asked, came, b"y", Limits())
    assert sent == body
    again = request_of(head, sent)
    assert again == asked
    answered = parse_response(raw(b"HTTP/1.1 200 So it is", fields), max_head=9999)
    assert isinstance(answered, ResponseHead)
    answer = answer_of(answered, body)
    assert answer == Answer(200, headers=fields, body=body)
    whole = outgoing_answer(answer, answered, came, Limits())
    assert whole.startswith(b"HTTP/1.1 200 So it is\r\n")
    assert whole.endswith(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))


def test_what_belongs_to_one_connection_is_not_shown() -> None:
    came = parse_request(
        get(
            b"/",
            b"Connection: close, X-Hop\r\nX-Hop: 1\r\nTE: trailers\r\nExpect: 100-continue\r\nX-End: 2\r\n",
        ),
        max_head=9999, max_target=9999, max_fields=99,
    )  # fmt: skip
    assert isinstance(came, RequestHead)
    assert request_of(came, b"").headers == (("Host", "a.test"), ("X-End", "2"))
    head = parse_response(plain(b"", more=b"Keep-Alive: timeout=5\r\nX-End: 2\r\n"), max_head=9999)
    assert isinstance(head, ResponseHead)
    assert answer_of(head, b"").headers == (("X-End", "2"),)
