"""The access log writes to real files and pipes, also to those that are full, gone or rotated."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from proxy.access_log import FLUSH, QUEUE, AccessLogWriter, Entry
from proxy.config import AccessLog


def entry(target: bytes = b"/api/items/7", **changes: object) -> Entry:
    return Entry(
        time=1_700_000_000.25,
        client="192.0.2.7",
        method=b"GET",
        target=target,
        status=200,
        flag="items.read",
        side="new",
        reason="route",
        error=None,
        bytes_in=0,
        bytes_out=350,
        seconds=0.0123456,
    )._replace(**changes)


def until(fact: Callable[[], bool], within: float = 10.0) -> None:
    """Poll a fact that another thread brings about."""
    end = time.monotonic() + within
    while not fact():
        assert time.monotonic() < end, "it did not come true in time"
        threading.Event().wait(0.002)


def lines_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def written(path: Path, *entries: Entry) -> list[dict[str, object]]:
    """What the log at `path` holds after these entries."""
    log = AccessLogWriter(AccessLog(str(path), sample=1))
    for one in entries:
        log.offer(one)
    log.close()
    assert log.dropped == 0
    return lines_of(path)


def full_pipe() -> tuple[int, int]:
    """A small pipe that takes no further byte."""
    reader, writer = os.pipe()
    size = fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.write(writer, b"x" * (size - 1) + b"\n")
    return reader, writer


def drained(reader: int) -> bytes:
    """Everything up to the end of the pipe."""
    parts = []
    while part := os.read(reader, 65_536):
        parts.append(part)
    return b"".join(parts)


def test_a_line_says_who_asked_what_who_answered_and_why(tmp_path: Path) -> None:
    assert written(
        tmp_path / "a.log",
        entry(agent=b"curl/8"),
        entry(status=502, error="connection_refused"),
    ) == [
        {
            "event": "request",
            "time": "2023-11-14T22:13:20.250+00:00",
            "client": "192.0.2.7",
            "method": "GET",
            "path": "/api/items/7",
            "status": 200,
            "flag": "items.read",
            "side": "new",
            "reason": "route",
            "bytes_in": 0,
            "bytes_out": 350,
            "seconds": 0.012346,
            "agent": "curl/8",
            "pid": os.getpid(),
        },
        {
            "event": "request",
            "time": "2023-11-14T22:13:20.250+00:00",
            "client": "192.0.2.7",
            "method": "GET",
            "path": "/api/items/7",
            "status": 502,
            "flag": "items.read",
            "side": "new",
            "reason": "route",
            "error": "connection_refused",
            "bytes_in": 0,
            "bytes_out": 350,
            "seconds": 0.012346,
            "pid": os.getpid(),
        },
    ]


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"/login?token=hunter2", "/login"),
        (b"/?a=1?b=2", "/"),
        (b"http://user:hunter2@shop.example/a?b", "/a"),
        (b"http://shop.example?next=/hunter2", ""),
        (b"user:hunter2@shop.example:443", "shop.example:443"),
        (b"/go/http://shop.example/x", "/go/http://shop.example/x"),
        (b"*", "*"),
        (b'/caf\xc3\xa9\\"\x7f', '/caf\u00c3\u00a9\\"\x7f'),
    ],
)
def test_a_target_is_logged_without_its_secrets_and_with_all_its_bytes(
    tmp_path: Path, target: bytes, path: str
) -> None:
    [line] = written(tmp_path / "a.log", entry(target))
    assert line["path"] == path
    assert "hunter2" not in json.dumps(line)


def test_a_hostile_request_makes_one_line_that_fits_into_one_pipe_write(tmp_path: Path) -> None:
    huge = entry(b"/" + b"\xff\n" * 9000, agent=b"\x00" * 9000, method=b"M" * 900, error="e" * 9000)
    written(tmp_path / "a.log", huge, entry())
    first, second = (tmp_path / "a.log").read_bytes().splitlines(keepends=True)
    assert len(first) <= 4096
    assert json.loads(first)["path"].startswith("/\u00ff\n\u00ff")
    assert json.loads(second)["path"] == "/api/items/7"


def test_the_sample_is_a_share_below_500_and_everything_above(tmp_path: Path) -> None:
    def share(config: AccessLog, status: int) -> float:
        log = AccessLogWriter(config)
        wanted = sum(log.wants(status) for _ in range(20_000))
        log.close()
        return wanted / 20_000

    path = str(tmp_path / "a.log")
    assert share(AccessLog(path, sample=0.0), 200) == 0
    assert share(AccessLog(path, sample=1.0), 200) == 1
    assert 0.08 < share(AccessLog(path, sample=0.1), 404) < 0.12
    assert share(AccessLog(path, sample=0.0), 500) == 1
    assert share(AccessLog(None, sample=1.0), 503) == 0


def test_without_a_destination_nothing_is_written_and_an_offer_is_a_drop() -> None:
    log = AccessLogWriter(AccessLog(None))
    log.offer(entry())
    log.close()
    assert log.dropped == 1


def test_a_full_pipe_blocks_nobody_and_loses_only_what_the_queue_cannot_hold() -> None:
    reader, writer = full_pipe()
    log = AccessLogWriter(AccessLog("-", sample=1), stdout=writer)
    took = []
    for number in range(QUEUE + 500):
        began = time.perf_counter()
        log.offer(entry(b"/%d" % number))
        took.append(time.perf_counter() - began)
    # The thread may have taken one block out of the queue before it met the full pipe.
    assert 480 <= log.dropped <= 500
    assert sorted(took)[-3] < 0.5  # the machine may stand still once or twice
    received: list[bytes] = []
    collector = threading.Thread(target=lambda: received.append(drained(reader)), daemon=True)
    collector.start()
    until(lambda: " 0 waiting" in repr(log))
    log.close()
    os.close(writer)
    collector.join()
    os.close(reader)
    paths = [json.loads(line)["path"] for line in received[0].splitlines()[1:]]
    assert paths == [f"/{number}" for number in range(QUEUE + 500 - log.dropped)]


def test_closing_on_a_full_pipe_gives_up_after_two_seconds_and_counts() -> None:
    reader, writer = full_pipe()
    log = AccessLogWriter(AccessLog("-", sample=1), stdout=writer)
    for _ in range(100):
        log.offer(entry())
    began = time.monotonic()
    log.close()
    assert FLUSH * 0.75 < time.monotonic() - began < 20  # the machine may be busy; but not for ever
    until(lambda: log.dropped == 100)
    os.close(reader)
    os.close(writer)


def test_closing_writes_what_waits_and_what_comes_later_is_a_drop(tmp_path: Path) -> None:
    log = AccessLogWriter(AccessLog(str(tmp_path / "a.log"), sample=1))
    for _ in range(5000):
        log.offer(entry())
    log.close()
    log.offer(entry())
    log.close()
    assert len(lines_of(tmp_path / "a.log")) == 5000
    assert log.dropped == 1


def test_a_reader_that_went_away_costs_lines_and_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    log = AccessLogWriter(AccessLog("-", sample=1), stdout=writer)
    log.offer(entry())
    until(lambda: log.dropped == 1)
    assert log.fault == "Broken pipe"
    log.close()
    os.close(writer)


def test_rotation_moves_on_to_the_new_file_and_loses_no_line(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    log = AccessLogWriter(AccessLog(str(path), sample=1))
    log.offer(entry(b"/before"))
    until(lambda: path.stat().st_size > 0)
    path.rename(tmp_path / "a.log.1")
    log.reopen()
    until(path.exists)
    log.offer(entry(b"/after"))
    log.close()
    assert [line["path"] for line in lines_of(tmp_path / "a.log.1")] == ["/before"]
    assert [line["path"] for line in lines_of(path)] == ["/after"]
    assert log.dropped == 0


def test_a_reopen_just_before_the_end_loses_no_line(tmp_path: Path) -> None:
    log = AccessLogWriter(AccessLog(str(tmp_path / "a.log"), sample=1))
    log.offer(entry())
    log.reopen()
    log.offer(entry())
    log.close()
    assert len(lines_of(tmp_path / "a.log")) == 2


def test_a_missing_folder_costs_lines_until_it_is_there(tmp_path: Path) -> None:
    path = tmp_path / "later" / "a.log"
    log = AccessLogWriter(AccessLog(str(path), sample=1))
    assert log.fault == "No such file or directory"
    log.offer(entry())
    until(lambda: log.dropped == 1)
    path.parent.mkdir()
    log.reopen()
    until(path.exists)
    log.offer(entry(b"/now"))
    log.close()
    assert [line["path"] for line in lines_of(path)] == ["/now"]
    assert log.fault is None


def test_a_named_pipe_without_a_reader_holds_nobody(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    log = AccessLogWriter(AccessLog(str(fifo), sample=1))
    log.offer(entry())
    until(lambda: log.dropped == 1)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    log.reopen()
    until(lambda: log.fault is None)
    log.offer(entry(b"/heard"))
    log.close()
    assert json.loads(drained(reader))["path"] == "/heard"
    os.close(reader)


_ONE_WORKER = """
import sys, threading
from proxy.access_log import AccessLogWriter, Entry
from proxy.config import AccessLog
log = AccessLogWriter(AccessLog(sys.argv[1], sample=1))
sys.stdin.readline()
for number in range(4000):
    target = b"/" + bytes((65 + number % 26,)) * (number * 7 % 1900)
    log.offer(Entry(0.0, "::1", b"GET", target, 200, "f", "new", "route", None, 0, number, 0.0))
