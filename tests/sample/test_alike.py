"""The same requests to both backends with the same data: the answers are equal to the byte.

What may differ is named here and nowhere else: tokens, the time of a write, `Date` and `Server`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.sample.backends import PASSWORD, SAMPLE, Backend

Twins = tuple[Backend, Backend]

MAY_DIFFER = {"date", "server", "connection"}
PEOPLE = [account["username"] for account in SAMPLE["accounts"] if not account.get("deleted")]


def answers(twins: Twins, who: str, method: str, path: str, **more: Any) -> list[tuple[Any, ...]]:
    return [
        parts((twin.person(who) if who else twin.anybody()).request(method, path, **more)) for twin in twins
    ]


def parts(response: httpx.Response) -> tuple[Any, ...]:
    headers = sorted((k, v) for k, v in response.headers.multi_items() if k not in MAY_DIFFER)
    return response.status_code, headers, response.content


def reads() -> Iterator[tuple[str, str]]:
    for post in SAMPLE["posts"]:
        yield "", f"/api/posts/{post['id']}"
        yield "", f"/api/posts/{post['id']}/comments"
    for account in SAMPLE["accounts"]:
        yield "", f"/api/accounts/{account['id']}"
        yield "", f"/api/posts?author={account['id']}"
    for tag in sorted({tag for post in SAMPLE["posts"] for tag in post["tags"]}):
        yield "", f"/api/posts?tag={tag}&limit=3"
    for person in PEOPLE:
        for path in ("/api/me", "/api/wallet", "/api/transfers", "/api/transfers?limit=2&cursor=MTI"):
            yield person, path
        yield person, "/api/accounts?limit=3"
    for query in ("", "?limit=100", "?limit=1&cursor=MTQ", "?limit=0", "?cursor=no", "?tag=%C3%A9&author=x"):
        yield "", f"/api/posts{query}"
    for path in ("/api/me", "/api/none", "/api/posts/0", "/healthz"):
        yield "", path


def test_every_read_is_answered_alike(twins: Twins) -> None:
    compared = 0
    for who, path in reads():
        for method in ("GET", "HEAD"):
            legacy, new = answers(twins, who, method, path)
            assert legacy == new, f"{method} {path} as {who or 'nobody'}"
            compared += 1
    assert compared > 250


@pytest.mark.parametrize("method", ["PUT", "DELETE", "TRACE", "OPTIONS", "PATCH"])
def test_other_methods_are_refused_alike(twins: Twins, method: str) -> None:
    for path in ("/api/posts", "/api/accounts/1", "/api/wallet", "/nowhere"):
        legacy, new = answers(twins, "", method, path)
        assert legacy == new


def test_a_day_of_writing_is_answered_alike(twins: Twins) -> None:
    """One person after the other, in the same order on both, refusals included."""
    kind = {"Content-Type": "application/json"}
    key = {"Idempotency-Key": "one-day"}
    account = {"username": "newcomer", "password": "long enough", "display_name": "New\u2028Comer \u0007"}
    odd = {"title": '"\\/\b\f\n\r\t\x7f\u2028', "body": "é🙂"}
    day: list[tuple[str, str, str, dict[str, Any]]] = [
        ("", "POST", "/api/accounts", {"json": account}),
        ("", "POST", "/api/accounts", {"json": account}),
        ("", "POST", "/api/accounts", {"json": account | {"username": "two", "email": "x"}}),
        ("", "POST", "/api/session", {"json": {"username": "newcomer", "password": "long enough"}}),
        ("", "POST", "/api/session", {"json": {"username": "newcomer", "password": "wrong"}}),
        ("bea", "POST", "/api/posts", {"json": odd | {"tags": ["z", "a"]}}),
        ("bea", "POST", "/api/posts", {"json": {"title": "", "tags": 1, "other": None}}),
        ("bea", "POST", "/api/posts", {"content": b"{", "headers": kind}),
        ("bea", "POST", "/api/posts", {"content": b"a=b"}),
        ("bea", "PATCH", "/api/posts/31", {"json": {"title": "changed"}}),
        ("chen", "PATCH", "/api/posts/31", {"json": {"title": "changed"}}),
        ("chen", "POST", "/api/posts/31/comments", {"json": {"body": "Well."}}),
        ("", "GET", "/api/posts/31/comments", {}),
        ("chen", "DELETE", "/api/posts/31", {}),
        ("gus", "PATCH", "/api/me", {"json": {"display_name": "Gustav", "email": "gus@example.org"}}),
        ("gus", "PATCH", "/api/me", {"json": {"email": None, "bio": "x"}}),
        ("", "GET", "/api/posts?limit=100", {}),
        ("hana", "POST", "/api/transfers", {"json": {"to_account_id": 3, "amount_cents": 5}, "headers": key}),
        ("hana", "POST", "/api/transfers", {"json": {"to_account_id": 3, "amount_cents": 5}, "headers": key}),
        ("hana", "POST", "/api/transfers", {"json": {"to_account_id": 3, "amount_cents": 6}, "headers": key}),
        ("dara", "POST", "/api/transfers", {"json": {"to_account_id": 3, "amount_cents": 10**9}}),
        ("dara", "POST", "/api/transfers", {"json": {"to_account_id": 10, "amount_cents": 1}}),
        ("hana", "GET", "/api/transfers?limit=2", {}),
        ("hana", "GET", "/api/wallet", {}),
        ("moritz", "DELETE", "/api/posts/31", {}),
        ("", "GET", "/api/posts/31", {}),
        ("ada", "GET", "/api/accounts?limit=50", {}),
        ("emil", "DELETE", "/api/session", {}),
        ("emil", "GET", "/api/me", {}),
    ]  # fmt: skip
    for who, method, path, more in day:
        legacy, new = (masked(each) for each in answers(twins, who, method, path, **more))
        assert legacy == new, f"{method} {path} as {who or 'nobody'}"


def test_a_login_is_answered_alike(twins: Twins) -> None:
    opened = {"username": "fatou", "password": PASSWORD}
    legacy, new = (masked(each) for each in answers(twins, "", "POST", "/api/session", json=opened))
    assert legacy == new


def masked(answer: tuple[Any, ...]) -> tuple[Any, ...]:
    """The answer without what a write makes differ: times and tokens."""
    status, headers, content = answer
    content = re.sub(rb'"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"', b'"TIME"', content)
    content = re.sub(rb'"token":"[\w-]{43}"', b'"token":"TOKEN"', content)
    return status, [(name, re.sub(r"sid=[\w-]{43}", "sid=TOKEN", value)) for name, value in headers], content
