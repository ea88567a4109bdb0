"""Ordinary requests, one connection after the other: what goes in comes out, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading

import pytest

from flags.model import Route, Side
from proxy.config import Limits, Timeouts
from tests.differential.wire import named
from tests.support.world import World, echo, get, plain, post, reconfigured


async def test_a_request_and_its_answer_pass_unchanged() -> None:
    async with World.of() as world:
        client = await world.client()
        client.send(
            b"GET /a%2Fb/../c?x=%zz&y=\xe9 HTTP/1.1\r\nhOsT: a.test\r\nX-Odd:\t one  \r\nx-odd: two\r\n\r\n"
        )
        target = await world.legacy.connection()
        asked = await target.request()
        assert asked.head.startswith(
            b"GET /a%2Fb/../c?x=%zz&y=\xe9 HTTP/1.1\r\nhOsT: a.test\r\nX-Odd:\t one  \r\nx-odd: two\r\n"
        )
        raw = (
            b"HTTP/1.1 200 Sch\xf6n\r\nset-COOKIE: a\r\nA:b\r\nset-COOKIE: c\r\nContent-Length: 3\r\n\r\nabc"
        )
        target.send(raw)
        assert await client.take(len(raw)) == raw


async def test_routes_choose_the_backend() -> None:
    routes = [Route("items", "/items/{id}", frozenset({"GET"}), side=Side.NEW)]
    async with World.of(routes, legacy=echo, new=echo) as world:
        await world.ask(get(b"/items/1"))
        assert world.count("crossfade_requests_total", side="new", flag="items", code="2xx") == 1
        await world.ask(post(b"/items/1", b"x"))
        await world.ask(get(b"/items"))
        assert world.count("crossfade_requests_total", side="legacy", flag="-", reason="no_route") == 2


async def test_requests_on_one_connection_share_one_pooled_connection() -> None:
    async with World.of(legacy=echo) as world:
        client = await world.client()
        for number in range(50):
            client.send(post(b"/%d" % number, b"body %d" % number))
            assert (await client.answer()).body.data == b"POST /%d body %d" % (number, number)
        assert len(world.legacy.wires) == 1


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with World.of(legacy=echo) as world:
        client = await world.client()
        requests = [post(b"/%d" % n, b"x" * n) if n % 3 else get(b"/%d" % n) for n in range(300)]
        client.send(b"".join(requests))
        for number in range(300):
            answer = await client.answer()
            assert answer.body.data.split(b" ")[1] == b"/%d" % number


async def test_a_pipeline_that_ends_with_a_half_close_is_answered_whole() -> None:
    async with World.of(legacy=echo) as world:
        client = await world.client()
        client.send(b"".join(get(b"/%d" % n) for n in range(2500)))
        client.half_close()
        for number in range(2500):
            assert (await client.answer()).body.data == b"GET /%d " % number
        assert await client.end() == "closed"


@pytest.mark.parametrize("method", [b"GET", b"PROPFIND", b"M-SEARCH", b"x"])
async def test_any_method_passes(method: bytes) -> None:
    async with World.of(legacy=echo) as world:
        answer = await world.ask(get(b"/", method=method))
        assert answer.body.data == method + b" / "


async def test_head_204_and_304_have_no_body_whatever_their_fields_say() -> None:
    async with World.of() as world:
        client = await world.client()
        client.send(get(method=b"HEAD"))
        target = await world.legacy.connection()
        await target.request()
        target.send(plain(b"", status=b"200 OK", more=b"X: 1\r\n").replace(b": 0", b": 12345"))
        answer = await client.answer(b"HEAD")
        assert b"Content-Length: 12345\r\n" in answer.head
        for status in (b"204 No Content", b"304 Not Modified"):
            client.send(get())
            await target.request()
            target.send(b"HTTP/1.1 %b\r\nContent-Length: 7\r\n\r\n" % status)
            assert (await client.answer()).status == int(status[:3])
        client.send(get(method=b"HEAD"))
        await target.request()
        target.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        answer = await client.answer(b"HEAD")
        assert b"Transfer-Encoding: chunked\r\n" in answer.head
        assert len(world.legacy.wires) == 1


# Framing ---------------------------------------------------------------------------------------------


async def test_a_chunked_request_passes_chunk_by_chunk_with_its_trailers() -> None:
    async with World.of() as world:
        client = await world.client()
        client.send(get(more=b"Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\n", method=b"POST"))
        target = await world.legacy.connection()
        asked = await target.request(body=False)
        assert asked.values(b"trailer") == [b"X-Sum"]
        client.send(b"3;ext=1\r\nabc\r\n")
        assert await target.through(b"abc\r\n") == b"3\r\nabc\r\n"
        client.send(b"0005\r\nde", b"fgh\r\n")
        assert (await target.through(b"h\r\n")).endswith(b"h\r\n")
        client.send(b"0\r\nX-Sum: 9\r\n\r\n")
        assert await target.through(b"\r\n\r\n") == b"0\r\nX-Sum: 9\r\n\r\n"
        target.send(plain(b"ok"))
        assert (await client.answer()).body.data == b"ok"


async def test_a_chunked_answer_passes_with_its_trailers_and_the_connection_stays() -> None:
    async with World.of() as world:
        client = await world.client()
        target = None
        for _ in range(2):
            client.send(get(more=b"TE: trailers\r\n"))
            target = target or await world.legacy.connection()
            asked = await target.request()
            assert asked.values(b"te") == [b"trailers"]
            assert asked.values(b"connection") == [b"TE"]
            target.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n")
            assert (await client.through(b"a\r\n")).endswith(b"\r\n\r\n1\r\na\r\n")
            target.send(b"2\r\nbc\r\n0\r\nX-Sum: 1\r\n\r\n")
            assert await client.through(b"\r\n\r\n") == b"2\r\nbc\r\n0\r\nX-Sum: 1\r\n\r\n"
        assert len(world.legacy.wires) == 1


async def test_an_http_1_0_client_gets_no_chunks_and_a_close() -> None:
    async with World.of() as world:
        client = await world.client()
        client.send(b"GET / HTTP/1.0\r\n\r\n")
        target = await world.legacy.connection()
        asked = await target.request()
        assert asked.head.startswith(b"GET / HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n" % world.legacy.port)
        target.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        target.send(b"1\r\nb\r\n0\r\nX: y\r\n\r\n")
        answer = await client.answer()
        assert answer.body.data == b"ab"
        assert b"hunked" not in answer.head
        assert await client.end() == "closed"


async def test_an_http_1_0_client_may_ask_to_stay() -> None:
    async with World.of(legacy=echo) as world:
        client = await world.client()
        for _ in range(2):
            client.send(b"GET /x HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n")
            answer = await client.answer()
            assert b"Connection: keep-alive\r\n" in answer.head
            assert answer.head.startswith(b"HTTP/1.1 ")
        client.send(b"GET /x HTTP/1.0\r\nHost: a\r\n\r\n")
        assert b"Connection: close\r\n" in (await client.answer()).head
        assert await client.end() == "closed"


async def test_an_answer_of_http_1_0_is_relayed_as_1_1_and_its_end_is_the_close() -> None:
    async with World.of() as world:
        client = await world.client()
        client.send(get())
        target = await world.legacy.connection()
        await target.request()
        target.send(b"HTTP/1.0 200 OK\r\nA: b\r\n\r\nall of it")
        assert await client.through(b"it") == b"HTTP/1.1 200 OK\r\nA: b\r\nConnection: close\r\n\r\nall of it"
        target.close()
        assert await client.end() == "closed"


async def test_an_answer_without_a_length_that_breaks_off_does_not_look_whole() -> None:
    async with World.of() as world:
        client = await world.client()
        client.send(get())
        target = await world.legacy.connection()
        await target.request()
        target.send(b"HTTP/1.1 200 OK\r\n\r\nhalf")
        await client.through(b"half")
        target.reset()
        assert await client.end() == "reset"


@pytest.mark.parametrize(
    "begun",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhalf",
    ],
)
@pytest.mark.parametrize("ending", ["close", "reset"])
async def test_a_cut_answer_breaks_the_client_connection(begun: bytes, ending: str) -> None:
    async with World.of() as world:
        client = await world.client()
        client.send(get())
        target = await world.legacy.connection()
        await target.request()
        target.send(begun)
        await client.through(b"half")
        getattr(target, ending)()
        await client.end()
        assert bytes(client.raw) in (b"", b"\r\n")
        assert world.count("crossfade_errors_total", reason="http_response_incomplete") == 1


async def test_bad_chunks_in_an_answer_break_the_client_connection() -> None:
    async with World.of() as world:
        client = await world.client()
        client.send(get())
        target = await world.legacy.connection()
        await target.request()
        target.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        await client.through(b"a\r\n")
        target.send(b"zz\r\n")
        await client.end()
        assert not client.raw
        await target.end()


# Interim answers --------------------------------------------------------------------------------------


async def test_interim_answers_pass() -> None:
    async with World.of() as world:
        client = await world.client()
        client.send(get())
        target = await world.legacy.connection()
        await target.request()
        target.send(
            b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n" + plain(b"ok")
        )
        assert await client.through(b"\r\n\r\n") == b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
        assert (await client.answer()).status == 102
        assert (await client.answer()).body.data == b"ok"


async def test_a_target_that_never_stops_beginning_is_given_up() -> None:
    async with World.of() as world:
        client = await world.client()
        client.send(get())
        target = await world.legacy.connection()
        await target.request()
        target.send(b"HTTP/1.1 102 Processing\r\n\r\n" * 1000)
        answer = await client.answer()
        while answer.status == 102:
            answer = await client.answer()
        assert answer.status == 502


async def test_an_http_1_0_client_gets_no_interim_answers() -> None:
    async with World.of() as world:
        client = await world.client()
        client.send(b"GET / HTTP/1.0\r\nExpect: 100-continue\r\n\r\n")
        target = await world.legacy.connection()
        assert (await target.request()).values(b"expect") == []
        target.send(b"HTTP/1.1 100 Continue\r\n\r\n" + plain(b"ok"))
        assert (await client.answer()).status == 200


EXPECTING = get(b"/", b"Content-Length: 4\r\nExpect: 100-continue\r\n", b"POST")


async def test_the_targets_100_reaches_the_client_once() -> None:
    async with World.of() as world:
        client = await world.client()
        client.send(EXPECTING)
        target = await world.legacy.connection()
        assert (await target.request(body=False)).values(b"expect") == [b"100-continue"]
        target.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert await client.through(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.send(b"body")
        assert await target.take(4) == b"body"
        target.send(plain(b"ok"))
        assert (await client.answer()).body.data == b"ok"


async def test_a_silent_target_does_not_hold_up_a_client_that_waits_for_100() -> None:
    async with World.of(timeouts=Timeouts(expect=0.1)) as world:
        client = await world.client()
        client.send(EXPECTING)
        target = await world.legacy.connection()
        await target.request(body=False)
        assert await client.through(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        target.send(b"HTTP/1.1 100 Continue\r\n\r\n")  # late, and not passed on a second time
        client.send(b"body")
        assert await target.take(4) == b"body"
        target.send(plain(b"ok"))
        assert (await client.answer()).status == 200


async def test_a_target_that_refuses_the_body_is_heard() -> None:
    async with World.of() as world:
        client = await world.client()
        client.send(EXPECTING)
        target = await world.legacy.connection()
        await target.request(body=False)
        target.send(plain(b"no", status=b"417 Expectation Failed"))
        answer = await client.answer()
        assert (answer.status, answer.body.data) == (417, b"no")
        assert b"Connection: close\r\n" in answer.head
        assert await client.end() == "closed"
        await target.end()


async def test_an_early_answer_to_an_upload_arrives_although_the_client_still_sends() -> None:
    async with World.of() as world:
        client = await world.client()
        client.send(get(b"/", b"Content-Length: 100000000\r\n", b"POST"), b"x" * 1_000_000)
        target = await world.legacy.connection()
        await target.request(body=False)
        target.send(plain(b"too much", status=b"413 Content Too Large"))
        answer = await client.answer()
        assert (answer.status, answer.body.data) == (413, b"too much")
        client.send(b"x" * 1_000_000)  # it has not looked yet
        assert await client.end() == "closed"
        await target.end()


async def test_an_early_answer_is_heard_although_sending_meets_the_reset_first() -> None:
    listening = socket.create_server(("127.0.0.1", 0))

    def refuse() -> None:
        """Answer the head and close with the body unread, as fast as another process does."""
        with contextlib.suppress(OSError):
            while True:
                accepted, _ = listening.accept()
                with accepted:
                    accepted.recv(4096)
                    accepted.sendall(plain(b"too much", status=b"413 Content Too Large"))

    refuser = threading.Thread(target=refuse)
    refuser.start()
    try:
        async with World.of() as world:
            world.legacy.port = listening.getsockname()[1]
            await reconfigured(world)
            for _ in range(150):
                client = await world.client()
                client.send(get(b"/", b"Content-Length: 100000000\r\n", b"POST"))
                for _ in range(30):
                    if not client.transport.is_closing():
                        client.send(b"x" * 30_000)
                    await asyncio.sleep(0)
                assert (await client.answer()).status == 413
                client.close()
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        refuser.join()


# What is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", 405),
        (b"CONNECT / HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        (b"TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        (b"TRACE / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx", 405),
        (b"TRACE http://a/ HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
    ],
)
async def test_a_refusal_reaches_no_backend_and_ends_the_connection(request_: bytes, status: int) -> None:
    async with World.of(legacy=echo) as world:
        client = await world.client()
        client.send(request_ + get(b"/smuggled"))
        answer = await client.answer()
        assert answer.status == status
        assert b"Connection: close\r\n" in answer.head
        assert await client.end() == "closed"
        assert not client.raw
        assert not world.legacy.wires


async def test_bad_chunks_in_a_request_are_refused_and_end_both_connections() -> None:
    async with World.of() as world:
        client = await world.client()
        client.send(get(more=b"Transfer-Encoding: chunked\r\n", method=b"POST"), b"1\r\na\r\n")
        target = await world.legacy.connection()
        await target.through(b"1\r\na\r\n")
        client.send(b"zz\r\n" + get(b"/smuggled"))
        assert (await client.answer()).status == 400
        assert await client.end() == "closed"
        await target.end()
        assert not target.raw


async def test_a_body_beyond_the_limit_is_refused() -> None:
    async with World.of(legacy=echo, limits=Limits(body_bytes=10)) as world:
        assert (await world.ask(post(b"/", b"x" * 10))).status == 200
        assert (await world.ask(post(b"/", b"x" * 11))).status == 413
        chunked = (
            get(more=b"Transfer-Encoding: chunked\r\n", method=b"POST")
            + b"b\r\n"
            + b"x" * 11
            + b"\r\n0\r\n\r\n"
        )
        assert (await world.ask(chunked)).status == 413


async def test_answers_of_our_own_carry_no_byte_of_the_request() -> None:
    async with World.of() as world:
        answer = await world.ask(b"GET /<script> HTTP/1.1\r\nHost: <b>\r\n\r\n")
        assert b"script" not in answer.head + answer.body.data
        assert named(answer.fields, b"proxy-status") == [
            b'crossfade; error=http_request_error; details="bad_host"'
        ]
