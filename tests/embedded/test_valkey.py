"""The embedded Valkey through its life: start, stop, crash, a second one, the death of its starter."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from crossfade.embedded.folders import socket_folder, take
from crossfade.embedded.valkey import EmbeddedValkey, EmbeddedValkeyError, url_of

PROGRAM = """
import sys
from pathlib import Path
from crossfade.embedded.valkey import EmbeddedValkey
with EmbeddedValkey(Path(sys.argv[1])):
    print("running", flush=True)
    sys.stdin.read()
"""


def says(url: str, word: str) -> str:
    with contextlib.closing(redis.Redis.from_url(url, decode_responses=True)) as client:
        client.set("word", word)
        return str(client.get("word"))


def test_it_starts_again_at_the_same_url(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path / "v") as server:
        url = server.url()
        assert says(url, "heard") == "heard"
    with EmbeddedValkey(tmp_path / "v") as server:
        assert server.url() == url == url_of(tmp_path / "v")
        assert says(url, "again") == "again"


def test_it_asks_for_the_password_and_is_private(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path / "v") as server:
        other = server.url().replace("@", "x@")
        with pytest.raises(redis.AuthenticationError):
            says(other, "let me in")
        for path in (tmp_path / "v", socket_folder(tmp_path / "v")):
            assert stat.S_IMODE(path.stat().st_mode) == 0o700
        assert stat.S_IMODE((tmp_path / "v" / "password").stat().st_mode) == 0o600
        with contextlib.closing(redis.Redis.from_url(server.url(), decode_responses=True)) as client:
            assert client.config_get("port")["port"] == "0"
            assert client.config_get("save")["save"] == ""


def test_the_password_is_on_no_command_line(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path / "v") as server:
        shown = Path(f"/proc/{server.pid}/cmdline").read_bytes()
    assert (tmp_path / "v" / "password").read_bytes() not in shown


def test_a_folder_with_a_long_name_gets_a_short_private_socket_folder(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 30)
    with EmbeddedValkey(folder) as server:
        assert says(server.url(), "reached") == "reached"
        assert not socket_folder(folder).is_relative_to(folder)
    socket_folder(folder).rmdir()


def test_after_kill_9_it_starts_again_in_the_same_process(tmp_path: Path) -> None:
    server = EmbeddedValkey(tmp_path / "v")
    server.start()
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    os.waitid(os.P_PID, server.pid, os.WEXITED | os.WNOWAIT)
    server.start()
    try:
        assert says(server.url(), "back") == "back"
    finally:
        server.stop()


def test_it_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    folder = tmp_path / "v"
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as starter:
        assert starter.stdout is not None
        assert starter.stdout.readline() == "running\n"
        with pytest.raises(EmbeddedValkeyError, match="in use by another process"):
            EmbeddedValkey(folder).start()
        starter.kill()
    lock = take(folder / "lock", 10)
    assert lock is not None
    os.close(lock)


def test_start_and_stop_are_safe_twice(tmp_path: Path) -> None:
    server = EmbeddedValkey(tmp_path / "v")
    server.start()
    server.start()
    assert says(server.url(), "once") == "once"
    server.stop()
    server.stop()
    with pytest.raises(redis.ConnectionError):
        says(server.url(), "gone")


def test_a_missing_wheel_names_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EmbeddedValkeyError, match="make setup"):
        EmbeddedValkey(tmp_path / "v").start()


def test_a_url_before_the_first_start_says_so(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedValkeyError, match="was never started"):
        EmbeddedValkey(tmp_path / "v").url()