while " 0 waiting" not in repr(log):
    threading.Event().wait(0.002)
log.close()
sys.exit(log.dropped)
"""


@pytest.mark.parametrize("destination", ["file", "pipe"])
def test_lines_of_several_workers_do_not_mix(tmp_path: Path, destination: str) -> None:
    path = tmp_path / "a.log"
    reader, writer = os.pipe()
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", _ONE_WORKER, str(path) if destination == "file" else "-"],
            stdin=subprocess.PIPE,
            stdout=writer,
        )
        for _ in range(3)
    ]
    os.close(writer)
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write(b"go\n")
        worker.stdin.close()
    text = drained(reader)
    os.close(reader)
    assert [worker.wait(20) for worker in workers] == [0, 0, 0]
    lines = [json.loads(line) for line in (path.read_bytes() if destination == "file" else text).splitlines()]
    for worker in workers:
        assert [line["bytes_out"] for line in lines if line["pid"] == worker.pid] == list(range(4000))


_FULL_DISK = """
import resource, signal, sys
from proxy.access_log import AccessLogWriter, Entry
from proxy.config import AccessLog
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
line = Entry(0.0, "::1", b"GET", b"/first", 200, "f", "new", "route", None, 0, 0, 0.0)
log = AccessLogWriter(AccessLog(sys.argv[1], sample=1))
for _ in range(50):
    log.offer(line)
while log.dropped < 50:
    pass
assert log.fault == "File too large", log.fault
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
log.offer(line._replace(target=b"/space-again"))
log.close()
assert log.dropped == 50, log.dropped
"""


def test_a_disk_that_was_full_leaves_one_torn_line_and_then_whole_ones(tmp_path: Path) -> None:
    # A limit on the size of files stands for the full disk: write() ends half-way, then fails.
    path = tmp_path / "a.log"
    subprocess.run([sys.executable, "-c", _FULL_DISK, str(path)], check=True, timeout=30)
    *_, torn, last = path.read_bytes().splitlines()
    with pytest.raises(json.JSONDecodeError):
        json.loads(torn)
    assert json.loads(last)["path"] == "/space-again"


def test_an_offer_is_cheap_for_the_loop(tmp_path: Path) -> None:
    log = AccessLogWriter(AccessLog(str(tmp_path / "a.log"), sample=0.01))
    began = time.thread_time()
    for _ in range(100_000):
        if log.wants(200):
            log.offer(entry())
    microseconds = (time.thread_time() - began) * 10
    log.close()
    assert microseconds < 5  # about 0.15 on the machine this was written on
