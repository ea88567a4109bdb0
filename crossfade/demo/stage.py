"""Where the demo plays: one PostgreSQL, both backends, the streams between their databases, and Crossfade.

The configuration is one that anybody could write; commands are run in its folder, as anybody would run them.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import tempfile
import time
import urllib.request
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psycopg
from prometheus_client.parser import text_string_to_metric_families
from psycopg import sql

from core.metrics import FALLBACKS, REQUESTS, SYNC_LAG
from crossfade import instance
from crossfade.commands.api import Api, ApiError
from crossfade.demo.programs import DemoError, Program, program
from crossfade.embedded.postgres import EmbeddedPostgres
from flags.model import Side

FLAG, CUTOVER = "reads", "shop"
READY_WITHIN = 60.0
"""Seconds."""
GOOD, MISCOUNTS, FAILS = "1.0", "1.0-rc1", "1.1-rc1"
"""Releases of the new service, as `new_backend/releases.py` has them; only the first is meant well."""

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
  - {{flag: reads, match: {{methods: [GET, HEAD], path: "/api/posts"}}, adapter: {{new: session}}}}
  - {{flag: reads, match: {{methods: [GET, HEAD], path: "/api/posts/{{post}}"}}, adapter: {{new: session}}}}
  - {{flag: reads, match: {{methods: [GET, HEAD], path: "/api/posts/{{post}}/comments"}}, adapter: {{new: session}}}}
  - {{flag: reads, match: {{methods: [GET, HEAD], path: "/api/accounts/{{account}}"}}, adapter: {{new: session}}}}
  - {{flag: reads, match: {{methods: [GET, HEAD], path: "/api/**"}}, adapter: {{new: session}}}}
  - {{flag: writes, match: {{path: "/api/**"}}, adapter: {{new: session}}}}
# Nothing in these answers is random, so legacy need not be asked twice to learn what is. No more is mirrored
# at once than new has connections to its database.
shadow: {{ask_again: 0, in_flight: 4}}
code: {code}
data:
  legacy: {{url: "file:legacy.url"}}
  new:    {{url: "file:new.url"}}
cutovers:
  shop: {{flags: [reads, writes], read_your_writes: true}}
"""  # noqa: E501  (one route, one line)


