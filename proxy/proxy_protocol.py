"""The PROXY protocol header, versions 1 and 2: whose connection this really is.

A load balancer that passes TCP through writes it once, in front of everything else. It is read only
when the configuration says that every connection carries one; then a connection without one is
closed, because a client that may choose to send it could claim any address.

`read_header` is pure and answers with how many bytes the header takes, so that exactly these can be
taken from the socket before TLS or HTTP begins.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
LONGEST = 536
"""Bytes: 16 of fixed header and 520 for addresses and extensions; more than v1 can take (107)."""

_V1 = re.compile(
    rb"PROXY (?:UNKNOWN[^\r\n]{0,92}"
    rb"|(TCP4|TCP6) ([0-9A-Fa-f.:]+) ([0-9A-Fa-f.:]+) ([0-9]{1,5}) ([0-9]{1,5}))\r\n"
)
_V1_LONGEST = 107
_FIXED = struct.Struct("!12sBBH")


@dataclass(frozen=True, slots=True)
class Header:
    """`source` is the client's address and port, None where the sender speaks for itself."""

    size: int
    source: tuple[str, int] | None


@dataclass(frozen=True, slots=True)
class Invalid:
    """What arrived is no PROXY protocol header."""

    reason: str


def read_header(data: bytes) -> Header | Invalid | None:
    """The header at the start of `data`, why there is none, or None while it is incomplete."""
    if data.startswith(SIGNATURE):
        return _read_v2(data)
    if SIGNATURE.startswith(data):
        return None
    match = _V1.match(data)
    if match is None:
        plausible = data[:6] == b"PROXY "[: len(data)] and b"\n" not in data and len(data) < _V1_LONGEST
        return None if plausible else Invalid("no_proxy_header")
    if match.end() > _V1_LONGEST:
        return Invalid("no_proxy_header")
    family, source, _, port, _ = match.groups()
    if family is None:
        return Header(match.end(), None)
    try:
        address = ip_address(source.decode("ascii"))
    except ValueError:
        return Invalid("bad_proxy_header")
    if address.version != (4 if family == b"TCP4" else 6) or int(port) > 65535:
        return Invalid("bad_proxy_header")
    return Header(match.end(), (str(address), int(port)))


def _read_v2(data: bytes) -> Header | Invalid | None:
    if len(data) < _FIXED.size:
        return None
    _, version_command, family, length = _FIXED.unpack_from(data)
    version, command = version_command >> 4, version_command & 15
    if version != 2 or command > 1:
        return Invalid("bad_proxy_header")
    size = _FIXED.size + length
    if size > LONGEST:
        return Invalid("proxy_header_too_large")
    if len(data) < size:
        return None
    if command == 0:
        return Header(size, None)  # LOCAL: the sender's own connection, such as a health check
    body = data[_FIXED.size : size]
    if family == 0x11 and length >= 12:
        return Header(size, (str(IPv4Address(body[:4])), int.from_bytes(body[8:10], "big")))
    if family == 0x21 and length >= 36:
        return Header(size, (str(IPv6Address(body[:16])), int.from_bytes(body[32:34], "big")))
    if family in (0x11, 0x21):
        return Invalid("bad_proxy_header")
    return Header(size, None)  # UNSPEC, UNIX and datagrams carry no address that we can use
