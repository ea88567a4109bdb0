"""`crossfade demo`: the sample product on the move, all of it real and on this machine.

One embedded PostgreSQL, both backends with a database each, a stream that keeps new's like legacy's,
Crossfade before them with the reading of posts on new and the rest on legacy, some people who use it, and a
table of who answered what. Then the switch, forth and back and again (`demo_switch.py`). Each program runs in
a process of its own, as it would in production; this one starts and ends them.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import aiohttp
import psycopg
from prometheus_client.parser import text_string_to_metric_families
from psycopg import sql

from core.metrics import REQUEST_SECONDS, REQUESTS
from crossfade import demo_switch, instance
from crossfade.demo_switch import SwitchError
from crossfade.embedded import launch
from crossfade.embedded.postgres import EmbeddedPostgres, EmbeddedPostgresError
from flags.model import Side

LOAD_SECONDS = 4.0
MOST_TURNS = 60
"""Of each person; whichever of the two is reached first ends the load."""
THINK_SECONDS = 0.03
"""Between two requests of one person, so that the times are those of a service that is not flooded."""
START_TIMEOUT = 30.0
END_TIMEOUT = 10.0
COUNTED_WITHIN = 3.0
"""Seconds after the last answer in which Crossfade must have counted all of them."""

READ, WRITE, REST = "posts.read", "posts.write", "rest"
PEOPLE = ("ada", "moritz", "bea", "chen", "emil", "fatou", "gus", "hana")
PASSWORD = "demo-password"  # noqa: S105 - everybody's, in the sample data
CONFIGURATION = """\
# Written by `crossfade demo`.
listen: 127.0.0.1:0
admin: {{listen: 127.0.0.1:0}}
workers: 2
data_dir: data
access_log: {{path: access.log}}
targets:
  legacy: {{url: "{legacy}"}}
  new:    {{url: "{new}"}}
routes:
  - flag: posts.read
    match: {{methods: [GET, HEAD], path: "/api/posts/**"}}
    target: new
    adapter: {{new: session}}
  - {{flag: posts.write, match: {{path: "/api/posts/**"}}, adapter: {{new: session}}}}
  - {{flag: rest, match: {{path: "/api/**"}}, adapter: {{new: session}}}}
code: {code}
data:
  legacy: {{url: "${{LEGACY_DATABASE}}"}}
  new:    {{url: "${{NEW_DATABASE}}"}}
cutovers:
  shop: {{flags: [posts.read, posts.write, rest]}}
