"""The end: what is in flight is answered within the time that is given to it."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.supervisor.backend import Backend
from tests.support.crossfade_process import refused, running_crossfade

Config = dict[str, Any]


async def test_a_slow_request_is_answered_before_the_end(
    tmp_path: Path, config: Config, legacy: Backend
) -> None:
    async with running_crossfade(tmp_path, config) as cf:
        await cf.readiness(200)
        connection = await cf.connect()
        connection.ask("/hold")
        await legacy.holding.wait()

        stopping = asyncio.create_task(cf.command("stop"))
        await cf.notice("STOPPING=1")
        await cf.until(lambda s: s["state"] == "draining")
        readiness = await cf.readiness(503)
        assert json.loads(readiness.body) == {"ready": False, "reasons": ["draining"]}
        await refused(cf.port)

        legacy.release.set()
        answer = await connection.answer()
        assert answer.body == b"legacy"
        assert answer.closes
        connection.close()
        done = await stopping
        assert (done.code, done.out) == (0, "stopped\n")
        assert await cf.ended() == 0


async def test_what_does_not_end_in_time_is_cut(tmp_path: Path, config: Config, legacy: Backend) -> None:
    async with running_crossfade(tmp_path, {**config, "timeouts": {"drain": 0.2}}) as cf:
        connection = await cf.connect()
        connection.ask("/hold")
        await legacy.holding.wait()

        cf.signal(signal.SIGTERM)

        with pytest.raises((EOFError, ConnectionError)):
            await connection.answer()
        connection.close()
        assert await cf.ended() == 0
        assert '"cut": 1' in cf.log()


async def test_the_second_signal_ends_it_at_once(tmp_path: Path, config: Config, legacy: Backend) -> None:
    async with running_crossfade(tmp_path, {**config, "timeouts": {"drain": 3600}}) as cf:
        connection = await cf.connect()
        connection.ask("/hold")
        await legacy.holding.wait()
        cf.signal(signal.SIGINT)
        await cf.notice("STOPPING=1")
        cf.signal(signal.SIGINT)
        assert await cf.ended() == 0
        connection.close()


async def test_a_reload_of_a_stopping_instance_isrefused(
    tmp_path: Path, config: Config, legacy: Backend
) -> None:
    async with running_crossfade(tmp_path, config) as cf:
        connection = await cf.connect()
        connection.ask("/hold")
        await legacy.holding.wait()
        cf.signal(signal.SIGTERM)
        await cf.until(lambda s: s["state"] == "draining")
        reloading = asyncio.create_task(cf.command("reload"))
        restarting = asyncio.create_task(cf.command("restart"))
        for task in (reloading, restarting):
            done = await task
            assert done.code == 1
            assert done.err == "the instance is being stopped\n"
        legacy.release.set()
        connection.close()


async def test_nothing_to_stop(tmp_path: Path, config: Config) -> None:
    async with running_crossfade(tmp_path, config) as cf:
        assert (await cf.command("stop", "-o", "json")).code == 0
        await cf.ended()
        for command in ("stop", "reload", "restart"):
            done = await cf.command(command)
            assert done.code == 3
            assert done.err == f"crossfade: nothing is running on the data folder {tmp_path / '.crossfade'}\n"
        assert (await cf.command("proxy", "status")).code == 3
