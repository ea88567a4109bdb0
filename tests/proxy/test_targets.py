"""Targets that die, stall, speak out of turn or are too few: what the client gets, and what is reused."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading

import pytest

from flags.model import Side
from proxy.config import Timeouts
from tests.differential.wire import named
from tests.support.world import Wire, World, echo, get, plain, post, reconfigured, until

CONNECTIONS = "crossfade_upstream_connections"
DISCARDED = "crossfade_upstream_discarded_total"


async def pooled(world: World, client: Wire) -> Wire:
    """One answered request; its target connection lies in the pool now."""
    client.send(get())
    target = await world.legacy.connection()
    await target.request()
    target.send(plain())
    await client.answer()
    return target


# Reuse ------------------------------------------------------------------------------------------------


async def test_a_connection_that_the_target_closes_leaves_the_pool() -> None:
    async with World.of() as world:
        client = await world.client()
        target = await pooled(world, client)
        target.close()
        await until(lambda: world.count(CONNECTIONS) == 0, "an empty pool")
        client.send(post())
        await (await world.legacy.connection()).request()


async def test_a_closed_connection_is_seen_before_the_event_loop_sees_it() -> None:
    async with World.of() as world:
        client = await world.client()
        target = await pooled(world, client)
        world.worker.runtime.pools[Side.LEGACY]._idle[0].transport.pause_reading()  # the loop stays blind
        target.close()
        await target.gone()
        client.send(post(b"/once"))
        again = await world.legacy.connection()
        assert (await again.request()).target == b"/once"
        assert world.count(DISCARDED, reason="stale") == 1


@pytest.mark.parametrize("blind", [False, True])
async def test_unsolicited_bytes_on_a_pooled_connection_reach_nobody(blind: bool) -> None:
    async with World.of() as world:
        client = await world.client()
        target = await pooled(world, client)
        if blind:
            world.worker.runtime.pools[Side.LEGACY]._idle[0].transport.pause_reading()
        target.send(plain(b"poison"))
        if blind:
            await target.drained()
        else:
            await world.counted(DISCARDED, 1, reason="unsolicited_bytes")
        client.send(get(b"/mine"))
        fresh = await world.legacy.connection()
        assert (await fresh.request()).target == b"/mine"
        fresh.send(plain(b"mine"))
        assert (await client.answer()).body.data == b"mine"


@pytest.mark.parametrize("answer", [plain(b"ok"), plain(), b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 304 Not Modified\r\nContent-Length: 6\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"])  # fmt: skip
async def test_bytes_behind_an_answer_end_the_connection_and_reach_nobody(answer: bytes) -> None:
    async with World.of() as world:
        client = await world.client()
        client.send(get())
        target = await world.legacy.connection()
        await target.request()
        target.send(answer + plain(b"poison"))
        await client.answer()
        client.send(get(b"/mine"))
        fresh = await world.legacy.connection()
        assert (await fresh.request()).target == b"/mine"
        fresh.send(plain(b"mine"))
        assert (await client.answer()).body.data == b"mine"
        await target.end()


async def test_a_body_behind_the_answer_to_head_reaches_nobody() -> None:
    async with World.of() as world:
        client = await world.client()
        client.send(get(method=b"HEAD"))
        target = await world.legacy.connection()
        await target.request()
        target.send(plain(b"poison"))
        assert (await client.answer(b"HEAD")).status == 200
        client.send(get())
        fresh = await world.legacy.connection()
        await fresh.request()
        fresh.send(plain(b"mine"))
        assert (await client.answer()).body.data == b"mine"


@pytest.mark.parametrize("more", [b"Connection: close\r\n", b"Keep-Alive: timeout=1\r\n"])
async def test_a_target_that_will_close_is_not_reused(more: bytes) -> None:
    async with World.of() as world:
        client = await world.client()
        client.send(get())
        target = await world.legacy.connection()
        await target.request()
        target.send(plain(b"", more=more))
        answer = await client.answer()
        assert not named(answer.fields, b"connection")
        await target.end()
        client.send(get())
        await (await world.legacy.connection()).request()


async def test_an_idle_connection_is_closed_in_time() -> None:
    async with World.of(target={"idle_timeout": 0.1}, timeouts=Timeouts(expect=0.2)) as world:
        target = await pooled(world, await world.client())
        assert await target.end() == "closed"


# Retries ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"OPTIONS"])
@pytest.mark.parametrize("ending", ["close", "reset"])
async def test_a_safe_request_that_meets_a_dying_pooled_connection_is_sent_again(
    method: bytes, ending: str
) -> None:
    async with World.of() as world:
        client = await world.client()
        target = await pooled(world, client)
        client.send(get(b"/again", method=method))
        await target.request()
        getattr(target, ending)()
        fresh = await world.legacy.connection()
        assert (await fresh.request()).target == b"/again"
        fresh.send(plain(b"", method=method))
        assert (await client.answer(method)).status == 200
        assert world.count("crossfade_retries_total", reason="stale_connection") == 1


@pytest.mark.parametrize(
    "request_",
    [
        post(b"/once"), post(b"/once", b"body"), get(b"/once", method=b"DELETE"), get(b"/once",
        method=b"PUT"),
        post(b"/once", b"body", method=b"GET"), get(b"/once", method=b"PROPFIND"),
        get(b"/once", b"Transfer-Encoding: chunked\r\n") + b"0\r\n\r\n",
    ],
)  # fmt: skip
async def test_a_request_that_may_have_acted_is_never_sent_again(request_: bytes) -> None:
    async with World.of() as world:
        client = await world.client()
        target = await pooled(world, client)
        client.send(request_)
        await target.request()
        target.close()
        assert (await client.answer()).status == 502
        assert len(world.legacy.wires) == 1
        assert world.count("crossfade_retries_total") == 0


async def test_a_request_is_sent_again_once_only() -> None:
    async with World.of() as world:
        client = await world.client()
        target = await pooled(world, client)
        client.send(get(b"/again"))
        await target.request()
        target.close()
        fresh = await world.legacy.connection()
        await fresh.request()
        fresh.close()
        answer = await client.answer()
        assert answer.status == 502
        assert named(answer.fields, b"proxy-status") == [b"crossfade; error=connection_terminated"]


async def test_a_request_whose_answer_has_begun_is_not_sent_again() -> None:
    async with World.of() as world:
        client = await world.client()
        target = await pooled(world, client)
        client.send(get())
        await target.request()
        target.send(b"HTTP/1.1 2")
        target.close()
        answer = await client.answer()
        assert answer.status == 502
        assert named(answer.fields, b"proxy-status") == [b"crossfade; error=http_response_incomplete"]
        assert len(world.legacy.wires) == 1


# Faults -----------------------------------------------------------------------------------------------


async def test_a_dead_target_is_told_and_the_client_connection_stays() -> None:
    async with World.of() as world:
        await world.legacy.stop()
        client = await world.client()
        for _ in range(3):
            client.send(get())
            answer = await client.answer()
            assert answer.status == 502
            assert named(answer.fields, b"proxy-status") == [b"crossfade; error=connection_refused"]
        client.send(get(method=b"HEAD"))
        assert (await client.answer(b"HEAD")).status == 502
        client.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        answer = await client.answer()
        options = named(answer.fields, b"connection")
        assert options == [b"close"]  # an HTTP/1.0 client would not know that it stays
        assert world.count("crossfade_errors_total", reason="connection_refused") == 5


async def test_a_target_that_does_not_take_the_connection_is_a_timeout() -> None:
    full = socket.create_server(("127.0.0.1", 0), backlog=0)
    fillers = []
    try:
        for _ in range(4):  # the queue of a listener that nobody accepts from
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
            fillers.append(filler)
        async with World.of(target={"connect_timeout": 0.2}) as world:
            world.legacy.port = full.getsockname()[1]
            await reconfigured(world)
            answer = await world.ask(get())
            assert answer.status == 504
            assert named(answer.fields, b"proxy-status") == [b"crossfade; error=connection_timeout"]
    finally:
        for sock in [full, *fillers]:
            sock.close()


@pytest.mark.parametrize("ending", ["closed", "reset"])
async def test_a_target_that_accepts_and_closes_at_once_costs_no_place_in_the_pool(ending: str) -> None:
    listening = socket.create_server(("127.0.0.1", 0))

    def slam() -> None:
        with contextlib.suppress(OSError):
            while True:
                accepted, _ = listening.accept()
                if ending == "reset":
                    accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                accepted.close()

    slammer = threading.Thread(target=slam)
    slammer.start()
    try:
        async with World.of(target={"max_connections": 4, "wait_timeout": 8.0}) as world:
            world.legacy.port = listening.getsockname()[1]
            await reconfigured(world)
            clients = [await world.client() for _ in range(20)]
            for _ in range(20):
                for client in clients:
                    client.send(get())
                for client in clients:
                    answer = await client.answer()
                    assert answer.status == 502
                    assert named(answer.fields, b"proxy-status")[0] in {
                        b"crossfade; error=connection_terminated",
                        b"crossfade; error=destination_unavailable",
                    }  # fmt: skip
            await until(lambda: world.count(CONNECTIONS) == 0, "no connection that is counted and dead")
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        slammer.join()


async def test_a_target_that_speaks_first_is_not_believed() -> None:
    async def blurt(wire: Wire) -> None:
        wire.send(plain(b"poison"))
        await wire.request()
        await wire.end()

    async with World.of(legacy=blurt) as world:
        client = await world.client()
        for _ in range(5):
            client.send(get())
            await client.answer()
        assert world.count(CONNECTIONS, state="idle") == 0


@pytest.mark.parametrize(
    "garbage",
    [b"garbage\r\n\r\n", b"\0" * 100, b"HTTP/1.1 200 OK\r\nA: b\n\n",
     b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
     b"HTTP/1.1 101 Switching Protocols\r\n\r\n", b"SSH-2.0-x\r\n",
     b"HTTP/1.1 200 OK\r\nA: " + b"x" * 70_000],
)  # fmt: skip
async def test_a_target_that_speaks_no_http_is_told_as_such(garbage: bytes) -> None:
    async with World.of() as world:
        client = await world.client()
        client.send(get())
        target = await world.legacy.connection()
        await target.request()
        target.send(garbage)
        answer = await client.answer()
        assert answer.status == 502
        assert named(answer.fields, b"proxy-status")[0].startswith(b"crossfade; error=http_")
        await target.end()


async def test_too_few_connections_make_requests_wait_their_turn() -> None:
    async with World.of(target={"max_connections": 2, "max_waiting": 3}) as world:
        clients = [await world.client() for _ in range(6)]
        for number, client in enumerate(clients):
            client.send(get(b"/%d" % number))
            if number < 2:
                await world.counted("crossfade_upstream_connections", number + 1, state="busy")
            elif number < 5:
                await world.counted("crossfade_requests_waiting", number - 1)
        refused = await clients[5].answer()
        assert refused.status == 503
        assert named(refused.fields, b"proxy-status") == [b"crossfade; error=connection_limit_reached"]
        assert named(refused.fields, b"retry-after") == [b"1"]
        targets = [await world.legacy.connection() for _ in range(2)]
        first = [(await target.request()).target for target in targets]
        assert set(first) == {b"/0", b"/1"}
        targets[0].send(plain(b"a"))
        assert (await targets[0].request()).target == b"/2"
        clients[3].reset()  # who gives up is not served
        await world.counted("crossfade_requests_total", 1, code="4xx")
        targets[1].send(plain(b"b"))
        assert (await targets[1].request()).target == b"/4"
        assert len(world.legacy.wires) == 2


async def test_a_wait_for_a_connection_has_an_end() -> None:
    config = {"max_connections": 1, "wait_timeout": 0.15}
    async with World.of(target=config, timeouts=Timeouts(expect=0.1)) as world:
        first, second = await world.client(), await world.client()
        first.send(get(b"/slow"))
        target = await world.legacy.connection()
        second.send(post(b"/", b"body"))
        answer = await second.answer()
        assert answer.status == 503
        target.send(plain(b"late but whole"))
        assert (await first.answer()).body.data == b"late but whole"


async def test_many_clients_share_few_connections() -> None:
    async with World.of(legacy=echo, target={"max_connections": 3}) as world:
        clients = [await world.client() for _ in range(60)]
        for number, client in enumerate(clients):
            client.send(get(b"/%d" % number))
        for number, client in enumerate(clients):
            assert (await client.answer()).body.data == b"GET /%d " % number
        assert len(world.legacy.wires) == 3


async def test_the_hosts_of_a_target_replace_the_clients() -> None:
    async with World.of(legacy=None, target={"host_header": "inner.test"}) as world:
        client = await world.client()
        client.send(get(b"/", b"A: b\r\n"))
        target = await world.legacy.connection()
        assert (await target.request()).values(b"host") == [b"inner.test"]
