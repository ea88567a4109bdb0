"""Which forwarding fields a request carries on: X-Forwarded-*, Forwarded (RFC 7239) and Via.

A peer is either trusted, then its fields are kept and ours are appended, or it is not, then its
fields are removed before ours are written: otherwise any client could pretend to be any address.
With both kinds of fields switched off, whatever the client sent passes untouched.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

from core.http import RequestHead
from proxy.config import Forwarding


class Peer:
    """What forwarding says about one client connection; made once per connection."""

    __slots__ = ("address", "forwarding", "own_fields", "proto", "trusted")

    def __init__(self, forwarding: Forwarding, address: str, *, tls: bool) -> None:
        self.forwarding = forwarding
        self.proto = b"https" if tls else b"http"
        ip = _parse(address)
        self.address = str(ip) if ip is not None else address
        self.trusted = ip is not None and _is_trusted(ip, forwarding)
        self.own_fields = self._fields(())
        """The forwarding fields of a request that brought none itself."""

    def rewrite(self, head: RequestHead) -> tuple[list[tuple[int, int]], bytes]:
        """For a request that brought forwarding fields: the spans to remove, the fields to append."""
        inbound = head.forwarded or []
        settings = self.forwarding
        if not (settings.x_forwarded or settings.forwarded):
            return [], self.own_fields
        if not self.trusted:
            return [(start, end) for _, _, start, end in inbound], self.own_fields
        chain = [value for name, value, _, _ in inbound if name == b"x-forwarded-for"]
        cuts = []
        if settings.x_forwarded:
            cuts = [(start, end) for name, _, start, end in inbound if name == b"x-forwarded-for"]
        proto_known = any(name == b"x-forwarded-proto" for name, _, _, _ in inbound)
        return cuts, self._fields(chain, proto_known=proto_known)

    def client_address(self, head: RequestHead) -> str:
        """Who sent `head`: the peer, or the nearest one named by trusted peers that is not one of them.

        What an untrusted peer says of others is not heard, and what is no address says nothing.
        """
        client = self.address
        if self.trusted and head.forwarded:
            chain = b",".join(value for name, value, _, _ in head.forwarded if name == b"x-forwarded-for")
            for hop in reversed(chain.decode("latin-1").split(",")):
                ip = _parse(hop.strip())
                if ip is None:
                    break
                client = str(ip)
                if not _is_trusted(ip, self.forwarding):
                    break
        return client

    def came_by_tls(self, head: RequestHead) -> bool:
        """Whether the client spoke TLS, with us or with the trusted peer before us."""
        if self.trusted and head.forwarded:
            for name, value, _, _ in head.forwarded:
                if name == b"x-forwarded-proto":
                    return value.lower() == b"https"
        return self.proto == b"https"

    def _fields(self, chain: list[bytes] | tuple[()], *, proto_known: bool = False) -> bytes:
        settings = self.forwarding
        address = self.address.encode("latin-1", "replace")
        fields = b""
        if settings.x_forwarded:
            fields += b"X-Forwarded-For: " + b", ".join([*chain, address]) + b"\r\n"
            if not proto_known:
                fields += b"X-Forwarded-Proto: " + self.proto + b"\r\n"
        if settings.forwarded:
            node = b'"[' + address + b']"' if b":" in address else address or b"unknown"
            fields += b"Forwarded: for=" + node + b";proto=" + self.proto + b"\r\n"
        if settings.via is not None:
            fields += b"Via: 1.1 " + settings.via.encode() + b"\r\n"
        return fields


def _is_trusted(ip: IPv4Address | IPv6Address, forwarding: Forwarding) -> bool:
    return any(ip.version == network.version and ip in network for network in forwarding.trusted)


def _parse(address: str) -> IPv4Address | IPv6Address | None:
    try:
        ip = ip_address(address.partition("%")[0])
    except ValueError:
        return None
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None:
        return ip.ipv4_mapped
    return ip
