"""The load generator: exact counts, every answer checked, in a process of its own.

Two ways to ask. *Closed*: each connection sends its next request when it has its answer, exactly N in
all. *Open*: requests fall due by a fixed schedule (exponential gaps from a fixed seed) at a given rate,
and a latency runs from the moment a request was due, so that a stall delays every request behind it and
is seen (a closed loop, wrk's too, would politely wait and hide it: coordinated omission).

Why not wrk: it stops by time, not by count; it does not look at what it gets; and on bare sockets this
one costs little more. Usage: `python -m bench.load JSON`. It connects, warms up, prints `ready`, waits
for a line on standard input, measures, prints one line of JSON.
"""

from __future__ import annotations

import ctypes
import gc
import json
import random
import re
import select
import socket
import sys
from collections import deque
from dataclasses import asdict, dataclass
from time import perf_counter

from bench.traffic import Kind, requests

_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)
STALLED = 20.0
"""Seconds without any answer after which a run is given up."""


@dataclass(frozen=True, slots=True)
class Order:
    """One measurement. `rate` 0 is a closed loop; otherwise requests per second of an open one."""

    port: int
    kind: Kind = "small"
    connections: int = 32
    requests: int = 10_000
    warmup: int = 1_000
    rate: float = 0.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """`seconds` from the first request to the last answer; latencies in microseconds."""

    requests: int
    seconds: float
    p50_us: float
    p99_us: float


class UnexpectedAnswerError(Exception):
    """An answer that was not the expected 200, or a connection that ended; the run is worthless."""


class Connection:
    """One keep-alive connection that knows how long an answer is and refuses any other."""

    __slots__ = ("partial", "size", "socket", "started")

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.partial = b""
        self.size = 0
        self.started = 0.0

    def fileno(self) -> int:
        return self.socket.fileno()

    def send(self, request: bytes) -> None:
        if self.socket.send(request) != len(request):
            raise UnexpectedAnswerError("a request did not fit into the socket's buffer")

    def answered(self) -> bool:
        """Reads once; True when the whole answer is there."""
        data = self.socket.recv(16384)
        if self.partial:
            data = self.partial + data
        if len(data) == self.size and data.startswith(b"HTTP/1.1 200 "):
            self.partial = b""
            return True
        return self._other(data)

    def _other(self, data: bytes) -> bool:
        end = data.find(b"\r\n\r\n")
        if not data or len(data) == len(self.partial):
            raise UnexpectedAnswerError("the connection was closed in the middle of the run")
        if end < 0:
            self.partial = data
            return False
        length = _LENGTH.search(data, 0, end)
        if not data.startswith(b"HTTP/1.1 200 ") or length is None:
            raise UnexpectedAnswerError(f"unexpected answer: {data[:end]!r}")
        size = end + 4 + int(length[1])
        if len(data) > size:
            raise UnexpectedAnswerError("more bytes than one answer")
        self.partial = b"" if len(data) == size else data
        if not self.partial:
            self.size = size
        return not self.partial


def closed_loop(connections: list[Connection], texts: list[bytes], count: int) -> list[float]:
    """`count` latencies in seconds; returns when the last answer has come."""
    epoll = select.epoll()
    by_fd = {connection.fileno(): connection for connection in connections}
    sent = 0
    for connection in connections[:count]:
        epoll.register(connection.fileno(), select.EPOLLIN)
        connection.started = perf_counter()
        connection.send(texts[sent & 15])
        sent += 1
    latencies: list[float] = []
    while len(latencies) < count:
        events = epoll.poll(STALLED)
        if not events:
            raise UnexpectedAnswerError(f"no answer for {STALLED:.0f} s after {len(latencies)} answers")
        for fd, _ in events:
            connection = by_fd[fd]
            if not connection.answered():
                continue
            now = perf_counter()
            latencies.append(now - connection.started)
            if sent < count:
                connection.started = now
                connection.send(texts[sent & 15])
                sent += 1
    epoll.close()
    return latencies


def open_loop(connections: list[Connection], texts: list[bytes], count: int, rate: float) -> list[float]:
    """`count` latencies in seconds, each from the moment when its request was due.

    `select` and not `epoll`, because epoll's clock counts in milliseconds.
    """
    draw = random.Random(20261123)
    due: list[float] = []
    at = perf_counter() + 0.005
    for _ in range(count):
        at += draw.expovariate(rate)
        due.append(at)
    free = deque(connections)
    latencies: list[float] = []
    sent = 0
    while len(latencies) < count:
        now = perf_counter()
        while sent < count and free and due[sent] <= now:
            connection = free.popleft()
            connection.started = due[sent]
            connection.send(texts[sent & 15])
            sent += 1
        wait = max(0.0, due[sent] - perf_counter()) if sent < count and free else STALLED
        readable, _, _ = select.select(connections, (), (), wait)
        if not readable and wait == STALLED:
            raise UnexpectedAnswerError(f"no answer for {STALLED:.0f} s after {len(latencies)} answers")
        for connection in readable:
            if connection.answered():
                latencies.append(perf_counter() - connection.started)
                free.append(connection)
    return latencies


def percentile(values: list[float], share: float) -> float:
    """The smallest of `values` (not empty) that at least `share` of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def main() -> None:
    order = Order(**json.loads(sys.argv[1]))
    ctypes.CDLL(None).prctl(29, 1, 0, 0, 0)  # PR_SET_TIMERSLACK, 1 ns: the open loop's clock
    texts = requests(order.kind)
    connections = [Connection(order.port) for _ in range(order.connections)]
    closed_loop(connections, texts, max(order.warmup, order.connections))
    gc.collect()
    gc.freeze()
    gc.disable()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    began = perf_counter()
    if order.rate:
        latencies = open_loop(connections, texts, order.requests, order.rate)
    else:
        latencies = closed_loop(connections, texts, order.requests)
    seconds = perf_counter() - began
    p50, p99 = (percentile(latencies, share) * 1e6 for share in (0.50, 0.99))
    outcome = Outcome(requests=len(latencies), seconds=seconds, p50_us=p50, p99_us=p99)
    sys.stdout.write(json.dumps(asdict(outcome)) + "\n")


if __name__ == "__main__":
    try:
        main()
    except (UnexpectedAnswerError, OSError) as fault:
        sys.exit(f"bench.load: {fault}")
