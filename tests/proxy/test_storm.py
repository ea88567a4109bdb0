"""Storms: generated clients and backends, good and bad, cut and mixed at random; the promises must hold.

- every client gets the right answer to each of its requests, or a clean break, and never another's;
- the backend hears only requests that a client sent, and hears them as HTTP that h11 reads strictly;
- nothing reaches the event loop's exception handler, and nothing is left when the storm is over.

`CROSSFADE_DEEP=1` runs many more of them, with fresh seeds.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import re
from collections import Counter
from dataclasses import dataclass, field

import h11
import pytest

from flags.model import Route, Side
from proxy.client import ClientConnection
from proxy.config import Limits, Timeouts
from proxy.pipeline import Exchange
from tests.differential.wire import UnreadableError
from tests.support.world import EndedError, Wire, World, echo, get, segments, until

SEEDS = range(2000) if os.environ.get("CROSSFADE_DEEP") else range(12)
CLIENTS = 8
TAG = re.compile(rb"/c([0-9]+)-r([0-9]+)")


@dataclass
class Score:
    """What happened in one storm."""

    sent: Counter[bytes] = field(default_factory=Counter)
    """Requests that clients sent, by tag."""
    arrived: Counter[bytes] = field(default_factory=Counter)
    """Requests that backends heard whole, by tag."""
    answers: int = 0
    breaks: int = 0
    wrong: list[str] = field(default_factory=list)


# Backends ---------------------------------------------------------------------------------------------


class Backend:
    """Answers each request with its tag, in random framing, and sometimes badly or not at all."""

    def __init__(self, chance: random.Random, score: Score, *, mean: bool) -> None:
        self.chance = chance
        self.score = score
        self.mean = mean

    async def play(self, wire: Wire) -> None:
        chance = self.chance
        while True:
            parser = h11.Connection(h11.SERVER)
            request, body = await self.hear(wire, parser)
            tag = bytes(request.target)
            if not TAG.fullmatch(tag):
                self.score.wrong.append(f"a backend heard {tag!r}")
            if body != (b"" if request.method in (b"GET", b"HEAD") else expected_body(tag)):
                self.score.wrong.append(f"{tag!r} came with body {body[:80]!r}")
            self.score.arrived[tag] += 1
            mood = chance.random() if self.mean else 1.0
            if mood < 0.03:
                wire.reset()
                return
            if mood < 0.06:
                return  # closed without an answer
            if mood < 0.08:
                wire.send(chance.randbytes(chance.randrange(1, 200)))
                return
            answer, keep, framed = self.answer(tag, request.method)
            if mood < 0.12:
                wire.send(answer[: chance.randrange(len(answer))])
                if not framed:
                    await asyncio.sleep(0)
                    wire.reset()  # closed in order, nobody could tell that it was cut
                return
            if mood < 0.15 and framed:
                # In one piece: what comes only after the next request is, in HTTP/1.1, its answer.
                wire.send(answer + self.answer(b"/poison", b"GET")[0])
                continue
            for piece in cut(chance, answer):
                wire.send(piece)
                await asyncio.sleep(0)
            if not keep or chance.random() < 0.05:
                return

    async def hear(self, wire: Wire, parser: h11.Connection) -> tuple[h11.Request, bytes]:
        request, body = None, b""
        while True:
            event = parser.next_event()
            if event is h11.NEED_DATA:
                data = await wire.take(max(1, len(wire.raw)))
                parser.receive_data(data)
            elif isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                assert request is not None
                rest, _ = parser.trailing_data
                if rest:
                    self.score.wrong.append(f"bytes behind a request: {rest[:80]!r}")
                return request, body
            else:
                raise AssertionError(event)

    def answer(self, tag: bytes, method: bytes) -> tuple[bytes, bool, bool]:
        """An answer, whether the connection stays, and whether the answer has an end of its own."""
        chance = self.chance
        payload = tag + b"=" * chance.choice((0, 1, 100, 20_000))
        framing = chance.choice(("length", "length", "chunked", "close", "old"))
        early = b"HTTP/1.1 103 Early Hints\r\nX: y\r\n\r\n" if chance.random() < 0.1 else b""
        extra = chance.choice((b"", b"Connection: close\r\n", b"Connection: keep-alive\r\n", b"X-Y: z\r\n"))
        keep = b"close" not in extra
        if method == b"HEAD":
            return (
                early + b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nX-Tag: " + tag + b"\r\n" + extra + b"\r\n",
                keep,
                True,
            )
        if framing == "length":
            head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n%b\r\n" % (len(payload), extra)
            return early + head + payload, keep, True
        if framing == "chunked":
            body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in cut(chance, payload))
            head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n%b\r\n" % extra
            return early + head + body + b"0\r\n\r\n", keep, True
        version = b"1.0" if framing == "old" else b"1.1"
        return b"HTTP/%b 200 OK\r\n\r\n%b" % (version, payload), False, False


def cut(chance: random.Random, data: bytes) -> list[bytes]:
    style = chance.random()
    if style < 0.5:
        return [data]
    if style < 0.6 and len(data) < 600:
        return segments(data, range(len(data)))
    return segments(data, [chance.randrange(len(data)) for _ in range(chance.randrange(1, 8))])


# Clients ----------------------------------------------------------------------------------------------


def expected_body(tag: bytes) -> bytes:
    number = sum(tag)
    return tag * (number % 50 if number % 7 else number * 7)


def request(chance: random.Random, tag: bytes) -> tuple[bytes, bytes]:
    """A valid request in a random spelling, and its method."""
    method = chance.choice((b"GET", b"GET", b"GET", b"HEAD", b"POST", b"PUT"))
    more = chance.choice(
        (b"", b"X-A: b\r\n", b"connection: x-a\r\nX-A: b\r\n", b"Cookie: " + b"c" * 300 + b"\r\n")
    )
    if method in (b"GET", b"HEAD"):
        return get(tag, more, method), method
    body = expected_body(tag)
    if chance.random() < 0.5:
        return get(tag, more + b"Content-Length: %d\r\n" % len(body), method) + body, method
    chunks = b"".join(b"%X;e\r\n%b\r\n" % (len(piece), piece) for piece in cut(chance, body)) if body else b""
    return get(tag, more + b"Transfer-Encoding: chunked\r\n", method) + chunks + b"0\r\n\r\n", method


BAD = (
    b"GET /bad HTTP/1.1\r\n\r\n", b"GET /bad HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"\0\0\0",
    b"GARBAGE\r\n\r\n",
    b"POST /bad HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET ",
    b"GET /bad HTTP/1.1\nHost: a\n\n", b"CONNECT /bad HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST /bad HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"GET /bad HTTP/3.0\r\nHost: a\r\n\r\n",
    b"GET /bad HTTP/1.1\r\nHost: a\r\n X: y\r\n\r\n",
    b"GET /bad HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
)  # fmt: skip


async def client(world: World, number: int, chance: random.Random, score: Score) -> None:
    count = 0
    for _ in range(4):  # connections
        wire = await world.client()
        plan: list[tuple[bytes, bytes]] = []
        burst = b""
        for _ in range(chance.randrange(1, 8)):
            tag = b"/c%d-r%d" % (number, count)
            count += 1
            data, method = request(chance, tag)
            plan.append((tag, method))
            score.sent[tag] += 1
            burst += data
        mood = chance.random()
        if mood < 0.3:
            burst += chance.choice(BAD)
        elif mood < 0.4:
            burst += chance.randbytes(50)
        for piece in cut(chance, burst):
            if wire.transport.is_closing():
                break
            wire.send(piece)
            await asyncio.sleep(0)
        if 0.4 < mood < 0.5:
            wire.reset()  # goes away without hearing anything
            continue
        if 0.5 < mood < 0.7 and not wire.transport.is_closing():
            wire.half_close()
        await hear(wire, plan, score, bad=mood < 0.4)
        wire.close()


async def hear(wire: Wire, plan: list[tuple[bytes, bytes]], score: Score, *, bad: bool) -> None:
    """Each answer is the right one for its request, one of our own, or the connection breaks."""
    for tag, method in plan:
        try:
            answer = await wire.answer(method)
            while answer.status < 200:
                answer = await wire.answer(method)
        except (EndedError, UnreadableError) as broken:
            if isinstance(broken, UnreadableError):
                score.wrong.append(f"{tag!r} got {broken}")
            score.breaks += 1
            return
        own = b"crossfade" in answer.head
        if not own and method == b"HEAD" and b"X-Tag: " + tag + b"\r\n" not in answer.head:
            score.wrong.append(f"HEAD {tag!r} got {answer.head!r}")
        elif not own and method != b"HEAD" and answer.body.data.rstrip(b"=") != tag:
            score.wrong.append(f"{tag!r} got {answer.body.data[:80]!r}")
        score.answers += 1
    if not bad:
        return
    try:
        answer = await wire.answer()
    except EndedError:
        return
    if answer.status < 400:
        score.wrong.append(f"what is no request got {answer.head!r}")


# The storms -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_storm(seed: int) -> None:
    chance = random.Random(seed)
    score = Score()
    mean = seed % 3 != 0
    backend = Backend(chance, score, mean=mean)
    routes = [Route(f"c{n}", "/**", host=None, side=Side.NEW) for n in range(seed % 2)]
    timeouts = Timeouts(header=1, body_idle=1, keepalive=0.5, response=1, response_idle=1, expect=0.2)
    target = {"max_connections": chance.choice((1, 3, 50)), "idle_timeout": chance.choice((0.05, 15.0))}
    async with World.of(
        routes, legacy=backend.play, new=backend.play, timeouts=timeouts, target=target, limits=Limits()
    ) as world:
        await asyncio.gather(*(client(world, n, chance, score) for n in range(CLIENTS)))
        assert not score.wrong, score.wrong[:5]
        assert score.answers > 20
        strangers = set(score.arrived) - set(score.sent)
        assert not strangers
        again = {tag: count for tag, count in score.arrived.items() if count > 1}
        assert len(again) <= world.count("crossfade_retries_total")
        if not mean:
            assert not again
        for wire in world.clients:
            if not wire.lost:
                wire.transport.abort()
        for one in world.legacy, world.new:
            for wire in one.open:
                wire.transport.abort()
        world.legacy.play = world.new.play = echo
        assert await served(world, b"/alive") == b"GET /alive "
    assert not [thing for thing in collected() if isinstance(thing, Exchange | ClientConnection)]


@pytest.mark.parametrize("seed", SEEDS[:6])
async def test_garbage_from_both_sides(seed: int) -> None:
    """Bytes without any sense, from clients and as answers: nobody falls over, and the next is served."""
    chance = random.Random(1000 + seed)
    pieces = [b"HTTP/1.1 200 OK\r\n", b"\r\n", b"GET ", b"/ ", b"HTTP/1.1", b"Host: a\r\n", b"\n", b"\0",
    b": ", b"chunked",
              b"Content-Length: ", b"5", b"Transfer-Encoding: ", b"Connection: upgrade\r\n", b"101",
              b"x" * 5000,
              b"HTTP/1.1 101 Switching Protocols\r\n", b"0\r\n\r\n", b"Upgrade: x\r\n", b"100 ",
              b"HTTP/1.0 "]  # fmt: skip

    def garbage() -> bytes:
        return b"".join(chance.choice(pieces) for _ in range(chance.randrange(1, 20)))

    async def senseless(wire: Wire) -> None:
        await wire.through(b"\r\n\r\n")
        for _ in range(3):
            wire.send(garbage())
            await asyncio.sleep(0)

    timeouts = Timeouts(header=0.3, body_idle=0.3, keepalive=0.3, response=0.3, response_idle=0.3, expect=0.1)
    routes = [Route("good", "/good", side=Side.NEW)]
    async with World.of(routes, legacy=senseless, new=echo, timeouts=timeouts) as world:

        async def talk() -> None:
            wire = await world.client()
            wire.send(chance.choice((b"", get(), get(b"/", b"Upgrade: x\r\nConnection: upgrade\r\n"))))
            for _ in range(4):
                if wire.transport.is_closing():
                    return
                wire.send(garbage())
                await asyncio.sleep(0)
            if chance.random() < 0.5 and not wire.transport.is_closing():
                chance.choice((wire.half_close, wire.reset))()
            await wire.end()
            wire.close()

        for _ in range(3):
            await asyncio.gather(*(talk() for _ in range(20)))
            assert await served(world, b"/good") == b"GET /good "


async def served(world: World, target: bytes) -> bytes:
    """What is answered; who is cut by the storm's short timers, since the machine stood still, asks again."""
    for _ in range(3):
        with contextlib.suppress(EndedError):
            answer = await world.ask(get(target))
            if answer.status not in (408, 504):
                return answer.body.data
    return b""


async def test_requests_after_a_storm_leave_nothing_behind() -> None:
    async with World.of(legacy=echo) as world:

        async def some(number: int) -> None:
            client = await world.client()
            for _ in range(number):
                client.send(get(b"/x"))
                await client.answer()
            client.close()
            await until(lambda: not world.count("crossfade_client_connections"), "no client")
            world.clients.clear()

        await some(200)
        before = len(collected())
        await some(2000)
        after = len(collected())
        assert after - before < 50, f"2,000 requests left {after - before} objects"


def collected() -> list[object]:
    gc.collect()
    return gc.get_objects()
