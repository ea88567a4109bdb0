"""Both databases alike: what copying, following and comparing cost beside PostgreSQL's own and reladiff.

Two embedded clusters, 10-column rows. *The pipe* is psql's binary COPY from one to the other, which keeps
nothing and cannot go on after a crash; *native* is PostgreSQL's logical replication (CREATE SUBSCRIPTION).
For the stream the reader stands still while changes are written, and then the time is taken until the
target has the last of them; native's reader is its apply worker. What is not like for like: Crossfade makes
many source transactions one target transaction, native keeps each; its copy is timed from when it begins to
copy, native's with CREATE SUBSCRIPTION. What is far from its target is measured once.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from threading import Event, Thread
from time import monotonic, sleep
from urllib.parse import parse_qs, urlsplit

import psycopg

from bench.contenders import NotStartedError
from bench.load import percentile
from bench.table import Verdict
from crossfade.embedded.postgres import EmbeddedPostgres

PATIENCE = 300.0
"""Seconds for any of these."""
RATE = 2_000
"""Changes a second for the latency."""
WRITES = 1_000
"""Rows a second that are changed while a table is copied."""
PLANTED = 100
ROUNDS = 3
"""Of the same work, of which the median counts."""

_CREATE = """
    CREATE TABLE wide (
        id bigint PRIMARY KEY, a int, b bigint, c numeric(12,2), d text, e text, f timestamptz, g boolean,
        h double precision, i text
    )
"""
_COLUMNS = ["id", "a", "b", "c", "d", "e", "f", "g", "h", "i"]
_ROWS = """
    INSERT INTO wide SELECT n, n % 1000, n * 7, n / 3.0, 'name ' || n, md5(n::text),
        '2026-01-01Z'::timestamptz + n * interval '1 second', n % 2 = 0, n / 7.0,
        CASE WHEN n % 3 = 0 THEN 'x' END
    FROM generate_series({}, {}) n
"""
_MIGRATION = """
from crossfade import Convert, Project, Table
COLUMNS = {columns!r}
project = Project(tables=[Table("wide", "wide", key=["id"], columns=COLUMNS)])
if {mapped!r}:
    both = {{name: name for name in COLUMNS}}
    both["d"] = Convert("d", lambda text: text and text.upper(), lambda text: text)
    both["a"] = Convert("a", lambda text: text and int(text) + 1, lambda text: text)
    project = Project(tables=[Table("wide", "wide", key=["id"], columns=both)])
"""


@dataclass(frozen=True, slots=True)
class Sync:
    """Seconds, by what was done and by whom."""

    rows: int
    changes: int
    seconds: dict[str, dict[str, float]]
    delays: list[float] = field(default_factory=list)
    """Seconds from a commit at the source until the row is seen at the target."""
    rate: float = 0.0
    """Changes a second meanwhile."""
    left_out: dict[str, str] = field(default_factory=dict)

    def _ratio(self, what: str, ours: str, other: str) -> float | None:
        """How fast ours is, as a share of the other's speed."""
        found = self.seconds.get(what, {})
        return found[other] / found[ours] if ours in found and other in found else None

    def verdicts(self) -> list[Verdict]:
        wanted = (
            ("copy", "crossfade", "pipe", 0.7), ("copy", "crossfade, mapped", "pipe", 0.15),
            ("single-row transactions", "crossfade", "native", 0.45),
            ("single-row transactions", "crossfade, mapped", "native", 0.25),
            ("one large transaction", "crossfade", "native", 0.55),
            ("compare, equal", "crossfade", "reladiff", 3.0),
            ("compare, equal", "crossfade, portable", "reladiff", 1.3),
            (f"compare, {PLANTED} differences", "crossfade", "reladiff", 8.0),
            (f"compare, {PLANTED} differences", "crossfade, portable", "reladiff", 3.0),
        )  # fmt: skip
        found = []
        for what, ours, other, limit in wanted:
            ratio = self._ratio(what, ours, other)
            if ratio is not None:
                found.append(Verdict(f"{what}: {ours} x {other}", ratio, limit, at_most=False))
        if self.delays:
            found.append(Verdict("commit to visible, p50", percentile(self.delays, 0.5) * 1000, 20, " ms"))
            found.append(Verdict("commit to visible, p99", percentile(self.delays, 0.99) * 1000, 250, " ms"))
        return found

    def __str__(self) -> str:
        lines = [f"Sync: {self.rows:,} rows of 10 columns to copy and compare, {self.changes:,} changes"]
        for what, by in self.seconds.items():
            lines.append(f"{what}: " + ", ".join(f"{who} {took:.1f} s" for who, took in by.items()))
        if self.delays:
            shares = (
                f"p{one * 100:g} {percentile(self.delays, one) * 1000:,.0f} ms" for one in (0.5, 0.99, 1)
            )
            lines.append(f"commit to visible at {self.rate:,.0f} changes/s: {', '.join(shares)}")
        lines += [f"left out: {name}: {why}" for name, why in self.left_out.items()]
        return "\n".join(lines)


