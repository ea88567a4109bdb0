"""The access log: a JSON line for a sample of the exchanges, and for every answer of 500 and above.

The event loop only appends to a bounded queue. One thread renders and writes; a destination that
blocks or fails costs lines, which are counted, and never a moment of the loop. A line carries the
path without its query, because secrets travel in queries.

Several workers write to the same file or pipe. Their lines do not mix: a file is opened O_APPEND and
takes whole lines in one write, anything else takes whole lines of at most PIPE_BUF bytes, which the
kernel keeps in one piece. Standard output is never set to non-blocking, since that flag belongs to
everybody who shares it; it is polled instead.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import stat
import threading
import time
from collections import deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

import structlog

if TYPE_CHECKING:
    from proxy.config import AccessLog

QUEUE = 10_000
"""Entries that wait for the thread; further ones are dropped."""
FLUSH = 2.0
"""Seconds that `close` gives the thread to write what waits."""
_GATHER = 0.05
"""Seconds between two rounds of the thread: at a high rate it wakes twenty times a second, not per line."""
_RETRY = 1.0
"""Seconds between two attempts to open a file."""
_ATOMIC = select.PIPE_BUF
"""What a pipe takes in one piece, and so the longest line."""
_BLOCK = 65_536
"""How much goes into a file at once."""
_NEVER = 1_000
_STDOUT = 1
_WHOLE_TEXTS = {"method": 32, "path": 2048, "client": 64, "agent": 256, "error": 64, "flag": 128}
_SHORT_TEXTS = {"method": 32, "path": 256, "client": 64, "agent": 64, "error": 64, "flag": 100}
"""Characters kept of each text; the second row when the first does not fit into `_ATOMIC` bytes."""


class Entry(NamedTuple):
    """One exchange. Bytes are as they came from the wire; the writer decodes what it prints."""

    time: float
    """Wall clock, seconds since the epoch, at the end of the exchange."""
    client: str
    method: bytes
    target: bytes
    status: int
    flag: str
    side: str
    reason: str
    error: str | None
    bytes_in: int
    bytes_out: int
    seconds: float
    """From the request's complete head to the end of its answer."""
    agent: bytes | None = None


