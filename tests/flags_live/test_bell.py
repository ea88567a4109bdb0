"""The bell on a real bus: rung here, heard there; gone and back; and nobody else's noise is a version."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import redis.asyncio

from crossfade.bell import CHANNEL, Bell
from crossfade.embedded.valkey import EmbeddedValkey
from tests.support.crossfade_process import PATIENCE


class Ear:
    def __init__(self) -> None:
        self.heard: asyncio.Queue[int] = asyncio.Queue()

    async def next(self) -> int:
        async with asyncio.timeout(PATIENCE):
            return await self.heard.get()


@contextlib.asynccontextmanager
async def listening(bell: Bell) -> AsyncIterator[Ear]:
    ear = Ear()
    task = asyncio.create_task(bell.listen(ear.heard.put_nowait))
    try:
        yield ear
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def lose_no_ring(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long a busy bus takes."""
    monkeypatch.setattr("crossfade.bell.SEND_WITHIN", PATIENCE)


async def test_what_one_rings_the_other_hears(
    bus: EmbeddedValkey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose_no_ring(monkeypatch)
    here, there = Bell(bus.url(), tmp_path), Bell(bus.url(), tmp_path)
    async with listening(here) as at_home, listening(there) as abroad:
        assert (await at_home.next(), await abroad.next()) == (0, 0)

        here.ring(42)

        assert (await at_home.next(), await abroad.next()) == (42, 42)


async def test_a_bus_that_was_away_is_looked_behind(
    bus: EmbeddedValkey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bell = Bell(bus.url(), tmp_path)
    async with listening(bell) as ear:
        await ear.next()
        bus.stop()
        bell.ring(7)  # is lost, and nobody waits for it
        bus.start()

        assert await ear.next() == 0
        lose_no_ring(monkeypatch)
        bell.ring(8)
        assert await ear.next() == 8


async def test_noise_is_no_version(bus: EmbeddedValkey, tmp_path: Path) -> None:
    async with (
        listening(Bell(bus.url(), tmp_path)) as ear,
        redis.asyncio.Redis.from_url(bus.url()) as client,
    ):
        await ear.next()
        for noise in (b"", b"-1", b"\xff", b"9" * 400, "\u0664".encode()):
            await client.publish(CHANNEL, noise)
            assert await ear.next() == 0


async def test_without_a_bus_it_is_silent(tmp_path: Path) -> None:
    bell = Bell("none", tmp_path)
    await bell.listen(lambda _: pytest.fail("nobody can have rung"))
    bell.ring(1)


async def test_an_embedded_bus_that_was_never_started_is_waited_for(tmp_path: Path) -> None:
    bell = Bell("embedded", tmp_path)
    async with listening(bell) as ear:
        async with asyncio.timeout(PATIENCE):
            while bell.trouble is None:  # noqa: ASYNC110  (it tells nobody)
                await asyncio.sleep(0.01)
        with EmbeddedValkey(tmp_path / "valkey"):
            assert await ear.next() == 0
            assert bell.trouble is None