"""
EXPECTED = {READ: Side.NEW, WRITE: Side.LEGACY, REST: Side.LEGACY}
"""What the configuration above promises, by flag."""


class DemoError(Exception):
    """The demo cannot go on; the message is one line."""


def run(serve: bool, folder: Path | None) -> int:
    """The exit code: 0 if no request failed and each was answered by the side that its route names.

    `folder` keeps the data; None takes a temporary folder that ends with the demo. With `serve`
    everything stays up after the table until Ctrl-C.
    """
    # A plain `kill` takes the same way out as Ctrl-C. After kill -9 the kernel ends what we started.
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        with ExitStack() as stack:
            return _run(stack, serve, folder)
    except (DemoError, SwitchError, EmbeddedPostgresError) as error:
        _say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        _say("stopped")
        return 0 if serve else 130
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(stack: ExitStack, serve: bool, folder: Path | None) -> int:
    seed = _find_sample()
    durable = folder is not None
    if folder is None:
        folder = Path(tempfile.mkdtemp(prefix="crossfade-demo-"))
        stack.callback(shutil.rmtree, folder)
    folder = folder.absolute()

    begun = time.monotonic()
    postgres = stack.enter_context(EmbeddedPostgres(folder / "postgres", durable=durable))
    _create_databases(postgres, "legacy", "new")
    _say(f"PostgreSQL after {time.monotonic() - begun:.1f} s")

    legacy = stack.enter_context(
        _program(folder / "legacy.log", "examples.legacy", "--seed", seed, database=postgres.url("legacy"))
    )
    new = stack.enter_context(
        _program(folder / "new.log", "new_backend", "--migrate", "--seed", seed, database=postgres.url("new"))
    )
    urls = {Side.LEGACY: legacy.address(), Side.NEW: new.address()}
    _say(f"legacy on {urls[Side.LEGACY]} and new on {urls[Side.NEW]} after {time.monotonic() - begun:.1f} s")

    with psycopg.connect(postgres.url("legacy"), autocommit=True) as connection:
        connection.execute((Path(seed).parent / "copies.sql").read_bytes())
    # By the environment: a file would show the password, and so would the command lines.
    databases = {side.value: postgres.url(side.value) for side in Side}
    os.environ.update({f"{side.upper()}_DATABASE": url for side, url in databases.items()})
    config = folder / "crossfade.yaml"
    code = Path(seed).parent / "migration.py"
    text = CONFIGURATION.format(legacy=urls[Side.LEGACY], new=urls[Side.NEW], code=code)
    config.write_text(text, encoding="utf-8")
    ours = ("-c", str(config))
    stack.enter_context(_program(folder / "sync-new.log", "crossfade", "sync", "--towards", "new", *ours))
    crossfade = stack.enter_context(_program(folder / "crossfade.log", "crossfade", "up", *ours))
    front, admin = _wait_until_ready(crossfade, config)
    _say(f"crossfade on {front}, admin on {admin} after {time.monotonic() - begun:.1f} s")

    demo_switch.until_it_follows(config, "new")
    _say(f"new's database is like legacy's after {time.monotonic() - begun:.1f} s")
    way_back = ("crossfade", "sync", "--towards", "legacy", *ours)
    if demo_switch.is_prepared(config):
        stack.enter_context(_program(folder / "sync-legacy.log", *way_back))
        demo_switch.go_home(config)

    _say(f"{len(PEOPLE)} people use it for {LOAD_SECONDS:.0f} s")
    seen = asyncio.run(_load(front, urls))
    counted = _wait_until_counted(admin, seen)
    for line in table(seen, counted):
        _print(line)
    wrong = verdict(seen, counted)
    for line in wrong:
        _print(f"WRONG: {line}")
    if not wrong:
        total = sum(len(times) for times in seen.seconds.values())
        _print(f"{total} requests, none failed, each answered by the side that its route names")
        _print("")
        if not demo_switch.is_prepared(config):
            _print("$ crossfade cutover prepare shop --reason demo")
            demo_switch.prepare(config)
            stack.enter_context(_program(folder / "sync-legacy.log", *way_back))
        demo_switch.until_it_follows(config, "legacy")
        wrong = asyncio.run(demo_switch.play(front, config, databases, PEOPLE, PASSWORD, _print))
        for line in wrong:
            _print(f"WRONG: {line}")
    if serve:
        _print("")
        for name, address in (
            ("the product", f"{front}/api/posts"),
            ("admin", admin),
            ("metrics", f"{admin}/metrics"),
        ):
            _print(f"{name:12} {address}")
        for side, url in urls.items():
            _print(f"{side + ' alone':12} {url}")
        _print(f"{'folder':12} {folder}")
        _say("running until Ctrl-C")
        crossfade.process.wait()
        raise crossfade.failed("ended")
    return 1 if wrong else 0


# What the people saw, what Crossfade counted, and whether that is as it should be.


@dataclass(slots=True)
class Seen:
    """The load's own view: times and failures by flag and side."""

    seconds: dict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    failures: dict[tuple[str, str], Counter[str]] = field(default_factory=lambda: defaultdict(Counter))


@dataclass(frozen=True, slots=True)
class Counted:
    """What `/metrics` says of one flag and side: answers, and how many took at most so many seconds."""

    requests: int
    buckets: tuple[tuple[float, float], ...]


def table(seen: Seen, counted: Mapping[tuple[str, str], Counted]) -> Iterator[str]:
    """Who answered what, as the people saw it and as Crossfade counted it; times in milliseconds."""
    line = "{:14}{:12}{:>8}{:>8}{:>9}{:>9}   {:>8}{:>9}{:>9}".format
    yield f"{'':26}{'as the clients saw it':^34}   {'as crossfade counted it':^26}".rstrip()
    times = ("p50 ms", "p99 ms")
    yield line("flag", "answered by", "requests", "failed", *times, "requests", *times)
    for key in sorted({*seen.seconds, *seen.failures, *counted}):
        theirs = sorted(seen.seconds.get(key, ()))
        failed = sum(seen.failures.get(key, Counter()).values())
        ours = counted.get(key, Counted(0, ()))
        yield line(
            *key,
            *(len(theirs), failed, _ms(_rank(theirs, 0.5)), _ms(_rank(theirs, 0.99))),
            *(ours.requests, _ms(_within(ours.buckets, 0.5)), _ms(_within(ours.buckets, 0.99))),
        )


def verdict(seen: Seen, counted: Mapping[tuple[str, str], Counted]) -> list[str]:
    """Every way in which this was not a good demo; empty if it was."""
    wrong = []
    for (flag, side), failures in sorted(seen.failures.items()):
        wrong += [f"{flag} by {side}: {number} x {what}" for what, number in failures.most_common()]
    for flag, expected in EXPECTED.items():
        answered = {side for (of, side), times in seen.seconds.items() if of == flag and times}
        if answered != {expected.value}:
            wrong.append(
                f"{flag} was answered by {' and '.join(sorted(answered)) or 'nobody'}, not by {expected}"
            )
    numbers = {key: len(times) for key, times in seen.seconds.items() if times}
    if numbers != (ours := {key: value.requests for key, value in counted.items()}):
        wrong.append(f"the clients got {numbers}, crossfade counted {ours}")
    return wrong


