"""A route with an adapter: whole messages are translated in both directions, or nothing of them goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from core.http import RequestHead
from flags.decide import decide
from flags.model import AdapterUse, Decision, FlagSet, Kill, Route, Side
from flags.snapshot import compile_snapshot
from legacy_adapter.adapter import Plugs
from legacy_adapter.messages import Answer, Request
from proxy.config import Limits, Timeouts
from proxy.head import parse_request
from tests.differential.wire import named
from tests.proxy.flags import EVERYBODY, one_flag
from tests.support.facts import KnownFacts
from tests.support.world import Wire, World, echo, get, plain, post, segments, until

FAILURES = "crossfade_adapter_failures_total"
REQUESTS = "crossfade_requests_total"


class Shouting:
    """Clients speak in lower case, this backend in upper case."""

    def request(self, request: Request) -> Request:
        shouted = replace(request, body=request.body.upper())
        return shouted.with_path(request.path.upper()).with_header("X-Spoken", "loud")

    def answer(self, answer: Answer, request: Request) -> Answer:
        return replace(answer, body=answer.body.lower()).with_header("X-Asked", request.path)


class By:
    """An adapter of two functions."""

    def __init__(
        self,
        request: Callable[[Request], Any] = lambda request: request,
        answer: Callable[[Answer, Request], Any] = lambda answer, request: answer,
    ) -> None:
        self.request, self.answer = request, answer


def raising(*_: object) -> Any:
    raise LookupError("no such row")


def world_with(adapter: Any, *, untranslated: bool = False, **more: Any) -> Any:
    """A world in which new speaks through `adapter`, for all of it, and legacy as clients do."""
    routes = (Route("items", "/**", adapters=(AdapterUse(Side.NEW, "other", untranslated),), side=Side.NEW),)
    return World.of(routes, plugs=Plugs({"other": adapter}), **more)


def failed_as_it_should(world: World, direction: str) -> None:
    """The failure is counted and has been logged."""
    assert world.count(FAILURES, flag="items", direction=direction) >= 1
    assert world.faults, "a fault of users' code is logged"
    world.faults.clear()


async def test_a_request_and_its_answer_are_translated() -> None:
    async with world_with(Shouting()) as world:
        client = await world.client()
        for _ in range(2):
            client.send(post(b"/way/to?Q=a", b"hello", b"X-Odd: \xe9\r\nCookie: a=b\r\n"))
            target = world.new.wires[0] if world.new.wires else await world.new.connection()
            asked = await target.request()
            assert (asked.target, asked.body) == (b"/WAY/TO?Q=a", b"HELLO")
            assert asked.values(b"x-spoken") == [b"loud"]
            assert asked.values(b"x-odd") == [b"\xe9"]
            assert asked.values(b"content-length") == [b"5"]
            assert asked.values(b"x-forwarded-for") == [b"127.0.0.1"]
            target.send(plain(b"WELL", status=b"201 Made so", more=b"X-A: b\r\nx-a: C\r\n"))
            answer = await client.answer()
            assert (answer.status, answer.reason, answer.body.data) == (201, b"Made so", b"well")
            assert named(answer.fields, b"x-asked") == [b"/way/to"]
            assert named(answer.fields, b"x-a") == [b"b", b"C"]
        assert len(world.new.wires) == 1, "the connection to the target is used again"
        assert world.count(REQUESTS, side="new", code="2xx") == 2
        assert world.count("crossfade_request_body_bytes_total", side="new") == 10


async def test_the_other_side_is_spoken_to_as_the_client_speaks() -> None:
    routes = (Route("items", "/**", adapters=(AdapterUse(Side.NEW, "other"),)),)
    async with World.of(routes, plugs=Plugs({"other": By(raising)}), legacy=echo) as world:
        assert (await world.ask(get(b"/a"))).body.data == b"GET /a "


@pytest.mark.parametrize("cut", [0, 1, 20, 60, 90])
async def test_a_chunked_body_is_translated_however_it_arrives(cut: int) -> None:
    async with world_with(Shouting(), new=echo) as world:
        client = await world.client()
        body = b"3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nX-T: v\r\n\r\n"
        whole = post(b"/a").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked") + body
        client.send(*segments(whole + get(b"/next"), [cut, len(whole) - 1]))
        assert (await client.answer()).body.data == b"post /a abcde"
        assert (await client.answer()).body.data == b"get /next "


@pytest.mark.parametrize("framing", [
    b"Content-Length: 4\r\n\r\nWELL", b"Transfer-Encoding: chunked\r\n\r\n3\r\nWEL\r\n1\r\nL\r\n0\r\n\r\n",
    b"Connection: close\r\n\r\nWELL", b"\r\nWELL", b"Connection: close\r\nContent-Length: 4\r\n\r\nWELL",
])  # fmt: skip
@pytest.mark.parametrize("minor", [0, 1])
async def test_an_answer_is_translated_however_it_is_framed(framing: bytes, minor: int) -> None:
    async with world_with(Shouting()) as world:
        client = await world.client()
        client.send(get(b"/a").replace(b"HTTP/1.1", b"HTTP/1.%d" % minor))
        target = await world.new.connection()
        await target.request()
        target.send(*segments(b"HTTP/1.1 200 OK\r\n" + framing, [17, 40]))
        if b"Content-Length" not in framing and b"chunked" not in framing:
            target.close()
        answer = await client.answer()
        assert answer.body.data == b"well"
        assert named(answer.fields, b"content-length") == [b"4"]
        if minor:
            client.send(get(b"/b"))
            stays = b"close" not in framing and not framing.startswith(b"\r\n")
            target = target if stays else await world.new.connection()
            assert (await target.request()).target == b"/B"


async def test_heads_and_answers_without_a_body_are_translated_too() -> None:
    async with world_with(Shouting()) as world:
        client = await world.client()
        target = None
        for method, sent in (
            (b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"),
            (b"GET", b"HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n"),
            (b"GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        ):
            client.send(get(b"/a", method=method))
            target = target or await world.new.connection()
            assert (await target.request()).target == b"/A"
            target.send(sent)
            answer = await client.answer(method)
            assert named(answer.fields, b"x-asked") == [b"/a"]
            assert named(answer.fields, b"content-length") == []


async def test_nothing_is_asked_for_that_could_not_be_translated() -> None:
    async with world_with(By()) as world:
        client = await world.client()
        client.send(get(b"/a", b"Accept-Encoding: gzip\r\nRange: bytes=0-1\r\nIf-Range: x\r\n"))
        asked = await (await world.new.connection()).request()
        assert asked.values(b"accept-encoding") == [b"identity"]
        assert asked.values(b"range") == asked.values(b"if-range") == []


async def test_a_digest_of_the_old_body_does_not_go_on_with_the_new_one() -> None:
    async with world_with(Shouting()) as world:
        client = await world.client()
        for body, expected in ((b"WELL", []), (b"well", [b"x"])):
            client.send(get(b"/a"))
            target = world.new.wires[0] if world.new.wires else await world.new.connection()
            await target.request()
            target.send(plain(body, more=b"Content-Digest: x\r\n"))
            assert named((await client.answer()).fields, b"content-digest") == expected


async def test_who_expects_to_be_told_to_go_on_is_told() -> None:
    async with world_with(Shouting(), new=echo) as world:
        client = await world.client()
        whole = post(b"/a", b"abc", b"Expect: 100-continue\r\n")
        client.send(whole[:-3])
        assert b" 100 " in await client.through(b"\r\n\r\n")
        client.send(whole[-3:])
        assert (await client.answer()).body.data == b"post /a abc"


async def test_an_upgrade_has_its_request_translated_and_is_a_tunnel_then() -> None:
    async with world_with(Shouting()) as world:
        client = await world.client()
        client.send(get(b"/ws", b"Connection: upgrade\r\nUpgrade: websocket\r\n"))
        target = await world.new.connection()
        asked = await target.request()
        assert asked.target == b"/WS"
        assert asked.values(b"upgrade") == [b"websocket"]
        assert asked.values(b"connection") == [b"upgrade"]
        target.send(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\nHi"
        )
        assert b" 101 " in await client.through(b"\r\n\r\n")
        assert await client.take(2) == b"Hi"
        client.send(b"there")
        assert await target.take(5) == b"there"


async def test_a_pooled_connection_that_died_is_no_failure_of_a_safe_request() -> None:
    async with world_with(Shouting()) as world:
        client = await world.client()
        client.send(get(b"/a"))
        target = await world.new.connection()
        await target.request()
        target.send(plain(b"A"))
        await client.answer()
        client.send(get(b"/b"))
        await target.request()
        target.close()
        fresh = await world.new.connection()
        assert (await fresh.request()).target == b"/B"
        fresh.send(plain(b"B"))
        assert (await client.answer()).body.data == b"b"


# Failures ---------------------------------------------------------------------------------------------


UNFIT: list[Callable[[Request], Any]] = [
    raising,
    lambda request: None,
    lambda request: request.with_path("/a b"),
    lambda request: request.with_path("/a\r\nX: y"),
    lambda request: request.with_header("X-A", "b\r\nX-Smuggled: c"),
    lambda request: request.with_header("X-A", "b\nc"),
    lambda request: request.with_header("X A", "b"),
    lambda request: request.with_header("X-A", "\x00"),
    lambda request: request.with_header("X-A", "€"),
    lambda request: request.adding_header("Host", "b.test"),
    lambda request: replace(request, body="text"),
    lambda request: replace(request, method="TRACE"),
    lambda request: replace(request, method="GET /x HTTP/1.1\r\nA: b\r\n\r\nGET"),
    lambda request: replace(request, target="http://elsewhere.test/"),
    lambda request: replace(request, headers=(("Only-A-Name",),)),
    lambda request: request.with_header("X-Long", "x" * 40_000),
]


@pytest.mark.parametrize("bad", UNFIT)
async def test_a_request_that_cannot_be_translated_is_refused_whole(bad: Callable[[Request], Any]) -> None:
    async with world_with(By(bad)) as world:
        client = await world.client()
        client.send(post(b"/a", b"body"))
        answer = await client.answer()
        assert answer.status == 502
        assert b"crossfade: adapter_failed" in answer.body.data
        assert not world.new.wires
        failed_as_it_should(world, "request")
        assert world.count("crossfade_errors_total", side="new", reason="adapter_failed") == 1
        client.send(post(b"/b", b"body"))  # the connection goes on
        assert (await client.answer()).status == 502
        world.faults.clear()


@pytest.mark.parametrize("bad", [
    raising,
    lambda answer, _: None,
    lambda answer, _: replace(answer, status=99),
    lambda answer, _: replace(answer, status=101),
    lambda answer, _: replace(answer, status="200"),
    lambda answer, _: replace(answer, body="text"),
    lambda answer, _: answer.with_header("X-A", "b\r\n\r\nHTTP/1.1 200 OK"),
    lambda answer, _: answer.with_header("", "b"),
])  # fmt: skip
async def test_an_answer_that_cannot_be_translated_is_refused_whole(bad: Any) -> None:
    async with world_with(By(answer=bad), new=echo) as world:
        client = await world.client()
        client.send(get(b"/a"))
        answer = await client.answer()
        assert answer.status == 502
        assert b"GET /a" not in answer.body.data
        failed_as_it_should(world, "answer")


async def test_what_an_adapter_says_of_framing_is_not_believed() -> None:
    def lie(message: Any, *_: Any) -> Any:
        return message.with_header("Content-Length", "1").with_header("Transfer-Encoding", "chunked")

    async with world_with(By(lie, lie)) as world:
        client = await world.client()
        client.send(post(b"/a", b"body"))
        target = await world.new.connection()
        asked = await target.request()
        assert asked.body == b"body"
        assert asked.values(b"transfer-encoding") == []
        target.send(plain(b"answer"))
        assert (await client.answer()).body.data == b"answer"


@pytest.mark.parametrize("request_", [
    get(b"/a?b"), post(b"/a?b", b"body"),
    post(b"/a?b").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    + b"3;x\r\nbod\r\n1\r\ny\r\n0\r\nX-T: v\r\n\r\n",
])  # fmt: skip
async def test_where_the_route_says_so_a_failed_request_goes_on_as_it_came(request_: bytes) -> None:
    async with world_with(By(raising, raising), untranslated=True) as world:
        client = await world.client()
        client.send(*segments(request_ + get(b"/next"), [70]))
        target = await world.new.connection()
        asked = await target.request()
        assert asked.target == b"/a?b"
        assert asked.body == (b"" if asked.method == b"GET" else b"body")
        assert bool(asked.trailers) is (b"X-T" in request_)
        target.send(plain(b"raw"))
        assert (await client.answer()).body.data == b"raw"
        assert (await target.request()).target == b"/next"
        failed_as_it_should(world, "request")
        assert world.count(FAILURES, direction="answer") == 0, "its answer was not to be translated either"
        target.send(plain(b"raw"))
        await client.answer()


@pytest.mark.parametrize("framing", [
    b"Content-Length: 3\r\n\r\nraw", b"Transfer-Encoding: chunked\r\n\r\n2\r\nra\r\n1\r\nw\r\n0\r\n\r\n",
    b"\r\nraw",
])  # fmt: skip
async def test_where_the_route_says_so_a_failed_answer_goes_on_as_it_came(framing: bytes) -> None:
    async with world_with(By(answer=raising), untranslated=True) as world:
        client = await world.client()
        client.send(get(b"/a"))
        target = await world.new.connection()
        await target.request()
        target.send(b"HTTP/1.1 200 OK\r\nX-A: b\r\n" + framing)
        if framing.startswith(b"\r\n"):
            target.close()
        answer = await client.answer()
        assert answer.body.data == b"raw"
        assert named(answer.fields, b"x-a") == [b"b"]
        failed_as_it_should(world, "answer")


SMALL = Limits(translated_bytes=1000)


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_request_too_long_to_be_held_is_refused(chunked: bool) -> None:
    async with world_with(Shouting(), limits=SMALL) as world:
        client = await world.client()
        if chunked:
            client.send(get(b"/a", b"Transfer-Encoding: chunked\r\n", b"POST") + b"400\r\n" + b"x" * 1024)
        else:
            client.send(post(b"/a", b"x" * 1001)[:-1000])
        answer = await client.answer()
        assert answer.status == 413
        assert b"body_too_large_to_translate" in answer.body.data
        failed_as_it_should(world, "request")


async def test_endless_framing_is_not_held_either() -> None:
    async with world_with(Shouting(), limits=SMALL) as world:
        client = await world.client()
        client.send(get(b"/a", b"Transfer-Encoding: chunked\r\n", b"POST"))
        client.send(*([b"1;" + b"y" * 4000 + b"\r\nx\r\n"] * 30))
        assert (await client.answer()).status == 413
        failed_as_it_should(world, "request")


@pytest.mark.parametrize("chunked", [False, True])
async def test_where_the_route_says_so_a_long_request_streams_on_untranslated(chunked: bool) -> None:
    async with world_with(Shouting(), untranslated=True, limits=SMALL) as world:
        client = await world.client()
        body = b"x" * 5000
        if chunked:
            head, parts = get(b"/a", b"Transfer-Encoding: chunked\r\n", b"POST"), b"1388\r\n" + body + b"\r\n"
            client.send(head + parts[:3000])
        else:
            client.send(post(b"/a", body)[:3000])
        target = await world.new.connection()
        await target.fact(lambda: b"x" * 1500 in target.raw, "the beginning of the body")
        client.send(parts[3000:] + b"0\r\n\r\n" if chunked else post(b"/a", body)[3000:])
        asked = await target.request()
        assert (asked.target, asked.body) == (b"/a", body)
        target.send(plain(b"RAW"))
        assert (await client.answer()).body.data == b"RAW"
        failed_as_it_should(world, "request")


@pytest.mark.parametrize("untranslated", [False, True])
@pytest.mark.parametrize("start", [
    b"Content-Length: 5000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n1388\r\n", b"\r\n",
    b"Content-Type: text/event-stream\r\n\r\n",
])  # fmt: skip
async def test_an_answer_too_long_to_be_held_is_refused_or_streamed(start: bytes, untranslated: bool) -> None:
    async with world_with(Shouting(), untranslated=untranslated, limits=SMALL) as world:
        client = await world.client()
        client.send(get(b"/a"))
        target = await world.new.connection()
        await target.request()
        target.send(b"HTTP/1.1 200 OK\r\n" + start + b"X" * 3000)
        if untranslated:
            await client.fact(lambda: b"X" * 3000 in client.raw, "the beginning of the stream")
            assert b" 200 " in client.raw
            target.send(b"X" * 2000 + (b"\r\n0\r\n\r\n" if b"chunked" in start else b""))
            if b"Length" not in start and b"chunked" not in start:
                target.close()
            assert (await client.answer()).body.data == b"X" * 5000
        else:
            assert (await client.answer()).status == 502
        failed_as_it_should(world, "answer")


# Ends -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [
    b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
])  # fmt: skip
async def test_an_answer_that_is_cut_short_is_a_whole_502(sent: bytes) -> None:
    async with world_with(Shouting()) as world:
        client = await world.client()
        client.send(get(b"/a"))
        target = await world.new.connection()
        await target.request()
        target.send(sent)
        target.close()
        assert (await client.answer()).status == 502
        client.send(get(b"/b"))
        await (await world.new.connection()).request()


async def test_an_answer_that_stands_still_is_given_up() -> None:
    async with world_with(Shouting(), timeouts=Timeouts(response_idle=0.2)) as world:
        client = await world.client()
        client.send(get(b"/a"))
        target = await world.new.connection()
        await target.request()
        target.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        assert (await client.answer()).status == 504
        await target.end()


async def test_a_request_that_stands_still_is_given_up() -> None:
    async with world_with(Shouting(), timeouts=Timeouts(body_idle=0.2)) as world:
        client = await world.client()
        client.send(post(b"/a", b"whole")[:-2])
        assert (await client.answer()).status == 408
        assert not world.new.wires


@pytest.mark.parametrize("at", ["request", "answer"])
async def test_a_client_that_leaves_takes_everything_with_it(at: str) -> None:
    async with world_with(Shouting()) as world:
        client = await world.client()
        client.send(post(b"/a", b"whole")[: -2 if at == "request" else None])
        if at == "answer":
            target = await world.new.connection()
            await target.request()
            target.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        else:
            await world.counted("crossfade_requests_in_flight", 1)
        client.reset()
        await until(lambda: world.idle, "nothing under way")


# With flags -------------------------------------------------------------------------------------------


async def failing(wire: Wire) -> None:
    while True:
        await wire.request()
        wire.send(plain(b"BROKEN", status=b"500 Internal Server Error"))


def both_sides(new: Any, legacy: Any) -> tuple[tuple[Route, ...], Plugs]:
    uses = (AdapterUse(Side.NEW, "new"), AdapterUse(Side.LEGACY, "legacy"))
    return (Route("items", "/**", adapters=uses),), Plugs({"new": new, "legacy": legacy})


async def test_legacy_answers_what_new_failed_each_by_its_own_adapter() -> None:
    said = By(lambda request: request.with_path("/old" + request.path))
    routes, plugs = both_sides(Shouting(), said)
    flags = one_flag(fallback_ppm=EVERYBODY)
    async with World.of(routes, plugs=plugs, flags=flags, new=failing, legacy=echo) as world:
        client = await world.client()
        for _ in range(2):
            client.send(get(b"/a"))
            assert (await client.answer()).body.data == b"GET /old/a "
        assert world.count("crossfade_fallbacks_total", cause="http_5xx", outcome="taken") == 2
        assert world.count(REQUESTS, side="legacy", reason="fallback") == 2


async def test_a_safe_request_that_the_adapter_made_unsafe_is_not_asked_again() -> None:
    acting = By(lambda request: replace(request, method="POST", body=b"x"))
    routes, plugs = both_sides(acting, By())
    flags = one_flag(fallback_ppm=EVERYBODY)
    async with World.of(routes, plugs=plugs, flags=flags, new=failing, legacy=echo) as world:
        assert (await world.ask(get(b"/a"))).status == 500
        assert not world.legacy.wires


async def test_an_identity_is_given_on_a_translated_route_too() -> None:
    routes, plugs = both_sides(Shouting(), Shouting())
    flags = one_flag(500_000, cookie="who")
    async with World.of(routes, plugs=plugs, flags=flags, new=echo, legacy=echo) as world:
        answer = await world.ask(get(b"/a"))
        assert answer.body.data == b"get /a "
        assert [v for v in named(answer.fields, b"set-cookie") if v.startswith(b"who=")]


async def test_users_attributes_decide() -> None:
    def attributes(request: Request) -> dict[str, str]:
        return {"tenant": request.header("x-tenant") or ""}

    flags = one_flag(EVERYBODY - 1, by=("attr:tenant",))
    plugs = Plugs(attributes=attributes)
    async with World.of((Route("items", "/**"),), plugs=plugs, flags=flags, legacy=echo, new=echo) as world:
        await world.ask(get(b"/a", b"X-Tenant: blue\r\n"))
        assert world.count(REQUESTS, reason="weight", side="new") == 1
        await world.ask(get(b"/a"))
        assert world.count(REQUESTS, reason="no_key") == 1


@pytest.mark.parametrize("bad", [raising, lambda _: None, lambda _: {"tenant": 7}])
async def test_attributes_that_fail_are_missing_and_counted(bad: Any) -> None:
    flags = one_flag(EVERYBODY - 1, by=("attr:tenant", "header:x-user"))
    routes = (Route("items", "/**"),)
    async with World.of(routes, plugs=Plugs(attributes=bad), flags=flags, legacy=echo, new=echo) as world:
        assert (await world.ask(get(b"/a", b"X-User: ada\r\n"))).status == 200
        assert world.count(REQUESTS, reason="weight") == 1
        assert world.count(FAILURES, flag="-", direction="attributes") == 1
        assert world.faults
        world.faults.clear()


async def test_a_json_api_is_one_whoever_answers() -> None:
    class Renamed:
        def request(self, request: Request) -> Request:
            return request.with_json({"login": request.json()["name"]})

        def answer(self, answer: Answer, request: Request) -> Answer:
            return answer.with_json({"name": answer.json()["login"]})

    async def new(wire: Wire) -> None:
        while True:
            asked = await wire.request()
            wire.send(plain(json.dumps({"login": json.loads(asked.body)["login"]}).encode()))

    async with world_with(Renamed(), new=new) as world:
        answer = await world.ask(post(b"/a", b'{"name":"\xc3\xa9va"}'))
        assert answer.body.data == '{"name":"éva"}'.encode()


USES = (AdapterUse(Side.NEW, "new", untranslated=True), AdapterUse(Side.LEGACY, "legacy"))


@pytest.mark.parametrize(("flags", "expected"), [
    (None, {"legacy"}), (one_flag(), {"new"}), (one_flag(0), {"legacy"}),
    (one_flag(500_000, by=("path",)), {"new", "legacy"}),
    (replace(one_flag(), kill=Kill("broken", "me", "now")), {"legacy"}),
    (FlagSet(1, flags=(replace(one_flag().flags[0], kill=Kill("broken", "me", "now")),)), {"legacy"}),
])  # fmt: skip
def test_every_decision_names_the_adapter_of_its_side(flags: FlagSet | None, expected: set[str]) -> None:
    snapshot = compile_snapshot((Route("items", "/a/**", adapters=USES), Route("items", "/**")), 1, flags)
    seen: dict[int, Decision] = {}
    for number in range(200):
        for start in (b"/a/", b"/b/"):
            head = parse_request(get(start + b"%d" % number), max_head=999, max_target=999, max_fields=9)
            assert isinstance(head, RequestHead)
            decision = decide(snapshot, head, KnownFacts())
            seen[id(decision)] = decision
            if start == b"/b/":
                assert decision.translation is None
            else:
                assert decision.translation is not None
                assert decision.translation.adapter == decision.side.value
                otherwise = decision.translation.otherwise
                assert (otherwise is not None) is (decision.side is Side.NEW)
                assert otherwise is None or (otherwise.side, otherwise.translation) == (Side.NEW, None)
    assert {d.translation.adapter for d in seen.values() if d.translation} == expected
    assert len(seen) <= 2 * len(expected), "decisions of one snapshot are always the same objects"
