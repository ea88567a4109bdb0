"""Restarts of the whole program under one pid: no refused connection, no failed request."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from crossfade import instance
from tests.supervisor.backend import Backend
from tests.supervisor.stream import stream
from tests.support.crossfade_process import RunningCrossfade, running_crossfade

Config = dict[str, Any]

BROKEN = """
import os, sys
if os.path.exists({marker!r}) and {module!r} in sys.orig_argv:
    sys.stderr.write("this version is broken\\n")
    os._exit(3)
"""
"""A `sitecustomize` that makes one module of the next version end before its first line."""


def one_drains(status: dict[str, Any]) -> bool:
    return [worker["state"] for worker in status["workers"]].count("draining") == 1


async def test_a_restart_keeps_the_pid_and_replaces_all_else(tmp_path: Path, config: Config) -> None:
    async with running_crossfade(tmp_path, config) as cf:
        before = await cf.until(lambda s: s["control_pid"])
        for _ in range(30):
            await cf.get()
        measured = await cf.metrics()

        done = await cf.command("restart")

        assert (done.code, done.out, done.err) == (0, "2/2 workers on generation 2\n", "")
        after = await cf.until(
            lambda s: s["control_pid"] not in (0, before["control_pid"]) and len(s["workers"]) == 2
        )
        assert after["pid"] == before["pid"] == cf.pid
        assert after["restarts"] == 1
        assert after["started_at"] == before["started_at"]
        assert after["listen"] == before["listen"]
        assert after["admin"] == before["admin"]
        assert not {w["pid"] for w in before["workers"]} & {w["pid"] for w in after["workers"]}
        assert after["worker_exits"] == {"drained": 2}
        assert (await cf.get()).status == 200
        now = await cf.measured("crossfade_worker_exits_total", 2, reason="drained")
        assert now.fallen_below(measured) == []


async def test_five_restarts_under_a_stream_of_requests(tmp_path: Path, config: Config) -> None:
    async with running_crossfade(tmp_path, config) as cf, stream(cf) as requests:
        probing = asyncio.create_task(probes(cf))
        for number in range(5):
            await requests.grows_by(20)
            done = await cf.command("restart")
            assert done.code == 0, done.err
            assert (await cf.status())["restarts"] == number + 1
        await requests.grows_by(20)
        await cf.until(lambda s: len(s["workers"]) == 2)
        assert not probing.done(), probing.exception()
        probing.cancel()
    assert requests.failures == []
    assert requests.answered > 100


async def probes(cf: RunningCrossfade) -> None:
    """Whoever watches its readiness sees no restart."""
    while True:
        answer = await cf.admin("/readyz")
        assert answer.status == 200, answer.body
        await asyncio.sleep(0.01)


async def test_the_old_workers_finish_what_they_have(tmp_path: Path, config: Config, legacy: Backend) -> None:
    async with running_crossfade(tmp_path, config) as cf:
        connection = await cf.connect()
        connection.ask("/hold")
        await legacy.holding.wait()

        assert (await cf.command("restart")).code == 0

        # The worker that has nothing to finish goes, the other one stays.
        await cf.until(one_drains)
        assert (await cf.get()).status == 200
        legacy.release.set()
        answer = await connection.answer()
        assert answer.body == b"legacy"
        assert answer.closes
        connection.close()
        await cf.until(lambda s: len(s["workers"]) == 2)


async def test_a_restart_within_a_restart_s_drain(tmp_path: Path, config: Config, legacy: Backend) -> None:
    """The old workers of the first restart are still there when the second one happens."""
    async with running_crossfade(tmp_path, config) as cf:
        connection = await cf.connect()
        connection.ask("/hold")
        await legacy.holding.wait()
        assert (await cf.command("restart")).code == 0
        await cf.until(one_drains)
        (draining,) = await cf.worker_pids("draining")
        assert (await cf.command("restart")).code == 0
        assert draining in await cf.worker_pids("draining")
        legacy.release.set()
        assert (await connection.answer()).body == b"legacy"
        connection.close()
        status = await cf.until(lambda s: len(s["workers"]) == 2)
        assert status["worker_exits"] == {"drained": 4}


async def test_by_signal_the_service_manager_sees_one_reload(tmp_path: Path, config: Config) -> None:
    async with running_crossfade(tmp_path, config) as cf:
        cf.signal(signal.SIGUSR2)
        await cf.notice("RELOADING=1")
        assert "generation 2" in await cf.notice("READY=1")
        assert (await cf.status())["restarts"] == 1


async def test_signals_that_arrive_during_the_exec_are_not_lost(tmp_path: Path, config: Config) -> None:
    async with running_crossfade(tmp_path, config) as cf:
        cf.signal(signal.SIGUSR2)
        await cf.notice("RELOADING=1")
        image = _start_of_image(cf.pid)
        while _start_of_image(cf.pid) == image:
            pass
        # Python itself is starting now; nothing of ours has been imported.
        cf.signal(signal.SIGHUP)
        await cf.notice("READY=1")
        status = await cf.until(lambda s: s["generation"] == 3)
        assert status["restarts"] == 1


async def test_commands_that_wait_behind_a_restart_are_carried_out(tmp_path: Path, config: Config) -> None:
    async with running_crossfade(tmp_path, config) as cf:
        restarting = asyncio.create_task(asyncio.to_thread(instance.ask, cf.data_dir, {"do": "restart"}, 60))
        await cf.notice("RELOADING=1")
        waiting = [
            asyncio.to_thread(instance.ask, cf.data_dir, {"do": order}, 60)
            for order in ("reload", "restart", "reload")
        ]
        answers = [await restarting, *await asyncio.gather(*waiting)]
        assert [answer["word"] for answer in answers] == ["applied"] * 4, answers
        status = await cf.status()
        assert (status["restarts"], status["generation"]) == (2, 5)


async def test_signals_that_wait_behind_a_restart_are_carried_out(tmp_path: Path, config: Config) -> None:
    async with running_crossfade(tmp_path, config) as cf:
        cf.signal(signal.SIGUSR2)
        await cf.notice("RELOADING=1")
        # The rehearsal has only begun, so these are handled by the image that is about to go.
        cf.signal(signal.SIGHUP)
        cf.signal(signal.SIGUSR2)
        status = await cf.until(lambda s: s["generation"] == 4 and s["state"] == "serving")
        assert status["restarts"] == 2


async def test_an_address_comes_and_one_goes(tmp_path: Path, config: Config) -> None:
    async with running_crossfade(tmp_path, {**config, "listen": ["127.0.0.1:0", "127.0.0.2:0"]}) as cf:
        first, _ = (await cf.status())["listen"]
        cf.configure({**config, "listen": ["127.0.0.1:0", "127.0.0.3:0"], "workers": 3})

        done = await cf.command("restart")

        assert done.out == "3/3 workers on generation 2\n", done.err
        kept, added = (await cf.status())["listen"]
        assert kept == first
        assert added.startswith("127.0.0.3:")
        assert (await cf.get()).status == 200


async def test_an_invalid_file_prevents_it(tmp_path: Path, config: Config) -> None:
    async with running_crossfade(tmp_path, config) as cf:
        workers = await cf.worker_pids()
        cf.configure({**config, "workers": "many"})

        done = await cf.command("restart")

        assert done.code == 2
        assert "workers: found" in done.err
        assert "the running program goes on as it was" in done.err
        assert await cf.worker_pids() == workers
        assert (await cf.status())["restarts"] == 0


@pytest.mark.parametrize("module", ["crossfade.handover", "crossfade.worker_process"])
async def test_a_broken_version_does_not_take_over(tmp_path: Path, config: Config, module: str) -> None:
    """Whether the rehearsal finds out or the new workers do: whoever serves goes on serving."""
    marker = tmp_path / "broken"
    code = tmp_path / "code"
    code.mkdir()
    (code / "sitecustomize.py").write_text(BROKEN.format(marker=str(marker), module=module))
    async with (
        running_crossfade(tmp_path, config, environment={"PYTHONPATH": str(code)}) as cf,
        stream(cf) as requests,
    ):
        workers = await cf.worker_pids()
        marker.touch()

        done = await cf.command("restart")

        assert done.code != 0
        assert done.out == ""
        assert "not restarted" in done.err
        assert await cf.worker_pids() == workers
        assert (await cf.status())["ready"]
        await requests.grows_by(20)

        marker.unlink()
        repaired = await cf.command("restart")
        assert repaired.code == 0, repaired.err
        assert not set(workers) & set(await cf.worker_pids())
        await requests.grows_by(20)
    assert requests.failures == []


async def test_after_a_failed_takeover_dead_workers_are_still_replaced(
    tmp_path: Path, config: Config
) -> None:
    code, marker = tmp_path / "code", tmp_path / "broken"
    code.mkdir()
    broken = BROKEN.format(marker=str(marker), module="crossfade.worker_process")
    (code / "sitecustomize.py").write_text(broken)
    async with running_crossfade(tmp_path, config, environment={"PYTHONPATH": str(code)}) as cf:
        marker.touch()
        done = await cf.command("restart")
        assert done.code == 1
        assert "the old workers go on serving" in done.err
        marker.unlink()
        victim, _ = await cf.worker_pids()

        os.kill(victim, signal.SIGKILL)

        await cf.until(lambda s: s["ready"] and victim not in [w["pid"] for w in s["workers"]])
        assert (await cf.get()).body == b"legacy"
        assert (await cf.command("reload")).out == "2/2 workers on generation 2\n"


async def test_children_inherit_nothing_that_is_not_theirs(tmp_path: Path, config: Config) -> None:
    """After a restart too, when the supervisor itself has inherited much."""
    async with running_crossfade(tmp_path, config) as cf:
        await cf.until(lambda s: s["control_pid"])
        fresh = {_sockets(pid) for pid in await cf.worker_pids()}
        assert (await cf.command("restart")).code == 0
        await cf.until(lambda s: len(s["workers"]) == 2)
        assert {_sockets(pid) for pid in await cf.worker_pids()} == fresh


def _sockets(pid: int) -> int:
    """How many sockets a process has open."""
    return sum("socket:" in os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir())


def _start_of_image(pid: int) -> str:
    """Something that an exec changes and nothing else."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return fields[23]
