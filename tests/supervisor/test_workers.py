"""Workers and the admin API's process end in every way; the instance goes on."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from crossfade.fleet import backoff
from tests.supervisor.backend import Backend
from tests.supervisor.stream import stream
from tests.support.crossfade_process import HELD, living_children, running_crossfade

Config = dict[str, Any]


def two_ready(status: dict[str, Any]) -> bool:
    return [worker["state"] for worker in status["workers"]] == ["ready", "ready"]


def ready_without(dead: int, status: dict[str, Any]) -> bool:
    return bool(status["ready"] and dead not in [worker["pid"] for worker in status["workers"]])


async def test_a_killed_worker_is_replaced_in_its_place(tmp_path: Path, config: Config) -> None:
    async with running_crossfade(tmp_path, config) as cf:
        first, second = await cf.worker_pids()

        os.kill(first, signal.SIGKILL)

        status = await cf.until(lambda s: two_ready(s) and s["workers"][0]["pid"] != first)
        assert status["workers"][1]["pid"] == second
        assert status["worker_exits"] == {"killed": 1}
        assert status["generation"] == 1
        await cf.measured("crossfade_worker_exits_total", 1, reason="killed")


async def test_clients_wait_in_the_queue_of_a_dead_worker(tmp_path: Path, config: Config) -> None:
    async with running_crossfade(tmp_path, {**config, "workers": 1}) as cf:
        for _ in range(3):
            (worker,) = await cf.worker_pids()
            os.kill(worker, signal.SIGKILL)
            answers = await asyncio.gather(*(cf.get() for _ in range(20)))
            assert {answer.status for answer in answers} == {200}
            await cf.until(partial(ready_without, worker))


async def test_a_worker_told_to_end_by_hand_finishes_its_requests(
    tmp_path: Path, config: Config, legacy: Backend
) -> None:
    async with running_crossfade(tmp_path, {**config, "workers": 1}) as cf:
        connection = await cf.connect()
        connection.ask("/hold")
        await legacy.holding.wait()
        (worker,) = await cf.worker_pids()
        os.kill(worker, signal.SIGTERM)
        legacy.release.set()
        answer = await connection.answer()
        assert answer.body == b"legacy"
        connection.close()
        status = await cf.until(lambda s: s["ready"] and s["workers"][0]["pid"] != worker)
        assert status["worker_exits"] == {"terminated": 1}


async def test_clients_do_not_wait_for_the_drain_of_a_worker_told_to_end_by_hand(
    tmp_path: Path, config: Config, legacy: Backend
) -> None:
    long_drain = {**config, "workers": 1, "timeouts": {"drain": 300}}
    async with running_crossfade(tmp_path, long_drain) as cf:
        connection = await cf.connect()
        connection.ask("/hold")
        await legacy.holding.wait()
        (worker,) = await cf.worker_pids()

        os.kill(worker, signal.SIGTERM)

        status = await cf.until(lambda s: s["ready"] and len(s["workers"]) == 2)
        assert [(w["worker"], w["state"]) for w in status["workers"]] == [(0, "draining"), (0, "ready")]
        async with asyncio.timeout(30):
            answers = await asyncio.gather(*(cf.get() for _ in range(20)))
        assert {answer.status for answer in answers} == {200}
        # A reload reaches those that stay, and a restart takes the one that leaves along.
        assert (await cf.command("reload")).out == "1/1 workers on generation 2\n"
        assert (await cf.command("restart")).out == "1/1 workers on generation 3\n"
        assert worker in await cf.worker_pids("draining")

        legacy.release.set()
        assert (await connection.answer()).body == b"legacy"
        connection.close()
        await cf.until(lambda s: len(s["workers"]) == 1)


async def test_what_the_end_of_a_worker_cuts_is_counted(
    tmp_path: Path, config: Config, legacy: Backend
) -> None:
    short_drain = {**config, "workers": 1, "timeouts": {"drain": 0.1}}
    async with running_crossfade(tmp_path, short_drain) as cf:
        connection = await cf.connect()
        connection.ask("/hold")
        await legacy.holding.wait()
        before = await cf.metrics()
        assert before.total("crossfade_requests_total") == 0

        assert (await cf.command("restart")).code == 0
        await cf.until(lambda s: s["worker_exits"] == {"drained": 1})

        await cf.measured("crossfade_requests_total", 1, side="legacy")
        connection.close()


async def test_metrics_never_go_backwards_when_workers_die(tmp_path: Path, config: Config) -> None:
    async with running_crossfade(tmp_path, config) as cf:
        for _ in range(50):
            await cf.get()
        before = await cf.measured("crossfade_requests_total", 50, side="legacy")

        for pid in await cf.worker_pids():
            os.kill(pid, signal.SIGKILL)
        await cf.until(lambda s: two_ready(s) and s["worker_exits"] == {"killed": 2})

        after = await cf.measured("crossfade_worker_exits_total", 2, reason="killed")
        assert after.fallen_below(before) == []
        assert after.total("crossfade_requests_total", side="legacy") == 50
        assert after.total("crossfade_client_connections") == 0
        await cf.get()
        await cf.measured("crossfade_requests_total", 51, side="legacy")


async def test_ten_killed_workers_fail_only_what_was_in_them(tmp_path: Path, config: Config) -> None:
    async with running_crossfade(tmp_path, config) as cf, stream(cf) as requests:
        for number in range(10):
            await requests.grows_by(20)
            victim = (await cf.until(two_ready))["workers"][number % 2]["pid"]
            os.kill(victim, signal.SIGKILL)
            await cf.until(partial(ready_without, victim))
        await requests.grows_by(20)
    # Four clients, so at most four requests can have been in a worker when it died.
    assert len(requests.failures) <= 40
    assert not [failure for failure in requests.failures if "Refused" in failure or "status" in failure]


async def test_readiness_names_the_worker_that_is_missing(tmp_path: Path, config: Config) -> None:
    code, marker = tmp_path / "code", tmp_path / "held"
    code.mkdir()
    (code / "sitecustomize.py").write_text(
        HELD.format(process="crossfade.worker_process", marker=str(marker))
    )
    environment = {"PYTHONPATH": str(code)}
    async with running_crossfade(tmp_path, {**config, "workers": 1}, environment=environment) as cf:
        await cf.readiness(200)
        (worker,) = await cf.worker_pids()
        marker.touch()
        os.kill(worker, signal.SIGKILL)
        seen = set((await cf.until(lambda s: not s["ready"]))["not_ready"])
        assert seen
        seen.update(json.loads((await cf.readiness(503)).body)["reasons"])
        marker.unlink()
        while not (status := await cf.status())["ready"] or status["workers"][0]["pid"] == worker:
            seen.update(status["not_ready"])
        assert seen <= {"worker 0 is starting", "worker 0 is waiting"}
        await cf.readiness(200)


async def test_a_killed_admin_api_is_replaced_and_traffic_does_not_notice(
    tmp_path: Path, config: Config
) -> None:
    async with running_crossfade(tmp_path, config) as cf, stream(cf) as requests:
        first = (await cf.until(lambda s: s["control_pid"]))["control_pid"]
        workers = await cf.worker_pids()

        os.kill(first, signal.SIGKILL)
        await cf.until(lambda s: s["control_pid"] not in (0, first))

        await cf.readiness(200)
        assert await cf.worker_pids() == workers
        await requests.grows_by(20)
    assert requests.failures == []


async def test_no_zombie_is_left(tmp_path: Path, config: Config) -> None:
    async with running_crossfade(tmp_path, config) as cf:
        first, _ = await cf.worker_pids()
        os.kill(first, signal.SIGKILL)
        status = await cf.until(
            lambda s: two_ready(s) and s["workers"][0]["pid"] != first and s["control_pid"]
        )
        known = {status["control_pid"], *(worker["pid"] for worker in status["workers"])}
        assert set(living_children(cf.pid)) == known


@pytest.mark.parametrize(
    ("deaths", "seconds"), [(0, 0), (1, 0), (2, 0), (3, 0.1), (4, 0.2), (5, 0.4), (8, 3.2), (9, 5), (1000, 5)]
)
def test_back_off_begins_late_and_ends_at_five_seconds(deaths: int, seconds: float) -> None:
    assert backoff(deaths) == pytest.approx(seconds)
