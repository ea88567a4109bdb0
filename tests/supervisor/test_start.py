"""What a start does, and what stands in its way."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.supervisor.backend import Backend
from tests.support.crossfade_process import (
    Connection,
    all_gone,
    crossfade_command,
    living_children,
    refused,
    running_crossfade,
)

Config = dict[str, Any]

BROKEN = """
import os, sys
if "crossfade.worker_process" in sys.orig_argv:
    os._exit(3)
"""
"""A `sitecustomize` with which no worker starts."""


async def test_it_serves_and_says_so(tmp_path: Path, config: Config) -> None:
    async with running_crossfade(tmp_path, config) as cf:
        assert (await cf.get()).body == b"legacy"

        assert (await cf.admin("/healthz")).status == 200
        assert (await cf.admin("/readyz")).status == 200
        status = await cf.status()
        assert status["pid"] == cf.pid
        assert status["state"] == "serving"
        assert status["ready"]
        assert 0 < status["start_seconds"] < 60
        assert [worker["worker"] for worker in status["workers"]] == [0, 1]
        assert {worker["state"] for worker in status["workers"]} == {"ready"}
        assert {worker["generation"] for worker in status["workers"]} == {1}


async def test_each_worker_has_a_socket_of_its_own_and_gets_connections(
    tmp_path: Path, config: Config
) -> None:
    async with running_crossfade(tmp_path, config) as cf:
        connections = [await cf.connect() for _ in range(40)]
        for connection in connections:
            await connection.get("/")
        status = await cf.until(lambda s: sum(w["connections"] for w in s["workers"]) == 40)
        assert all(worker["connections"] > 0 for worker in status["workers"])
        for connection in connections:
            connection.close()


async def test_several_addresses(tmp_path: Path, config: Config) -> None:
    async with running_crossfade(tmp_path, {**config, "listen": ["127.0.0.1:0", "127.0.0.2:0"]}) as cf:
        first, second = (await cf.status())["listen"]
        assert first.startswith("127.0.0.1:")
        host, _, port = second.partition(":")
        assert host == "127.0.0.2"
        connection = Connection(*await asyncio.open_connection(host, int(port)))
        assert (await connection.get("/")).body == b"legacy"
        connection.close()


@pytest.mark.parametrize("option", [None, socket.SO_REUSEPORT])
@pytest.mark.parametrize("which", ["listen", "admin"])
async def test_a_port_in_use_is_one_line(
    tmp_path: Path, config: Config, which: str, option: int | None
) -> None:
    with socket.socket() as other:
        if option is not None:
            # The kernel would let a program of the same user join this one.
            other.setsockopt(socket.SOL_SOCKET, option, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        free = {"listen": "127.0.0.1:0", "admin": {"listen": "127.0.0.1:0"}}
        config |= free | ({"listen": taken} if which == "listen" else {"admin": {"listen": taken}})
        (tmp_path / "crossfade.yaml").write_text(yaml.safe_dump(config))

        ended = await crossfade_command("proxy", "-c", str(tmp_path / "crossfade.yaml"))

    assert ended.code == 1
    assert ended.out == ""
    (line,) = ended.err.splitlines()
    assert line.startswith(f"crossfade: cannot listen on {taken}")
    assert line.endswith("the port is in use by another program")


async def test_only_one_instance_per_data_folder(tmp_path: Path, config: Config) -> None:
    async with running_crossfade(tmp_path, config) as cf:
        ended = await cf.command("proxy")

        assert ended.code == 1
        assert ended.err == (
            f"crossfade: already running (pid {cf.pid}) on the data folder {tmp_path / '.crossfade'}\n"
        )
        assert (await cf.get()).status == 200


async def test_a_killed_instance_does_not_stand_in_the_way(tmp_path: Path, config: Config) -> None:
    async with running_crossfade(tmp_path, config) as cf:
        cf.process.kill()
        await cf.ended()
    async with running_crossfade(tmp_path, config) as cf:
        assert (await cf.get()).status == 200


async def test_a_new_instance_starts_beside_what_is_left_of_a_killed_one(
    tmp_path: Path, config: Config, legacy: Backend
) -> None:
    async with running_crossfade(tmp_path, config) as cf:
        connection = await cf.connect()
        connection.ask("/hold")
        await legacy.holding.wait()
        port = cf.port
        cf.process.kill()
        await cf.ended()
        # Until its workers have noticed, clients reach them; then the port is free.
        await refused(port)
    async with running_crossfade(tmp_path, {**config, "listen": f"127.0.0.1:{port}"}) as cf:
        assert (await cf.get()).status == 200
        legacy.release.set()
        assert (await connection.answer()).body == b"legacy"
        connection.close()


async def test_it_takes_as_many_descriptors_as_it_may(tmp_path: Path, config: Config) -> None:
    async with running_crossfade(tmp_path, config) as cf:
        for pid in await cf.worker_pids():
            soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            assert soft == hard


async def test_an_invalid_file_is_named_with_its_line(tmp_path: Path, config: Config) -> None:
    (tmp_path / "crossfade.yaml").write_text(yaml.safe_dump(config) + "wrokers: 2\n")

    ended = await crossfade_command("up", "-c", str(tmp_path / "crossfade.yaml"))

    assert ended.code == 2
    assert "wrokers: found an unknown key" in ended.err
    assert "Traceback" not in ended.err


async def test_a_certificate_that_cannot_serve_is_named_with_its_line(tmp_path: Path, config: Config) -> None:
    cert, file = tmp_path / "a.pem", tmp_path / "crossfade.yaml"
    file.write_text(yaml.safe_dump({"tls": {"cert": str(cert), "key": str(cert)}, **config}, sort_keys=False))

    ended = await crossfade_command("up", "-c", str(file))

    assert ended.code == 2
    assert ended.err == (
        f'{file}:2: tls.cert: found "{cert}" (No such file or directory); expected a readable file\n'
    )


async def test_workers_that_cannot_start_are_one_line_and_leave_nothing(
    tmp_path: Path, config: Config
) -> None:
    (tmp_path / "sitecustomize.py").write_text(BROKEN)
    with pytest.raises(RuntimeError) as caught:
        async with running_crossfade(tmp_path, config, environment={"PYTHONPATH": str(tmp_path)}):
            pass

    said, *log = str(caught.value).splitlines()
    assert said == "crossfade ended with 1 instead of serving:"
    assert log == [
        "crossfade: worker 0 ended while starting (exit code 3); worker 1 ended while starting (exit code 3)"
    ]
    assert not (tmp_path / ".crossfade" / "run" / "control.sock").exists()


async def test_a_data_folder_with_a_long_name(tmp_path: Path, config: Config) -> None:
    folder = tmp_path / ("a" * 120)
    folder.mkdir()
    async with running_crossfade(folder, config) as cf:
        assert (await cf.get()).status == 200
        assert (await cf.command("proxy", "status")).code == 0


async def test_what_lies_in_the_current_folder_is_not_imported(tmp_path: Path, config: Config) -> None:
    for name in ("core", "proxy", "flags", "crossfade"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported from the current folder')\n")
    script = Path(sys.executable).with_name("crossfade")
    (tmp_path / "crossfade.yaml").write_text(
        yaml.safe_dump({**config, "listen": "127.0.0.1:0", "admin": {"listen": "127.0.0.1:0"}})
    )
    process = await asyncio.create_subprocess_exec(
        script, "proxy", "-c", "crossfade.yaml", cwd=tmp_path, stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(30):
            first = await process.stderr.readline()
        assert b'"event": "serving"' in first
    finally:
        process.terminate()
        await process.communicate()
    assert process.returncode == 0


async def test_a_log_that_nobody_reads_does_not_stop_it(tmp_path: Path, config: Config) -> None:
    config |= {"listen": "127.0.0.1:0", "admin": {"listen": "127.0.0.1:0"}, "access_log": {"path": False}}
    (tmp_path / "crossfade.yaml").write_text(yaml.safe_dump(config))
    full, reader = os.pipe()[::-1]
    os.set_blocking(full, False)
    with contextlib.suppress(BlockingIOError):
        while os.write(full, b"x" * 65536):
            pass
    os.set_blocking(full, True)
    command = [sys.executable, "-P", "-m", "crossfade", "proxy", "-c", str(tmp_path / "crossfade.yaml")]
    process = await asyncio.create_subprocess_exec(*command, stderr=full)
    os.close(full)
    try:
        async with asyncio.timeout(30):
            while (await crossfade_command("proxy", "status", *command[-2:])).code != 0:
                assert process.returncode is None
        assert (await crossfade_command("reload", *command[-2:])).code == 0
        # Now the reader goes away as well.
        os.close(reader)
        assert (await crossfade_command("stop", *command[-2:])).code == 0
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_only_the_owner_can_reach_the_control_socket(tmp_path: Path, config: Config) -> None:
    async with running_crossfade(tmp_path, config):
        assert (tmp_path / ".crossfade" / "run").stat().st_mode & 0o777 == 0o700


async def test_nothing_is_left_of_a_killed_supervisor(tmp_path: Path, config: Config) -> None:
    async with running_crossfade(tmp_path, config) as cf:
        await cf.admin("/healthz")
        children = living_children(cf.pid)
        assert len(children) == 3
        port = cf.port
        cf.process.kill()
        await cf.ended()
        await all_gone(children)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=10)


async def test_a_request_in_flight_survives_the_supervisor(
    tmp_path: Path, config: Config, legacy: Any
) -> None:
    async with running_crossfade(tmp_path, config) as cf:
        connection = await cf.connect()
        connection.ask("/hold")
        await legacy.holding.wait()
        cf.process.kill()
        await cf.ended()
        legacy.release.set()
        assert (await connection.answer()).body == b"legacy"
        connection.close()


def test_a_worker_imports_nothing_that_it_does_not_need() -> None:
    code = "import sys, crossfade.worker_process; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & {
        "sqlalchemy",
        "psycopg",
        "pydantic",
        "yaml",
        "aiohttp",
        "prometheus_client",
        "alembic",
    }


def test_nothing_of_this_test_machine_is_needed(tmp_path: Path) -> None:
    """The commands find their way without HOME, PATH or a terminal."""
    bare = {"LANG": "C"}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "crossfade", "--version"],
        env=bare,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("crossfade ")
