"""The other side is asked what a client has asked, and no client can tell."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field, replace
from ipaddress import ip_network
from typing import Any

import pytest

from core.mirrored import Mirrored
from flags.model import AdapterUse, FlagSet, Kill, Route, Side, UnsafeMirror
from legacy_adapter.adapter import Adapter, Plugs
from legacy_adapter.messages import Answer, Request
from proxy.config import Forwarding, Mirroring, Target, Timeouts
from tests.proxy.flags import EVERYBODY, ROUTES, one_flag
from tests.support.world import Wire, World, echo, get, plain, post, until

SHADOW = one_flag(0)
LIVE = one_flag()
MIRRORED = "crossfade_mirrored_total"
SKIPPED = "crossfade_mirror_skipped_total"
IN_FLIGHT = "crossfade_mirror_in_flight"


@dataclass
class Notes:
    """An observer that remembers everything, and asks again where it is told to."""

    again: bool = False
    pairs: list[Mirrored] = field(default_factory=list)
    taken: list[Mirrored] = field(default_factory=list)
    skips: Counter[str] = field(default_factory=Counter)

    def compare(self, pair: Mirrored) -> bool:
        self.pairs.append(pair)
        return self.again

    def take(self, pair: Mirrored) -> None:
        self.taken.append(pair)

    def skipped(self, flag: str, reason: str) -> None:
        assert flag == "items"
        self.skips[reason] += 1


def mirroring(**bounds: Any) -> Mirroring:
    return Mirroring(
        **{"ask_again": 0.0, "ask_again_after": 0.0, "busy_after": 60.0, "busy_share": 1.0, **bounds}
    )


def shadowed(notes: Notes, *, flags: FlagSet = SHADOW, routes: Any = ROUTES, **world: Any) -> Any:
    world.setdefault("mirror", mirroring())
    return World.of(routes, flags=flags, observer=notes, **world)


async def hung(wire: Wire) -> None:
    while True:
        await wire.request()


async def test_new_is_asked_what_legacy_has_answered() -> None:
    async with shadowed(notes := Notes(), legacy=echo) as world:
        client = await world.client()
        client.send(get(b"/a?b=%20c", b"X-Odd:  \xe9\r\nCookie: sid=1\r\n"))
        assert (await client.answer()).body.data == b"GET /a?b=%20c "
        target = await world.new.connection()
        asked = await target.request()
        assert asked.target == b"/a?b=%20c"
        assert asked.values(b"host") == [b"a.test"]
        assert asked.values(b"cookie") == [b"sid=1"]
        assert asked.values(b"x-crossfade-mirror") == [b"new"]
        assert asked.values(b"baggage") == [b"crossfade.mirror=new"]
        assert len(asked.values(b"x-forwarded-for")) == 1
        target.send(plain(b"other", more=b"X-Side: new\r\n"))
        await until(lambda: notes.pairs, "the pair")
        assert world.count(MIRRORED, flag="items", side="new", outcome="2xx") == 1
    (pair,) = notes.pairs
    legacy, new = pair.legs
    assert (pair.flag, pair.route, pair.stage, pair.method) == ("items", "/**", "shadow", "GET")
    assert (pair.target, pair.body) == (b"/a?b=%20c", b"")
    assert b"Cookie: sid=1\r\n" in pair.fields
    assert (legacy.side, legacy.status, legacy.body) == ("legacy", 200, b"GET /a?b=%20c ")
    assert (new.side, new.status, new.body) == ("new", 200, b"other")
    assert b"X-Side: new\r\n" in new.fields
    assert legacy.began <= new.began
    assert notes.skips == {}


async def test_at_live_legacy_is_asked_besides() -> None:
    async with shadowed(notes := Notes(), flags=LIVE, legacy=echo, new=echo) as world:
        client = await world.client()
        for number in range(3):
            client.send(get(b"/a", b"X-User: 1\r\n"))
            await client.answer()
            await until(lambda seen=number + 1: len(notes.pairs) == seen, "the pair")
        assert world.count("crossfade_requests_total", side="new") == 3
        assert len(world.legacy.wires) == 1, "the mirror keeps its connections"
    assert [leg.side for leg in notes.pairs[0].legs] == ["new", "legacy"]
    assert notes.pairs[0].stage == "live"


async def test_a_hung_mirror_delays_nobody() -> None:
    """nginx answers the second request of a connection when the mirror of the first has answered."""
    notes = Notes()
    async with shadowed(notes, legacy=echo, new=hung, mirror=mirroring(in_flight=4, deadline=0.2)) as world:
        client = await world.client()
        for number in range(100):
            client.send(get(b"/%d" % number))
            assert (await client.answer()).body.data == b"GET /%d " % number
        await until(lambda: notes.skips["in_flight"] and not world.count(IN_FLIGHT), "the deadline")
        assert world.count(MIRRORED, outcome="deadline") == len(notes.pairs) > 0
        assert world.count(SKIPPED, reason="in_flight") + len(notes.pairs) == 100
        assert world.count("crossfade_mirror_held_bytes") == 0
    assert notes.pairs[0].legs[1].trouble == "deadline"
    assert notes.pairs[0].legs[1].status == 0


async def garbage(wire: Wire) -> None:
    await wire.request()
    wire.send(b"no HTTP at all\r\n\r\n")
    await wire.gone()


async def half(wire: Wire) -> None:
    await wire.request()
    wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")


async def dying(wire: Wire) -> None:
    await wire.request()


async def upgrading(wire: Wire) -> None:
    await wire.request()
    wire.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n")
    await wire.gone()


async def bad_chunks(wire: Wire) -> None:
    await wire.request()
    wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
    await wire.gone()


@pytest.mark.parametrize(("play", "trouble"), [
    (garbage, "bad_status_line"), (half, "http_response_incomplete"), (dying, "connection_terminated"),
    (upgrading, "unexpected_upgrade"), (bad_chunks, "bad_chunk"),
])  # fmt: skip
async def test_whatever_new_does_instead_of_answering_is_told_and_never_retried(play, trouble: str) -> None:
    notes = Notes()
    async with shadowed(notes, legacy=echo, new=play) as world:
        for _ in range(2):
            assert (await world.ask(get(b"/a"))).status == 200
        await until(lambda: len(notes.pairs) == 2, "both pairs")
        assert {pair.legs[1].trouble for pair in notes.pairs} == {trouble}
        assert len(world.new.wires) == 2


async def test_new_that_is_not_there_costs_few_connections() -> None:
    notes = Notes()
    async with shadowed(notes, legacy=echo, mirror=mirroring(connects=2)) as world:
        await world.new.stop()
        client = await world.client()
        for _ in range(50):
            client.send(get())
            await client.answer()
        await until(lambda: len(notes.pairs) + notes.skips["no_connection"] == 50, "all of them")
        assert notes.pairs[0].legs[1].trouble == "connection_refused"
        assert notes.skips["no_connection"] > 30


@pytest.mark.parametrize("framing", ["length", "chunks", "close"])
async def test_a_huge_answer_of_new_is_cut_and_not_read(framing: str) -> None:
    async def huge(wire: Wire) -> None:
        await wire.request()
        how = {"length": b"Content-Length: 104857600\r\n", "chunks": b"Transfer-Encoding: chunked\r\n"}
        wire.send(b"HTTP/1.1 200 OK\r\n" + how.get(framing, b"") + b"\r\n")
        while not wire.lost:
            data = b"x" * 65536
            wire.send(b"10000\r\n" + data + b"\r\n" if framing == "chunks" else data)
            await asyncio.sleep(0)

    notes = Notes()
    async with shadowed(notes, legacy=echo, new=huge, mirror=mirroring(body_bytes=100_000)) as world:
        assert (await world.ask(get(b"/a"))).status == 200
        await until(lambda: notes.pairs, "the pair")
        await until(lambda: world.new.wires[0].lost, "the end of the connection")
    new = notes.pairs[0].legs[1]
    assert (new.status, new.cut, new.trouble) == (200, True, None)
    assert len(new.body) <= 100_000


async def test_an_answer_that_ends_with_its_connection_is_whole() -> None:
    async def closing(wire: Wire) -> None:
        await wire.request()
        wire.send(b"HTTP/1.1 200 OK\r\n\r\nall of it")

    async with shadowed(notes := Notes(), legacy=echo, new=closing) as world:
        await world.ask(get(b"/a"))
        await until(lambda: notes.pairs, "the pair")
    assert notes.pairs[0].legs[1].body == b"all of it"


async def test_answers_that_stream_are_kept_beside_the_stream() -> None:
    async def chunked(wire: Wire) -> None:
        while True:
            await wire.request()
            wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"3\r\nabc\r\n")
            await asyncio.sleep(0)
            wire.send(b"2\r\nde\r\n0\r\n\r\n")

    async with shadowed(notes := Notes(), legacy=chunked, new=chunked) as world:
        assert (await world.ask(get(b"/a"))).body.data == b"abcde"
        await until(lambda: notes.pairs, "the pair")
    assert [leg.body for leg in notes.pairs[0].legs] == [b"abcde", b"abcde"]


async def test_an_answer_longer_than_what_is_kept_reaches_the_client_whole() -> None:
    async def long(wire: Wire) -> None:
        while True:
            await wire.request()
            wire.send(plain(b"x" * 300_000))

    async with shadowed(notes := Notes(), legacy=long, new=echo) as world:
        assert len((await world.ask(get(b"/a"))).body.data) == 300_000
        await until(lambda: notes.skips["answer_too_long"] == 1, "the skip")
        assert world.new.wires == []


# What may be mirrored.


async def test_what_changes_something_is_not_mirrored_unless_its_route_says_how() -> None:
    async with shadowed(notes := Notes(), legacy=echo, new=echo) as world:
        assert (await world.ask(post(b"/a", b"x"))).status == 200
        assert (await world.ask(get(b"/a", method=b"DELETE"))).status == 200
        await until(lambda: notes.skips["unsafe_method"] == 2, "both skips")
        assert world.new.wires == []


async def test_a_get_that_changes_something_is_not_mirrored_nor_asked_again() -> None:
    """A route says so of all its requests: `writes: true`."""
    routes = (Route("items", "/cart/**", writes=True), Route("items", "/**"))
    async with shadowed(notes := Notes(), routes=routes, legacy=echo, new=echo) as world:
        assert (await world.ask(get(b"/cart/add"))).status == 200
        await until(lambda: notes.skips["unsafe_method"] == 1, "the skip")
        assert world.new.wires == []
        said = world.worker.replay(b"GET /cart/add HTTP/1.1\r\nHost: a\r\n\r\n", lambda _: None)
        assert said is not None
        assert "might change something" in said
        await world.ask(get(b"/items"))
        await until(lambda: world.new.wires, "what only reads is mirrored")


async def test_a_dry_run_goes_to_new_with_its_field() -> None:
    route = Route("items", "/**", mirror_unsafe=UnsafeMirror.DRY_RUN, mirror_field="X-Dry-Run: 1")
    async with shadowed(notes := Notes(again=True), routes=(route,), legacy=echo) as world:
        client = await world.client()
        client.send(
            get(b"/a", b"Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n", method=b"POST"),
            b"3\r\nabc\r\n", b"2\r\nde\r\n0\r\n\r\n",
        )  # fmt: skip
        assert (await client.answer()).body.data == b"POST /a abcde"
        target = await world.new.connection()
        asked = await target.request()
        assert (asked.method, asked.body) == (b"POST", b"abcde")
        assert asked.values(b"content-length") == [b"5"]
        assert asked.values(b"transfer-encoding") == asked.values(b"expect") == []
        assert asked.values(b"x-dry-run") == [b"1"]
        target.send(plain(b"as if"))
        await until(lambda: notes.taken, "the pair")
    (pair,) = notes.taken
    assert (pair.body, pair.again) == (b"abcde", ()), "what changes something is not asked again"


async def test_a_key_lets_new_do_a_thing_once() -> None:
    route = Route("items", "/**", mirror_unsafe=UnsafeMirror.IDEMPOTENCY_KEY, mirror_field="Idempotency-Key")
    async with shadowed(notes := Notes(), routes=(route,), legacy=echo, new=echo) as world:
        await world.ask(post(b"/a", b"x"))
        await world.ask(post(b"/b", b"x", b"idempotency-key: 1\r\n"))
        await until(lambda: notes.pairs and notes.skips, "both")
    assert [pair.target for pair in notes.pairs] == [b"/b"]
    assert notes.skips == {"no_idempotency_key": 1}


async def test_a_sandbox_gets_what_changes_something_and_new_the_rest() -> None:
    route = Route("items", "/**", mirror_unsafe=UnsafeMirror.SANDBOX)
    async with World.of((), legacy=echo, new=echo) as elsewhere:
        sandbox = Target("127.0.0.1", elsewhere.port)
        async with shadowed(
            notes := Notes(), routes=(route,), legacy=echo, new=echo, mirror=mirroring(sandbox=sandbox)
        ) as world:
            # The sandbox of this scene is a proxy that refuses marked requests: that is an answer too.
            await world.ask(post(b"/a", b"x"))
            await world.ask(get(b"/b"))
            await until(lambda: len(notes.pairs) == 2, "both pairs")
            assert [pair.legs[1].status for pair in notes.pairs] == [508, 200]


@pytest.mark.parametrize("name", [b"X-Crossfade-Mirror", b"x-crossfade-mirror", b"X_Crossfade_Mirror"])
async def test_a_mark_from_outside_is_refused(name: bytes) -> None:
    async with shadowed(notes := Notes(), legacy=echo, new=echo) as world:
        assert (await world.ask(get(b"/a", name + b": new\r\n"))).status == 508
        assert world.count("crossfade_errors_total", reason="mirrored_request") == 1
        assert not world.legacy.wires
    assert notes.pairs == []


async def test_a_mark_from_a_trusted_peer_is_served_and_not_mirrored_again() -> None:
    trusted = Forwarding(trusted=(ip_network("127.0.0.0/8"),))
    async with shadowed(notes := Notes(), legacy=echo, new=echo, forwarding=trusted) as world:
        assert (await world.ask(get(b"/a", b"X-Crossfade-Mirror: new\r\n"))).status == 200
        await until(lambda: notes.skips["mirrored_already"] == 1, "the skip")
        assert not world.new.wires


async def test_a_share_is_drawn_by_lot() -> None:
    flags = one_flag(0, mirror_ppm=500_000)
    async with shadowed(notes := Notes(), flags=flags, legacy=echo, new=echo) as world:
        client = await world.client()
        for _ in range(200):
            client.send(get())
            await client.answer()
        await until(lambda: len(notes.pairs) + notes.skips["sampled_out"] == 200, "all of them")
        assert 40 < len(notes.pairs) < 160


async def test_a_client_that_goes_away_leaves_nothing_to_compare() -> None:
    async with shadowed(notes := Notes(), legacy=hung, new=echo) as world:
        client = await world.client()
        client.send(get())
        await until(lambda: world.legacy.wires, "the request")
        client.reset()
        await until(lambda: notes.skips["no_answer"] == 1, "the skip")


async def test_a_failure_of_new_that_legacy_covers_is_no_pair() -> None:
    flags = one_flag(fallback_ppm=EVERYBODY)
    async with shadowed(notes := Notes(), flags=flags, legacy=echo, new=dying) as world:
        assert (await world.ask(get(b"/a", b"X-User: 1\r\n"))).status == 200
        assert notes.skips == {"fallback": 1}
        assert world.count("crossfade_mirror_held_bytes") == 0


# Bounds.


async def test_what_is_kept_is_bounded() -> None:
    async def kilobyte(wire: Wire) -> None:
        while True:
            await wire.request()
            wire.send(plain(b"x" * 1000))

    notes = Notes()
    bounds = mirroring(held_bytes=3000, in_flight=100)
    async with shadowed(notes, legacy=kilobyte, new=hung, mirror=bounds) as world:
        for _ in range(5):
            await world.ask(get())
        await until(lambda: notes.skips["held_bytes"] == 2, "the skips")
        assert world.count("crossfade_mirror_held_bytes") == 3000
        assert world.count(IN_FLIGHT) == 3


async def test_streams_that_go_on_count_against_the_bound_too() -> None:
    """Not only what waits for the other side: ten thousand slow streams would hold a gigabyte."""

    async def endless(wire: Wire) -> None:
        await wire.request()
        wire.send(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"3e8\r\n" + b"x" * 1000 + b"\r\n"
        )
        await wire.gone()

    notes = Notes()
    async with shadowed(notes, legacy=endless, new=echo, mirror=mirroring(held_bytes=2500)) as world:
        clients = [await world.client() for _ in range(5)]
        for client in clients:
            client.send(get())
            await client.through(b"x" * 1000)
        assert world.count("crossfade_mirror_held_bytes") <= 2500
        for client in clients:
            client.reset()
        await until(lambda: notes.skips["no_answer"] == 5, "the skips")
        assert world.count("crossfade_mirror_held_bytes") == 0


async def test_a_worker_that_is_behind_is_for_its_clients_alone() -> None:
    notes = Notes()
    async with shadowed(notes, legacy=echo, new=echo, mirror=mirroring(busy_after=0.0)) as world:
        for _ in range(3):
            assert (await world.ask(get())).status == 200
        await until(lambda: notes.skips["busy"] == 3, "the skips")
        assert world.count(IN_FLIGHT) == world.count("crossfade_mirror_held_bytes") == 0
        assert not world.new.wires


async def test_a_worker_that_has_little_time_left_mirrors_less_and_never_none_for_good() -> None:
    bounds = mirroring(busy_share=0.05)
    async with shadowed(notes := Notes(), legacy=echo, new=echo, mirror=bounds) as world:
        client = await world.client()
        async with asyncio.timeout(20):
            while not notes.skips["busy"]:
                client.send(get(b"/"))
                await client.answer()
        seen = len(notes.pairs)
        async with asyncio.timeout(20):
            while len(notes.pairs) == seen:
                client.send(get(b"/"))
                await client.answer()


async def test_no_more_than_so_many_a_second() -> None:
    notes = Notes()
    async with shadowed(notes, legacy=echo, new=echo, mirror=mirroring(rate=2)) as world:
        client = await world.client()
        for _ in range(40):
            client.send(get())
            await client.answer()
        await until(lambda: len(notes.pairs) + notes.skips["rate"] == 40, "all of them")
        assert notes.skips["rate"] > 20


# Switched off.


async def test_switched_off_is_off_at_once() -> None:
    notes = Notes()
    async with shadowed(notes, legacy=echo, new=hung) as world:
        for _ in range(3):
            await world.ask(get())
        await until(lambda: len([w for w in world.new.wires if w.heard]) == 3, "the mirrored requests")
        world.flags = replace(SHADOW, version=2, shadow_off=Kill("new burns", "ada", "now"))

        world.worker.decide_by(world.snapshot(1))

        assert world.count(IN_FLIGHT) == 0
        assert world.count("crossfade_mirror_held_bytes") == 0
        await until(lambda: not world.new.open, "the end of what was under way")
        await world.ask(get())
        await world.ask(get())
        assert (notes.pairs, notes.skips) == ([], {"stopped": 3})
        assert len(world.new.wires) == 3


async def test_a_reload_keeps_the_mirrors_connections() -> None:
    async with shadowed(notes := Notes(), legacy=echo, new=echo) as world:
        await world.ask(get())
        await until(lambda: notes.pairs, "the pair")
        await world.worker.reconfigure(
            replace(world.config, timeouts=Timeouts(response=7)), world.snapshot(2)
        )
        await world.ask(get())
        await until(lambda: len(notes.pairs) == 2, "the pair")
        assert len(world.new.wires) == 1


# Asked again.


async def test_what_differs_is_asked_of_both_once_more() -> None:
    async with shadowed(notes := Notes(again=True), legacy=echo, new=echo) as world:
        await world.ask(get(b"/a"))
        await until(lambda: notes.taken, "the pair")
        assert world.count("crossfade_requests_total") == 1
    (pair,) = notes.taken
    assert [leg.side for leg in pair.again] == ["legacy", "new"]
    assert [leg.body for leg in pair.again] == [b"GET /a ", b"GET /a "]
    assert pair.again[0].began >= pair.legs[1].began
    assert not pair.sampled


async def test_some_are_asked_of_legacy_again_by_lot() -> None:
    notes = Notes()
    async with shadowed(notes, legacy=echo, new=echo, mirror=mirroring(ask_again=1.0)) as world:
        await world.ask(get(b"/a"))
        await until(lambda: notes.taken, "the pair")
        asked = list(world.legacy.wires)
        assert len(asked) == 2, "by a connection of the mirror's own"
    (pair,) = notes.taken
    assert pair.sampled
    assert [leg.side for leg in pair.again] == ["legacy"]


# Through adapters.


class Wrapping(Adapter):
    """New speaks of `/v2` and wraps its answers."""

    def request(self, request: Request) -> Request:
        return replace(request, target="/v2" + request.target)

    def answer(self, answer: Answer, request: Request) -> Answer:
        return replace(answer, body=answer.body.removeprefix(b"GET /v2"))


async def test_both_answers_are_in_the_clients_terms() -> None:
    routes = (Route("items", "/**", adapters=(AdapterUse(Side.NEW, "wrapping"),)),)
    plugs = Plugs({"wrapping": Wrapping()})
    for flags in (SHADOW, LIVE):
        async with shadowed(
            notes := Notes(), flags=flags, routes=routes, plugs=plugs, legacy=echo, new=echo
        ) as world:
            await world.ask(get(b"/a", b"X-User: 1\r\n"))
            await until(lambda found=notes: found.pairs, "the pair")
        bodies = {leg.side: leg.body for leg in notes.pairs[0].legs}
        assert bodies == {"legacy": b"GET /a ", "new": b"/a "}


class Broken(Adapter):
    def request(self, request: Request) -> Request:
        raise ValueError(f"no {request.target}")

    def answer(self, answer: Answer, request: Request) -> Answer:
        return answer


async def test_an_adapter_that_raises_spoils_the_comparison_only() -> None:
    routes = (Route("items", "/**", adapters=(AdapterUse(Side.NEW, "broken"),)),)
    async with shadowed(
        notes := Notes(), routes=routes, plugs=Plugs({"broken": Broken()}), legacy=echo, new=echo
    ) as world:
        assert (await world.ask(get(b"/a"))).status == 200
        await until(lambda: notes.pairs, "the pair")
        assert notes.pairs[0].legs[1].trouble == "adapter_failed"
        assert world.count(IN_FLIGHT) == 0
        assert len(world.faults) == 1
        world.faults.clear()


class Faulty(Notes):
    def compare(self, pair: Mirrored) -> bool:
        super().compare(pair)
        raise ValueError("a bug of whoever compares")


async def test_a_fault_of_whoever_compares_is_told_and_hurts_no_client() -> None:
    async with shadowed(notes := Faulty(), legacy=echo, new=echo) as world:
        client = await world.client()
        for _ in range(3):
            client.send(get())
            assert (await client.answer()).status == 200
        await until(lambda: len(notes.pairs) == 3, "all pairs")
        assert world.count(IN_FLIGHT) == world.count("crossfade_mirror_held_bytes") == 0
        assert world.faults
        world.faults.clear()


# Asked again, for somebody who wants to see.


async def test_what_was_asked_once_is_asked_again_of_both_in_their_own_terms() -> None:
    routes = (Route("items", "/**", adapters=(AdapterUse(Side.NEW, "wrapping"),)),)
    plugs = Plugs({"wrapping": Wrapping()})
    seen: list[Mirrored] = []
    async with shadowed(notes := Notes(), routes=routes, plugs=plugs, legacy=echo, new=echo) as world:
        assert world.worker.replay(b"GET /a?b=1 HTTP/1.1\r\nHost: a.test\r\n\r\n", seen.append) is None
        await until(lambda: seen, "both answers")
        # Not even a switch of flags ends it half-way, and nothing of it is counted.
        assert world.count(MIRRORED) == 0
        assert world.count(IN_FLIGHT) == 0
    (pair,) = seen
    assert [(leg.side, leg.body) for leg in pair.legs] == [("legacy", b"GET /a?b=1 "), ("new", b"/a?b=1 ")]
    assert [leg.side for leg in pair.again] == ["legacy"]
    assert (notes.pairs, notes.taken) == ([], [])


@pytest.mark.parametrize(("request_", "why"), [
    (b"POST /a HTTP/1.1\r\nHost: a\r\n\r\n", "only GET, HEAD and OPTIONS"),
    (b"GET /a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n", "without a body"),
    (b"GET /a HTTP/1.1\r\n\r\n", "host"),
    (b"GET /a HTTP/1.1\r\n", "not whole"),
    (b"GET /b HTTP/1.1\r\nHost: a\r\n\r\n", "no route"),
])  # fmt: skip
async def test_what_cannot_be_asked_again_is_said(request_: bytes, why: str) -> None:
    async with shadowed(Notes(), routes=(Route("items", "/a"),), legacy=echo, new=echo) as world:
        said = world.worker.replay(request_, lambda _: None)
        assert said is not None
        assert why in said
