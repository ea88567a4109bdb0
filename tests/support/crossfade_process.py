"""A running `crossfade` of real processes, for tests, on ports that the kernel chooses.

    async with running_crossfade(tmp_path, {"targets": {...}}) as cf:
        await cf.get("/x")
        await cf.command("reload")

It is ready when it is handed out: it says so itself, by the notification that systemd would get.
Leaving ends it and demands that nothing of it is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from prometheus_client.parser import text_string_to_metric_families

from crossfade import instance

NO_SERVERS = {"store": "none", "bus": "none"}
"""What an instance is given that is not to have flags: most tests are quicker without."""
PATIENCE = 30.0
"""Seconds after which a fact that has not come is a failure."""
HELD = """
import os, sys, time
while os.path.exists({marker!r}) and {process!r} in sys.orig_argv:
    time.sleep(0.01)
"""
"""A `sitecustomize` with which such a process does not start before the marker has gone."""
SILENCE = 1.5
"""Seconds without a word from a client after which it may find its connection ended: a worker that drains
waits 2 s for one more request."""

_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Finished:
    """How a command ended."""

    code: int
    out: str
    err: str


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    head: str
    body: bytes

    @property
    def closes(self) -> bool:
        return "connection: close" in self.head.lower()


class Measured:
    """One scrape of `/metrics`."""

    def __init__(self, text: str) -> None:
        self._samples = {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
        self.text = text

    def total(self, name: str, **labels: str) -> float:
        """The sum of all samples of this name that carry at least these labels."""
        wanted = set(labels.items())
        return sum(value for (n, found), value in self._samples.items() if n == name and wanted <= set(found))

    def fallen_below(self, earlier: Measured) -> list[str]:
        """The counters (and histograms) that went backwards since `earlier`, or vanished."""
        lasting = ("_total", "_bucket", "_sum", "_count")
        return [
            f"{name}{dict(labels)}: {value} -> {self._samples.get((name, labels))}"
            for (name, labels), value in earlier._samples.items()
            if name.endswith(lasting) and self._samples.get((name, labels), -1.0) < value
        ]


class Connection:
    """One keep-alive connection of a client that retries nothing."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, since: float | None = None
    ) -> None:
        self._reader, self._writer = reader, writer
        self._spoke = time.monotonic() if since is None else since
        self._silent = 0.0
        self._answered = False

    @property
    def was_left_alone(self) -> bool:
        """What was asked last was asked after a long silence, and no byte of an answer has come.

        Such a failure is the client's own: it stood still while a worker gave it time for one more request.
        """
        return not self._answered and self._silent >= SILENCE

    async def get(self, path: str) -> Answer:
        """Raises OSError or EOFError for whatever goes wrong."""
        self.ask(path)
        return await self.answer()

    def ask(self, path: str) -> None:
        self._writer.write(f"GET {path} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
        # Afterwards, so that no moment is missing in which this process may have stood still.
        now = time.monotonic()
        self._silent, self._spoke = now - self._spoke, now
        self._answered = False

    async def answer(self) -> Answer:
        first = await self._reader.readexactly(1)
        self._answered = True
        head = (first + await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        length = next(
            int(line.partition(":")[2])
            for line in head.splitlines()
            if line.lower().startswith("content-length:")
        )
        return Answer(int(head.split(" ", 2)[1]), head, await self._reader.readexactly(length))

    def close(self) -> None:
        self._writer.close()


class RunningCrossfade:
    """One instance. `port` is that of the first listening address."""

    def __init__(self, process: asyncio.subprocess.Process, config_path: Path, log_path: Path) -> None:
        self.process = process
        self.pid = process.pid
        self.config_path = config_path
        self.log_path = log_path
        self.port = 0
        self.admin_port = 0
        self.data_dir = config_path.parent / ".crossfade"
        self.notices: socket.socket

    # What it says about itself.

    async def status(self) -> dict[str, Any]:
        status: dict[str, Any] = (await self.tell({"do": "status"}))["status"]
        return status

    async def tell(self, order: dict[str, Any]) -> dict[str, Any]:
        """What the control socket answers."""
        return await asyncio.to_thread(instance.ask, self.data_dir, order, PATIENCE)

    async def worker_pids(self, state: str = "ready") -> list[int]:
        return [worker["pid"] for worker in (await self.status())["workers"] if worker["state"] == state]

    async def until(self, fact: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first status that `fact` holds for."""
        async with asyncio.timeout(PATIENCE):
            while not fact(status := await self.status()):  # noqa: ASYNC110  (it is another process)
                await asyncio.sleep(0.01)
        return status

    async def metrics(self) -> Measured:
        answer = await self.admin("/metrics")
        return Measured(answer.body.decode())

    async def measured(self, name: str, value: float, **labels: str) -> Measured:
        """The first scrape in which the total is `value`.

        One scrape alone may be older than what it is asked about: it waits for nobody longer than half a
        second, and takes what a process that is late has said last.
        """
        found = await self.metrics()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                while found.total(name, **labels) != value:
                    await asyncio.sleep(0.05)
                    found = await self.metrics()
        total = found.total(name, **labels)
        assert total == value, f"{name}{labels} is {total} and not {value}"
        return found

    async def readiness(self, status: int) -> Answer:
        """The first answer of `/readyz` with `status`: it goes by what a busy supervisor has said last."""
        async with asyncio.timeout(PATIENCE):
            while (answer := await self.admin("/readyz")).status != status:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        return answer

    async def admin(self, path: str) -> Answer:
        async with asyncio.timeout(PATIENCE):
            return await _get(self.admin_port, path)

    def log(self) -> str:
        return self.log_path.read_text()

    # What can be done with it.

    async def get(self, path: str = "/") -> Answer:
        """One request on a connection of its own."""
        return await _get(self.port, path)

    async def connect(self) -> Connection:
        began = time.monotonic()
        return Connection(*await asyncio.open_connection("127.0.0.1", self.port), began)

    async def command(self, *arguments: str, config: bool = True, within: float = PATIENCE) -> Finished:
        """Run the `crossfade` command with this instance's configuration."""
        more = ["-c", str(self.config_path)] if config else []
        return await crossfade_command(*arguments, *more, within=within)

    def configure(self, config: Mapping[str, Any] | str) -> None:
        """Write the file; nobody reads it before a reload."""
        text = config if isinstance(config, str) else yaml.safe_dump(_on_free_ports(config))
        self.config_path.write_text(text)

    def signal(self, signum: signal.Signals) -> None:
        if self.process.returncode is None:
            os.kill(self.pid, signum)

    async def notice(self, word: str) -> str:
        """The next notification to the service manager that has `word` in it."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(PATIENCE):
            while True:
                message = (await loop.sock_recv(self.notices, 4096)).decode()
                if word in message:
                    return message

    async def ended(self) -> int:
        async with asyncio.timeout(PATIENCE):
            return await self.process.wait()


@contextlib.asynccontextmanager
async def running_crossfade(
    folder: Path,
    config: Mapping[str, Any],
    *,
    command: str = "proxy",
    environment: Mapping[str, str] | None = None,
) -> AsyncIterator[RunningCrossfade]:
    """Start crossfade with `config` in `folder`; ports that it leaves out are the kernel's choice.

    Standard output and error of all its processes are in `log_path`.
    """
    config_path, log_path = folder / "crossfade.yaml", folder / "crossfade.log"
    config_path.write_text(yaml.safe_dump(_on_free_ports(config)))
    address = f"crossfade-test-{os.getpid()}-{next(_numbers)}"
    notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notices.bind("\0" + address)
    notices.setblocking(False)
    with log_path.open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "crossfade", command, "-c", str(config_path),
            stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log,
            env={**os.environ, **(environment or {}), "NOTIFY_SOCKET": "@" + address},
        )  # fmt: skip
    running = RunningCrossfade(process, config_path, log_path)
    running.notices = notices
    try:
        await _until_ready(running)
        status = await running.status()
        running.port = int(status["listen"][0].rpartition(":")[2])
        running.admin_port = int(status["admin"].rpartition(":")[2])
        yield running
    finally:
        children = living_children(running.pid)
        running.signal(signal.SIGTERM)
        # The second one says: at once.
        running.signal(signal.SIGTERM)
        await running.ended()
        notices.close()
        await all_gone(children)


async def crossfade_command(*arguments: str, within: float = PATIENCE) -> Finished:
    """`within`: seconds after which it is not waited for any more."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "crossfade", *arguments,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(within):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return Finished(process.returncode, out.decode(), err.decode())


def living_children(pid: int) -> list[int]:
    """The children of a process that still run (a zombie does not)."""
    processes = [entry for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [int(entry.name) for entry in processes if _stat(entry).get("parent") == pid]


async def all_gone(pids: list[int]) -> None:
    """Wait until none of these processes runs any more."""
    async with asyncio.timeout(PATIENCE):
        while any(_stat(Path("/proc", str(pid))).get("state", "Z") not in "ZX" for pid in pids):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def refused(port: int) -> None:
    """Wait until connections to `port` are refused."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                return
            writer.close()
            await asyncio.sleep(0.01)


async def _until_ready(running: RunningCrossfade) -> None:
    ready = asyncio.ensure_future(running.notice("READY=1"))
    ended = asyncio.ensure_future(running.process.wait())
    await asyncio.wait([ready, ended], return_when=asyncio.FIRST_COMPLETED)
    for task in (ready, ended):
        if not task.done():
            task.cancel()
    if not ready.done() or ready.cancelled():
        raise RuntimeError(f"crossfade ended with {ended.result()} instead of serving:\n{running.log()}")
    ready.result()


async def _get(port: int, path: str) -> Answer:
    connection = Connection(*await asyncio.open_connection("127.0.0.1", port))
    try:
        return await connection.get(path)
    finally:
        connection.close()


def _on_free_ports(config: Mapping[str, Any]) -> dict[str, Any]:
    free = "127.0.0.1:0"
    given = {"listen": free, "admin": {"listen": free}, "access_log": {"path": None}, **NO_SERVERS}
    return {**given, **config}


def _stat(process: Path) -> dict[str, Any]:
    try:
        fields = (process / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return {}
    return {"state": fields[0], "parent": int(fields[1])}
