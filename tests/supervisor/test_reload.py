"""Reloads: all workers or none, in place, without a failed request."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.supervisor.backend import Backend
from tests.supervisor.stream import stream
from tests.support.crossfade_process import HELD, PATIENCE, living_children, running_crossfade

Config = dict[str, Any]

BROKEN = """
import os, sys
if os.path.exists({marker!r}) and "crossfade.worker_process" in sys.orig_argv:
    os._exit(3)
"""
"""A `sitecustomize` with which new workers end before their first line."""


def runs(generation: int, status: dict[str, Any]) -> bool:
    return bool(status["ready"] and status["generation"] == generation)


def has_workers(number: int, status: dict[str, Any]) -> bool:
    return len(status["workers"]) == number


def to(side: str, config: Config) -> Config:
    return {**config, "routes": [{"flag": "all", "match": {"path": "/**"}, "target": side}]}


async def test_a_reload_moves_traffic_and_keeps_the_workers(tmp_path: Path, config: Config) -> None:
    async with running_crossfade(tmp_path, config) as cf:
        workers = await cf.worker_pids()
        cf.configure(to("new", config))

        done = await cf.command("reload")

        assert (done.code, done.out, done.err) == (0, "2/2 workers on generation 2\n", "")
        assert (await cf.get()).body == b"new"
        assert await cf.worker_pids() == workers
        measured = await cf.measured("crossfade_reloads_total", 1, outcome="applied")
        assert measured.total("crossfade_config_generation", worker="1") == 2


async def test_a_reload_while_the_control_process_starts_is_not_lost_to_it(
    tmp_path: Path, config: Config, store_url: str
) -> None:
    code, marker = tmp_path / "code", tmp_path / "held"
    code.mkdir()
    (code / "sitecustomize.py").write_text(HELD.format(process="crossfade.control", marker=str(marker)))
    with_store = {**config, "store": store_url, "bus": "none"}
    async with running_crossfade(tmp_path, with_store, environment={"PYTHONPATH": str(code)}) as cf:
        old = (await cf.until(lambda status: bool(status["control_pid"])))["control_pid"]
        marker.touch()
        os.kill(old, signal.SIGKILL)
        # The next one has been given what it has to know, and has not read it.
        async with asyncio.timeout(PATIENCE):
            while not [pid for pid in living_children(cf.pid) if pid != old and is_control(pid)]:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        more = {"flag": "more", "match": {"path": "/more/**"}}
        cf.configure({**with_store, "routes": [more, *config["routes"]]})
        assert (await cf.command("reload")).code == 0
        marker.unlink()
        async with asyncio.timeout(PATIENCE):
            while "more" not in (await cf.command("flag", "list")).out:  # noqa: ASYNC110
                await asyncio.sleep(0.05)


def is_control(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return b"crossfade.control" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


async def test_a_connection_outlives_the_reload_and_follows_it(tmp_path: Path, config: Config) -> None:
    async with running_crossfade(tmp_path, config) as cf:
        connection = await cf.connect()
        assert (await connection.get("/")).body == b"legacy"
        cf.configure(to("new", config))
        assert (await cf.command("reload")).code == 0
        assert (await connection.get("/")).body == b"new"
        connection.close()


async def test_twenty_reloads_fail_no_request(tmp_path: Path, config: Config) -> None:
    async with running_crossfade(tmp_path, config) as cf, stream(cf) as requests:
        for number in range(20):
            cf.configure(to(("new", "legacy")[number % 2], config))
            cf.signal(signal.SIGHUP)
            status = await cf.until(partial(runs, number + 2))
            assert {worker["generation"] for worker in status["workers"]} == {number + 2}
            await requests.grows_by(5)
    assert requests.failures == []
    assert requests.bodies == {b"legacy", b"new"}


async def test_an_invalid_file_leaves_the_running_configuration(tmp_path: Path, config: Config) -> None:
    async with running_crossfade(tmp_path, config) as cf:
        cf.configure("listen: 127.0.0.1:0\nwrokers: 3\ntargets: []\n")

        done = await cf.command("reload")

        assert done.code == 2
        assert done.out == ""
        assert "crossfade.yaml:2: wrokers" in done.err
        assert "the running configuration stays as it was" in done.err
        assert (await cf.get()).body == b"legacy"
        assert (await cf.status())["generation"] == 1
        await cf.measured("crossfade_reloads_total", 1, outcome="invalid")

        # By signal there is nobody to tell but the log. The first two notices are those of the command.
        cf.signal(signal.SIGHUP)
        for _ in range(2):
            await cf.notice("RELOADING=1")
            await cf.notice("READY=1")
        assert cf.log().count('"event": "reload invalid"') == 2

        # Even an instance whose file has become unreadable can be asked and stopped.
        assert (await cf.command("proxy", "status")).code == 0
        assert (await cf.command("stop")).code == 0


@pytest.mark.parametrize("command", ["reload", "restart"])
async def test_a_certificate_that_cannot_serve_is_refused_like_a_wrong_value(
    tmp_path: Path, config: Config, command: str
) -> None:
    async with running_crossfade(tmp_path, config) as cf:
        workers = await cf.worker_pids()
        cert, key = tmp_path / "a.pem", tmp_path / "a.key"
        cert.write_text("not a certificate")
        cf.configure({**config, "tls": {"cert": str(cert), "key": str(key)}})

        done = await cf.command(command)

        assert done.code == 2
        line, stays = done.err.splitlines()
        assert re.fullmatch(
            rf'{cf.config_path}:\d+: tls.key: found "{key}" \(No such file or directory\); '
            "expected a readable file",
            line,
        )
        assert "as it was" in stays
        status = await cf.status()
        assert (status["generation"], status["restarts"]) == (1, 0)
        assert [worker["pid"] for worker in status["workers"]] == workers


async def test_what_needs_a_restart_is_refused_by_name(tmp_path: Path, config: Config) -> None:
    async with running_crossfade(tmp_path, config) as cf:
        cf.configure({**config, "listen": "127.0.0.2:0", "data_dir": "elsewhere"})
        # The command looks where the file says, which is where nothing runs.
        assert (await cf.command("reload")).code == 3

        cf.configure({**config, "listen": "127.0.0.2:0", "admin": {"listen": "127.0.0.2:0"}})
        done = await cf.command("reload", "-o", "json")

        assert done.code == 1
        answer = json.loads(done.out)
        assert answer["word"] == "refused"
        assert answer["lines"] == [
            "not reloaded: listen, admin.listen cannot change while running; use crossfade restart"
        ]
        assert (await cf.status())["generation"] == 1


async def test_more_workers_that_do_not_start_take_no_connection(tmp_path: Path, config: Config) -> None:
    code, marker = tmp_path / "code", tmp_path / "broken"
    code.mkdir()
    (code / "sitecustomize.py").write_text(BROKEN.format(marker=str(marker)))
    async with running_crossfade(tmp_path, config, environment={"PYTHONPATH": str(code)}) as cf:
        marker.touch()
        cf.configure({**config, "workers": 6})

        done = await cf.command("reload")

        assert done.code == 1
        assert "ended while starting (exit code 3)" in done.err
        # Were sockets left that nobody accepts from, most of these would wait there for good.
        async with asyncio.timeout(30):
            answers = await asyncio.gather(*(cf.get() for _ in range(50)))
        assert {answer.body for answer in answers} == {b"legacy"}

        marker.unlink()
        assert (await cf.command("reload")).out == "6/6 workers on generation 2\n"
        connections = [await cf.connect() for _ in range(60)]
        for connection in connections:
            await connection.get("/")
        status = await cf.until(lambda s: sum(w["connections"] for w in s["workers"]) == 60)
        assert all(worker["connections"] for worker in status["workers"])
        for connection in connections:
            connection.close()


async def test_more_workers_and_fewer_lose_no_request(tmp_path: Path, config: Config) -> None:
    async with running_crossfade(tmp_path, config) as cf, stream(cf) as requests:
        first = await cf.worker_pids()
        for number in (3, 1, 2):
            cf.configure({**config, "workers": number})
            done = await cf.command("reload")
            assert done.out.startswith(f"{number}/{number} workers on generation "), done.err
            assert len(await cf.worker_pids()) == number
            if number == 3:
                assert (await cf.worker_pids())[:2] == first, "growing leaves the others alone"
            await requests.grows_by(40)
            status = await cf.until(partial(has_workers, number))
            assert status["ready"]
    assert requests.failures == []


async def test_sockets_of_a_worker_that_went_are_served_by_another(tmp_path: Path, config: Config) -> None:
    async with running_crossfade(tmp_path, {**config, "workers": 3}) as cf:
        cf.configure({**config, "workers": 1})
        assert (await cf.command("reload")).code == 0
        await cf.until(lambda s: len(s["workers"]) == 1)
        # With 3 sockets, 30 connections of which one third hung would not all be answered.
        for _ in range(30):
            assert (await cf.get()).status == 200


async def test_a_request_in_flight_ends_as_it_began(tmp_path: Path, config: Config, legacy: Backend) -> None:
    async with running_crossfade(tmp_path, config) as cf:
        connection = await cf.connect()
        connection.ask("/hold")
        await legacy.holding.wait()
        cf.configure(to("new", config))
        assert (await cf.command("reload")).code == 0
        assert (await cf.get()).body == b"new"
        legacy.release.set()
        assert (await connection.answer()).body == b"legacy"
        connection.close()


async def test_the_service_manager_is_told(tmp_path: Path, config: Config) -> None:
    async with running_crossfade(tmp_path, config) as cf:
        cf.signal(signal.SIGHUP)
        assert "MONOTONIC_USEC=" in await cf.notice("RELOADING=1")
        assert "2/2 workers on generation 2" in await cf.notice("READY=1")
