"""Upgraded connections are tunnels; event streams arrive event by event."""

from __future__ import annotations

import pytest

from tests.support.world import Wire, World, get, plain, until

UPGRADE = get(b"/ws", b"Upgrade: websocket\r\nConnection: keep-alive, Upgrade\r\nSec-WebSocket-Key: x\r\n")
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nX: y\r\n\r\n"
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nX: y\r\nConnection: upgrade\r\n\r\n"


async def tunnel(world: World) -> tuple[Wire, Wire]:
    client = await world.client()
    client.send(UPGRADE)
    target = await world.legacy.connection()
    asked = await target.request()
    assert asked.values(b"upgrade") == [b"websocket"]
    assert asked.values(b"connection") == [b"upgrade"]
    target.send(SWITCH)
    assert await client.through(b"\r\n\r\n") == SWITCHED
    return client, target


async def test_bytes_pass_both_ways() -> None:
    async with World.of() as world:
        client, target = await tunnel(world)
        for round_ in range(3):
            client.send(b"\x81ping%d" % round_)
            assert await target.take(6) == b"\x81ping%d" % round_
            target.send(b"\x81pong%d" % round_)
            assert await client.take(6) == b"\x81pong%d" % round_
        assert world.count("crossfade_tunnels_total", side="legacy") == 1


async def test_bytes_that_come_early_are_not_lost() -> None:
    async with World.of() as world:
        client = await world.client()
        client.send(UPGRADE + b"early from client")
        target = await world.legacy.connection()
        await target.request()
        assert not target.raw  # the target has not agreed yet
        target.send(SWITCH + b"early from target")
        assert await client.through(b"target") == SWITCHED + b"early from target"
        assert await target.take(17) == b"early from client"


async def test_the_client_half_closes_and_hears_the_rest() -> None:
    async with World.of() as world:
        client, target = await tunnel(world)
        client.send(b"last words")
        client.half_close()
        assert await target.take(10) == b"last words"
        assert await target.end() == "closed"
        target.send(b"x" * 1_000_000, b"the end")
        target.close()
        assert (await client.through(b"the end")).startswith(b"xxx")
        assert await client.end() == "closed"


async def test_the_target_half_closes_and_hears_the_rest() -> None:
    async with World.of() as world:
        client, target = await tunnel(world)
        target.send(b"last words")
        target.half_close()
        assert await client.take(10) == b"last words"
        assert await client.end() == "closed"
        client.send(b"x" * 3_000_000, b"the end")
        client.close()
        assert len(await target.through(b"the end")) == 3_000_007
        assert await target.end() == "closed"


@pytest.mark.parametrize("first", ["client", "target"])
async def test_what_was_sent_before_the_end_arrives_at_a_slow_target(first: str) -> None:
    async with World.of() as world:
        client, target = await tunnel(world)
        (served,) = world.worker._clients
        exchange = served._exchange
        assert exchange is not None
        upstream = exchange.upstream
        assert upstream is not None
        if first == "target":
            target.half_close()
            await client.end()
        target.stop_reading()
        sent = 0
        while not upstream.transport.get_write_buffer_size():  # the kernel takes a lot before that
            client.send(b"x" * 50_000)
            sent += 50_000
            await until(lambda: exchange.received == sent, "the bytes in the worker")  # noqa: B023
        client.close() if first == "target" else client.half_close()
        await until(lambda: served.half_closed, "the end in the worker")
        target.go_on_reading()
        await target.end()
        assert len(target.raw) == sent


async def test_early_bytes_and_an_early_end_both_reach_the_target() -> None:
    async with World.of() as world:
        client = await world.client()
        client.send(UPGRADE + b"all I have to say")
        client.half_close()
        target = await world.legacy.connection()
        await target.request()
        await until(lambda: next(iter(world.worker._clients)).half_closed, "the half-close")
        target.send(SWITCH)
        assert await target.take(17) == b"all I have to say"
        assert await target.end() == "closed"
        target.send(b"bye")
        target.close()
        assert (await client.through(b"bye")).endswith(b"bye")


@pytest.mark.parametrize("who", ["client", "target"])
async def test_a_reset_on_one_side_ends_the_other(who: str) -> None:
    async with World.of() as world:
        client, target = await tunnel(world)
        one, other = (client, target) if who == "client" else (target, client)
        one.reset()
        await other.end()


async def test_a_target_that_declines_answers_as_usual() -> None:
    async with World.of() as world:
        client = await world.client()
        client.send(UPGRADE)
        target = await world.legacy.connection()
        await target.request()
        target.send(
            plain(b"no", status=b"426 Upgrade Required", more=b"Upgrade: x\r\nConnection: upgrade\r\n")
        )
        answer = await client.answer()
        assert (answer.status, answer.body.data) == (426, b"no")
        assert b"Upgrade: x\r\n" in answer.head
        client.send(get())
        await target.request()


@pytest.mark.parametrize(
    "request_",
    [
        get(),
        get(b"/", b"Upgrade: h2c\r\nConnection: upgrade, http2-settings\r\n"),
        get(b"/", b"Upgrade: websocket\r\n"),
    ],
)
async def test_nobody_is_switched_who_did_not_ask(request_: bytes) -> None:
    async with World.of() as world:
        client = await world.client()
        client.send(request_)
        target = await world.legacy.connection()
        assert (await target.request()).values(b"upgrade") == []
        target.send(SWITCH + plain(b"poison"))
        answer = await client.answer()
        assert answer.status == 502
        assert b"poison" not in client.raw
        await target.end()


async def test_a_tunnel_is_one_answered_request() -> None:
    async with World.of() as world:
        client, target = await tunnel(world)
        client.close()
        await target.end()
        target.close()
        await world.counted("crossfade_requests_total", 1, code="1xx")
        assert world.count("crossfade_errors_total") == 0


async def test_each_event_of_a_stream_arrives_when_it_is_sent() -> None:
    async with World.of() as world:
        client = await world.client()
        client.send(get(b"/events"))
        target = await world.legacy.connection()
        await target.request()
        target.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        await client.through(b"\r\n\r\n")
        for number in range(20):
            event = b"data: %d\n\n" % number
            target.send(b"%x\r\n%b\r\n" % (len(event), event))
            assert event in await client.through(b"\n\n\r\n")
        client.reset()
        assert await target.end() in {"closed", "reset"}
        await world.counted("crossfade_errors_total", 1, reason="client_gone")