def measure(rows: int, changes: int) -> Sync:
    found = Sync(rows, changes, {})
    with (
        tempfile.TemporaryDirectory(prefix="crossfade-bench-") as name,
        EmbeddedPostgres(Path(name) / "source") as source,
        EmbeddedPostgres(Path(name) / "target") as target,
    ):
        folder = Path(name)
        urls = source.url(), target.url()
        _run(urls[0], _CREATE, _ROWS.format(1, rows), "VACUUM ANALYZE wide")
        _copies(found, folder, urls)
        _streams(found, folder, urls)
    rate = 0.0 if not found.delays else len(found.delays) / _LATENCY_FOR
    return Sync(rows, changes, found.seconds, found.delays, rate, found.left_out)


_LATENCY_FOR = 10.0


def _copies(found: Sync, folder: Path, urls: tuple[str, str]) -> None:
    """The pipe and our plain copy are near each other, so they take turns."""
    took: dict[str, list[float]] = {}
    psql = shutil.which("psql")
    if psql is None:
        found.left_out["pipe"] = "psql is not installed"

    def copied(who: str, *, mapped: bool = False, written: bool = False, compared: bool = False) -> None:
        _empty(urls[1])
        _run(urls[1], "DROP SCHEMA IF EXISTS crossfade_sync CASCADE")
        _drop_slots(urls[0])
        with _syncing(folder, urls, mapped) as process:
            _until(process, urls[1], "SELECT to_regclass('crossfade_sync.copies') IS NOT NULL")
            _until(process, urls[1], "SELECT count(*) > 0 FROM crossfade_sync.copies")
            with _writing(urls[0], found.rows) if written else contextlib.nullcontext():
                done = "SELECT bool_and(done) FROM crossfade_sync.copies"
                took.setdefault(who, []).append(_timed(lambda: _until(process, urls[1], done)))
                if written:
                    # What the copy has cost the stream.
                    follows = "SELECT bool_and(state = 'following') FROM crossfade_sync.streams"
                    left = _timed(lambda: _until(process, urls[1], follows))
                    took[f"{who}, until it follows"] = [took[who][-1] + left]
            if compared:
                _compare(found, folder, urls)

    copied("crossfade, mapped", mapped=True)
    copied(f"crossfade, {WRITES:,} rows a second written", written=True)
    for number in range(ROUNDS):
        if psql is not None:
            _empty(urls[1])
            took.setdefault("pipe", []).append(_timed(lambda: _pipe(psql, urls)))
        took.setdefault("native", []).append(_native_copy(urls, found.rows))
        copied("crossfade", compared=number == ROUNDS - 1)
    found.seconds["copy"] = {who: median(each) for who, each in took.items()}


