"""The night of the switch: the sample product behind Crossfade, both streams, and people who go on.

Everything is a real process. The people know what they were told, and after it is over they compare that with
both databases: every write that was acknowledged is there once, none that nobody has made, and no session has
ever read less than it had read or written before.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psycopg

from crossfade.embedded.postgres import EmbeddedPostgres
from tests.cutover.clocks import Clocks
from tests.sample.backends import PASSWORD, SAMPLE, Backend
from tests.support.crossfade_process import PATIENCE, Finished, RunningCrossfade, running_crossfade
from tests.support.databases import fresh_database
from tests.support.sample_databases import legacy_database, new_database

CUTOVER = "shop"
MIGRATION = Path(__file__).parents[2] / "examples" / "migration.py"
PEOPLE = [row["username"] for row in SAMPLE["accounts"]][:6]
IDS = {row["username"]: row["id"] for row in SAMPLE["accounts"]}
WALKS_WITHIN = 120.0
"""Seconds."""
_numbers = itertools.count()


@dataclass
class Person:
    """One session: what it was told, in order."""

    name: str
    token: str
    posts: list[int] = field(default_factory=list)
    """Its own, by their ids, that were acknowledged."""
    titles: dict[str, int] = field(default_factory=dict)
    transfers: dict[str, int] = field(default_factory=dict)
    """By idempotency key."""
    newest: int = 0
    """The highest id of a post, of whomever, that it has seen."""
    note: str | None = None
    """A cookie that says that it has written."""
    unsure: set[str] = field(default_factory=set)
    """Titles and keys that were sent and not answered."""


@dataclass
class Load:
    """What all people saw."""

    people: list[Person] = field(default_factory=list)
    answers: int = 0
    failures: list[str] = field(default_factory=list)
    backwards: list[str] = field(default_factory=list)
    slowest: float = 0.0
    stopping: bool = False
    lenient: bool = False
    """A worker may be gone: a connection that breaks off is no failure, and what it asked for is unsure."""
    broken: int = 0
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def grows_by(self, number: int) -> None:
        goal = self.answers + number
        async with asyncio.timeout(PATIENCE):
            while self.answers < goal and not self.failures:  # noqa: ASYNC110  (clients count here)
                await asyncio.sleep(0.005)

    async def stop(self) -> None:
        self.stopping = True
        for task in self.tasks:
            await task

    def must_be_fine(self) -> None:
        assert not self.failures, self.failures[:5]
        assert not self.backwards, self.backwards[:5]


class Night:
    def __init__(
        self,
        cf: RunningCrossfade,
        legacy: Backend,
        new: Backend,
        urls: dict[str, str],
        store_url: str,
        clocks: Clocks,
    ) -> None:
        self.cf = cf
        self.legacy = legacy
        self.new = new
        self.urls = urls
        self.store_url = store_url
        self.clocks = clocks
        self.known: dict[str, Any] = {}
        self.workers: list[int] = []
        self.last_walk = 0
        """As `look_around` has found them: asking takes longer than a state lasts."""
        self.streams: dict[str, asyncio.subprocess.Process] = {}

    async def sync(self, towards: str) -> None:
        """A process that works on the stream towards one side."""
        log = (self.cf.config_path.parent / f"sync-{towards}.log").open("ab")
        with log:
            command = ["-m", "crossfade", "sync", "--towards", towards, "-c", str(self.cf.config_path)]
            self.streams[towards] = await asyncio.create_subprocess_exec(
                sys.executable,
                *command,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.clocks.environment},
            )

    async def end_sync(self, towards: str, signum: int = signal.SIGKILL) -> None:
        process = self.streams.pop(towards)
        if process.returncode is None:
            process.send_signal(signum)
        await process.wait()

    async def follows(self, towards: str) -> None:
        async with asyncio.timeout(60):
            while True:
                done = await self.cf.command("data", "status", "--towards", towards, "-o", "json")
                if done.out and json.loads(done.out)["state"] == "following":
                    return
                await asyncio.sleep(0.1)

    async def look_around(self) -> None:
        self.known = await self.cf.until(lambda status: bool(status["control_pid"]))
        self.workers = [one["pid"] for one in self.known["workers"] if one["state"] == "ready"]
        async with await psycopg.AsyncConnection.connect(self.store_url) as connection:
            query = "SELECT coalesce(max(id), 0) FROM crossfade_store.cutovers"
            row = await (await connection.execute(query)).fetchone()
            assert row is not None
            self.last_walk = row[0]

    async def is_up(self) -> None:
        """The control process has found the store, and the store knows the flag."""
        async with asyncio.timeout(PATIENCE):
            while "shop" not in (await self.cf.command("flag", "list")).out:  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    async def prepare(self) -> None:
        """Up to the point where nothing stands against the switch."""
        await self.sync("new")
        await self.follows("new")
        await self.does("prepare")
        await self.sync("legacy")
        await self.follows("legacy")

    async def cutover(self, what: str, *more: str) -> tuple[int, Any]:
        """Exit code, and the answer. A busy machine may be behind for a moment: a walk that is refused for
        that has not begun, and is asked for again."""
        reason = [] if what in ("plan", "status") else ["--reason", "a test"]
        words = ["cutover", what, CUTOVER, *reason, *more, "-o", "json"]
        async with asyncio.timeout(WALKS_WITHIN):
            while True:
                done: Finished = await self.cf.command(*words, within=WALKS_WITHIN)
                assert done.out or done.err, done
                answer = json.loads(done.out or done.err.strip().splitlines()[-1])
                if what not in ("run", "back") or not _passes(answer):
                    return done.code, answer

    async def does(self, what: str, *more: str, code: int = 0) -> Any:
        found, answer = await self.cutover(what, *more)
        assert found == code, (found, answer, self.cf.log()[-3000:])
        return answer

    async def is_possible(self) -> None:
        """Nothing stands against a switch any more."""
        async with asyncio.timeout(60):
            while (await self.cutover("plan"))[0]:  # noqa: ASYNC110  (two databases say it)
                await asyncio.sleep(0.1)

    async def is_asked_to_abort(self) -> None:
        """The walk that is under way has heard that somebody wants it to end."""
        query = "SELECT abort IS NOT NULL FROM crossfade_store.cutovers WHERE ended_at IS NULL"
        async with await psycopg.AsyncConnection.connect(self.store_url, autocommit=True) as connection:
            async with asyncio.timeout(PATIENCE):
                while await (await connection.execute(query)).fetchone() != (True,):  # noqa: ASYNC110
                    await asyncio.sleep(0.005)

    async def side(self) -> str:
        answer = await self.does("status")
        side: str = answer["side"]
        return side

    @contextlib.asynccontextmanager
    async def people(self, rest: float = 0.0, number: int = 6) -> AsyncIterator[Load]:
        """They read, write and transfer until this ends."""
        load = Load()
        base = f"http://127.0.0.1:{self.cf.port}"
        timeout = aiohttp.ClientTimeout(total=30)
        async with aiohttp.ClientSession(
            base, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()
        ) as session:
            for name in itertools.islice(itertools.cycle(PEOPLE), number):
                load.people.append(Person(name, await _logged_in(session, name)))
            load.tasks = [asyncio.create_task(_live(session, load, person, rest)) for person in load.people]
            try:
                yield load
            finally:
                await load.stop()

    async def settled(self) -> None:
        """Both streams have brought all there is."""
        async with asyncio.timeout(60):
            for source, looking, stream in (("legacy", "new", "to_new"), ("new", "legacy", "to_legacy")):
                async with (
                    await psycopg.AsyncConnection.connect(self.urls[source], autocommit=True) as one,
                    await psycopg.AsyncConnection.connect(self.urls[looking], autocommit=True) as other,
                ):
                    row = await (await one.execute("SELECT pg_current_wal_insert_lsn()")).fetchone()
                    await one.execute("SELECT pg_logical_emit_message(true, 'test', '')")
                    assert row is not None
                    query = "SELECT applied >= %s::pg_lsn FROM crossfade_sync.streams WHERE name = %s"
                    while not (await (await other.execute(query, (row[0], stream))).fetchone() or [None])[0]:  # noqa: ASYNC110
                        await asyncio.sleep(0.01)

    async def nothing_is_lost(self, load: Load) -> None:
        """Every history against both databases."""
        await self.settled()
        for side, posts, transfers in (
            (
                "legacy",
                "SELECT post_id, title FROM posts WHERE deleted = 'N'",
                "SELECT idem_key FROM transfers",
            ),
            ("new", "SELECT id, title FROM posts", "SELECT idempotency_key FROM transfers"),
        ):
            async with await psycopg.AsyncConnection.connect(self.urls[side]) as connection:
                there = await (await connection.execute(posts.encode())).fetchall()  # type: ignore[arg-type]
                keys = [key for (key,) in await (await connection.execute(transfers.encode())).fetchall()]  # type: ignore[arg-type]
            titles = [title for _, title in there if title.startswith("night-")]
            assert len(titles) == len(set(titles)), f"{side} has a post twice"
            for person in load.people:
                for title, number in person.titles.items():
                    assert (number, title) in there, f"{side} lacks {title} ({number})"
                for key in person.transfers:
                    assert keys.count(key) == 1, f"{side} has the transfer {key} {keys.count(key)} times"
            known = {
                one for person in load.people for one in (*person.titles, *person.transfers, *person.unsure)
            }
            written = [*titles, *(key for key in keys if key is not None and key.startswith("night-"))]
            assert len(written) == len(set(written)), f"{side} has something twice"
            assert set(written) <= known, f"{side} has what nobody has written"
        await self.money_is_right()

    async def money_is_right(self) -> None:
        sums = []
        for side, query in (
            ("legacy", "SELECT sum(balance::bigint) FROM users WHERE deleted = 'N'"),
            ("new", "SELECT sum(balance_cents) FROM wallets"),
        ):
            async with await psycopg.AsyncConnection.connect(self.urls[side]) as connection:
                row = await (await connection.execute(query.encode())).fetchone()  # type: ignore[arg-type]
                assert row is not None
                sums.append(int(row[0]))
        assert sums[0] == sums[1] == sum(row["balance_cents"] for row in SAMPLE["accounts"]), sums

    async def both_are_equal(self) -> None:
        done = await self.cf.command("data", "verify", "-o", "json")
        assert done.code == 0, done


def _passes(answer: Any) -> bool:
    """Whether a walk was refused for nothing but what passes by itself."""
    reasons = re.findall(r"(?:^|\); )(\w+): ", answer["message"]) if answer.get("error") == "blocked" else []
    return bool(reasons) and {"lag", "workers", "long_transaction"}.issuperset(reasons)


async def _logged_in(session: aiohttp.ClientSession, name: str) -> str:
    async with session.post("/api/session", json={"username": name, "password": PASSWORD}) as answer:
        assert answer.status == 201, await answer.text()
        cookie = answer.cookies.get("sid")
        if cookie is not None:
            return cookie.value
        token: str = (await answer.json())["token"]
        return token


async def _live(session: aiohttp.ClientSession, load: Load, person: Person, rest: float) -> None:
    chance = random.Random(person.name)
    while not load.stopping:
        began = time.monotonic()
        act = chance.random()
        try:
            if act < 0.3:
                await _write(session, load, person)
            elif act < 0.5:
                await _transfer(
                    session, load, person, chance.choice([one for one in PEOPLE if one != person.name])
                )
            elif act < 0.75:
                await _read(session, load, person)
            else:
                await _read_the_newest(session, load, person)
        except (aiohttp.ClientError, OSError) as error:
            if load.lenient and not isinstance(error, TimeoutError):
                load.broken += 1
            else:
                load.failures.append(f"{person.name}: {error!r}")
        load.answers += 1
        load.slowest = max(load.slowest, time.monotonic() - began)
        if rest:
            await asyncio.sleep(rest)


def _as(person: Person, **more: str) -> dict[str, str]:
    note = "" if person.note is None else f"; crossfade_w={person.note}"
    return {"Cookie": f"sid={person.token}{note}", **more}


def _noted(person: Person, answer: aiohttp.ClientResponse) -> None:
    note = answer.cookies.get("crossfade_w")
    person.note = person.note if note is None else note.value


async def _write(session: aiohttp.ClientSession, load: Load, person: Person) -> None:
    title = f"night-{next(_numbers)}"
    person.unsure.add(title)
    body = {"title": title, "body": "as it was", "tags": ["night", f"of-{person.name}"]}
    async with session.post("/api/posts", json=body, headers=_as(person)) as answer:
        _noted(person, answer)
        if answer.status != 201:
            load.failures.append(f"post {title}: {answer.status} {(await answer.text())[:200]}")
            return
        number = (await answer.json())["id"]
    person.unsure.discard(title)
    person.titles[title] = number
    person.posts.append(number)


async def _transfer(session: aiohttp.ClientSession, load: Load, person: Person, to: str) -> None:
    key = f"night-{next(_numbers)}"
    person.unsure.add(key)
    body = {"to_account_id": IDS[to], "amount_cents": 1}
    headers = _as(person, **{"Idempotency-Key": key})
    async with session.post("/api/transfers", json=body, headers=headers) as answer:
        _noted(person, answer)
        if answer.status == 409 and "funds" in await answer.text():
            return
        if answer.status != 201:
            load.failures.append(f"transfer {key}: {answer.status} {(await answer.text())[:200]}")
            return
        person.transfers[key] = (await answer.json())["id"]
    person.unsure.discard(key)


async def _read_the_newest(session: aiohttp.ClientSession, load: Load, person: Person) -> None:
    """Whoever wrote it: what a session has seen once is there the next time."""
    async with session.get("/api/posts?limit=10", headers=_as(person)) as answer:
        _noted(person, answer)
        if answer.status != 200:
            load.failures.append(f"list: {answer.status} {(await answer.text())[:200]}")
            return
        newest = max(post["id"] for post in (await answer.json())["items"])
    if newest < person.newest:
        load.backwards.append(f"{person.name} saw post {person.newest}, and then none after {newest}")
    person.newest = max(newest, person.newest)


async def _read(session: aiohttp.ClientSession, load: Load, person: Person) -> None:
    """The last of its own posts has to be there: nothing that was seen goes away."""
    if not person.posts:
        return
    number = person.posts[-1]
    async with session.get(f"/api/posts/{number}", headers=_as(person)) as answer:
        _noted(person, answer)
        if answer.status == 404:
            load.backwards.append(f"{person.name} does not see its post {number}")
        elif answer.status != 200:
            load.failures.append(f"get {number}: {answer.status} {(await answer.text())[:200]}")


@contextlib.asynccontextmanager
async def night(
    folder: Path,
    store_url: str,
    bus_url: str,
    legacy_url: str,
    new_url: str,
    *,
    demanding: bool = True,
    own_writes: bool = False,
    as_users: tuple[str, str] | None = None,
    max_lag: float | None = None,
    environment: dict[str, str] | None = None,
) -> AsyncIterator[Night]:
    """`demanding`: neither backend may see a fault. `as_users`: Crossfade's own URLs of both databases.
    `environment` is Crossfade's, besides ours; it goes by the right time then.
    """
    (folder / "migration.py").write_text(MIGRATION.read_text())
    urls = as_users or (legacy_url, new_url)
    with ExitStack() as stack:
        legacy, new = (
            Backend(name, url, folder, seeded=False)
            for name, url in (("legacy", legacy_url), ("new", new_url))
        )
        for backend in (legacy, new):
            if demanding:
                stack.enter_context(backend)
            else:
                backend.start()
                stack.callback(backend.stop)
        config: dict[str, Any] = {
            "workers": 2,
            "store": store_url,
            "bus": bus_url,
            "targets": {"legacy": {"url": legacy.url}, "new": {"url": new.url}},
            "routes": [{"flag": "shop", "match": {"path": "/api/**"}, "adapter": {"new": "session"}}],
            "code": "migration.py",
            "data": {side: {"url": url} for side, url in zip(("legacy", "new"), urls, strict=True)},
            "cutovers": {CUTOVER: {"flags": ["shop"], "read_your_writes": own_writes}},
        }
        if max_lag is not None:
            config["cutovers"][CUTOVER]["max_lag"] = max_lag
        clocks = Clocks(folder / "clocks")
        async with running_crossfade(folder, config, environment=environment or clocks.environment) as cf:
            urls_of_people = {"legacy": legacy_url, "new": new_url}
            found = Night(cf, legacy, new, urls_of_people, store_url, clocks)
            await found.is_up()
            try:
                yield found
            finally:
                for towards in list(found.streams):
                    await found.end_sync(towards)


@contextlib.contextmanager
def databases(postgres: EmbeddedPostgres) -> Iterator[tuple[str, str]]:
    """Legacy's database with the sample data, and new's without any."""
    with legacy_database(postgres) as legacy, new_database(postgres) as new:
        yield legacy, new


@contextlib.contextmanager
def fresh_store(postgres: EmbeddedPostgres) -> Iterator[str]:
    """An empty database, which Crossfade makes its store."""
    with fresh_database(postgres) as url:
        yield url
