"""The PROXY protocol header: both versions, every prefix, and what is no header."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.proxy_protocol import LONGEST, SIGNATURE, Header, Invalid, read_header


def v2(command: int, family: int, body: bytes, version: int = 2) -> bytes:
    return SIGNATURE + struct.pack("!BBH", version << 4 | command, family, len(body)) + body


IN4 = bytes((192, 0, 2, 1, 198, 51, 100, 2)) + struct.pack("!HH", 4000, 443)
IN6 = IPv6Address("2001:db8::1").packed + IPv6Address("::1").packed + struct.pack("!HH", 4000, 443)

GOOD = [
    (b"PROXY TCP4 192.0.2.1 198.51.100.2 4000 443\r\n", ("192.0.2.1", 4000)),
    (b"PROXY TCP6 2001:db8::1 ::1 4000 443\r\n", ("2001:db8::1", 4000)),
    (b"PROXY TCP6 2001:0DB8:0:0:0:0:0:1 ::1 4000 443\r\n", ("2001:db8::1", 4000)),
    (b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n", ("255.255.255.255", 65535)),
    (b"PROXY UNKNOWN\r\n", None),
    (b"PROXY UNKNOWN ffff:f::f f::f 65535 65535\r\n", None),
    (v2(1, 0x11, IN4), ("192.0.2.1", 4000)),
    (v2(1, 0x21, IN6), ("2001:db8::1", 4000)),
    (v2(1, 0x11, IN4 + b"\x04\x00\x02ab"), ("192.0.2.1", 4000)),
    (v2(0, 0x11, IN4), None),
    (v2(0, 0, b""), None),
    (v2(1, 0, b""), None),
    (v2(1, 0x31, b"\0" * 216), None),
    (v2(1, 0x12, IN4), None),
    (v2(1, 0x11, IN4 + b"\0" * (520 - len(IN4))), ("192.0.2.1", 4000)),
]


@pytest.mark.parametrize(("data", "source"), GOOD)
def test_a_header_is_read_and_measured(data: bytes, source: tuple[str, int] | None) -> None:
    assert len(data) <= LONGEST
    for behind in (b"", b"GET / HTTP/1.1\r\n", b"\x16\x03\x01", SIGNATURE, b"\r\n"):
        assert read_header(data + behind) == Header(len(data), source)


@pytest.mark.parametrize("data", [data for data, _ in GOOD])
def test_every_prefix_is_incomplete(data: bytes) -> None:
    for end in range(len(data)):
        assert read_header(data[:end]) is None, data[:end]


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n", b"\x16\x03\x01\x02\x00\x01", b"PROXY\r\n", b"PROXY TCP4\r\n",
        b"proxy TCP4 192.0.2.1 198.51.100.2 4000 443\r\n", b"PROXY TCP4 192.0.2.1 198.51.100.2 4000 443\n",
        b"PROXY TCP4 192.0.2.256 198.51.100.2 4000 443\r\n", b"PROXY TCP4 ::1 ::1 1 1\r\n",
        b"PROXY TCP6 192.0.2.1 192.0.2.1 1 1\r\n", b"PROXY TCP4 192.0.2.1 198.51.100.2 70000 443\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.2 -1 443\r\n", b"PROXY TCP4 192.0.2.1 198.51.100.2 4000 443 \r\n",
        b"PROXY TCP5 192.0.2.1 198.51.100.2 4000 443\r\n", b"PROXY TCP4 \xd9\xa1.0.0.1 192.0.2.1 1 1\r\n",
        b"PROXY TCP6 fe80::1%\r\nX:1 ::1 1 1\r\n", b"PROXY TCP4 192.0.2.1 a\r\nb 1 1\r\n",
        b"PROXY UNKNOWN " + b"x" * 200 + b"\r\n", b"PROXY TCP4 " + b"1" * 200,
        v2(2, 0x11, IN4), v2(1, 0x11, IN4, version=1), v2(1, 0x11, IN4[:11]), v2(1, 0x21, IN6[:35]),
        v2(1, 0x11, IN4 + b"\0" * 600), SIGNATURE[:-1] + b"\r",
    ],
)  # fmt: skip
def test_what_is_no_header(data: bytes) -> None:
    assert isinstance(read_header(data), Invalid)


@given(
    st.sampled_from([data for data, _ in GOOD]),
    st.integers(0, 250),
    st.integers(0, 255),
    st.binary(max_size=40),
)
def test_a_mutation_never_raises_and_never_yields_what_is_no_address(
    data: bytes, at: int, byte: int, behind: bytes
) -> None:
    at %= len(data)
    wound = data[:at] + bytes((byte,)) + data[at + 1 :] + behind
    header = read_header(wound)
    if isinstance(header, Header) and header.source is not None:
        address, port = header.source
        (IPv6Address if ":" in address else IPv4Address)(address)
        assert 0 <= port <= 65535
        assert header.size <= len(wound)


@given(st.binary(max_size=600))
def test_any_bytes_get_an_answer(data: bytes) -> None:
    header = read_header(data)
    assert header is None or isinstance(header, Header | Invalid)
    if len(data) > LONGEST:
        assert header is not None
