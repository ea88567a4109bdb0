"""Ordinary requests, one connection after the other: what goes in comes out, and nothing else."""

from __future__ import annotations

import pytest

from flags.model import Route, Side
from tests.support.world import World, echo, get, plain, post


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
        raw = b"HTTP/1.1 200 Sch\xf6n\r\nset-COOKIE: a\r\nServer:x\r\nset-COOKIE: b\r\nContent-Length: 3\r\n\r\nabc"
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