@contextlib.contextmanager
def _writing(url: str, rows: int) -> Iterator[None]:
    """Somebody changes rows all over the table meanwhile, one by one, at a steady rate."""
    over = Event()

    def write() -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            began, number = monotonic(), 0
            while not over.is_set():
                key = number * 7919 % rows + 1
                connection.execute("UPDATE wide SET a = a + 1 WHERE id = %s", (key,), prepare=True)
                number += 1
                if (early := began + number / WRITES - monotonic()) > 0:
                    sleep(early)

    thread = Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _streams(found: Sync, folder: Path, urls: tuple[str, str]) -> None:
    """Each begins with empty tables, its reader standing by."""
    for who, mapped in (("crossfade", False), ("crossfade, mapped", True)):
        # What was there before is not to be copied once more.
        _run(urls[0], "TRUNCATE wide")
        _empty(urls[1])
        _run(urls[1], "DROP SCHEMA IF EXISTS crossfade_sync CASCADE")
        _drop_slots(urls[0])
        with _syncing(folder, urls, mapped) as process:
            _until(process, urls[1], "SELECT to_regclass('crossfade_sync.streams') IS NOT NULL")
            _until(process, urls[1], "SELECT bool_and(state = 'following') FROM crossfade_sync.streams")
            stop, go_on = (partial(process.send_signal, one) for one in (signal.SIGSTOP, signal.SIGCONT))
            first = _written(found, who, urls, stop, go_on)
            if not mapped:
                found.delays.extend(_delays(process, urls, first))
                # As while a cutover is under way (`dualwrite/rest.py`).
                _run(urls[1], "UPDATE crossfade_sync.streams SET watched = true")
                first = int(str(_one(urls[0], "SELECT max(id) + 1 FROM wide")))
                _written(found, "crossfade, noting keys", urls, stop, go_on, first)
    _drop_slots(urls[0])
    _run(urls[0], "TRUNCATE wide", "CREATE PUBLICATION native FOR TABLE wide")
    _empty(urls[1])
    _run(
        urls[1],
        f"CREATE SUBSCRIPTION native CONNECTION '{urls[0]}' PUBLICATION native WITH (copy_data = false)",
    )
    worker = "SELECT max(pid) FROM pg_stat_activity WHERE backend_type LIKE 'logical replication%worker'"
    _until(None, urls[1], worker)
    pid = int(str(_one(urls[1], worker)))
    try:
        stop, go_on = (partial(os.kill, pid, one) for one in (signal.SIGSTOP, signal.SIGCONT))
        _written(found, "native", urls, stop, go_on)
    finally:
        os.kill(pid, signal.SIGCONT)
    _run(urls[1], "DROP SUBSCRIPTION native")
    _run(urls[0], "DROP PUBLICATION native")


def _written(
    found: Sync,
    who: str,
    urls: tuple[str, str],
    stop: Callable[[], None],
    go_on: Callable[[], None],
    first: int = 1,
) -> int:
    """Median time for changes that were made while nobody read; the next free number."""
    for what, write in _WRITES.items():
        took = []
        for _ in range(ROUNDS):
            last = first + found.changes - 1
            stop()
            _run(urls[0], *(one.format(first, last) for one in write))
            go_on()
            arrived = f"SELECT max(id) = {last} FROM wide"
            took.append(_timed(lambda: _until(None, urls[1], arrived)))  # noqa: B023  (called at once)
            first = last + 1
        found.seconds.setdefault(what, {})[who] = median(took)
    return first


_ROW = "n, 1, 2, 3.5, 'name', 'text', now(), true, 0.5, NULL"
_WRITES: dict[str, tuple[str, ...]] = {
    "single-row transactions": (
        "SET synchronous_commit = off",
        f"DO $$ BEGIN FOR n IN {{}}..{{}} LOOP INSERT INTO wide VALUES ({_ROW}); COMMIT; END LOOP; END $$",
    ),
    "one large transaction": (f"INSERT INTO wide SELECT {_ROW} FROM generate_series({{}}, {{}}) n",),
}


