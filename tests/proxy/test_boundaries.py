"""What a reader of the code found: faults of ours stay small, and bounds hold where nobody looked."""

from __future__ import annotations

import os
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from core.metrics import Histogram
from proxy.client import ClientConnection
from proxy.config import AccessLog, Limits, ListenTls, TargetTls, Timeouts
from proxy.pool import Pool
from proxy.worker import Worker
from tests.proxy.calm import in_a_calm_moment
from tests.proxy.test_listen import Certificates, certificates
from tests.support.world import World, echo, get, plain, until

__all__ = ["certificates"]

CLOSED = "crossfade_client_connections_closed_total"
ERRORS = "crossfade_errors_total"


# Faults of ours ---------------------------------------------------------------------------------------


async def test_a_fault_before_the_answer_is_a_500_and_nobody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    async with World.of(legacy=echo) as world:
        neighbour = await world.client()
        with monkeypatch.context() as broken:
            broken.setattr(Pool, "take", lambda _pool: 1 // 0)
            client = await world.client()
            client.send(get())
            answer = await client.answer()
        assert answer.status == 500
        assert b"proxy_internal_error" in answer.body.data
        assert world.count(ERRORS, reason="proxy_internal_error") == 1
        assert [type(fault["exception"]) for fault in world.faults] == [ZeroDivisionError]
        world.faults.clear()
        neighbour.send(get())
        assert (await neighbour.answer()).status == 200


async def test_a_fault_while_the_target_answers_is_a_500(monkeypatch: pytest.MonkeyPatch) -> None:
    async with World.of() as world:
        client = await world.client()
        client.send(get())
        target = await world.legacy.connection()
        await target.request()
        with monkeypatch.context() as broken:
            broken.setattr("proxy.upstream.parse_response", lambda _data, max_head: 1 // 0)
            target.send(plain())
            assert (await client.answer()).status == 500
        world.faults.clear()
        await target.end()


async def test_a_fault_in_one_sweep_does_not_end_all_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    async with World.of(timeouts=Timeouts(keepalive=0.3, header=0.3)) as world:
        with monkeypatch.context() as broken:

            def fault(_client: ClientConnection, _now: float) -> None:
                raise ZeroDivisionError

            broken.setattr(ClientConnection, "sweep", fault)
            struck = await world.client()
            await struck.end()
        world.faults.clear()
        silent = await world.client()
        await silent.end()  # cut by its timeout
        assert world.count(CLOSED, reason="header_timeout") == 1


# Bounds -----------------------------------------------------------------------------------------------


async def test_no_queue_at_all_still_serves_whoever_finds_a_free_connection() -> None:
    async with World.of(legacy=echo, target={"max_waiting": 0}) as world:
        clients = [await world.client() for _ in range(4)]
        for client in clients:
            client.send(get())
        assert [(await client.answer()).status for client in clients] == [200] * 4


async def test_silent_handshakes_count_as_connections(certificates: Certificates) -> None:
    async with World.of(listen_tls=certificates.listen, limits=Limits(connections=2)) as world:
        silent = [socket.create_connection(("127.0.0.1", world.port)) for _ in range(6)]
        try:
            await world.counted(CLOSED, 4, reason="too_many_connections")
        finally:
            for sock in silent:
                sock.close()


async def test_an_idle_client_over_tls_is_closed_once(certificates: Certificates) -> None:
    timeouts = Timeouts(keepalive=0.2, header=5.0)
    async with World.of(legacy=echo, listen_tls=certificates.listen, timeouts=timeouts) as world:
        client = await world.client(tls=certificates.client)
        client.send(get())
        await client.answer()
        await client.end()
        await until(lambda: bool(world.idle), "nobody left")
        assert world.count(CLOSED, reason="keepalive") == 1


@in_a_calm_moment
async def test_a_drain_waits_for_a_handshake_under_way(certificates: Certificates) -> None:
    async with World.of(listen_tls=certificates.listen, timeouts=Timeouts(header=1)) as world:
        began = world.worker.loop.time()
        with socket.create_connection(("127.0.0.1", world.port)):
            await until(lambda: any(a.introducing for a in world.worker._acceptors), "a handshake")
            await world.worker.drain(20)
            assert world.worker.loop.time() - began > 0.9


# Endings ----------------------------------------------------------------------------------------------


async def test_chunks_cut_off_on_the_way_to_an_http_1_0_client_end_in_a_reset() -> None:
    async with World.of() as world:
        client = await world.client()
        client.send(b"GET / HTTP/1.0\r\nHost: a.test\r\n\r\n")
        target = await world.legacy.connection()
        await target.request()
        target.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        await client.through(b"hello")
        target.close()
        assert await client.end() == "reset"


async def test_a_client_that_leaves_is_gone_for_a_tls_target_too(certificates: Certificates) -> None:
    trust = TargetTls(ca_file=certificates.ca_file, server_name="inner.test")
    async with World.of(legacy_tls=certificates.server, legacy_trust=trust) as world:
        client = await world.client()
        client.send(get())
        target = await world.legacy.connection()
        await target.request()
        client.close()
        await target.gone()


@pytest.mark.parametrize("status", [b"204 No Content", b"103 Early Hints"])
async def test_no_framing_where_there_is_no_body(status: bytes) -> None:
    async with World.of() as world:
        client = await world.client()
        client.send(get())
        target = await world.legacy.connection()
        await target.request()
        target.send(b"HTTP/1.1 " + status + b"\r\nTransfer-Encoding: chunked\r\nA: b\r\n\r\n" + plain())
        head = await client.through(b"\r\n\r\n")
        assert b"A: b" in head
        assert b"Transfer-Encoding" not in head
        target.close()


@in_a_calm_moment
async def test_the_life_of_a_tunnel_is_no_latency() -> None:
    async with World.of() as world:
        client = await world.client()
        client.send(get(b"/", b"Connection: Upgrade\r\nUpgrade: websocket\r\n"))
        target = await world.legacy.connection()
        await target.request()
        target.send(b"HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        await client.through(b"\r\n\r\n")
        since = world.worker.loop.time()
        await until(lambda: world.worker.loop.time() > since + 3, "a long life")
        client.close()
        target.close()
        await until(lambda: bool(world.idle), "nobody left")
        seconds = [s.value for s in world.worker.samples() if s.metric == "crossfade_request_seconds"]
        assert [isinstance(value, Histogram) and value.sum < 2 for value in seconds] == [True]


# The log ----------------------------------------------------------------------------------------------


async def test_an_exchange_in_flight_is_logged_across_a_reload_of_the_log(tmp_path: Path) -> None:
    before, after = (AccessLog(path=str(tmp_path / name), sample=1.0) for name in ("before", "after"))
    async with World.of(access_log=before) as world:
        client = await world.client()
        client.send(get(b"/inflight", b"User-Agent: somebody\r\n"))
        target = await world.legacy.connection()
        await target.request()
        await world.worker.reconfigure(replace(world.config, access_log=after), world.snapshot(2))
        target.send(plain(b"x", status=b"500 Oops"))
        await client.answer()
        log = tmp_path / "after"
        await until(lambda: log.exists() and b"/inflight" in log.read_bytes(), "a line in the new log")
        assert b'"agent":"somebody"' in log.read_bytes()


async def test_a_reload_opens_a_rotated_log_again(tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with World.of(legacy=echo, access_log=AccessLog(path=str(log), sample=1.0)) as world:
        await world.ask(get(b"/one"))
        await until(lambda: log.exists() and b"/one" in log.read_bytes(), "the first line")
        os.rename(log, tmp_path / "log.1")
        await world.worker.reconfigure(world.config, world.snapshot(2))
        await world.ask(get(b"/two"))
        await until(lambda: log.exists() and b"/two" in log.read_bytes(), "a line in the new file")


async def test_what_a_drain_cuts_is_counted() -> None:
    async with World.of() as world:
        client = await world.client()
        client.send(get())
        await (await world.legacy.connection()).request()
        assert await world.worker.drain(0.2) == 1
        await world.worker.cut()
        assert world.count(ERRORS, reason="drain_timeout") == 1


# Certificates -----------------------------------------------------------------------------------------


@pytest.fixture
def locked_key(certificates: Certificates, tmp_path: Path) -> Path:
    locked = tmp_path / "locked.pem"
    key = serialization.load_pem_private_key(Path(certificates.listen.key_file).read_bytes(), None)
    locked.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    return locked


async def test_an_encrypted_key_is_refused_and_asks_nobody(
    certificates: Certificates, locked_key: Path
) -> None:
    async with World.of() as world:
        encrypted = replace(
            world.config, listen_tls=ListenTls(certificates.listen.cert_file, str(locked_key))
        )
        with pytest.raises(OSError, match="encrypted"):
            Worker(encrypted, world.snapshot(2))


async def test_a_new_ca_under_the_same_name_is_read(certificates: Certificates, tmp_path: Path) -> None:
    ca = shutil.copy(certificates.ca_file, tmp_path / "ca.pem")
    trust = TargetTls(ca_file=str(ca), server_name="inner.test")
    async with World.of(legacy=echo, legacy_tls=certificates.server, legacy_trust=trust) as world:
        assert (await world.ask(get())).status == 200
        trustme.CA().cert_pem.write_to_path(ca)
        await world.worker.reconfigure(world.config, world.snapshot(2))
        assert (await world.ask(get())).status == 502
