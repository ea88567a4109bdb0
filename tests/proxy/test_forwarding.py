"""Forwarding fields: believed from trusted peers, replaced from all others."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from core.http import RequestHead
from proxy.config import Forwarding
from proxy.forwarding import Peer
from proxy.head import parse_request, without

TRUSTED = (ip_network("10.0.0.0/8"), ip_network("2001:db8::/32"))


def forwarded(settings: Forwarding, address: str, *lines: bytes, tls: bool = False) -> bytes:
    """What a target sees of the fields that a client sent, but for its Host."""
    data = b"GET / HTTP/1.1\r\nHost: a\r\n" + b"".join(line + b"\r\n" for line in lines) + b"\r\n"
    head = parse_request(data, max_head=9999, max_target=9999, max_fields=99)
    assert isinstance(head, RequestHead)
    peer = Peer(settings, address, tls=tls)
    if head.forwarded is None:
        return head.fields.removeprefix(b"Host: a\r\n") + peer.own_fields
    cuts, own = peer.rewrite(head)
    raw = without(head.raw, sorted(cuts), len(head.raw) - 2) if cuts else head.raw[:-2]
    return raw.partition(b"Host: a\r\n")[2] + own


X = Forwarding(trusted=TRUSTED)
BOTH = Forwarding(trusted=TRUSTED, forwarded=True)
NONE = Forwarding(x_forwarded=False)


@pytest.mark.parametrize(
    ("settings", "address", "lines", "expected"),
    [
        (X, "192.0.2.7", [], b"X-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Proto: http\r\n"),
        (X, "192.0.2.7", [b"X-FORWARDED-for: 1.1.1.1", b"x-forwarded-host: evil",
         b"Forwarded: for=1.1.1.1", b"A: b"],
         b"A: b\r\nX-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Proto: http\r\n"),
        (X, "10.1.2.3", [b"X-Forwarded-For: 1.1.1.1", b"A: b", b"x-forwarded-for: 2.2.2.2, 3.3.3.3"],
         b"A: b\r\nX-Forwarded-For: 1.1.1.1, 2.2.2.2, 3.3.3.3, 10.1.2.3\r\nX-Forwarded-Proto: http\r\n"),
        # WSGI servers read underscores as dashes, so a stranger's spelling with underscores goes, too.
        (X, "192.0.2.7", [b"X_Forwarded_For: 1.1.1.1", b"x-forwarded_host: evil", b"X_Forwarded: no"],
         b"X_Forwarded: no\r\nX-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Proto: http\r\n"),
        (X, "10.1.2.3", [b"X-Forwarded-Proto: https", b"X-Forwarded-Host: b"],
         b"X-Forwarded-Proto: https\r\nX-Forwarded-Host: b\r\nX-Forwarded-For: 10.1.2.3\r\n"),
        (X, "::ffff:10.1.2.3", [b"X-Forwarded-For: 1.1.1.1"],
         b"X-Forwarded-For: 1.1.1.1, 10.1.2.3\r\nX-Forwarded-Proto: http\r\n"),
        (X, "2001:db8::5", [b"X-Forwarded-For: 1.1.1.1"],
         b"X-Forwarded-For: 1.1.1.1, 2001:db8::5\r\nX-Forwarded-Proto: http\r\n"),
        (BOTH, "2001:db8::5", [b"Forwarded: for=x"],
         b"Forwarded: for=x\r\nX-Forwarded-For: 2001:db8::5\r\nX-Forwarded-Proto: http\r\n"
         b'Forwarded: for="[2001:db8::5]";proto=http\r\n'),
        (BOTH, "192.0.2.7", [b"Forwarded: for=x"],
         b"X-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Proto: http\r\nForwarded: for=192.0.2.7;proto=http\r\n"),
        (NONE, "192.0.2.7", [b"X-Forwarded-For: 1.1.1.1"], b"X-Forwarded-For: 1.1.1.1\r\n"),
        (Forwarding(x_forwarded=False, via="cf"), "192.0.2.7", [b"Via: 1.0 x"],
         b"Via: 1.0 x\r\nVia: 1.1 cf\r\n"),
    ],
)  # fmt: skip
def test_forwarding_fields(settings: Forwarding, address: str, lines: list[bytes], expected: bytes) -> None:
    assert forwarded(settings, address, *lines) == expected


def test_tls_is_told() -> None:
    assert b"X-Forwarded-Proto: https\r\n" in forwarded(X, "192.0.2.7", tls=True)


@pytest.mark.parametrize("address", ["", "fe80::1%eth0", "/run/x.sock", "no address"])
def test_odd_addresses_are_not_trusted_and_do_not_break_the_fields(address: str) -> None:
    fields = forwarded(BOTH, address, b"X-Forwarded-For: 1.1.1.1")
    assert b"1.1.1.1" not in fields
    assert all(b": " in line for line in fields.split(b"\r\n")[:-1])
