"""Each timer cuts what it was made for, says so, and disturbs nobody else on the same worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from flags.model import Route, Side
from proxy.config import Limits, Timeouts
from tests.differential.wire import named
from tests.proxy.calm import in_a_calm_moment
from tests.proxy.test_clients import narrow_client
from tests.support.world import Wire, World, echo, get, plain, until

CLOSED = "crossfade_client_connections_closed_total"
ERRORS = "crossfade_errors_total"
LONG: dict[str, float] = {
    "header": 30, "body_idle": 30, "keepalive": 30, "response": 30, "response_idle": 30, "write_idle": 30,
    "tunnel_idle": 30, "expect": 30,
}  # fmt: skip


@asynccontextmanager
async def beside_a_neighbour(timer: str, seconds: float = 0.25, **config: Any) -> AsyncIterator[World]:
    """A world with one short timer, and a neighbour who is served all the while without noticing."""
    timeouts = Timeouts(**{**LONG, timer: seconds})
    routes = [Route("neighbour", "/neighbour", side=Side.NEW)]
    async with World.of(routes, new=echo, timeouts=timeouts, **config) as world:
        slowest = 0.0

        async def live() -> None:
            nonlocal slowest
            loop = asyncio.get_running_loop()
            client = await world.client()
            while True:
                began = loop.time()
                client.send(get(b"/neighbour"))
                await client.answer()
                slowest = max(slowest, loop.time() - began)
                await asyncio.sleep(0.005)

        neighbour = asyncio.get_running_loop().create_task(live())
        try:
            began = asyncio.get_running_loop().time()
            yield world
            took = asyncio.get_running_loop().time() - began
            assert not neighbour.done(), "the neighbour was disturbed"
        finally:
            neighbour.cancel()
        assert slowest < 0.2, f"the neighbour waited {slowest:.3f} seconds"
        assert seconds * 0.9 < took < 20, f"the timer of {seconds} s cut after {took:.3f} s"  # others: 30


@in_a_calm_moment
async def test_a_head_that_never_ends_is_cut_however_it_drips() -> None:
    async with beside_a_neighbour("header") as world:
        client = await world.client()
        client.send(b"GET / HTTP/1.1\r\n")
        while client.ending == "open" and not client.raw:
            client.send(b"X: y\r\n")
            await asyncio.sleep(0.02)
        assert (await client.answer()).status == 408
        assert world.count(CLOSED, reason="header_timeout") == 1
        await client.end()


@in_a_calm_moment
async def test_a_client_that_says_nothing_is_cut() -> None:
    async with beside_a_neighbour("header") as world:
        client = await world.client()
        await client.end()
        assert not client.raw
        assert world.count(CLOSED, reason="header_timeout") == 1


@in_a_calm_moment
async def test_an_idle_connection_is_closed_in_order() -> None:
    async with beside_a_neighbour("keepalive") as world:
        client = await world.client()
        client.send(get())
        target = await world.legacy.connection()
        await target.request()
        target.send(plain(b"ok"))
        await client.answer()
        assert await client.end() == "closed"
        assert world.count(CLOSED, reason="keepalive") == 1


@pytest.mark.parametrize("drip", [False, True])
@in_a_calm_moment
async def test_a_body_that_stops_or_drips_below_the_rate_is_cut(drip: bool) -> None:
    async with beside_a_neighbour("body_idle", limits=Limits(min_body_rate=1000)) as world:
        client = await world.client()
        client.send(get(b"/", b"Content-Length: 100000\r\n", b"POST"), b"begin")
        target = await world.legacy.connection()
        await target.through(b"begin")
        while drip and client.ending == "open" and not client.raw:
            client.send(b"x")
            await asyncio.sleep(0.01)
        answer = await client.answer()
        assert answer.status == 408
        assert named(answer.fields, b"proxy-status") == [
            b'crossfade; error=http_request_error; details="request_body_timeout"'
        ]
        await target.end()
        assert world.count(ERRORS, reason="request_body_timeout") == 1


@in_a_calm_moment
async def test_a_target_that_does_not_answer_is_given_up() -> None:
    async with beside_a_neighbour("response") as world:
        client = await world.client()
        client.send(get())
        target = await world.legacy.connection()
        await target.request()
        target.send(b"HTTP/1.1 2")  # a head that has begun is no head
        answer = await client.answer()
        assert answer.status == 504
        assert named(answer.fields, b"proxy-status") == [b"crossfade; error=http_response_timeout"]
        await target.end()
        client.send(get())  # and the client goes on
        await (await world.legacy.connection()).request()


@in_a_calm_moment
async def test_an_answer_that_stops_is_broken_off() -> None:
    async with beside_a_neighbour("response_idle") as world:
        client = await world.client()
        client.send(get())
        target = await world.legacy.connection()
        await target.request()
        target.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        await client.through(b"half")
        await client.end()
        await target.end()
        assert world.count(ERRORS, reason="connection_read_timeout") == 1


@in_a_calm_moment
async def test_a_reader_that_stops_is_cut() -> None:
    async with beside_a_neighbour("write_idle") as world, narrow_client(world) as client:
        client.stop_reading()
        client.send(get())
        target = await world.legacy.connection()
        await target.request()
        target.send(b"HTTP/1.1 200 OK\r\nContent-Length: 50000000\r\n\r\n" + b"x" * 20_000_000)
        await world.counted(CLOSED, 1, reason="slow_reader")
        await target.end()


@in_a_calm_moment
async def test_a_reader_that_drips_below_the_rate_is_cut() -> None:
    limits = Limits(min_body_rate=10_000_000)
    async with beside_a_neighbour("write_idle", limits=limits) as world, narrow_client(world) as client:
        client.stop_reading()
        client.send(get())
        target = await world.legacy.connection()
        await target.request()
        target.send(b"HTTP/1.1 200 OK\r\nContent-Length: 50000000\r\n\r\n" + b"x" * 20_000_000)
        while not world.count(CLOSED, reason="slow_reader"):
            drop = client.heard + 100_000  # half as fast as it must be, and enough to make room in the kernel
            client.go_on_reading()
            await client.fact(lambda: client.heard > drop or client.ending != "open", "a drop")  # noqa: B023
            client.stop_reading()
            await asyncio.sleep(0.02)


@in_a_calm_moment
async def test_a_target_that_does_not_take_the_body_is_given_up() -> None:
    async with beside_a_neighbour("write_idle") as world:
        client = await world.client()
        client.send(get(b"/", b"Content-Length: 50000000\r\n", b"POST"), b"x" * 20_000_000)
        target = await world.legacy.connection()
        target.stop_reading()
        answer = await client.answer()
        assert answer.status == 504
        assert named(answer.fields, b"proxy-status") == [b"crossfade; error=connection_write_timeout"]


@in_a_calm_moment
async def test_a_silent_tunnel_is_closed() -> None:
    async with beside_a_neighbour("tunnel_idle") as world:
        client = await world.client()
        client.send(get(b"/", b"Upgrade: x\r\nConnection: upgrade\r\n"))
        target = await world.legacy.connection()
        await target.request()
        target.send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n")
        await client.through(b"\r\n\r\n")
        await client.end()
        await target.end()
        assert world.count(ERRORS, reason="tunnel_idle") == 1


@in_a_calm_moment
async def test_what_moves_is_not_cut() -> None:
    """Upload, download, tunnel and interim silence far beyond every timer, but never idle."""
    timeouts = Timeouts(
        header=0.2,
        body_idle=0.2,
        keepalive=0.2,
        response=0.2,
        response_idle=0.2,
        write_idle=0.2,
        tunnel_idle=0.2,
    )
    async with World.of(timeouts=timeouts, limits=Limits(min_body_rate=10)) as world:
        loop = asyncio.get_running_loop()

        async def steadily(wire: Wire, piece: bytes) -> None:
            until_ = loop.time() + 0.5
            while loop.time() < until_:
                wire.send(piece)
                await asyncio.sleep(0.02)

        client = await world.client()
        client.send(get(b"/", b"Transfer-Encoding: chunked\r\n", b"POST"))
        target = await world.legacy.connection()
        await steadily(client, b"5\r\nhello\r\n")
        client.send(b"0\r\n\r\n")
        await target.through(b"0\r\n\r\n")
        target.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        await steadily(target, b"5\r\nhello\r\n")
        target.send(b"0\r\n\r\n")
        assert (await client.answer()).body.data.startswith(b"hello")
        client.send(get(b"/", b"Upgrade: x\r\nConnection: upgrade\r\n"))
        await target.request()
        target.send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n")
        await client.through(b"\r\n\r\n")
        await steadily(client, b"ping")
        await steadily(target, b"pong")
        assert client.ending == target.ending == "open"
        assert world.count(ERRORS) == 0


@in_a_calm_moment
async def test_a_pause_of_the_target_during_an_upload_is_not_the_clients_fault() -> None:
    timeouts = Timeouts(**{**LONG, "body_idle": 0.2})
    async with World.of(timeouts=timeouts, limits=Limits(min_body_rate=1000)) as world:
        client = await world.client()
        client.send(get(b"/", b"Content-Length: 20000000\r\n", b"POST"), b"x" * 20_000_000)
        target = await world.legacy.connection()
        target.stop_reading()
        await until(lambda: any(c.reading_paused for c in world.worker._clients), "backpressure")
        late = asyncio.get_running_loop().time() + 0.7
        await until(lambda: asyncio.get_running_loop().time() > late, "three times the timer")
        target.go_on_reading()
        assert len((await target.request()).body) == 20_000_000
        target.send(plain(b"ok"))
        assert (await client.answer()).status == 200
