"""What changes something waits while a cutover moves the authority, and is carried out once or not at all."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from flags.model import Authority, Bucketing, Decision, Flag, FlagSet, Phase, Route, Side, Stage
from flags.stages import settled_at
from proxy.config import HoldLimits
from proxy.pipeline import Exchange
from proxy.worker import Worker
from tests.differential.wire import named
from tests.proxy.calm import in_a_calm_moment
from tests.support.world import Asked, Play, Wire, World, get, plain, post, until

ROUTES = (Route("shop", "/**"),)
HELD = "crossfade_held_requests_total"
HOLDING = "crossfade_holding_requests"


def flags(side: Side = Side.LEGACY, phase: Phase = Phase.OPEN, version: int = 1) -> FlagSet:
    flag = Flag("shop", 1, settled_at(Stage.LEGACY), Bucketing((), "shop"))
    return FlagSet(version, flags=(flag,), authorities=(Authority("all", ("shop",), side, 0, phase),))


@contextlib.asynccontextmanager
async def shop(**more: Any) -> AsyncIterator[tuple[World, Heard, Heard]]:
    """A worker that holds, and what its two backends were asked."""
    legacy: Heard = []
    new: Heard = []
    plays = {"legacy": noting(legacy), "new": noting(new)}
    async with World.of(ROUTES, flags=flags(phase=Phase.HOLD), **plays, **more) as world:
        yield world, legacy, new


Heard = list[Asked]


def noting(heard: Heard) -> Play:
    async def play(wire: Wire) -> None:
        while True:
            asked = await wire.request()
            heard.append(asked)
            wire.send(plain())

    return play


def written(heard: Heard) -> list[bytes]:
    """The targets of what changed something, in the order in which they came."""
    return [asked.target for asked in heard if asked.method == b"POST"]


def decide(world: World, side: Side, phase: Phase = Phase.OPEN) -> None:
    """What the cutover tells the worker."""
    version = 1 if world.flags is None else world.flags.version + 1
    world.flags = flags(side, phase, version)
    world.worker.decide_by(world.snapshot(1))


async def test_a_write_waits_and_goes_where_the_authority_went() -> None:
    async with shop() as (world, legacy, new):
        client = await world.client()
        client.send(post(b"/items", b"abc"))
        await world.counted(HOLDING, 1)
        assert (await world.ask(get(b"/items"))).status == 200  # what reads goes on
        decide(world, Side.LEGACY, Phase.TURN)
        decide(world, Side.NEW)
        assert (await client.answer()).status == 200
        assert (written(legacy), written(new)) == ([], [b"/items"])
        assert world.count(HELD, outcome="went_on") == 1
        assert world.count(HOLDING) == 0


async def test_a_cancelled_cutover_lets_it_go_where_it_would_have_gone() -> None:
    async with shop() as (world, legacy, new):
        client = await world.client()
        client.send(post(b"/items", b"abc"))
        await world.counted(HOLDING, 1)
        decide(world, Side.LEGACY)
        assert (await client.answer()).status == 200
        assert (written(legacy), written(new)) == ([b"/items"], [])


async def test_those_behind_it_on_the_same_connection_wait_their_turn() -> None:
    async with shop() as (world, legacy, new):
        client = await world.client()
        client.send(post(b"/first", b"1") + get(b"/second") + post(b"/third", b"3"))
        await world.counted(HOLDING, 1)
        decide(world, Side.NEW)
        for _ in range(3):
            assert (await client.answer()).status == 200
        assert written(new) == [b"/first", b"/third"]
        assert [asked.target for asked in legacy + new].index(b"/second") >= 0


async def test_a_long_body_waits_in_the_socket_and_arrives_whole() -> None:
    async with shop() as (world, _, new):
        client = await world.client()
        body = bytes(range(256)) * 4096
        client.send(post(b"/upload", body))
        await world.counted(HOLDING, 1)
        decide(world, Side.NEW)
        assert (await client.answer()).status == 200
        assert [asked.body for asked in new] == [body]


async def test_many_wait_and_go_on_in_their_order() -> None:
    async with shop(target={"max_connections": 1}) as (world, _, new):
        clients = []
        for number in range(80):
            client = await world.client()
            client.send(post(f"/{number:03}".encode(), b"x"))
            await world.counted(HOLDING, number + 1)
            clients.append(client)
        decide(world, Side.NEW)
        for client in clients:
            assert (await client.answer()).status == 200
        assert written(new) == [f"/{number:03}".encode() for number in range(80)]
        assert world.count(HELD, outcome="went_on") == 80


async def test_a_client_that_has_gone_is_not_served() -> None:
    async with shop() as (world, legacy, new):
        gone, half, reset = [await world.client() for _ in range(3)]
        for client in (gone, half, reset):
            client.send(post(b"/items", b"abc"))
        await world.counted(HOLDING, 3)
        half.half_close()
        gone.close()
        reset.reset()
        await until(lambda: gone.lost and reset.lost, "their ends")
        decide(world, Side.NEW)
        await until(lambda: world.count(HOLDING) == 0, "nobody waits")
        await world.ask(get(b"/"))
        assert written(legacy) == written(new) == []
        assert sum(world.count(HELD, outcome=one) for one in ("client_left_while_held", "client_gone")) == 3


async def test_a_client_that_leaves_while_a_connection_is_waited_for_is_not_served_either() -> None:
    """New may be slow at first, just when patience ends; who tries again would have it done twice."""
    busy, over = asyncio.Event(), asyncio.Event()
    asked: list[bytes] = []

    async def one_at_a_time(wire: Wire) -> None:
        while True:
            found = await wire.request()
            asked.append(found.target)
            busy.set()
            await over.wait()
            wire.send(plain())

    held = flags(phase=Phase.HOLD)
    async with World.of(ROUTES, flags=held, new=one_at_a_time, target={"max_connections": 1}) as world:
        first, gone, half = [await world.client() for _ in range(3)]
        for number, client in enumerate((first, gone, half)):
            client.send(post(f"/{number}".encode(), b"abc"))
            await world.counted(HOLDING, number + 1)
        decide(world, Side.NEW)
        await busy.wait()
        gone.close()
        half.half_close()
        await world.counted("crossfade_client_connections", 2)
        over.set()
        assert (await first.answer()).status == 200
        assert (await half.answer()).status == 503
        assert asked == [b"/0"]


async def test_a_client_that_hung_up_behind_a_full_socket_is_not_served() -> None:
    """Reading is paused there, so nobody has told the worker."""
    async with shop() as (world, legacy, new):
        client = await world.client()
        client.send(post(b"/upload", b"x" * 60_000)[:-10])  # more is to come, and never will
        await world.counted(HOLDING, 1)
        client.half_close()
        decide(world, Side.NEW)
        await until(lambda: world.count(HOLDING) == 0, "nobody waits")
        await world.ask(get(b"/"))
        assert written(legacy) == written(new) == []


@in_a_calm_moment
async def test_beyond_the_bounds_it_is_503_and_says_when_to_come_again() -> None:
    limits = HoldLimits(requests=1, seconds=1)
    async with shop(holding=limits) as (world, legacy, new):
        first, second = await world.client(), await world.client()
        first.send(post(b"/items", b"abc"))
        await world.counted(HOLDING, 1)
        second.send(post(b"/items", b"abc"))
        refused = await second.answer()
        assert (refused.status, named(refused.fields, b"retry-after")) == (503, [b"1"])
        assert b"hold_overflow" in refused.body.data
        late = await first.answer()
        assert late.status == 503
        assert b"hold_timeout" in late.body.data
        # What is left of a body is no request: the connection ends.
        assert named(late.fields, b"connection") == [b"close"]
        decide(world, Side.NEW)
        assert written(legacy) == written(new) == []


@in_a_calm_moment
async def test_what_was_decided_again_waits_no_longer_than_before() -> None:
    async with shop(holding=HoldLimits(seconds=0.6)) as (world, _, _):
        client = await world.client()
        client.send(post(b"/items", b"abc"))
        await world.counted(HOLDING, 1)
        answering = asyncio.create_task(client.answer())
        while not answering.done():  # if each time let it wait anew, it would wait for ever
            decide(world, Side.LEGACY, Phase.TURN)
            await asyncio.wait([answering], timeout=0.2)
        assert (await answering).status == 503


async def test_a_reload_lets_it_be_decided_anew() -> None:
    async with shop() as (world, _, new):
        client = await world.client()
        client.send(post(b"/items", b"abc"))
        await world.counted(HOLDING, 1)
        world.flags = flags(Side.NEW, version=2)
        await world.worker.reconfigure(world.config, world.snapshot(2))
        assert (await client.answer()).status == 200
        assert written(new) == [b"/items"]


async def test_a_fault_of_ours_is_kept_to_the_one_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async with shop() as (world, _, new):
        first, second = await world.client(), await world.client()
        first.send(post(b"/first", b"abc"))
        await world.counted(HOLDING, 1)
        second.send(post(b"/second", b"abc"))
        await world.counted(HOLDING, 2)
        start = Exchange.start

        def broken(exchange: Exchange, instead: Decision | None = None) -> None:
            if exchange.head.sent_target == b"/first":
                raise RuntimeError("a fault")
            start(exchange, instead)

        monkeypatch.setattr(Exchange, "start", broken)
        decide(world, Side.NEW)
        assert (await first.answer()).status == 500
        assert (await second.answer()).status == 200
        assert written(new) == [b"/second"]
        assert [str(fault["exception"]) for fault in world.faults] == ["a fault"]
        world.faults.clear()


async def test_quiet_is_when_nothing_is_under_way_any_more() -> None:
    async with World.of(ROUTES, flags=flags()) as world:
        client, reader = await world.client(), await world.client()
        client.send(post(b"/items", b"abc"))
        target = await world.legacy.connection()
        await target.request()
        reader.send(get(b"/items"))
        await (await world.legacy.connection()).request()
        assert under_way(world.worker) == 1
        decide(world, Side.LEGACY, Phase.HOLD)
        other = await world.client()
        other.send(post(b"/items", b"waits"))
        await world.counted(HOLDING, 1)
        assert under_way(world.worker) == 1
        target.send(plain())
        assert (await client.answer(b"POST")).status == 200
        await until(lambda: under_way(world.worker) == 0, "quiet")


def under_way(worker: Worker) -> int:
    return worker.changes_under_way({"shop"})
