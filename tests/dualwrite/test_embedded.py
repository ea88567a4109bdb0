"""Streams that `crossfade up` works on by itself: begun by a command, handed on by whoever ends."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from dualwrite.verify import PATIENCE
from tests.dualwrite.sample import alike, connected, rows, until, write
from tests.dualwrite.test_commands import MIGRATION
from tests.support.crossfade_process import RunningCrossfade, all_gone, running_crossfade

WHY = ("--reason", "a test")


@contextlib.asynccontextmanager
async def host(folder: Path, legacy: str, new: str, **data: Any) -> AsyncIterator[RunningCrossfade]:
    """One instance of the proxy; nobody sends requests to it."""
    os.makedirs(folder, exist_ok=True)
    (folder / "migration.py").write_text(MIGRATION.read_text())
    config = {
        "workers": 1,
        "targets": {"legacy": {"url": "http://127.0.0.1:1"}, "new": {"url": "http://127.0.0.1:2"}},
        "code": "migration.py",
        "data": {"legacy": {"url": legacy}, "new": {"url": new}, **data},
    }
    async with running_crossfade(folder, config) as cf:
        yield cf


async def data(cf: RunningCrossfade, *arguments: str, code: int = 0) -> Any:
    done = await cf.command("data", *arguments, "-o", "json")
    assert done.code == code, (done, cf.log()[-3000:])
    return json.loads(done.out or done.err)


async def pid_of(cf: RunningCrossfade, towards: str = "new", other_than: int = 0) -> int:
    status = await cf.until(lambda status: status["sync_pids"].get(towards, 0) not in (0, other_than))
    return int(status["sync_pids"][towards])


async def epoch(new: psycopg.AsyncConnection) -> int:
    row = await (await new.execute("SELECT epoch FROM crossfade_sync.streams")).fetchone()
    assert row is not None
    return int(row[0])


def holds(cf: RunningCrossfade, stream: str = "to_new") -> Any:
    async def fact() -> bool:
        return (await cf.metrics()).total("crossfade_sync_held", stream=stream) == 1

    return fact


async def test_a_stream_runs_from_its_start_to_its_stop_whoever_dies(
    tmp_path: Path, legacy_url: str, new_url: str
) -> None:
    chance = random.Random(5)
    async with (
        connected(legacy_url) as legacy,
        connected(new_url) as new,
        host(tmp_path, legacy_url, new_url) as cf,
    ):
        first = await pid_of(cf)
        await until(lambda: says(cf, "nobody has said that it shall run"), "it stands by")
        schemas = await new.execute("SELECT to_regnamespace('crossfade_sync')")
        assert await schemas.fetchall() == [(None,)], "nobody has asked for anything"
        assert (await data(cf, "status", code=3))["error"] == "not_found"
        assert (await data(cf, "start", code=2))["error"] == "invalid", "without a reason"
        back = await data(cf, "start", "--towards", "legacy", *WHY, code=6)
        assert back["error"] == "not_prepared", "it would copy new's rows into legacy"

        started = await data(cf, "start", *WHY)
        assert str(first) in started["status"]["holder"]
        await until(lambda: alike(legacy, new), "both are alike")
        await until(lambda: _lag_is_told(cf), "the lag is told where everything is told")

        # The process is killed, and the next one goes on where it was.
        before = await epoch(new)
        os.kill(first, signal.SIGKILL)
        second = await pid_of(cf, other_than=first)
        for _ in range(20):
            await write(legacy, chance)
        await until(lambda: alike(legacy, new), "the next one has brought what was written meanwhile")
        assert await epoch(new) > before

        # So does the one of the next program.
        done = await cf.command("restart")
        assert done.code == 0, done
        third = await pid_of(cf, other_than=second)
        await until(holds(cf), "the new program's works on it")
        for _ in range(20):
            await write(legacy, chance)
        await until(lambda: alike(legacy, new), "and brings what is written")
        assert (await data(cf, "status"))["desired"]["reason"] == "a test"

        await data(cf, "stop", "--reason", "the disk is full")
        await until(lambda: _nobody_holds(cf), "nobody works on it any more")
        status = await data(cf, "status")
        assert (status["state"], status["noted"], status["desired"]["run"]) == ("paused", "following", False)
        assert (await cf.command("data", "status")).out.startswith("to_new  paused ")
        doctor = (await cf.command("doctor")).out
        [said] = [line for line in doctor.splitlines() if "stopped by" in line]
        assert "the disk is full" in said
        assert "crossfade data start --towards new" in doctor
        assert await pid_of(cf) == third, "it stands by"
        await write(legacy, chance)
        await legacy.execute("UPDATE users SET about = 'later' WHERE user_id = 1")
        asked = time.monotonic()
        nobody = await data(cf, "verify", "--table", "users", code=7)
        assert "the disk is full" in nobody["message"], "why nobody brings what differs"
        assert "crossfade data start --towards new" in nobody["message"]
        assert time.monotonic() - asked < PATIENCE / 2, "it is known at once"
        await data(cf, "start", *WHY)
        await until(lambda: alike(legacy, new), "it goes on where it was")


async def says(cf: RunningCrossfade, what: str) -> bool:
    return what in cf.log()


async def _lag_is_told(cf: RunningCrossfade) -> bool:
    measured = await cf.metrics()
    return 'crossfade_sync_lag_seconds{stream="to_new"}' in measured.text


async def _nobody_holds(cf: RunningCrossfade) -> bool:
    return not (await data(cf, "status"))["held"]


async def test_of_two_hosts_one_works_and_the_other_follows_it(
    tmp_path: Path, legacy_url: str, new_url: str
) -> None:
    chance = random.Random(6)
    async with (
        connected(legacy_url) as legacy,
        connected(new_url) as new,
        host(tmp_path / "b", legacy_url, new_url) as staying,
        host(tmp_path / "a", legacy_url, new_url) as leaving,
    ):
        await pid_of(staying)
        await pid_of(leaving)
        status = (await data(leaving, "start", *WHY))["status"]
        pids = {str(await pid_of(cf)): cf for cf in (leaving, staying)}
        [holder] = [cf for pid, cf in pids.items() if status["holder"].endswith(f"pid {pid}")]
        other = staying if holder is leaving else leaving
        await until(holds(holder), "it works")
        assert (await other.metrics()).total("crossfade_sync_held", stream="to_new") == 0
        await until(lambda: alike(legacy, new), "both are alike")

        # The whole host dies: everything of it at once.
        before = await epoch(new)
        for pid in (holder.pid, await pid_of(holder)):
            os.kill(pid, signal.SIGKILL)
        ((lasted,),) = await rows(new, "SELECT until::text FROM crossfade_sync.leases")
        await until(holds(other), "the other host works")
        # At once, since its session is gone: before its lease would have ended.
        assert await rows(new, f"SELECT since < '{lasted}' FROM crossfade_sync.leases") == [(True,)]
        for _ in range(10):
            await write(legacy, chance)
        await until(lambda: alike(legacy, new), "and nothing is lacking")
        assert await epoch(new) == before + 1


async def test_what_stops_it_is_left_until_somebody_says_so_again(
    tmp_path: Path, legacy_url: str, new_url: str
) -> None:
    async with (
        connected(legacy_url) as legacy,
        connected(new_url) as new,
        host(tmp_path, legacy_url, new_url) as cf,
    ):
        await data(cf, "start", *WHY)
        await until(lambda: alike(legacy, new), "both are alike")
        await legacy.execute("ALTER TABLE users ADD COLUMN more text")
        await legacy.execute("UPDATE users SET more = 'x' WHERE user_id = 1")
        await until(lambda: _has_stopped(cf), "it has stopped")
        pid, before = await pid_of(cf), await epoch(new)
        assert (await cf.metrics()).total("crossfade_sync_state", stream="to_new", state="stopped") == 1
        again = await data(cf, "start", *WHY, code=6)
        assert again["status"]["reason"] == "column_unknown", "tried once more, and nothing was mended"
        assert (await pid_of(cf), await epoch(new)) == (pid, before + 1)

        # What is mended in migration.py comes with a reload, in a process of its own.
        mended = MIGRATION.read_text().replace("marked=_MARKED,", 'marked=_MARKED, legacy_only=["more"],', 2)
        (tmp_path / "migration.py").write_text(mended)
        done = await cf.command("reload")
        assert done.code == 0, done
        mended_by = await data(cf, "start", *WHY)
        assert mended_by["status"]["reason"] is None, "no word of the stop before, nor of who had it then"
        assert mended_by["status"]["holder"].endswith(f"pid {await pid_of(cf, other_than=pid)}")
        await legacy.execute("UPDATE users SET about = 'mended' WHERE user_id = 1")
        await until(lambda: alike(legacy, new), "both are alike")


async def _has_stopped(cf: RunningCrossfade) -> bool:
    return (await cf.command("data", "status")).code == 6


async def test_a_host_may_leave_it_to_others(tmp_path: Path, legacy_url: str, new_url: str) -> None:
    async with host(tmp_path, legacy_url, new_url, run_here=False) as cf:
        nobody = await data(cf, "start", "--wait", "1", *WHY, code=7)
        assert nobody["error"] == "no_process"
        assert (await cf.status())["sync_pids"] == {}
        await data(cf, "stop", *WHY)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
async def test_nothing_is_left_of_an_instance(
    tmp_path: Path, legacy_url: str, new_url: str, signum: signal.Signals
) -> None:
    async with host(tmp_path, legacy_url, new_url) as cf:
        pids = [await pid_of(cf, towards) for towards in ("new", "legacy")]
        cf.signal(signum)
        await cf.ended()
        await all_gone(pids)
