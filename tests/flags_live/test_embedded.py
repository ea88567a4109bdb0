"""The servers that come with Crossfade: they are there by themselves, come back, and end with it."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from pathlib import Path
from typing import Any

from crossfade.embedded.folders import take
from tests.flags_live.scene import Load, load
from tests.supervisor.backend import Backend
from tests.support.crossfade_process import RunningCrossfade, running_crossfade


async def test_the_embedded_servers_come_back_and_live_through_a_restart(
    cluster: Path, tmp_path: Path, legacy: Backend, new: Backend
) -> None:
    data = tmp_path / ".crossfade"
    data.mkdir(mode=0o700)
    shutil.copytree(cluster, data / "postgres")
    config = {
        "workers": 2,
        "store": "embedded",
        "bus": "embedded",
        "targets": {"legacy": {"url": legacy.url}, "new": {"url": new.url}},
        "routes": [{"flag": "items", "match": {"path": "/**"}, "target": "legacy"}],
        "timeouts": {"drain": 10},
    }
    seen = Load()
    async with running_crossfade(tmp_path, config) as cf, load(cf, seen, ["items"]):
        await cf.until(lambda status: status["flags"]["version"] > 0)
        await moved(cf, "shadow")

        os.kill(postmaster(data), signal.SIGKILL)
        await fresh(cf)
        await moved(cf, "live")
        await seen.only(items="new")

        os.kill(servers_process(cf), signal.SIGKILL)
        await fresh(cf)
        await moved(cf, "shadow")
        await seen.only(items="legacy")

        before = postmaster(data), servers_process(cf)
        assert (await cf.command("restart")).code == 0
        await moved(cf, "live")
        assert (postmaster(data), servers_process(cf)) == before
        await seen.only(items="new")
    assert seen.failures == []
    for name in ("postgres", "valkey"):
        lock = take(data / name / "lock", 0.0)
        assert lock is not None, f"the embedded {name} has outlived the program"
        os.close(lock)


async def test_serving_does_not_wait_for_a_server_that_cannot_start(
    tmp_path: Path, legacy: Backend, new: Backend
) -> None:
    data = tmp_path / ".crossfade"
    (data / "postgres" / "data").mkdir(parents=True, mode=0o700)
    (data / "postgres" / "data" / "PG_VERSION").write_text("9\n")
    config = {
        "workers": 1,
        "store": "embedded",
        "targets": {"legacy": {"url": legacy.url}, "new": {"url": new.url}},
        "routes": [{"flag": "items", "match": {"path": "/**"}, "target": "new"}],
    }
    async with running_crossfade(tmp_path, config) as cf:
        assert (await cf.get("/items")).body == b"new"
        async with asyncio.timeout(30):
            while "embedded server does not start" not in cf.log():  # noqa: ASYNC110  (it is another process)
                await asyncio.sleep(0.02)
        assert (await cf.status())["ready"]


async def moved(cf: RunningCrossfade, stage: str) -> None:
    """Move the flag by the command line, which says when all workers obey."""
    ended = await cf.command("flag", "move", "items", "--to", stage, "--reason", "a test", "--wait", "20")
    assert ended.code == 0, ended.out + ended.err


async def fresh(cf: RunningCrossfade) -> dict[str, Any]:
    """Until the store has been asked successfully once more."""
    now = await cf.status()
    return await cf.until(
        lambda status: status["uptime_seconds"] - status["flags"]["age_seconds"] > now["uptime_seconds"]
    )


def postmaster(data: Path) -> int:
    return int((data / "postgres/data/postmaster.pid").read_text().splitlines()[0])


def servers_process(cf: RunningCrossfade) -> int:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if b"crossfade.servers_process" in words and parent == cf.pid:
                return int(entry.name)
    raise AssertionError("no process holds the embedded servers")