def _delays(process: subprocess.Popen[bytes], urls: tuple[str, str], first: int) -> list[float]:
    """Of each row that a writer commits at a steady rate."""
    written: list[float] = []
    done = Event()

    def write() -> None:
        with psycopg.connect(urls[0], autocommit=True) as connection:
            began = monotonic()
            number = 0
            while monotonic() - began < _LATENCY_FOR:
                connection.execute(
                    "INSERT INTO wide (id, d) VALUES (%s, 'x')", (first + number,), prepare=True
                )
                written.append(monotonic())
                number += 1
                if (early := began + number / RATE - monotonic()) > 0:
                    sleep(early)
        done.set()

    thread = Thread(target=write)
    thread.start()
    seen: list[tuple[float, int]] = []
    with psycopg.connect(urls[1], autocommit=True) as connection:
        until = monotonic() + _LATENCY_FOR + 30
        while monotonic() < until and process.poll() is None:
            row = connection.execute("SELECT max(id) FROM wide", prepare=True).fetchone()
            assert row is not None
            seen.append((monotonic(), int(row[0]) - first))
            if done.is_set() and seen[-1][1] >= len(written) - 1:
                break
            sleep(0.002)
    thread.join()
    delays, at = [], 0
    for number, committed in enumerate(written):
        while at < len(seen) - 1 and seen[at][1] < number:
            at += 1
        delays.append(max(0.0, seen[at][0] - committed))
    return delays


def _compare(found: Sync, folder: Path, urls: tuple[str, str]) -> None:
    command = [
        sys.executable,
        "-m",
        "crossfade",
        "data",
        "verify",
        "-o",
        "json",
        "-c",
        str(folder / "c.yaml"),
    ]
    reladiff = _reladiff(folder)
    if reladiff is None:
        found.left_out["reladiff"] = "it could not be installed"
    # The rows were written a moment ago: whoever reads them first would write hint bits to every page.
    _run(urls[1], "VACUUM ANALYZE wide")
    for what, differ in (("compare, equal", 0), (f"compare, {PLANTED} differences", PLANTED)):
        if differ:
            _run(urls[1], f"UPDATE wide SET d = d || '!' WHERE id % {max(1, found.rows // differ)} = 0")
        took: dict[str, list[float]] = {}
        for _ in range(ROUNDS):
            for who, more in (("crossfade", []), ("crossfade, portable", ["--portable"])):
                began = monotonic()
                said = subprocess.run([*command, *more], capture_output=True, check=False, timeout=PATIENCE)
                took.setdefault(who, []).append(monotonic() - began)
                rows = sum(len(one["differences"]) for one in json.loads(said.stdout)["compared"])
                if abs(rows - differ) > 1:
                    raise NotStartedError(f"data verify found {rows} differences instead of {differ}")
            if reladiff is not None:
                with _over_tcp(urls[0]) as one, _over_tcp(urls[1]) as other:
                    asked = [reladiff, one, "wide", other, "wide", "-k", "id", "-c", "%"]
                    began = monotonic()
                    ended = subprocess.run(
                        asked, capture_output=True, check=False, timeout=PATIENCE, text=True
                    )
                    seconds = monotonic() - began
                told = [line for line in ended.stdout.splitlines() if line[:2] in ("- ", "+ ")]
                keys = {line[2:].partition(",")[0] for line in told}
                # It ends with 0 whatever happens.
                if "ERROR" in ended.stderr or abs(len(keys) - differ) > 1:
                    found.left_out[f"reladiff, {what}"] = (
                        f"it found {len(keys)}: {ended.stderr.strip()[-200:]}"
                    )
                else:
                    took.setdefault("reladiff", []).append(seconds)
        found.seconds[what] = {who: median(each) for who, each in took.items()}


@contextlib.contextmanager
def _over_tcp(url: str) -> Iterator[str]:
    """The same database on a port of 127.0.0.1: reladiff knows no sockets in folders."""
    parts = urlsplit(url)
    path = Path(parse_qs(parts.query)["host"][0]) / ".s.PGSQL.5432"
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = listening.accept()
                    server = socket.socket(socket.AF_UNIX)
                    server.connect(str(path))
                    for one, another in ((client, server), (server, client)):
                        Thread(target=_pass_on, args=(one, another), daemon=True).start()

        Thread(target=accept, daemon=True).start()
        place = f"127.0.0.1:{listening.getsockname()[1]}"
        yield f"postgresql://{parts.username}:{parts.password}@{place}{parts.path}"
        with contextlib.suppress(OSError):
            listening.shutdown(socket.SHUT_RDWR)


