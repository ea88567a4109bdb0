"""What the clients ask and what the backend answers, byte for byte.

The load generator and the backend share this file, so that neither has to compute anything while it
is measured. The requests are what a browser application sends (nine fields, a cookie, a query here
and there), cycling over targets of both backends; the answers are constant.
"""

from __future__ import annotations

import json
from typing import Literal

Kind = Literal["small", "large", "post", "parts"]

KINDS: dict[Kind, str] = {
    "small": "GET, 350-byte JSON",
    "large": "GET, 2,000-byte JSON",
    "post": "POST of 1 KiB, 350-byte JSON",
    "parts": "GET over many routes, 350-byte JSON",
}

HOST = "shop.example"


def _json_of(size: int) -> bytes:
    item = {
        "id": 4711,
        "title": "Blue kettle, 1.7 l",
        "price": {"cents": 4900, "currency": "EUR"},
        "tags": ["kitchen", "new"],
    }
    head = json.dumps({"item": item, "next": None, "text": ""}).encode()[:-2]
    return head + b"x" * (size - len(head) - 2) + b'"}'


def _answer(size: int) -> bytes:
    body = _json_of(size)
    return (
        b"HTTP/1.1 200 OK\r\n"
        b"Server: backend\r\n"
        b"Date: Mon, 23 Nov 2026 06:00:00 GMT\r\n"
        b"Content-Type: application/json; charset=utf-8\r\n"
        b"Cache-Control: private, max-age=0\r\n"
        b'ETag: "5f2b-61c3a7"\r\n'
        b"Content-Length: %d\r\n\r\n" % len(body)
    ) + body


SMALL_ANSWER = _answer(350)
LARGE_ANSWER = _answer(2000)
LARGE_MARK = b"/comments"
"""A target with this in it gets the large answer."""

_POST_BODY = _json_of(1024)


def _request(method: str, target: str, body: bytes = b"") -> bytes:
    length = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n" if body else ""
    return (
        f"{method} {target} HTTP/1.1\r\n"
        f"Host: {HOST}\r\n"
        "Connection: keep-alive\r\n"
        "User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) "
        "Chrome/142.0.0.0 Safari/537.36\r\n"
        "Accept: application/json, text/plain, */*\r\n"
        "Accept-Encoding: gzip, deflate, br\r\n"
        "Accept-Language: en-GB,en;q=0.9,de;q=0.7\r\n"
        "Cache-Control: no-cache\r\n"
        f"Referer: https://{HOST}/catalogue?page=3\r\n"
        "Cookie: session=8c1f0f6be2a94d0fb3b6a2c1; theme=dark; consent=1\r\n"
        f"{length}\r\n"
    ).encode() + body


def requests(kind: Kind) -> list[bytes]:
    """Sixteen requests to cycle through: of the small ones half go to new, half to legacy."""
    numbers = range(100, 116)
    if kind == "large":
        return [_request("GET", f"/api/posts/{n}/comments") for n in numbers]
    if kind == "post":
        return [_request("POST", f"/api/wallets/{n}/transfers", _POST_BODY) for n in numbers]
    if kind == "parts":
        # Evenly over the list of 200 routes, which some proxies try from its first to its last.
        return [_request("GET", f"/api/part{6 + (n - 100) * 25 // 2}/{n}") for n in numbers]
    targets = (
        "/api/items/{}",
        "/catalogue/{}?sort=price",
        "/api/accounts/{}/posts?page=2",
        "/static/icons/{}.json",
    )
    return [_request("GET", targets[n % 4].format(n)) for n in numbers]
