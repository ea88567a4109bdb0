"""How the command line finds and talks to the one running instance of a data folder.

`data_dir/run/` (readable by its owner only) holds a lock, which lives exactly as long as the
instance, with its pid in it, and a unix socket that takes one JSON request per line and answers
with one JSON line.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LONGEST_PATH = 100
"""Unix socket addresses end at 108 bytes, less on some systems."""
ASKED_AT_MOST = 10
"""Restarts in a row that one request outlives."""


class NothingRunningError(Exception):
    """No instance answers for this data folder."""


class AlreadyRunningError(Exception):
    """Another instance holds the lock of this data folder."""


class NoAnswerError(Exception):
    """The instance is there but cannot be talked to, or ended before it answered."""


def claim(data_dir: Path) -> int:
    """Take the lock of `data_dir`; returns the descriptor that holds it.

    Raises AlreadyRunningError with the other's pid, OSError if the folder cannot be made.
    """
    folder = data_dir / "run"
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.pread(lock, 32, 0).decode().strip() or "unknown"
        os.close(lock)
        raise AlreadyRunningError(f"already running (pid {pid}) on the data folder {data_dir}") from None
    os.truncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock


def listen(data_dir: Path) -> socket.socket:
    """The control socket of the instance that holds the lock."""
    path = data_dir / "run" / "control.sock"
    # Whoever holds the lock may clear away what an instance that was killed has left.
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with _short(path) as address:
        sock.bind(address)
    sock.listen(16)
    sock.setblocking(False)
    return sock


def ask(data_dir: Path, request: dict[str, Any], timeout: float) -> dict[str, Any]:
    """The running instance's answer to one request; `timeout` is in seconds.

    A restart hangs up on whoever waits for his turn behind it. He asks again then, the next image of
    the program; every request may be made twice.

    Raises NothingRunningError, NoAnswerError, or TimeoutError.
    """
    deadline = time.monotonic() + timeout
    for attempt in range(ASKED_AT_MOST):
        try:
            answer = _ask_once(data_dir, request, max(deadline - time.monotonic(), 0.001))
        except TimeoutError:
            raise TimeoutError(f"no answer within {timeout:.0f} s") from None
        except NothingRunningError as error:
            if attempt == 0:
                raise
            raise NoAnswerError("the running instance ended before it answered") from error
        if answer is not None:
            return answer
    raise NoAnswerError("the running instance hangs up again and again; see its log")


def _ask_once(data_dir: Path, request: dict[str, Any], timeout: float) -> dict[str, Any] | None:
    """None if it hung up instead of answering."""
    path = data_dir / "run" / "control.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout)
        try:
            with _short(path) as address:
                sock.connect(address)
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
            raise NothingRunningError(f"nothing is running on the data folder {data_dir}") from None
        except TimeoutError:
            raise
        except OSError as error:
            raise NoAnswerError(f"cannot reach the running instance at {path}: {error.strerror}") from error
        try:
            sock.sendall(json.dumps(request).encode() + b"\n")
            line = sock.makefile("rb").readline()
        except TimeoutError:
            raise
        except OSError:
            return None
    if not line.endswith(b"\n"):
        return None
    answer: dict[str, Any] = json.loads(line)
    return answer


def wait_for_end(data_dir: Path, timeout: float) -> bool:
    """Whether the instance of `data_dir` has ended within `timeout` seconds: its lock ends with it."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            lock = os.open(data_dir / "run" / "lock", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return True
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
        else:
            return True
        finally:
            os.close(lock)
        time.sleep(0.02)


@contextmanager
def _short(path: Path) -> Iterator[str]:
    """An address for `path` that fits, whatever the length of the folder's name."""
    if len(os.fsencode(path)) <= LONGEST_PATH:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
