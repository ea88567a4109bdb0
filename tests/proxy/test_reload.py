"""Reload and drain: no request that was accepted is lost, and nothing old is served longer than it must."""

from __future__ import annotations

import asyncio
import gc
from dataclasses import replace
from typing import Any

import pytest

from flags.model import Route, Side
from flags.snapshot import compile_snapshot
from proxy.client import ClientConnection
from proxy.config import Forwarding, Target, TargetTls
from proxy.pipeline import Exchange
from proxy.worker import Worker
from tests.proxy.calm import in_a_calm_moment
from tests.support.world import EndedError, World, echo, get, plain, post, until

CONNECTIONS = "crossfade_upstream_connections"


async def reload(world: World, version: int, **changes: Any) -> None:
    world.config = replace(world.config, **changes)
    await world.worker.reconfigure(world.config, world.snapshot(version))


def moved(world: World, side: Side, **changes: Any) -> dict[Side, Target]:
    return world.config.targets | {side: replace(world.config.targets[side], **changes)}


async def test_the_next_request_runs_on_the_new_routes() -> None:
    async with World.of(legacy=echo, new=echo) as world:
        client = await world.client()
        client.send(get(b"/a"))
        await client.answer()
        world.routes = (Route("a", "/a", side=Side.NEW),)
        await reload(world, 2)
        client.send(get(b"/a"))
        await client.answer()
        assert (len(world.legacy.wires), len(world.new.wires)) == (1, 1)


async def test_pools_of_unchanged_targets_are_kept_and_others_are_replaced() -> None:
    async with World.of([Route("n", "/new", side=Side.NEW)], legacy=echo, new=echo) as world:
        client = await world.client()
        for path in (b"/", b"/new"):
            client.send(get(path))
            await client.answer()
        await reload(world, 2, targets=moved(world, Side.NEW, max_connections=7))
        assert await world.new.wires[0].end() == "closed"
        for path in (b"/", b"/new"):
            client.send(get(path))
            await client.answer()
        assert (len(world.legacy.wires), len(world.new.wires)) == (1, 2)


async def test_a_request_in_flight_ends_as_it_began() -> None:
    async with World.of() as world:
        client = await world.client()
        client.send(get(b"/old"))
        target = await world.legacy.connection()
        await target.request()
        await reload(world, 2, targets=moved(world, Side.LEGACY, port=world.new.port))
        assert client.ending == "open"
        target.send(plain(b"old"))
        assert (await client.answer()).body.data == b"old"
        await target.end()  # its pool has been retired
        client.send(get(b"/next"))
        assert (await (await world.new.connection()).request()).target == b"/next"
        await until(lambda: world.count(CONNECTIONS) == 1, "the old pool to be gone")


async def test_requests_that_wait_for_a_connection_are_served_across_a_reload() -> None:
    async with World.of(target={"max_connections": 1}) as world:
        clients = [await world.client() for _ in range(3)]
        for number, client in enumerate(clients):
            client.send(get(b"/%d" % number))
        target = await world.legacy.connection()
        await until(lambda: world.count("crossfade_requests_waiting") == 2, "two waiting requests")
        await reload(world, 2, targets=moved(world, Side.LEGACY, max_connections=5))
        for number, client in enumerate(clients):
            if number:
                target = await world.legacy.connection()
            asked = await target.request()
            target.send(plain(asked.target))
            assert (await client.answer()).body.data == b"/%d" % number


async def test_a_reload_that_cannot_be_done_changes_nothing() -> None:
    async with World.of(legacy=echo) as world:
        before = world.config
        with pytest.raises(OSError, match="No such file"):
            await reload(world, 2, targets=moved(world, Side.NEW, tls=TargetTls("/nowhere/ca.pem")))
        assert world.worker.runtime.config is before
        assert (await world.ask(get())).status == 200


async def test_reloads_under_load_fail_no_request() -> None:
    async with World.of(legacy=echo, new=echo) as world:
        done = 0
        running = True

        async def load(number: int) -> None:
            nonlocal done
            client = await world.client()
            while running:
                target = b"/%d/%d" % (number, done)
                client.send(post(target, b"x" * 3000))
                answer = await client.answer()
                assert answer.body.data == b"POST " + target + b" " + b"x" * 3000
                done += 1

        clients = [asyncio.create_task(load(number)) for number in range(10)]
        for version in range(2, 42):
            world.routes = tuple(
                Route(f"r{n}", f"/{n}/**", side=list(Side)[(n + version) % 2]) for n in range(10)
            )
            changes: dict[str, Any] = {"forwarding": Forwarding(via=f"v{version}")}
            if version % 3 == 0:
                changes["targets"] = moved(world, Side.NEW, max_connections=version)
            before = done
            await reload(world, version, **changes)
            await until(lambda: done > before + 20 or any(c.done() for c in clients), "load")  # noqa: B023
        running = False
        await asyncio.gather(*clients)
        assert world.count("crossfade_errors_total") == 0
        assert world.count("crossfade_requests_total", code="2xx") == done