class AccessLogWriter:
    """Belongs to one worker process: it owns a thread, so make it after any fork.

    Never raises for a destination that cannot be written: `fault` says what is wrong with it, and
    `dropped` counts the lines that this has cost.
    """

    def __init__(self, config: AccessLog, *, stdout: int = _STDOUT) -> None:
        self.fault: str | None = None
        self._path = config.path
        self._sample = config.sample
        self._always_from = 500 if config.path is not None else _NEVER
        if config.path is None:
            self._sample = 0.0
        self._random = random.random
        self._queue: deque[Entry] = deque()
        self._refused = 0  # counted by the loop
        self._lost = 0  # counted by the thread; two counters, so that neither needs a lock
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._closed = False
        self._deadline = float("inf")
        self._reopening = False
        self._stdout = stdout
        self._out: int | None = None
        self._is_file = False
        self._torn = False
        self._next_attempt = 0.0
        self._pid = os.getpid()
        self._render = structlog.processors.JSONRenderer(separators=(",", ":"))
        self._thread = threading.Thread(target=self._work, name="access-log", daemon=True)
        if config.path is not None:
            self._open()
            self._thread.start()

    def __repr__(self) -> str:
        return f"<AccessLogWriter {self._path!r} {len(self._queue)} waiting, {self.dropped} dropped>"

    def wants(self, status: int) -> bool:
        """Whether an answer with this status is to be offered. Draws lots below 500, so ask once."""
        return self._random() < self._sample or status >= self._always_from

    def offer(self, entry: Entry) -> None:
        """Queue one entry; costs less than a microsecond and never waits."""
        if len(self._queue) >= QUEUE or self._closing.is_set() or self._path is None:
            self._refused += 1
            return
        self._queue.append(entry)
        if not self._wake.is_set():
            self._wake.set()

    @property
    def dropped(self) -> int:
        """Entries that were offered and will not be written."""
        return self._refused + self._lost + (len(self._queue) if self._closed else 0)

    def reopen(self) -> None:
        """Open the file again after it was rotated; done by the thread before its next line."""
        self._reopening = True
        self._wake.set()

    def close(self) -> None:
        """Write what waits and let go; waits at most `FLUSH` seconds. Safe to call again."""
        if not self._closing.is_set():
            self._deadline = time.monotonic() + FLUSH
            self._closing.set()
            self._wake.set()
        if self._thread.is_alive():
            # The thread keeps the deadline itself; only a write that the kernel holds can exceed it.
            self._thread.join(max(0.0, self._deadline - time.monotonic()) + 0.2)
        self._closed = True

    # From here on everything runs in the thread.

    def _work(self) -> None:
        while not self._closing.is_set():
            self._wake.wait()
            self._wake.clear()
            self._drain()
            self._closing.wait(_GATHER)
        while self._queue and time.monotonic() < self._deadline:
            self._drain()
        self._let_go()

    def _drain(self) -> None:
        """Write all that waits, in blocks of whole lines."""
        if self._reopening:
            self._reopening = False
            self._open()
        lines: list[bytes] = []
        size = 0
        while self._queue and not self._reopening:  # if asked in between, the event has us called again
            line = self._line(self._queue[0])
            if lines and size + len(line) > (_BLOCK if self._is_file else _ATOMIC):
                self._write(lines)
                lines, size = [], 0
            if time.monotonic() >= self._deadline:
                return
            self._queue.popleft()  # only now: what a blocked destination holds up still counts as waiting
            lines.append(line)
            size += len(line)
        if lines:
            self._write(lines)

    def _write(self, lines: list[bytes]) -> None:
        if self._out is None and time.monotonic() >= self._next_attempt:
            self._open()
        if self._out is None or not self._write_block(self._out, b"".join(lines)):
            self._lost += len(lines)

    def _write_block(self, out: int, block: bytes) -> bool:
        """Write all of `block`, as long as the destination lives and there is time."""
        if self._torn:
            block = b"\n" + block
        rest = memoryview(block)
        try:
            while rest:
                if not self._writable(out):
                    break
                try:
                    written = os.write(out, rest)
                except BlockingIOError:
                    # Another writer of the pipe was faster.
                    self._closing.wait(0.01)
                    continue
                rest = rest[written:]
        except OSError as error:
            self.fault = error.strerror or str(error)
        else:
            if not rest:
                self.fault = None
                self._torn = False
                return True
        # Half a line stands at the end: the next one must not continue it.
        self._torn = self._torn if len(rest) == len(block) else True
        if not self._is_file and self._out != self._stdout:
            self._let_go()  # a pipe whose reader has gone may have a new one behind the same name
        return False

    def _writable(self, out: int) -> bool:
        """Wait until `out` takes a line; False when time is up."""
        if self._is_file:
            return True
        poll = select.poll()
        poll.register(out, select.POLLOUT)
        while not poll.poll(50):
            if time.monotonic() >= self._deadline:
                return False
        return True

    def _open(self) -> None:
        """Open the destination anew; on failure keep the old one, and try again later if there is none."""
        self._next_attempt = time.monotonic() + _RETRY
        assert self._path is not None
        if self._path == "-":
            self._out = self._stdout
            with contextlib.suppress(OSError):
                self._is_file = stat.S_ISREG(os.fstat(self._stdout).st_mode)
            return
        try:
            # O_NONBLOCK: a named pipe without a reader must not hold us; it means nothing to a file.
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
            opened = os.open(self._path, flags, 0o640)
        except OSError as error:
            self.fault = error.strerror or str(error)
            return
        self._let_go()
        self.fault = None
        self._torn = False
        self._out = opened
        self._is_file = stat.S_ISREG(os.fstat(opened).st_mode)

    def _let_go(self) -> None:
        if self._out is not None and self._out != self._stdout:
            with contextlib.suppress(OSError):
                os.close(self._out)
        self._out = None

    def _line(self, entry: Entry) -> bytes:
        line = self._rendered(entry, _WHOLE_TEXTS)
        return line if len(line) <= _ATOMIC else self._rendered(entry, _SHORT_TEXTS)

    def _rendered(self, entry: Entry, keep: dict[str, int]) -> bytes:
        fields: dict[str, object] = {
            "event": "request",
            "time": datetime.fromtimestamp(entry.time, UTC).isoformat(timespec="milliseconds"),
            "client": entry.client[: keep["client"]],
            "method": _text(entry.method, keep["method"]),
            "path": _text(_path_of(entry.target), keep["path"]),
            "status": entry.status,
            "flag": entry.flag[: keep["flag"]],
            "side": entry.side,
            "reason": entry.reason,
            "error": None if entry.error is None else entry.error[: keep["error"]],
            "bytes_in": entry.bytes_in,
            "bytes_out": entry.bytes_out,
            "seconds": round(entry.seconds, 6),
            "agent": None if entry.agent is None else _text(entry.agent, keep["agent"]),
            "pid": self._pid,
        }
        rendered = self._render(None, "info", {k: v for k, v in fields.items() if v is not None})
        return (rendered if isinstance(rendered, bytes) else rendered.encode()) + b"\n"


def _path_of(target: bytes) -> bytes:
    """The path of a request target: no query, and no authority, which may carry a password."""
    target = target.partition(b"?")[0]
    if target.startswith(b"/"):
        return target
    _, absolute, rest = target.partition(b"://")
    if absolute:
        _, slash, path = rest.partition(b"/")
        return slash + path
    return target.rpartition(b"@")[2]


def _text(raw: bytes, keep: int) -> str:
    """Every byte as the character of its number, so that nothing is lost and nothing can fail."""
    text = raw[: keep + 1].decode("latin-1")
    return text if len(text) <= keep else text[:keep] + "..."
