"""One snapshot decides; the same request gets the same decision, and its reason with it."""

from __future__ import annotations

from core.http import RequestHead
from flags.decide import decide as decide_by
from flags.model import Decision, Reason, Route, Side
from flags.snapshot import Snapshot, compile_snapshot
from proxy.head import parse_request
from tests.support.facts import KnownFacts


def request(line: bytes, host: bytes = b"a.test") -> RequestHead:
    head = parse_request(
        line + b" HTTP/1.1\r\nHost: " + host + b"\r\n\r\n", max_head=9999, max_target=9999, max_fields=99
    )
    assert isinstance(head, RequestHead)
    return head


def decide(snapshot: Snapshot, head: RequestHead) -> Decision:
    return decide_by(snapshot, head, KnownFacts())


ROUTES = [
    Route("items.read", "/items/{id}", frozenset({"GET", "HEAD"}), side=Side.NEW),
    Route("items.write", "/items/**", side=Side.LEGACY),
    Route("admin", "/**", host="admin.test", side=Side.NEW),
]


def test_the_first_matching_route_decides() -> None:
    snapshot = compile_snapshot(ROUTES, 7)
    assert decide(snapshot, request(b"GET /items/1?x=/y")) == Decision(
        Side.NEW, Reason.ROUTE, "items.read", 7
    )
    assert decide(snapshot, request(b"PUT /items/1")) == Decision(Side.LEGACY, Reason.ROUTE, "items.write", 7)
    assert decide(snapshot, request(b"GET /x", b"ADMIN.test:80")).flag == "admin"
    assert decide(snapshot, request(b"GET http://admin.test/x", b"admin.test")).flag == "admin"


def test_what_nobody_claims_goes_to_legacy() -> None:
    snapshot = compile_snapshot(ROUTES, 7)
    assert decide(snapshot, request(b"GET /x")) == Decision(Side.LEGACY, Reason.NO_ROUTE, "-", 7)
    assert decide(snapshot, request(b"OPTIONS *")).reason is Reason.NO_ROUTE
    assert decide(compile_snapshot([], 8), request(b"GET /items/1")).version == 8


def test_decisions_of_one_snapshot_are_the_same_objects() -> None:
    snapshot = compile_snapshot(ROUTES, 7)
    assert decide(snapshot, request(b"GET /items/1")) is decide(snapshot, request(b"HEAD /items/2"))