def _rank(times: Sequence[float], share: float) -> float | None:
    return times[min(len(times) - 1, int(len(times) * share))] if times else None


def _within(buckets: Sequence[tuple[float, float]], share: float) -> float | None:
    """A quantile of a cumulated histogram, straight within its bucket, as Prometheus reckons it."""
    if not buckets or not buckets[-1][1]:
        return None
    wanted = buckets[-1][1] * share
    low, before = 0.0, 0.0
    for high, number in buckets:
        if number >= wanted:
            return low if high == float("inf") else low + (high - low) * (wanted - before) / (number - before)
        low, before = high, number
    return low


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.1f}"


# The load.


@dataclass(frozen=True, slots=True)
class Step:
    """One request of a person, the flag that should govern it, and the status that it should get."""

    flag: str
    method: str
    path: str
    status: int = 200
    json: Mapping[str, Any] | None = None


async def _load(front: str, urls: Mapping[Side, str]) -> Seen:
    seen = Seen()
    timeout = aiohttp.ClientTimeout(total=10)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        # Crossfade adds nothing to an answer, so who gave it is told by how each backend signs its own.
        signatures = {await _signature(session, url): side.value for side, url in urls.items()}
    if len(signatures) != len(urls):
        raise DemoError("the two backends cannot be told apart by the Server field of their answers")
    end = time.monotonic() + LOAD_SECONDS
    await asyncio.gather(*(_person(number, front, signatures, seen, end) for number in range(len(PEOPLE))))
    return seen


async def _signature(session: aiohttp.ClientSession, url: str) -> str:
    async with session.get(f"{url}/api/posts") as answer:
        return answer.headers.get("Server", "")


async def _person(number: int, front: str, signatures: Mapping[str, str], seen: Seen, end: float) -> None:
    """Log in, read and write until the time is over, log out; on one connection."""
    async with aiohttp.ClientSession(
        front,
        timeout=aiohttp.ClientTimeout(total=10),
        connector=aiohttp.TCPConnector(limit=1),
        cookie_jar=aiohttp.CookieJar(unsafe=True),  # the session cookie of an address without a name
    ) as session:
        credentials = {"username": PEOPLE[number], "password": PASSWORD}
        await _take(session, Step(REST, "POST", "/api/session", 201, credentials), signatures, seen)
        for turn in range(MOST_TURNS):
            if time.monotonic() > end:
                break
            for step in _turn(number, turn):
                await asyncio.sleep(THINK_SECONDS)
                await _take(session, step, signatures, seen)
        await _take(session, Step(REST, "DELETE", "/api/session", 204), signatures, seen)


def _turn(number: int, turn: int) -> Iterator[Step]:
    post = 1 + (number + turn) % 12  # of the sample's 30; some later ones have been removed
    yield Step(READ, "GET", "/api/posts")
    yield Step(READ, "GET", "/api/posts?limit=5")
    yield Step(READ, "GET", f"/api/posts/{post}")
    yield Step(READ, "GET", f"/api/posts/{post}/comments")
    yield Step(READ, "HEAD", f"/api/posts/{post}")
    yield Step(REST, "GET", "/api/me")
    yield Step(REST, "GET", f"/api/accounts/{1 + turn % 8}")
    yield Step(REST, "GET", "/api/wallet")
    if turn % 4 == 0:
        yield Step(WRITE, "POST", f"/api/posts/{post}/comments", 201, {"body": "Written during a move."})
        receiver = 1 + (number + 1) % 4
        if receiver != number + 1:
            order = {"to_account_id": receiver, "amount_cents": 1, "note": "for the demo"}
            yield Step(REST, "POST", "/api/transfers", 201, order)


async def _take(
    session: aiohttp.ClientSession, step: Step, signatures: Mapping[str, str], seen: Seen
) -> None:
    begun = time.perf_counter()
    try:
        async with session.request(step.method, step.path, json=step.json) as answer:
            await answer.read()
    except (aiohttp.ClientError, TimeoutError) as error:
        seen.failures[step.flag, "nobody"][f"{step.method} {step.path}: {type(error).__name__} {error}"] += 1
        return
    side = signatures.get(answer.headers.get("Server", ""), "crossfade")
    seen.seconds[step.flag, side].append(time.perf_counter() - begun)
    if answer.status != step.status:
        seen.failures[step.flag, side][f"{step.method} {step.path}: {answer.status}, not {step.status}"] += 1