# Drain ------------------------------------------------------------------------------------------------


async def test_a_drain_lets_requests_in_flight_end_and_says_close() -> None:
    async with World.of() as world:
        client = await world.client()
        client.send(get())
        target = await world.legacy.connection()
        await target.request()
        draining = asyncio.create_task(world.worker.drain(5.0))
        await until(lambda: world.worker.draining, "the drain")
        assert not draining.done()
        target.send(plain(b"ok"))
        answer = await client.answer()
        assert answer.body.data == b"ok"
        assert b"Connection: close\r\n" in answer.head
        assert await client.end() == "closed"
        client.close()
        assert await draining == 0


@in_a_calm_moment
async def test_a_drain_takes_one_more_request_from_an_idle_connection() -> None:
    async with World.of(legacy=echo) as world:
        idle, late = await world.client(), await world.client()
        for client in (idle, late):
            client.send(get())
            await client.answer()
        draining = asyncio.create_task(world.worker.drain(2.0))
        await until(lambda: world.worker.draining, "the drain")
        late.send(get(b"/late"))
        answer = await late.answer()
        assert answer.body.data == b"GET /late "
        assert b"Connection: close\r\n" in answer.head
        late.close()
        assert await idle.end() == "closed"
        assert await draining == 0


@in_a_calm_moment
async def test_a_drain_ends_a_connection_whose_answer_had_promised_to_keep_it() -> None:
    async with World.of() as world:
        client = await world.client()
        client.send(get())
        target = await world.legacy.connection()
        await target.request()
        target.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nha")
        await client.through(b"ha")
        loop = asyncio.get_running_loop()
        began = loop.time()
        draining = asyncio.create_task(world.worker.drain(1.6))
        await until(lambda: loop.time() > began + 0.3, "a while")
        target.send(b"lf")
        assert await client.take(2) == b"lf"
        assert await client.end() == "closed"
        assert await draining == 0


async def test_a_drain_has_an_end_and_says_what_it_cut() -> None:
    async with World.of() as world:
        client = await world.client()
        client.send(get())
        await (await world.legacy.connection()).request()
        assert await world.worker.drain(0.2) == 1


@in_a_calm_moment
async def test_a_drain_of_nobody_is_over_at_once() -> None:
    async with World.of() as world:
        loop = asyncio.get_running_loop()
        began = loop.time()
        assert await world.worker.drain(5.0) == 0
        assert loop.time() - began < 0.5


async def test_a_draining_worker_accepts_nobody_and_leaves_the_queue_to_the_next() -> None:
    async with World.of(legacy=echo) as world:
        await world.worker.drain(0.1)
        client = await world.client()  # the kernel takes it: the listening socket is still open
        client.send(get(b"/queued"))
        successor = await next_worker(world)
        try:
            assert (await client.answer()).body.data == b"GET /queued "
        finally:
            client.close()
            await successor.close()


async def next_worker(world: World) -> Worker:
    worker = Worker(world.config, compile_snapshot([], 1))
    await worker.start([world.sock])
    return worker


async def test_a_drain_under_load_loses_no_request() -> None:
    async with World.of(legacy=echo) as world:
        successor = None
        done = lost = 0
        running = True

        async def load(number: int) -> None:
            """A client as browsers are: it opens a new connection when told, and repeats nothing."""
            nonlocal done, lost
            client = await world.client()
            while running:
                client.send(get(b"/%d/%d" % (number, done)))
                try:
                    answer = await client.answer()
                except EndedError:
                    lost += 1
                    client = await world.client()
                    continue
                assert answer.body.data.startswith(b"GET /%d/" % number)
                done += 1
                if b"Connection: close" in answer.head:
                    client.close()
                    client = await world.client()

        clients = [asyncio.create_task(load(number)) for number in range(10)]
        await until(lambda: done > 100, "some load")
        draining = asyncio.create_task(world.worker.drain(5.0))
        await until(lambda: world.worker.draining, "the drain")
        successor = await next_worker(world)
        assert await draining == 0
        before = done
        await until(lambda: done > before + 100, "load on the successor")
        running = False
        await asyncio.gather(*clients)
        await successor.close()
        assert lost == 0


async def test_nothing_of_a_closed_worker_stays_alive() -> None:
    async with World.of(legacy=echo, new=echo) as world:
        for version in range(2, 8):
            client = await world.client()
            client.send(get())
            await client.answer()
            await reload(world, version, forwarding=Forwarding(via=f"v{version}"))
    del client
    world.clients.clear()
    del world
    await until(lambda: not alive(), "the garbage to be collected")


def alive() -> list[object]:
    gc.collect()
    return [thing for thing in gc.get_objects() if isinstance(thing, Exchange | ClientConnection)]
