"""Clients that leave, read slowly, send too much or come in too great a number."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from proxy.config import Forwarding, Limits, Timeouts
from tests.differential.wire import named
from tests.support.world import EndedError, Wire, World, echo, get, plain, post, until


@asynccontextmanager
async def narrow_client(world: World) -> AsyncIterator[Wire]:
    """A client whose kernel buffers little, so that what it does not read stays with the proxy."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, ("127.0.0.1", world.port))
    _, wire = await loop.create_connection(Wire, sock=sock)
    world.clients.append(wire)
    yield wire


def buffered(world: World) -> int:
    """Bytes that wait in the worker for its clients."""
    return sum(client._transport.get_write_buffer_size() for client in world.worker._clients)


# Leaving ----------------------------------------------------------------------------------------------


async def test_a_client_that_goes_away_takes_the_targets_connection_with_it() -> None:
    async with World.of() as world:
        client = await world.client()
        client.send(get())
        target = await world.legacy.connection()
        await target.request()
        client.reset()
        await target.end()
        await world.counted("crossfade_errors_total", 1, reason="client_gone")


async def test_a_client_that_goes_away_during_its_upload_does_not_complete_the_request() -> None:
    async with World.of() as world:
        for body in (b"Content-Length: 100\r\n\r\nhalf", b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"):
            client = await world.client()
            client.send(b"POST / HTTP/1.1\r\nHost: a\r\n" + body)
            target = await world.legacy.connection()
            await target.through(b"half")
            client.half_close()
            await target.end()
            assert b"0\r\n" not in target.raw
            await client.end()


async def test_a_half_close_reaches_the_target_and_the_answer_still_comes() -> None:
    async with World.of() as world:
        client = await world.client()
        client.send(get())
        client.half_close()
        target = await world.legacy.connection()
        await target.request()
        assert await target.end() == "closed"
        target.send(plain(b"ok"))
        answer = await client.answer()
        assert answer.body.data == b"ok"
        assert await client.end() == "closed"


async def test_half_a_head_and_an_end_is_no_request() -> None:
    async with World.of(legacy=echo) as world:
        client = await world.client()
        client.send(get() + b"GET /half HTTP/1.1\r\nHo")
        client.half_close()
        await client.answer()
        assert await client.end() == "closed"
        assert not client.raw


async def test_a_request_cut_into_single_bytes_is_a_request() -> None:
    async with World.of(legacy=echo) as world:
        client = await world.client()
        client.transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in get(b"/whole", b"A: b\r\n"):
            client.send(bytes((byte,)))
            await asyncio.sleep(0)
        assert (await client.answer()).body.data == b"GET /whole "


# Bounds -----------------------------------------------------------------------------------------------


async def test_too_many_connections_are_turned_away() -> None:
    async with World.of(legacy=echo, limits=Limits(connections=3)) as world:
        clients = [await world.client() for _ in range(3)]
        await until(lambda: world.count("crossfade_client_connections") == 3, "three clients")
        fourth = await world.client()
        await fourth.end()
        assert world.count("crossfade_client_connections_closed_total", reason="too_many_connections") == 1
        clients[0].send(get())
        await clients[0].answer()
        clients[0].close()
        await until(lambda: world.count("crossfade_client_connections") == 2, "two clients")
        fifth = await world.client()
        fifth.send(get())
        assert (await fifth.answer()).status == 200


async def test_a_pipeline_is_read_only_a_little_ahead() -> None:
    async with World.of() as world:
        client = await world.client()
        client.send(get(b"/first"))
        target = await world.legacy.connection()
        await target.request()
        flood = get(b"/more", b"X: " + b"x" * 900 + b"\r\n") * 10_000
        client.send(flood)
        await until(lambda: next(iter(world.worker._clients)).reading_paused, "the worker to stop reading")
        assert len(next(iter(world.worker._clients))._buffer) < 1_000_000
        target.send(plain(b"first"))
        assert (await client.answer()).body.data == b"first"


@pytest.mark.parametrize("size", [30_000, 300_000])
async def test_a_client_that_asks_and_never_reads_is_not_answered_without_end(size: int) -> None:
    asked = 0

    async def generous(wire: Wire) -> None:
        nonlocal asked
        while True:
            await wire.request()
            asked += 1
            wire.send(plain(b"x" * size))

    async with World.of(legacy=generous) as world, narrow_client(world) as client:
        client.stop_reading()
        client.send(get() * 1500)
        before = -1
        while asked != before:  # until nothing moves any more
            before = asked
            for _ in range(50):
                await world.ask(b"GET / HTTP/1.1\r\nHost: !\r\n\r\n".replace(b"!", b"a b"))
        assert buffered(world) < 2_000_000, f"{asked} answers wait in memory"
        client.go_on_reading()
        for _ in range(1500 if size < 100_000 else 20):
            assert len((await client.answer()).body.data) == size


async def test_own_answers_to_a_client_that_never_reads_do_not_pile_up() -> None:
    async with World.of() as world, narrow_client(world) as client:
        await world.legacy.stop()
        client.stop_reading()
        client.send(get() * 20_000)
        before = -1.0
        while (done := world.count("crossfade_requests_total", code="5xx")) != before:
            before = done
            for _ in range(20):
                await world.ask(get(b"/", b"Host: b\r\n"))
        assert buffered(world) < 400_000, f"after {done} answers"


async def test_a_pipeline_that_waits_for_a_slow_reader_goes_on_and_ends_well() -> None:
    async with World.of(legacy=echo) as world, narrow_client(world) as client:
        client.stop_reading()
        client.send(b"".join(post(b"/%d" % n, b"y" * 20_000) for n in range(200)))
        client.half_close()
        await until(lambda: any(c.write_paused for c in world.worker._clients), "a full buffer")
        client.go_on_reading()
        for number in range(200):
            assert (await client.answer()).body.data.startswith(b"POST /%d y" % number)
        assert await client.end() == "closed"


async def test_the_last_answer_reaches_a_reader_that_takes_its_time() -> None:
    """What still waits when the connection is ended must not be cut off with it after a moment."""
    timeouts = Timeouts(write_idle=10.0, expect=0.1)
    payload = bytes(range(256)) * 12_000
    async with World.of(timeouts=timeouts) as world, narrow_client(world) as client:
        client.stop_reading()
        client.send(get(b"/", b"Connection: close\r\n"))
        target = await world.legacy.connection()
        await target.request()
        target.send(plain(payload))
        (served,) = world.worker._clients
        client.go_on_reading()
        await until(lambda: served._lingering, "the answer to be handed over")
        client.stop_reading()
        assert buffered(world) > 0
        late = asyncio.get_running_loop().time() + 2.6  # beyond the time that a connection may linger
        await until(lambda: asyncio.get_running_loop().time() > late, "a slow moment")
        client.go_on_reading()
        assert (await client.answer()).body.data == payload


# Where clients come from ------------------------------------------------------------------------------


async def test_forwarding_fields_of_strangers_are_replaced() -> None:
    async with World.of(forwarding=Forwarding(via="cf")) as world:
        client = await world.client()
        client.send(
            get(b"/", b"X-Forwarded-For: 1.1.1.1\r\nConnection: x-forwarded-for\r\nForwarded: for=x\r\n")
        )
        target = await world.legacy.connection()
        asked = await target.request()
        assert asked.values(b"x-forwarded-for") == [b"127.0.0.1"]
        assert asked.values(b"x-forwarded-proto") == [b"http"]
        assert asked.values(b"forwarded") == []
        assert asked.values(b"via") == [b"1.1 cf"]
        target.send(plain(b"", more=b"Via: 1.0 inner\r\n"))
        assert named((await client.answer()).fields, b"via") == [b"1.0 inner", b"1.1 cf"]


async def test_garbage_is_refused_and_nothing_of_it_reaches_a_target() -> None:
    async with World.of() as world:
        for garbage in (
            b"\0" * 50_000,
            b"\xff\xfe",
            b"\r\n" * 30_000,
            b"GET" * 20_000,
            b"SSH-2.0-x\r\n\r\n",
            b"\x16\x03\x01\0",
        ):
            client = await world.client()
            client.send(garbage)
            assert (await client.answer()).status in {400, 414, 505}
            await client.end()
        assert not world.legacy.wires


async def test_a_client_that_ends_at_once_leaves_nothing_behind() -> None:
    async with World.of() as world:
        for ending in ("close", "reset", "half_close"):
            client = await world.client()
            getattr(client, ending)()
            if ending == "half_close":
                await client.end()
        with pytest.raises(EndedError):
            await client.answer()
        await until(lambda: world.count("crossfade_client_connections") == 0, "no clients")
