"""The second act of the demo: the authority goes to new, back, and forth again, while people go on.

By the commands that anybody would type; they are printed as they are run. What the people were told is
compared with both databases at the end.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psycopg

CUTOVER = "shop"
WALKS = ("run", "back", "run", "back")
FOLLOWS_WITHIN = 60.0
COMMAND_WITHIN = 120.0
SETTLED_WITHIN = 20.0
THINK_SECONDS = 0.02
"""All in seconds."""

_WRITTEN = {
    "legacy": (
        "SELECT body FROM comments WHERE body LIKE %s",
        "SELECT idem_key FROM transfers WHERE idem_key LIKE %s",
        "SELECT sum(balance::bigint) FROM users WHERE deleted = 'N'",
    ),
    "new": (
        "SELECT body FROM comments WHERE body LIKE %s",
        "SELECT idempotency_key FROM transfers WHERE idempotency_key LIKE %s",
        "SELECT sum(balance_cents) FROM wallets",
    ),
}

Print = Callable[[str], None]


class SwitchError(Exception):
    """A command did not do what the demo needs; the message is one line."""


@dataclass(slots=True)
class Told:
    """What the people were told."""

    run: str
    """What everything that this run writes begins with."""
    answers: int = 0
    failures: list[str] = field(default_factory=list)
    comments: list[str] = field(default_factory=list)
    transfers: list[str] = field(default_factory=list)
    slowest: float = 0.0
    over: bool = False


def command(config: Path, *words: str) -> tuple[int, Any]:
    """Run `crossfade WORDS -o json`: its exit code, and what it said."""
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-P", "-m", "crossfade", *words, "-o", "json", "-c", str(config)],
        capture_output=True, text=True, timeout=COMMAND_WITHIN, check=False,
    )  # fmt: skip
    try:
        return done.returncode, json.loads(done.stdout or done.stderr.strip().splitlines()[-1])
    except (ValueError, IndexError):
        raise SwitchError(f"crossfade {' '.join(words)}: {done.stderr.strip()[-300:]}") from None


def until_it_follows(config: Path, towards: str) -> None:
    """Until the stream towards a side has copied all and follows. Raises SwitchError."""
    deadline = time.monotonic() + FOLLOWS_WITHIN
    while time.monotonic() < deadline:
        code, found = command(config, "data", "status", "--towards", towards)
        if code == 0 and found["state"] == "following" and found["held"]:
            return
        time.sleep(0.2)
    raise SwitchError(f"the stream towards {towards} does not follow: {found}")


def is_prepared(config: Path) -> bool:
    """Once Crossfade has found its store. Raises SwitchError."""
    deadline = time.monotonic() + FOLLOWS_WITHIN
    while time.monotonic() < deadline:
        code, found = command(config, "cutover", "status", CUTOVER)
        if code == 0:
            return found["side"] is not None
        time.sleep(0.2)
    raise SwitchError(f"Crossfade does not say how the cutover stands: {found.get('message')}")


def prepare(config: Path) -> None:
    """Raises SwitchError."""
    _must(config, "prepare")


def go_home(config: Path) -> None:
    """Where an earlier demo in this folder was stopped in between, legacy gets the authority again."""
    _, found = command(config, "cutover", "status", CUTOVER)
    if found.get("side") == "new":
        until_it_follows(config, "legacy")
        _must(config, "back")


async def play(
    front: str, config: Path, databases: Mapping[str, str], people: Sequence[str], password: str, say: Print
) -> list[str]:
    """All walks under load; everything that is wrong, which is nothing if all is well. Raises SwitchError."""
    told = Told(f"switch-{time.time_ns()}")
    load = asyncio.create_task(_load(front, people, password, told))
    held: list[float] = []
    try:
        for what in WALKS:
            say(f"$ crossfade cutover {what} {CUTOVER} --reason demo")
            answer = await asyncio.to_thread(_must, config, what)
            walk = answer["walks"][0]
            held.append(walk["held_seconds"])
            say(f"  {answer['side']} has the authority; writes waited {held[-1] * 1000:.0f} ms at most")
            before = told.answers
            while told.answers < before + 60 and not load.done():  # noqa: ASYNC110  (the people count)
                await asyncio.sleep(0.02)
    finally:
        told.over = True
        await load
    wrong = [*told.failures[:5], *await asyncio.to_thread(_missing, databases, told)]
    code, found = await asyncio.to_thread(command, config, "data", "verify")
    if code:
        different = [one["name"] for one in found.get("compared", ()) if one["verdict"] != "equal"]
        wrong.append(f"both databases differ: {', '.join(different) or found}")
    failed = len(told.failures)
    say(f"{told.answers} requests meanwhile, {failed} failed; the slowest took {told.slowest:.2f} s")
    say(
        f"{len(told.comments)} comments and {len(told.transfers)} transfers were acknowledged;"
        f" {'each is in both databases once' if not wrong else 'see below'}"
    )
    say(f"{len(held)} walks, longest hold {max(held) * 1000:.0f} ms")
    return wrong


def _must(config: Path, what: str) -> Any:
    code, found = command(config, "cutover", what, CUTOVER, "--reason", "demo")
    if code:
        message = found.get("message") or found.get("walks", [{}])[0].get("message")
        raise SwitchError(f"cutover {what} ended with {code}: {message}")
    return found


def _missing(databases: Mapping[str, str], told: Told) -> list[str]:
    """What is not as the people were told, once both streams have brought everything."""
    deadline = time.monotonic() + SETTLED_WITHIN
    while True:
        wrong = []
        sums = set()
        for side, url in databases.items():
            comments, transfers, money = _WRITTEN[side]
            with psycopg.connect(url) as connection:
                written = [row[0] for row in connection.execute(comments.encode(), (f"{told.run}%",))]
                moved = [row[0] for row in connection.execute(transfers.encode(), (f"{told.run}%",))]
                total = connection.execute(money.encode()).fetchone()
            kinds = (("comment", told.comments, written), ("transfer", told.transfers, moved))
            for what, expected, found in kinds:
                if sorted(expected) != sorted(found):
                    wrong.append(f"{side}: {len(expected)} {what}s were acknowledged, {len(found)} are there")
            sums.add(None if total is None else int(total[0]))
        if len(sums) > 1:
            wrong.append(f"money was made or lost: {sums}")
        if not wrong or time.monotonic() > deadline:
            return wrong
        time.sleep(0.2)


# The people.


async def _load(front: str, people: Sequence[str], password: str, told: Told) -> None:
    await asyncio.gather(*(_person(number, front, people, password, told) for number in range(len(people))))


async def _person(number: int, front: str, people: Sequence[str], password: str, told: Told) -> None:
    async with aiohttp.ClientSession(
        front,
        timeout=aiohttp.ClientTimeout(total=20),
        connector=aiohttp.TCPConnector(limit=1),
        cookie_jar=aiohttp.CookieJar(unsafe=True),
    ) as session:
        credentials = {"username": people[number], "password": password}
        await _ask(session, told, "POST", "/api/session", 201, credentials)
        turn = 0
        while not told.over:
            turn += 1
            post = 1 + (number + turn) % 12
            await _ask(session, told, "GET", f"/api/posts/{post}/comments", 200)
            words = f"{told.run}-{number}-{turn}"
            body = {"body": words}
            if await _ask(session, told, "POST", f"/api/posts/{post}/comments", 201, body):
                told.comments.append(words)
            receiver = 1 + (number + 1) % 4
            if turn % 3 == 0 and receiver != number + 1:
                order = {"to_account_id": receiver, "amount_cents": 1}
                key = {"Idempotency-Key": words}
                if await _ask(session, told, "POST", "/api/transfers", 201, order, key):
                    told.transfers.append(words)
            await asyncio.sleep(THINK_SECONDS)


async def _ask(
    session: aiohttp.ClientSession,
    told: Told,
    method: str,
    path: str,
    status: int,
    body: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
) -> bool:
    """Whether it was answered as it should be."""
    begun = time.perf_counter()
    try:
        async with session.request(method, path, json=body, headers=headers) as answer:
            await answer.read()
    except (aiohttp.ClientError, TimeoutError) as error:
        told.failures.append(f"{method} {path}: {type(error).__name__} {error}")
        return False
    told.answers += 1
    told.slowest = max(told.slowest, time.perf_counter() - begun)
    if answer.status != status:
        told.failures.append(f"{method} {path}: {answer.status}, not {status}")
    return answer.status == status
