"""Nanoseconds of the pure functions that every request passes: `python -m bench.hotpath`.

Parse the head, decide, build the head that goes on (as `proxy/pipeline.py` does for an ordinary request),
parse the answer's head, which goes back as it came. Best of several repetitions: what the code costs, not
what the machine was doing.
"""

from __future__ import annotations

import timeit
from collections.abc import Callable

from bench.table import table
from bench.traffic import HOST, SMALL_ANSWER, requests
from core.http import RequestHead, ResponseHead
from flags.decide import decide
from flags.model import Route, Side
from flags.snapshot import Snapshot, compile_snapshot
from proxy.config import Forwarding
from proxy.forwarding import Peer
from proxy.head import parse_request, parse_response, without
from tests.support.facts import KnownFacts

ROUTES = (
    Route("items.read", "/api/items/{id}", frozenset({"GET", "HEAD"}), side=Side.NEW),
    Route("items.write", "/api/items/**", frozenset({"POST", "PUT", "PATCH", "DELETE"})),
    Route("comments.read", "/api/posts/{id}/comments", frozenset({"GET", "HEAD"}), side=Side.NEW),
    Route("accounts.read", "/api/accounts/**", frozenset({"GET", "HEAD"}), side=Side.NEW),
    Route("transfers", "/api/wallets/{id}/transfers", frozenset({"POST"})),
    Route("back-office", "/**", host="office.shop.example"),
)
FACTS = KnownFacts()
REPEAT, NUMBER = 7, 20_000


def main() -> None:
    browser, *_ = requests("small")
    post, *_ = requests("post")
    short = f"GET /api/items/1 HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()
    forwarded = browser.replace(b"\r\n\r\n", b"\r\nX-Forwarded-For: 198.51.100.7\r\n\r\n")
    snapshot = compile_snapshot(ROUTES, 1)
    peer = Peer(Forwarding(), "127.0.0.1", tls=False)
    head, brought = _request(browser), _request(forwarded)
    nowhere = _request(browser.replace(b"/api/items/100", b"/catalogue/100?sort=price"))
    rows = [
        _row("parse request, browser's", lambda: _request(browser)),
        _row("parse request, Host only", lambda: _request(short)),
        _row("parse request, POST", lambda: _request(post)),
        _row("decide, first route", lambda: decide(snapshot, head, FACTS)),
        _row("decide, no route", lambda: decide(snapshot, nowhere, FACTS)),
        _row("build request head", lambda: _outgoing(head, peer)),
        _row("build request head, X-Forwarded-For brought", lambda: _outgoing(brought, peer)),
        _row("parse answer", _answer),
        _row("all of one exchange", lambda: _exchange(browser, snapshot, peer)),
    ]
    print(table(["", "ns"], rows))


def _row(what: str, act: Callable[[], object]) -> list[str]:
    best = min(timeit.repeat(act, number=NUMBER, repeat=REPEAT)) / NUMBER
    return [what, f"{best * 1e9:,.0f}"]


def _request(data: bytes) -> RequestHead:
    head = parse_request(data, max_head=32_768, max_target=16_384, max_fields=200)
    assert isinstance(head, RequestHead), head
    return head


def _answer() -> ResponseHead:
    head = parse_response(SMALL_ANSWER, max_head=32_768)
    assert isinstance(head, ResponseHead), head
    return head


def _outgoing(head: RequestHead, peer: Peer) -> bytes:
    raw, cuts = head.raw, head.cuts
    if head.forwarded is None:
        own = peer.own_fields
    else:
        spans, own = peer.rewrite(head)
        if spans:
            cuts = sorted([*(cuts or ()), *spans])
    return (raw[:-2] if cuts is None else without(raw, cuts, len(raw) - 2)) + own + b"\r\n"


def _exchange(data: bytes, snapshot: Snapshot, peer: Peer) -> bytes:
    head = _request(data)
    decide(snapshot, head, FACTS)
    _outgoing(head, peer)
    return _answer().raw


if __name__ == "__main__":
    main()