# What Crossfade counted.


def _wait_until_counted(admin: str, seen: Seen) -> dict[tuple[str, str], Counted]:
    """The metrics, once they hold all that the people saw; after a while, as they are.

    An answer is counted when its last byte has gone out, which can be after its reader had it.
    """
    wanted = sum(map(len, seen.seconds.values()))
    deadline = time.monotonic() + COUNTED_WITHIN
    while True:
        counted = _counted(_get(f"{admin}/metrics"))
        if sum(value.requests for value in counted.values()) >= wanted or time.monotonic() > deadline:
            return counted
        time.sleep(0.05)


def _counted(metrics: str) -> dict[tuple[str, str], Counted]:
    requests: Counter[tuple[str, str]] = Counter()
    buckets: dict[tuple[str, str], dict[float, float]] = defaultdict(dict)
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            key = sample.labels.get("flag", ""), sample.labels.get("side", "")
            if sample.name == REQUESTS.name:
                requests[key] += int(sample.value)
            elif sample.name == f"{REQUEST_SECONDS.name}_bucket":
                buckets[key][float(sample.labels["le"])] = sample.value
    return {key: Counted(number, tuple(sorted(buckets[key].items()))) for key, number in requests.items()}


# The programs.


@dataclass(frozen=True, slots=True)
class Program:
    """A running program; what it says on stderr goes to `log`."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def address(self) -> str:
        """What it announces as the first line of its output, `listening on http://127.0.0.1:PORT`."""
        output = self.process.stdout
        assert output is not None
        ready, _, _ = select.select([output], [], [], START_TIMEOUT)
        line = output.readline().decode().strip() if ready else ""
        said, found, address = line.partition("listening on ")
        if said or not found:
            raise self.failed("did not start")
        return address

    def failed(self, what: str) -> DemoError:
        """The error that says so; what the program said itself is shown first, for its file may go."""
        for line in self.log.read_text(errors="replace").splitlines()[-20:]:
            _say(f"{self.name}: {line}")
        return DemoError(f"{self.name} {what}")


@contextmanager
def _program(log: Path, module: str, *arguments: str, database: str | None = None) -> Iterator[Program]:
    """Run `python -m MODULE ARG…` until the end of the block, or of this process if that comes first.

    `database` is a URL with a password in it, so it goes by the environment.
    """
    secrets = {} if database is None else {"DATABASE_URL": database}
    # -P: nothing in the current folder may be imported in place of what is installed.
    command = launch.command("self", sys.executable, "-P", "-m", module, *arguments)
    with (
        log.open("ab") as errors,
        subprocess.Popen(  # noqa: S603
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd=log.parent,
            env=os.environ | secrets,
        ) as process,
    ):
        try:
            yield Program(module, process, log)
        finally:
            process.terminate()
            try:
                process.wait(END_TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()


def _find_sample() -> str:
    """The file of sample data, beside the legacy backend; neither backend is ever imported here."""
    rooms = {}
    for name in ("examples", "new_backend"):
        spec = importlib.util.find_spec(name)
        rooms[name] = Path(next(iter(spec.submodule_search_locations or ()), "")) if spec else Path()
    seed = rooms["examples"] / "seed.json"
    needed = (seed, rooms["examples"] / "legacy" / "__main__.py", rooms["new_backend"] / "__main__.py")
    if not all(path.is_file() for path in needed):
        raise DemoError(
            "the sample backends are not installed here; run `make demo` in a clone of the repository"
        )
    return str(seed)


def _create_databases(postgres: EmbeddedPostgres, *names: str) -> None:
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        there = {row[0] for row in connection.execute("SELECT datname FROM pg_database")}
        for name in names:
            if name not in there:
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))


def _wait_until_ready(crossfade: Program, config: Path) -> tuple[str, str]:
    """The addresses of the proxy and of the admin API, once the latter says that all is ready."""
    deadline = time.monotonic() + START_TIMEOUT
    data_dir = config.parent / "data"
    while time.monotonic() < deadline:
        if crossfade.process.poll() is not None:
            break
        try:
            status = instance.ask(data_dir, {"do": "status", "config": str(config)}, 5.0)["status"]
            admin = f"http://{status['admin']}"
            if json.loads(_get(f"{admin}/readyz"))["ready"]:
                return f"http://{status['listen'][0]}", admin
        except (instance.NothingRunningError, instance.NoAnswerError, OSError):  # not yet
            pass
        time.sleep(0.05)
    raise crossfade.failed("did not become ready")


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - our own http:// address
        return str(answer.read().decode())


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _say(line: str) -> None:
    sys.stderr.write(f"demo: {line}\n")
    sys.stderr.flush()
