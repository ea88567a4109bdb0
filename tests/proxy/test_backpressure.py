"""Large bodies towards slow peers stay out of memory, and many tiny chunks hold nobody else up."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.world import Wire, World, get, until

MEGABYTE = 1 << 20
SIZE = 200 * MEGABYTE
BLOCK = bytes(MEGABYTE)
ALLOWED = 32 * MEGABYTE


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


async def slowly(wire: Wire, total: int) -> int:
    """Take `total` bytes with pauses; returns the most that this process held meanwhile."""
    taken, most = 0, 0
    while taken < total:
        await wire.fact(lambda: wire.raw or wire.ending != "open", "bytes")
        assert wire.raw, "ended early"
        taken += len(wire.raw)
        wire.raw.clear()
        if taken // (8 * MEGABYTE) != (taken - 1) // (8 * MEGABYTE) or taken % 7 == 0:
            wire.stop_reading()
            await asyncio.sleep(0.002)  # the pace of a slow peer
            wire.go_on_reading()
        most = max(most, resident())
    return most


async def pour(wire: Wire) -> None:
    for _ in range(SIZE // MEGABYTE):
        wire.send(BLOCK)
        await wire.drained()


async def download() -> int:
    async with World.of() as world:
        client = await world.client()
        client.send(get())
        target = await world.legacy.connection()
        await target.request()
        before = resident()
        target.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SIZE)
        client.stop_reading()
        pouring = asyncio.create_task(pour(target))
        await until_paused(world)
        client.go_on_reading()
        await client.through(b"\r\n\r\n")
        most = await slowly(client, SIZE)
        await pouring
        return most - before


async def upload() -> int:
    async with World.of() as world:
        client = await world.client()
        before = resident()
        client.send(get(b"/", b"Transfer-Encoding: chunked\r\n", b"POST"))
        target = await world.legacy.connection()
        await target.request(body=False)
        target.stop_reading()
        client.send(b"%x\r\n" % SIZE)
        pouring = asyncio.create_task(pour(client))
        await until_paused(world)
        target.go_on_reading()
        most = await slowly(target, SIZE)
        await pouring
        return most - before


async def until_paused(world: World) -> None:
    """Until everything between the two ends is full."""
    await until(
        lambda: any(c.write_paused or c.reading_paused for c in world.worker._clients), "backpressure"
    )


@pytest.mark.parametrize("direction", ["download", "upload"])
def test_two_hundred_megabytes_towards_a_slow_peer_stay_out_of_memory(direction: str) -> None:
    code = (
        f"import uvloop; from tests.proxy import test_backpressure as t; print(uvloop.run(t.{direction}()))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    grown = int(done.stdout)
    assert grown < ALLOWED, f"{grown / MEGABYTE:.1f} MiB more for {SIZE // MEGABYTE} MiB"


@pytest.mark.parametrize("direction", ["up", "down"])
async def test_many_tiny_chunks_never_hold_the_loop_for_long(direction: str) -> None:
    async with World.of() as world:
        longest = 0.0

        async def watch() -> None:
            nonlocal longest
            while True:
                began = time.thread_time()  # what the machine takes is not ours
                await asyncio.sleep(0)
                longest = max(longest, time.thread_time() - began)

        client = await world.client()
        if direction == "up":
            client.send(get(b"/", b"Transfer-Encoding: chunked\r\n", b"POST"))
            target = await world.legacy.connection()
            await target.request(body=False)
            near, far = client, target
        else:
            client.send(get())
            target = await world.legacy.connection()
            await target.request()
            target.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            await client.through(b"\r\n\r\n")
            near, far = target, client
        watching = asyncio.create_task(watch())
        near.send(b"1\r\nx\r\n" * 300_000 + b"0\r\n\r\n")
        await far.through(b"0\r\n\r\n")
        watching.cancel()
        assert longest < 0.3, f"a turn of the loop took {longest:.3f} s"
