"""What of a kept request can be asked again."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.http import RequestHead
from proxy.head import parse_request
from shadow.again import CannotAskError, request_again
from shadow.exhibit import Asked, Body, Fields, Kind

ASKED = Asked(
    "GET", "/items/7?full=1",
    (
        ("host", "shop.test"), ("accept", "application/json"),
        ("cookie", "sid=<secret:value:0011223344556677>"),
        ("connection", "keep-alive"), ("x-forwarded-for", "192.0.2.7"), ("x-crossfade-mirror", "new"),
        ("accept", "text/html"),
    ),
    Body(Kind.NONE),
)  # fmt: skip


def test_it_is_asked_as_it_was_but_for_its_secrets_and_its_way() -> None:
    request, left_out = request_again(ASKED, ())
    assert request == (
        "GET /items/7?full=1 HTTP/1.1\r\nhost: shop.test\r\naccept: application/json\r\n"
        "accept: text/html\r\n\r\n"
    )
    assert left_out == ("cookie",)


def test_what_was_secret_may_be_given() -> None:
    request, left_out = request_again(ASKED, (("Cookie", "sid=mine"), ("Accept", "text/plain")))
    assert request.endswith("host: shop.test\r\nCookie: sid=mine\r\nAccept: text/plain\r\n\r\n")
    assert left_out == ()


@pytest.mark.parametrize(("asked", "more", "why"), [
    (replace(ASKED, target="/reset?token=<secret:value:0011223344556677>"), (), "its target had a secret"),
    (replace(ASKED, body=Body(Kind.JSON, "{}", 2)), (), "it had a body"),
    (ASKED, (("X-A", "1\r\nX-B: 2"),), "no field"),
    (ASKED, (("X A", "1"),), "no field"),
    (ASKED, (("", "1"),), "no field"),
    (ASKED, (("X-A", "5 \u20ac"),), "no field"),
    (ASKED, (("X-Forwarded-For", "10.0.0.1"),), "belongs to the way"),
    (ASKED, (("Content-Length", "5"),), "belongs to the way"),
    (ASKED, (("X-\u00e4", "1"),), "no field"),
])  # fmt: skip
def test_what_cannot_be_asked_says_why(asked: Asked, more: Fields, why: str) -> None:
    with pytest.raises(CannotAskError, match=why):
        request_again(asked, more)


@given(
    st.lists(
        st.tuples(st.sampled_from(["accept", "x-a", "cookie"]), st.text("ab <>:;=,", max_size=9)), max_size=5
    )
)
def test_whatever_was_kept_becomes_one_request(fields: list[tuple[str, str]]) -> None:
    kept = tuple((name, value.strip()) for name, value in fields)
    request, _ = request_again(replace(ASKED, headers=(("host", "shop.test"), *kept)), ())
    head = parse_request(request.encode(), max_head=9999, max_target=999, max_fields=99)
    assert isinstance(head, RequestHead)
    assert head.size == len(request)
