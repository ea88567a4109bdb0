"""1 GiB down and up: speed against nginx, and how far the proxy's memory rises, also with a slow end.

The slow ends are a client that reads 64 KiB each 20 ms and a backend that does the same, each against
a partner that pushes as fast as it can, for a few seconds.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from functools import partial
from time import monotonic, sleep
from typing import TYPE_CHECKING

from bench import contenders, processes, rig
from bench.bulk_backend import SLOW_PAUSE, SLOW_PIECE
from bench.processes import MIB
from bench.rig import LoadFailedError
from bench.table import Verdict, table
from bench.traffic import HOST

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

GROWTH_LIMIT = 32.0
"""MiB by which the peak of Crossfade's largest process may rise."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """Megabytes (10^6) per second, and the rise in MiB of that process of the tree which rose most."""

    speed: float
    growth: float


@dataclass(frozen=True, slots=True)
class Bulk:
    size: int
    slow_seconds: float
    down: dict[str, Transfer]
    up: dict[str, Transfer]
    slow_client: dict[str, float]
    """Growth in MiB while a client reads slowly."""
    slow_backend: dict[str, float]

    def verdicts(self) -> list[Verdict]:
        if "crossfade" not in self.down:
            return []
        grown = {
            "1 GiB down": self.down["crossfade"].growth,
            "1 GiB up": self.up["crossfade"].growth,
            "a slow client": self.slow_client["crossfade"],
            "a slow backend": self.slow_backend["crossfade"],
        }
        return [
            Verdict(f"memory growth, {what}", value, GROWTH_LIMIT, " MiB") for what, value in grown.items()
        ]

    def __str__(self) -> str:
        def against_nginx(way: dict[str, Transfer], name: str) -> str:
            return f"{way[name].speed / way['nginx'].speed:.2f}" if "nginx" in way else "-"

        rows = [
            [
                name,
                f"{self.down[name].speed:,.0f}",
                against_nginx(self.down, name),
                f"{self.up[name].speed:,.0f}",
                against_nginx(self.up, name),
                *(
                    f"{value:.1f}"
                    for value in (
                        self.down[name].growth,
                        self.up[name].growth,
                        self.slow_client[name],
                        self.slow_backend[name],
                    )
                ),
            ]
            for name in self.down
        ]
        head = [
            "",
            "down MB/s",
            "x nginx",
            "up MB/s",
            "x nginx",
            "MiB down",
            "MiB up",
            "slow client",
            "slow backend",
        ]
        title = f"Large bodies: {self.size / MIB:,.0f} MiB each way; rise of peak memory in MiB"
        return f"{title}\n" + table(head, rows)


def measure(names: Sequence[str], cores: rig.Cores, size: int, slow_seconds: float) -> Bulk:
    found = Bulk(size, slow_seconds, {}, {}, {}, {})
    with rig.backend(cores.rest, "bench.bulk_backend") as backend:
        for name in names:
            with contenders.running(name, backend.legacy, backend.new, cores=cores.proxy) as proxy:
                port, pid = proxy.port, proxy.pid
                at_start = processes.memory(pid)

                began = monotonic()
                grown = _growth(pid, at_start, partial(_download, port, size))
                found.down[name] = Transfer(size / (monotonic() - began) / 1e6, grown)
                began = monotonic()
                grown = _growth(pid, at_start, partial(_upload, port, size))
                found.up[name] = Transfer(size / (monotonic() - began) / 1e6, grown)
                found.slow_client[name] = _growth(
                    pid, at_start, partial(_read_slowly, port, size, slow_seconds)
                )
                found.slow_backend[name] = _growth(pid, at_start, partial(_push, port, size, slow_seconds))
    return found


def _growth(pid: int, at_start: dict[int, processes.Memory], act: Callable[[], None]) -> float:
    """MiB by which the peak during `act` lies above what the process held before any transfer."""
    processes.forget_peak(pid)
    act()
    return processes.largest_growth(at_start, processes.memory(pid)) / MIB


def _connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=30)


def _get(size: int) -> bytes:
    return f"GET /bulk/{size} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()


def _post(target: str, size: int) -> bytes:
    return f"POST {target} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {size}\r\n\r\n".encode()


def _head(connection: socket.socket) -> bytes:
    """Reads through the end of the head; returns what came of the body with it."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(65536)
        if not more:
            raise LoadFailedError(f"the connection was closed within the head: {data!r}")
        data += more
    head, _, rest = data.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise LoadFailedError(f"unexpected answer: {head!r}")
    return rest


def _download(port: int, size: int) -> None:
    buffer = bytearray(1 << 18)
    with _connect(port) as connection:
        connection.sendall(_get(size))
        got = len(_head(connection))
        while got < size:
            count = connection.recv_into(buffer)
            if not count:
                raise LoadFailedError(f"the download ended after {got} bytes")
            got += count


def _upload(port: int, size: int) -> None:
    chunk = bytes(1 << 18)
    with _connect(port) as connection:
        connection.sendall(_post("/bulk/fast", size))
        for _ in range(size // len(chunk)):
            connection.sendall(chunk)
        said = _head(connection)
        if b'"taken": %d}' % size not in said:
            raise LoadFailedError(f"the backend took something else: {said!r}")


def _read_slowly(port: int, size: int, seconds: float) -> None:
    deadline = monotonic() + seconds
    with _connect(port) as connection:
        connection.sendall(_get(size))
        while monotonic() < deadline:
            if not connection.recv(SLOW_PIECE):
                raise LoadFailedError("the slow reader was cut off")
            sleep(SLOW_PAUSE)


def _push(port: int, size: int, seconds: float) -> None:
    """Sends as fast as it is let, to a backend that takes its time."""
    deadline = monotonic() + seconds
    chunk = bytes(1 << 18)
    with _connect(port) as connection:
        connection.sendall(_post("/bulk/slow", size))
        connection.settimeout(0.1)
        while monotonic() < deadline:
            try:
                connection.send(chunk)
            except TimeoutError:
                continue
