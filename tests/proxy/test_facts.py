"""What a decision learns of a request: who the client is, its token, and an identity for who has none."""

from __future__ import annotations

import base64
import json
import re
import ssl
import time
from ipaddress import ip_network
from pathlib import Path

import pytest
import trustme

from core.http import RequestHead
from flags.bucket import bucket
from proxy.config import Forwarding, ListenTls
from proxy.forwarding import Peer
from proxy.head import parse_request
from proxy.recent import EVERY, MINUTES, MOST_BUCKETS, Recent
from tests.differential.wire import named
from tests.proxy.flags import ROUTES, one_flag
from tests.support.world import Wire, World, echo, get, plain

REQUESTS = "crossfade_requests_total"


def head(more: bytes = b"") -> RequestHead:
    parsed = parse_request(get(b"/", more), max_head=9999, max_target=9999, max_fields=99)
    assert isinstance(parsed, RequestHead)
    return parsed


TRUSTED = Forwarding(trusted=(ip_network("10.0.0.0/8"),))


@pytest.mark.parametrize(("peer", "sent", "client"), [
    ("192.0.2.9", b"", "192.0.2.9"),
    ("192.0.2.9", b"X-Forwarded-For: 198.51.100.1\r\n", "192.0.2.9"),
    ("10.0.0.1", b"", "10.0.0.1"),
    ("10.0.0.1", b"X-Forwarded-For: 198.51.100.1\r\n", "198.51.100.1"),
    ("10.0.0.1", b"X-Forwarded-For: 203.0.113.7, 198.51.100.1\r\n", "198.51.100.1"),
    ("10.0.0.1", b"X-Forwarded-For: 203.0.113.7, 198.51.100.1, 10.2.3.4\r\n", "198.51.100.1"),
    ("10.0.0.1", b"X-Forwarded-For: 203.0.113.7\r\nX-Forwarded-For: 198.51.100.1\r\n", "198.51.100.1"),
    ("10.0.0.1", b"X-Forwarded-For: 2001:db8::1\r\n", "2001:db8::1"),
    ("10.0.0.1", b"X-Forwarded-For: \xe9, 10.2.3.4\r\n", "10.2.3.4"),
    ("10.0.0.1", b"X-Forwarded-For: unknown\r\n", "10.0.0.1"),
])  # fmt: skip
def test_the_client_is_whom_trusted_peers_name(peer: str, sent: bytes, client: str) -> None:
    assert Peer(TRUSTED, peer, tls=False).client_address(head(sent)) == client


async def cookie_of(world: World, wire: Wire, more: bytes = b"") -> str | None:
    """The identity that the answer to one request sets."""
    wire.send(get(b"/", more))
    answer = await wire.answer()
    values = [v for v in named(answer.fields, b"set-cookie") if v.startswith(b"who=")]
    assert len(values) <= 1
    return values[0].decode() if values else None


async def test_who_has_no_key_gets_an_identity_and_keeps_its_side() -> None:
    flags = one_flag(500_000, cookie="who")
    async with World.of(ROUTES, flags=flags, legacy=echo, new=echo) as world:
        sides = set()
        for _ in range(12):
            client = await world.client()
            before = {side: world.count(REQUESTS, side=side) for side in ("legacy", "new")}
            given = await cookie_of(world, client)
            assert given is not None
            found = re.fullmatch(r"who=([\w-]{22}); Path=/; Max-Age=(\d+); HttpOnly; SameSite=Lax", given)
            assert found, given
            assert int(found[2]) >= 86400 * 365
            expected = "new" if bucket("salt", found[1]) < 500_000 else "legacy"
            sides.add(expected)
            assert world.count(REQUESTS, side=expected) == before[expected] + 1
            again = await cookie_of(world, client, f"Cookie: who={found[1]}\r\n".encode())
            assert again is None
            assert world.count(REQUESTS, side=expected) == before[expected] + 2
        assert sides == {"legacy", "new"}


async def test_who_has_a_key_gets_no_identity() -> None:
    async with World.of(ROUTES, flags=one_flag(1, cookie="who"), legacy=echo) as world:
        assert await cookie_of(world, await world.client(), b"X-User: ada\r\n") is None


async def test_a_settled_flag_gives_nobody_an_identity() -> None:
    async with World.of(ROUTES, flags=one_flag(0, cookie="who"), legacy=echo) as world:
        assert await cookie_of(world, await world.client()) is None


@pytest.mark.parametrize("framing", [
    b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", b"Content-Length: 2\r\n\r\nok",
    b"Content-Length: 2\r\nSet-Cookie: a=b\r\n\r\nok",
])  # fmt: skip
async def test_the_identity_comes_with_an_answer_of_any_form(framing: bytes) -> None:
    async with World.of(ROUTES, flags=one_flag(1, cookie="who")) as world:
        client = await world.client()
        client.send(get())
        target = await world.legacy.connection()
        await target.request()
        target.send(b"HTTP/1.1 200 OK\r\n" + framing)
        answer = await client.answer()
        assert answer.body.data == b"ok"
        cookies = named(answer.fields, b"set-cookie")
        assert sum(cookie.startswith(b"who=") for cookie in cookies) == 1
        assert len(cookies) == 1 + framing.count(b"Set-Cookie")


async def test_an_answer_of_our_own_sets_the_identity_too() -> None:
    async with World.of(ROUTES, flags=one_flag(1, cookie="who")) as world:
        await world.legacy.stop()
        client = await world.client()
        assert await cookie_of(world, client) is not None