class Says(Protocol):
    def talk(self, line: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Sample:
    """Files of the sample product; neither backend is ever imported here."""

    seed: Path
    copies: Path
    migration: Path
    people: Path


def find_sample() -> Sample:
    """Raises DemoError."""
    rooms = {}
    for name in ("examples", "new_backend"):
        spec = importlib.util.find_spec(name)
        rooms[name] = Path(next(iter(spec.submodule_search_locations or ()), "")) if spec else Path()
    examples = rooms["examples"]
    found = Sample(*(examples / name for name in ("seed.json", "copies.sql", "migration.py", "people.py")))
    needed = (
        found.seed,
        found.people,
        examples / "legacy" / "__main__.py",
        rooms["new_backend"] / "releases.py",
    )
    if not all(path.is_file() for path in needed):
        raise DemoError(
            "the sample backends are not installed here; run `make demo` in a clone of the repository"
        )
    return found


@contextmanager
def folder_for(kept: Path | None, left: str) -> Iterator[Path]:
    """`kept`, or a temporary folder that ends with the block, but for the file named `left`."""
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept.absolute()
        return
    folder = Path(tempfile.mkdtemp(prefix="crossfade-demo-"))
    try:
        yield folder
    finally:
        for entry in folder.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry.name != left:
                entry.unlink()
        if not any(folder.iterdir()):
            folder.rmdir()


class Stage:
    """All that runs. To be used from the main thread where it starts or ends a program."""

    def __init__(self, stack: ExitStack, folder: Path, databases: Mapping[str, str]) -> None:
        self.folder = folder
        self.config = folder / "crossfade.yaml"
        self.databases = databases
        self.front = self.admin = ""
        self.backends: dict[str, str] = {}
        """The address of each side's backend."""
        self._stack = stack
        self._running: dict[str, Program] = {}
        self._api: Api | None = None
        self._lags: dict[str, str] = {}

    # Starting and ending.

    def start_legacy(self, sample: Sample) -> None:
        self._start("legacy", "examples.legacy", "--seed", str(sample.seed), database="legacy")
        self.backends["legacy"] = self._running["legacy"].address()

    def deploy(self, release: str, *arguments: str) -> None:
        """The release takes the port over; the one before it ends what it has begun, and ends."""
        before = self._running.pop("new", None)
        port = self.backends["new"].rpartition(":")[2] if before else "0"
        given = ("--reuse-port", "--port", port, "--release", release, *arguments)
        self._start("new", "new_backend", *given, database="new")
        self.backends["new"] = self._running["new"].address()
        if before is not None:
            before.end()

    def sync(self, towards: str) -> None:
        """A process that keeps that side's database like the other's, if there is none yet."""
        name = f"sync-{towards}"
        if name not in self._running:
            self._start(name, "crossfade", "sync", "--towards", towards, "--metrics", "127.0.0.1:0")
            self._lags[towards] = f"http://{self._running[name].logged('metrics')}/metrics"

    def start_crossfade(self) -> None:
        self._start("crossfade", "crossfade", "up")
        crossfade = self._running["crossfade"]
        deadline = time.monotonic() + READY_WITHIN
        while time.monotonic() < deadline and crossfade.process.poll() is None:
            try:
                order = {"do": "status", "config": str(self.config)}
                status = instance.ask(self.folder / "data", order, 5.0)["status"]
                self.front, self.admin = f"http://{status['listen'][0]}", f"http://{status['admin']}"
                if json.loads(_get(f"{self.admin}/readyz"))["ready"]:
                    # Also whatever needs the store.
                    self.flag()
                    return
            except (instance.NothingRunningError, instance.NoAnswerError, ApiError, OSError):  # not yet
                pass
            time.sleep(0.05)
        raise crossfade.failed("did not become ready")

    def must_live(self) -> None:
        for running in list(self._running.values()):
            running.must_live()

    def wait_for_ever(self) -> None:
        while True:
            self.must_live()
            time.sleep(0.5)

    def _start(self, name: str, module: str, *arguments: str, database: str | None = None) -> None:
        environment = {} if database is None else {"DATABASE_URL": self.databases[database]}
        log = self.folder / f"{name}.{sum(1 for _ in self.folder.glob(f'{name}.*.log'))}.log"
        self._running[name] = self._stack.enter_context(
            program(log, module, *arguments, environment=environment)
        )

    # Looking.

    def ask(self, path: str, **query: str | float) -> dict[str, Any]:
        """What the admin API answers. Raises ApiError."""
        if self._api is None:
            self._api = Api.of(Namespace(config=self.config, api=None, token=None))
        return self._api.get(path, **query)

    def flag(self) -> dict[str, Any]:
        return self.ask(f"/api/v1/flags/{FLAG}")

    def cutover(self) -> dict[str, Any]:
        return self.ask(f"/api/v1/cutovers/{CUTOVER}")

    def answered(self) -> Counter[str]:
        """Requests that Crossfade has answered, by side. Raises OSError."""
        return self._counted(REQUESTS.name, "side")

    def by_reason(self) -> Counter[str]:
        """The same, by why that side was chosen. Raises OSError."""
        return self._counted(REQUESTS.name, "reason")

    def covered(self) -> int:
        """How many failures of new legacy has answered for. Raises OSError."""
        return self._counted(FALLBACKS.name, "outcome")["taken"]

    def lag(self) -> float | None:
        """Seconds that the side without the authority is behind. Raises ApiError and OSError."""
        towards = "legacy" if self.cutover()["side"] == "new" else "new"
        if (page := self._lags.get(towards)) is None:
            return None
        found = [value for _, value in _samples(_get(page), SYNC_LAG.name)]
        return found[0] if found else None

    def _counted(self, metric: str, label: str) -> Counter[str]:
        found: Counter[str] = Counter()
        for labels, value in _samples(_get(f"{self.admin}/metrics"), metric):
            found[labels[label]] += int(value)
        return found


def set_up(stack: ExitStack, folder: Path, sample: Sample, says: Says, *, durable: bool) -> Stage:
    """Everything but the streams. Raises DemoError and EmbeddedPostgresError."""
    begun = time.monotonic()
    postgres = stack.enter_context(EmbeddedPostgres(folder / "postgres", durable=durable))
    _create_databases(postgres, *Side)
    stage = Stage(stack, folder, {side.value: postgres.url(side) for side in Side})
    for side, url in stage.databases.items():
        _write_secret(folder / f"{side}.url", url)
    says.talk(f"PostgreSQL after {time.monotonic() - begun:.1f} s")

    stage.start_legacy(sample)
    # Without the sample data: what is in new comes from legacy.
    stage.deploy(MISCOUNTS, "--migrate")
    with psycopg.connect(stage.databases["legacy"], autocommit=True) as connection:
        connection.execute(sample.copies.read_bytes())
        # As any database that has been there for a while, it knows about how many rows it has.
        connection.execute("ANALYZE")
    legacy, new = stage.backends["legacy"], stage.backends["new"]
    says.talk(f"legacy on {legacy} and new on {new} after {time.monotonic() - begun:.1f} s")

    text = CONFIGURATION.format(legacy=legacy, new=new, code=sample.migration)
    stage.config.write_text(text, encoding="utf-8")
    stage.start_crossfade()
    says.talk(f"crossfade on {stage.front}, admin on {stage.admin} after {time.monotonic() - begun:.1f} s")
    return stage


def _create_databases(postgres: EmbeddedPostgres, *names: str) -> None:
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        there = {row[0] for row in connection.execute("SELECT datname FROM pg_database")}
        for name in names:
            if name not in there:
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))


def _write_secret(path: Path, text: str) -> None:
    """For `file:` in the configuration: there is a password in it."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)


def _samples(page: str, name: str) -> Iterator[tuple[dict[str, str], float]]:
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name == name:
                yield sample.labels, sample.value


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - our own http:// address
        return str(answer.read().decode())
