"""How connections begin: TLS on both sides, the PROXY protocol in front of either."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path

import pytest
import trustme

from proxy.config import Forwarding, ListenTls, TargetTls, Timeouts
from proxy.proxy_protocol import SIGNATURE
from tests.differential.wire import named
from tests.proxy.calm import in_a_calm_moment
from tests.support.world import Wire, World, echo, get, plain, post, until

CLOSED = "crossfade_client_connections_closed_total"


@dataclass
class Certificates:
    listen: ListenTls
    client: ssl.SSLContext
    """Trusts what the proxy shows."""
    server: ssl.SSLContext
    """A backend named inner.test."""
    ca_file: str


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder: Path = tmp_path_factory.mktemp("tls")
    ca = trustme.CA()
    outer, inner = ca.issue_cert("a.test"), ca.issue_cert("inner.test")
    outer.private_key_pem.write_to_path(folder / "key.pem")
    for blob in outer.cert_chain_pems:
        blob.write_to_path(folder / "cert.pem", append=True)
    ca.cert_pem.write_to_path(folder / "ca.pem")
    client = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    inner.configure_cert(server)
    return Certificates(
        ListenTls(str(folder / "cert.pem"), str(folder / "key.pem")), client, server, str(folder / "ca.pem")
    )


# TLS --------------------------------------------------------------------------------------------------


async def test_clients_come_over_tls(certificates: Certificates) -> None:
    async with World.of(legacy=echo, listen_tls=certificates.listen) as world:
        client = await world.client(tls=certificates.client)
        for number in range(5):
            client.send(post(b"/%d" % number, b"x" * 100_000))
            assert (await client.answer()).body.data == b"POST /%d " % number + b"x" * 100_000
        client.send(get(b"/", b"Connection: close\r\n"))
        assert b"Connection: close\r\n" in (await client.answer()).head
        assert await client.end() == "closed"


async def test_a_target_learns_that_the_client_came_over_tls(certificates: Certificates) -> None:
    async with World.of(listen_tls=certificates.listen) as world:
        client = await world.client(tls=certificates.client)
        client.send(get())
        asked = await (await world.legacy.connection()).request()
        assert asked.values(b"x-forwarded-proto") == [b"https"]


async def test_a_tunnel_over_tls_on_both_sides(certificates: Certificates) -> None:
    trust = TargetTls(certificates.ca_file, server_name="inner.test")
    async with World.of(
        listen_tls=certificates.listen, legacy_tls=certificates.server, legacy_trust=trust
    ) as world:
        client = await world.client(tls=certificates.client)
        client.send(get(b"/", b"Upgrade: x\r\nConnection: upgrade\r\n"), b"early")
        target = await world.legacy.connection()
        await target.request()
        target.send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nhello")
        assert (await client.through(b"hello")).startswith(b"HTTP/1.1 101 ")
        assert await target.take(5) == b"early"
        client.send(b"x" * 1_000_000, b"the end")
        client.close()
        assert len(await target.through(b"the end")) == 1_000_007
        await target.end()


async def test_plain_http_on_a_tls_port_is_no_request(certificates: Certificates) -> None:
    async with World.of(listen_tls=certificates.listen) as world:
        client = await world.client()
        client.send(get())
        await client.end()
        assert not world.legacy.wires


async def test_a_handshake_that_never_ends_is_cut(certificates: Certificates) -> None:
    async with World.of(listen_tls=certificates.listen, timeouts=Timeouts(header=0.3)) as world:
        client = await world.client()
        client.send(b"\x16\x03\x01\x02\x00\x01")
        await client.end()


@pytest.mark.parametrize("drop", ["close", "reset"])
async def test_a_cut_answer_from_a_tls_target_does_not_look_whole(
    certificates: Certificates, drop: str
) -> None:
    trust = TargetTls(certificates.ca_file, server_name="inner.test")
    async with World.of(legacy_tls=certificates.server, legacy_trust=trust) as world:
        client = await world.client()
        client.send(get())
        target = await world.legacy.connection()
        await target.request()
        target.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        await client.through(b"half")
        getattr(target, drop)()
        await client.end()
        assert world.count("crossfade_errors_total", reason="http_response_incomplete") == 1


async def test_targets_are_reached_over_tls_and_pooled(certificates: Certificates) -> None:
    trust = TargetTls(certificates.ca_file, server_name="inner.test")
    async with World.of(legacy=echo, legacy_tls=certificates.server, legacy_trust=trust) as world:
        client = await world.client()
        for number in range(10):
            client.send(post(b"/%d" % number, b"y" * 50_000))
            assert (await client.answer()).body.data == b"POST /%d " % number + b"y" * 50_000
        assert len(world.legacy.wires) == 1


@pytest.mark.parametrize(
    ("trust", "status", "error"),
    [
        ({"server_name": "inner.test"}, 502, b"tls_certificate_error"),
        ({"ca": True}, 502, b"tls_certificate_error"),  # the certificate is for another name
        ({"ca": True, "server_name": "inner.test"}, 200, None),
        ({"verify": False}, 200, None),
    ],
)  # fmt: skip
async def test_a_target_must_show_a_certificate_that_is_trusted(
    certificates: Certificates, trust: dict[str, object], status: int, error: bytes | None
) -> None:
    given = TargetTls(
        ca_file=certificates.ca_file if trust.pop("ca", False) else None,
        **trust,  # type: ignore[arg-type]
    )
    async with World.of(legacy=echo, legacy_tls=certificates.server, legacy_trust=given) as world:
        answer = await world.ask(get())
        assert answer.status == status
        assert named(answer.fields, b"proxy-status") == ([b"crossfade; error=" + error] if error else [])


async def test_a_target_without_tls_is_told_as_such(certificates: Certificates) -> None:
    async def blurt(wire: Wire) -> None:
        wire.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await wire.end()

    trust = TargetTls(certificates.ca_file)
    async with World.of(legacy=blurt, legacy_trust=trust) as world:
        answer = await world.ask(get())
        assert answer.status == 502
        assert named(answer.fields, b"proxy-status") == [b"crossfade; error=tls_protocol_error"]


# The PROXY protocol -----------------------------------------------------------------------------------

V1 = b"PROXY TCP4 192.0.2.7 198.51.100.2 4000 443\r\n"
V2 = (
    SIGNATURE
    + struct.pack("!BBH", 0x21, 0x11, 12)
    + bytes((192, 0, 2, 7, 198, 51, 100, 2))
    + b"\x0f\xa0\x01\xbb"
)
LOCAL = SIGNATURE + struct.pack("!BBH", 0x20, 0, 0)


@pytest.mark.parametrize(("header", "address"), [(V1, b"192.0.2.7"), (V2, b"192.0.2.7"), (LOCAL,
b"127.0.0.1"),
                                                 (b"PROXY UNKNOWN\r\n", b"127.0.0.1")])  # fmt: skip
@pytest.mark.parametrize("pieces", [1, 2, 1000])
async def test_the_client_is_who_the_header_says(header: bytes, address: bytes, pieces: int) -> None:
    async with World.of(proxy_protocol=True) as world:
        client = await world.client()
        client.transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        whole = header + get()
        size = -(-len(whole) // pieces)
        for at in range(0, len(whole), size):
            client.send(whole[at : at + size])
            await asyncio.sleep(0)
        target = await world.legacy.connection()
        assert (await target.request()).values(b"x-forwarded-for") == [address]
        target.send(plain(b"ok"))
        assert (await client.answer()).body.data == b"ok"


@pytest.mark.parametrize("header", [V1, V2])
async def test_tls_begins_right_behind_the_header(certificates: Certificates, header: bytes) -> None:
    async with World.of(legacy=None, proxy_protocol=True, listen_tls=certificates.listen) as world:
        loop = asyncio.get_running_loop()
        sock = socket.create_connection(("127.0.0.1", world.port))
        sock.sendall(header)
        sock.setblocking(False)
        _, client = await loop.create_connection(
            Wire, sock=sock, ssl=certificates.client, server_hostname="a.test"
        )
        world.clients.append(client)
        client.send(get())
        asked = await (await world.legacy.connection()).request()
        assert asked.values(b"x-forwarded-for") == [b"192.0.2.7"]
        assert asked.values(b"x-forwarded-proto") == [b"https"]


@pytest.mark.parametrize(
    "bad", [get(), b"PROXY TCP4 x y 1 2\r\n" + get(), SIGNATURE + b"\x31\x11\0\x0c" + b"\0" * 12]
)
async def test_a_connection_without_the_header_is_closed(bad: bytes) -> None:
    async with World.of(legacy=echo, proxy_protocol=True) as world:
        client = await world.client()
        client.send(bad)
        await client.end()
        assert not client.raw
        assert world.count(CLOSED) == 1
        assert not world.legacy.wires


@in_a_calm_moment
async def test_a_header_that_never_ends_is_cut_and_disturbs_nobody() -> None:
    async with World.of(legacy=echo, proxy_protocol=True, timeouts=Timeouts(header=1)) as world:
        slow = [await world.client() for _ in range(20)]
        for client in slow:
            client.send(V1[:-5])
        other = await world.client()
        other.send(V1 + get())
        assert (await other.answer()).status == 200
        for client in slow:
            await client.end()
        assert world.count(CLOSED, reason="proxy_header_timeout") == 20


async def test_half_a_header_and_an_end_is_closed() -> None:
    async with World.of(proxy_protocol=True) as world:
        client = await world.client()
        client.send(V2[:20])
        client.half_close()
        await client.end()
        await world.counted(CLOSED, 1, reason="proxy_header_incomplete")


async def test_the_address_in_the_header_decides_about_trust() -> None:
    forwarding = Forwarding(trusted=(ip_network("127.0.0.0/8"),))
    async with World.of(proxy_protocol=True, forwarding=forwarding) as world:
        client = await world.client()
        client.send(V1 + get(b"/", b"X-Forwarded-For: 1.1.1.1\r\n"))
        asked = await (await world.legacy.connection()).request()
        assert asked.values(b"x-forwarded-for") == [b"192.0.2.7"]


async def test_a_reload_in_the_middle_of_an_introduction_keeps_the_address(
    certificates: Certificates,
) -> None:
    async with World.of(proxy_protocol=True, listen_tls=certificates.listen) as world:
        loop = asyncio.get_running_loop()
        sock = socket.create_connection(("127.0.0.1", world.port))
        sock.sendall(V1)
        sock.setblocking(False)
        acceptor = world.worker._acceptors[-1]
        await until(lambda: acceptor.introducing, "the connection to be accepted")
        await world.worker.reconfigure(world.config, world.snapshot(2))
        _, client = await loop.create_connection(
            Wire, sock=sock, ssl=certificates.client, server_hostname="a.test"
        )
        world.clients.append(client)
        client.send(get())
        asked = await (await world.legacy.connection()).request()
        assert asked.values(b"x-forwarded-for") == [b"192.0.2.7"]


async def test_leaving_during_an_introduction_leaves_nothing_behind() -> None:
    async with World.of(proxy_protocol=True) as world:
        for _ in range(5):
            client = await world.client()
            client.send(V1[:10])
        await asyncio.sleep(0)