@pytest.mark.parametrize(("fields", "given"), [
    (b"Cache-Control: public, max-age=60\r\n", False),
    (b"Cache-Control: max-age=1, S-MaxAge=60\r\n", False),
    (b"Cache-Control: max-age=60\r\n", False),
    (b"Cache-Control: no-cache\r\nETag: \"1\"\r\n", False),
    (b"Cache-Control: private=\"X-A\"\r\nCache-Control: max-age=60\r\n", False),
    (b"Expires: Thu, 01 Jan 2099 00:00:00 GMT\r\n", False),
    (b"Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n", False),
    (b"Cache-Control: Private, max-age=60\r\n", True),
    (b"Cache-Control: max-age=60\r\nCache-Control: no-store\r\n", True),
    (b"ETag: \"1\"\r\n", True),
])  # fmt: skip
async def test_an_answer_that_caches_share_sets_none(fields: bytes, given: bool) -> None:
    async with World.of(ROUTES, flags=one_flag(1, cookie="who")) as world:
        client = await world.client()
        client.send(get())
        target = await world.legacy.connection()
        await target.request()
        target.send(plain(b"ok", more=fields))
        assert bool(named((await client.answer()).fields, b"set-cookie")) is given


async def test_the_identity_is_secure_when_the_client_came_by_tls(tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("a.test")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    issued.private_key_and_cert_chain_pem.write_to_path(str(cert))
    key.write_bytes(issued.private_key_pem.bytes())
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    listen = ListenTls(str(cert), str(key))
    async with World.of(ROUTES, flags=one_flag(1, cookie="who"), legacy=echo, listen_tls=listen) as world:
        given = await cookie_of(world, await world.client(tls=trust))
        assert given is not None
        assert given.endswith("; Secure")


@pytest.mark.parametrize(("trusted", "secure"), [(True, True), (False, False)])
async def test_a_trusted_peer_says_whether_the_client_came_by_tls(trusted: bool, secure: bool) -> None:
    believed = Forwarding(trusted=(ip_network("127.0.0.0/8"),) if trusted else ())
    async with World.of(ROUTES, flags=one_flag(1, cookie="who"), legacy=echo, forwarding=believed) as world:
        given = await cookie_of(world, await world.client(), b"X-Forwarded-Proto: https\r\n")
        assert given is not None
        assert given.endswith("; Secure") is secure


def token(claims: object) -> bytes:
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in ({}, claims, "x")]
    return b".".join(parts)


@pytest.mark.parametrize(("sent", "sub"), [
    (b"Authorization: Bearer " + token({"sub": "ada"}) + b"\r\n", "ada"),
    (b"authorization: bearer " + token({"sub": 7}) + b"\r\n", "7"),
    (b"Authorization: Basic " + token({"sub": "ada"}) + b"\r\n", None),
    (b"Authorization: Bearer nothing\r\n", None),
    (b"Authorization: Bearer a.b.c\r\n", None),
    (b"Authorization: Bearer a.\xe9\xff.c\r\n", None),
    (b"Authorization: Bearer " + token(["sub"]) + b"\r\n", None),
    (b"Authorization: Bearer ." + b"A" * 8191 + b".\r\n", None),
    (b"Authorization: Bearer " + token({"sub": "\ud800"}) + b"\r\n", None),
    (b"", None),
])  # fmt: skip
async def test_claims_decide_whatever_is_sent_as_a_token(sent: bytes, sub: str | None) -> None:
    flags = one_flag(500_000, by=("claim:sub",))
    async with World.of(ROUTES, flags=flags, legacy=echo, new=echo) as world:
        assert (await world.ask(get(b"/", sent))).status == 200
        if sub is None:
            assert world.count(REQUESTS, reason="no_key", side="legacy") == 1
        else:
            side = "new" if bucket("salt", sub) < 500_000 else "legacy"
            assert world.count(REQUESTS, reason="weight", side=side) == 1


async def test_buckets_that_asked_are_sampled_for_the_blast_radius() -> None:
    flags = one_flag(500_000)
    async with World.of(ROUTES, flags=flags, legacy=echo, new=echo) as world:
        client = await world.client()
        for _ in range(10 * EVERY):
            client.send(get(b"/", b"X-User: ada\r\n"))
            await client.answer()
        assert world.worker.recent.buckets(time.time()) == {"items": {bucket("salt", "ada"): 10 * EVERY}}


def test_only_the_last_minutes_are_remembered_and_never_too_much_of_them() -> None:
    recent = Recent()
    for minute in range(MINUTES + 1):
        recent.note("a", minute, 60.0 * minute)
    recent.note("b", 1, 60.0 * MINUTES)
    found = recent.buckets(60.0 * MINUTES)
    assert found == {"a": dict.fromkeys(range(1, MINUTES + 1), EVERY), "b": {1: EVERY}}
    assert recent.buckets(60.0 * 2 * MINUTES) == {}
    for at in range(MOST_BUCKETS + 10):
        recent.note("c", at, 60.0 * MINUTES)
    assert len(recent.buckets(60.0 * MINUTES)["c"]) == MOST_BUCKETS


async def test_the_cohort_is_what_the_weight_decided() -> None:
    flags = one_flag(500_000)
    async with World.of(ROUTES, flags=flags, legacy=echo, new=echo) as world:
        for user in range(20):
            await world.ask(get(b"/", b"X-User: %d\r\n" % user))
        await world.ask(get())  # has no key
        weighed = world.count(REQUESTS, reason="weight")
        assert weighed == 20
        for side in ("legacy", "new"):
            assert 0 < world.count("crossfade_cohort_seconds", flag="items", side=side) < 20
        assert world.count("crossfade_cohort_seconds") == 20