def _pass_on(one: socket.socket, another: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := one.recv(1 << 16):
            another.sendall(data)
    with contextlib.suppress(OSError):
        another.shutdown(socket.SHUT_WR)


def _reladiff(folder: Path) -> str | None:
    """Installed for this run only, away from what Crossfade runs with."""
    place = folder / "reladiff"
    uv = Path(sys.executable).with_name("uv")
    for command in (
        [uv, "venv", "--quiet", "--python", sys.executable, place],
        [uv, "pip", "install", "--quiet", "--python", place / "bin" / "python", "reladiff[postgresql]"],
    ):
        if subprocess.run(list(map(str, command)), capture_output=True, check=False).returncode:
            return None
    return str(place / "bin" / "reladiff")


def _native_copy(urls: tuple[str, str], rows: int) -> float:
    _empty(urls[1])
    _run(urls[0], "CREATE PUBLICATION native FOR TABLE wide")
    began = monotonic()
    _run(urls[1], f"CREATE SUBSCRIPTION native CONNECTION '{urls[0]}' PUBLICATION native")
    _until(None, urls[1], "SELECT bool_and(srsubstate = 'r') FROM pg_subscription_rel")
    took = monotonic() - began
    assert _one(urls[1], "SELECT count(*) FROM wide") == rows
    _run(urls[1], "DROP SUBSCRIPTION native")
    _run(urls[0], "DROP PUBLICATION native")
    return took


def _pipe(psql: str, urls: tuple[str, str]) -> None:
    with subprocess.Popen(
        [psql, "-X", "-q", "-c", "COPY wide TO STDOUT (FORMAT binary)", urls[0]], stdout=subprocess.PIPE
    ) as reading:
        subprocess.run(
            [psql, "-X", "-q", "-c", "COPY wide FROM STDIN (FORMAT binary)", urls[1]],
            stdin=reading.stdout, check=True, timeout=PATIENCE,
        )  # fmt: skip


@contextlib.contextmanager
def _syncing(folder: Path, urls: tuple[str, str], mapped: bool) -> Iterator[subprocess.Popen[bytes]]:
    (folder / "migration.py").write_text(_MIGRATION.format(columns=_COLUMNS, mapped=mapped))
    said = {
        "targets": {"legacy": {"url": "http://127.0.0.1:1"}, "new": {"url": "http://127.0.0.1:2"}},
        "code": "migration.py",
        "data": {"legacy": {"url": urls[0]}, "new": {"url": urls[1]}},
    }
    config = folder / "c.yaml"
    config.write_text(json.dumps(said))
    with (folder / "sync.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "crossfade", "sync", "-c", str(config)], stdout=log, stderr=log
        )
    try:
        yield process
    finally:
        os.kill(process.pid, signal.SIGCONT)
        process.kill()
        process.wait()


def _drop_slots(url: str) -> None:
    """The server notices a reader that was killed only after a moment."""
    until = monotonic() + 30
    query = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE NOT active"
    while _one(url, "SELECT count(*) FROM pg_replication_slots"):
        _run(url, query)
        if monotonic() > until:
            raise NotStartedError("a replication slot is still read")
        sleep(0.05)


def _empty(url: str) -> None:
    _run(url, "DROP TABLE IF EXISTS wide", _CREATE)


def _run(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def _one(url: str, query: str) -> object:
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(query.encode()).fetchone()
    return None if row is None else row[0]


def _timed(work: Callable[[], object]) -> float:
    began = monotonic()
    work()
    return monotonic() - began


def _until(process: subprocess.Popen[bytes] | None, url: str, query: str) -> None:
    until = monotonic() + PATIENCE
    with psycopg.connect(url, autocommit=True) as connection:
        while True:
            row = connection.execute(query.encode()).fetchone()
            if row is not None and row[0]:
                return
            if process is not None and process.poll() is not None:
                raise NotStartedError(f"crossfade sync has ended with {process.returncode}")
            if monotonic() > until:
                raise NotStartedError(f"not within {PATIENCE:g} s: {query}")
            sleep(0.01)
