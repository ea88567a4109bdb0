"""The people who use the sample product, as a locust file.

    python -m locust -f examples/people.py --headless --users 15 --host URL --run-time 3m --told told.jsonl

Some browse, some write, some send money. What they were told is appended to the file `--told`, a JSON object
a line, so that somebody else can look for it in the databases afterwards:

    {"comment": TEXT}   a comment that was acknowledged
    {"transfer": KEY}   a transfer that was acknowledged, by its idempotency key
    {"failed": WHY}     an answer that was not as it should be, or none
    {"requests": N, "failures": N, "slowest": SECONDS, "over": BOOL}   all until now; `over` in the last line

All that one run writes begins with `--mark`.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from locust import FastHttpUser, constant_throughput, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment

PASSWORD = "demo-password"  # noqa: S105 - everybody's, in the sample data
WRITERS: dict[str, tuple[int, int]] = {"ada": (1, 2), "moritz": (3, 4), "chen": (5, 8), "emil": (9, 10)}
"""And the posts that each of them comments on."""
SENDERS = ("bea", "fatou", "hana")
RECEIVERS = (1, 2, 4, 6)
POSTS = tuple(number for number in range(1, 31) if number not in (1, 2, 3, 4, 5, 8, 9, 10, 13, 20))
"""That visitors look at: those of the sample data that nobody has removed, and that nobody writes to. Two
backends that are asked a moment apart answer alike then, however much is written meanwhile."""
A_VISIT = 8
"""Requests, after which somebody else comes."""
A_TRANSFER = 20
"""Requests, of which one sends money."""
MOST_REQUESTS = 60_000
"""After which all go home, whatever the time."""
TELL_EVERY = 0.25
"""Seconds."""


class Told:
    """What all of them were told."""

    def __init__(self) -> None:
        self.requests = 0
        self.failures = 0
        self.slowest = 0.0
        self.over = False
        self.mark = f"people-{time.time_ns()}"
        self._path: Path | None = None
        self._lines: list[dict[str, Any]] = []

    def begin(self, path: str | None, mark: str | None) -> None:
        self._path = None if path is None else Path(path)
        self.mark = mark or self.mark

    def note(self, **line: Any) -> None:
        self._lines.append(line)

    def write(self) -> None:
        lines, self._lines = self._lines, []
        lines.append(
            {"requests": self.requests, "failures": self.failures, "slowest": self.slowest, "over": self.over}
        )
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(line) + "\n" for line in lines))


told = Told()


def _options(parser: LocustArgumentParser) -> None:
    parser.add_argument("--told", metavar="FILE", help="append what the people were told to this file")
    parser.add_argument("--mark", metavar="WORD", help="what all that this run writes begins with")


def _begin(environment: Environment, **_: Any) -> None:
    assert environment.parsed_options is not None
    told.begin(environment.parsed_options.told, environment.parsed_options.mark)
    # A greenlet: locust has taken the place of threads, sockets and sleep before this file was read.
    threading.Thread(target=_tell, args=(environment,), daemon=True).start()


def _count(
    request_type: str, name: str, response_time: float, exception: BaseException | None, **_: Any
) -> None:
    told.requests += 1
    told.slowest = max(told.slowest, response_time / 1000)
    if exception is not None:
        told.failures += 1
        told.note(failed=f"{request_type} {name}: {exception}")


def _end(**_: Any) -> None:
    told.over = True
    told.write()


def _tell(environment: Environment) -> None:
    # Nothing comes after the line that says that it is over.
    while not told.over:
        told.write()
        if told.requests > MOST_REQUESTS and environment.runner is not None:
            environment.runner.quit()
        time.sleep(TELL_EVERY)


events.init_command_line_parser.add_listener(_options)
events.test_start.add_listener(_begin)
events.request.add_listener(_count)
events.quit.add_listener(_end)


class Visitor(FastHttpUser):
    """Browses and is nobody; every few requests a new one comes, without cookies."""

    fixed_count = 8
    wait_time = constant_throughput(8)

    def on_start(self) -> None:
        self.turns: Iterator[int] = itertools.count(id(self) % len(POSTS))
        self.left = A_VISIT

    @task
    def look(self) -> None:
        turn = next(self.turns)
        post, account = POSTS[turn // 4 % len(POSTS)], 1 + turn // 4 % 9
        path, name = (
            ("/api/posts?limit=5", "/api/posts"),
            (f"/api/posts/{post}", "/api/posts/{post}"),
            (f"/api/posts/{post}/comments?limit=5", "/api/posts/{post}/comments"),
            (f"/api/accounts/{account}", "/api/accounts/{account}"),
        )[turn % 4]
        self.client.get(path, name=name)
        self.left -= 1
        if not self.left:
            self.client.cookiejar.clear()
            self.left = A_VISIT


class Member(FastHttpUser):
    """Somebody who is logged in. Each user is another person of `NAMES`."""

    abstract = True
    NAMES: ClassVar[tuple[str, ...]] = ()
    _arrived: ClassVar[Iterator[int]]

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        cls._arrived = itertools.count()

    def on_start(self) -> None:
        self.name = self.NAMES[next(self._arrived) % len(self.NAMES)]
        self.turns: Iterator[int] = itertools.count(1)
        self.client.post("/api/session", json={"username": self.name, "password": PASSWORD})


class Writer(Member):
    """Comments, and reads what it has written at once: it must be there, whoever answers."""

    NAMES = tuple(WRITERS)
    fixed_count = len(WRITERS)
    wait_time = constant_throughput(0.5)

    @task
    def comment(self) -> None:
        turn = next(self.turns)
        comments = f"/api/posts/{WRITERS[self.name][turn % 2]}/comments"
        body = f"{told.mark}-{self.name}-{turn}"
        answer = self.client.post(comments, json={"body": body}, name="/api/posts/{post}/comments")
        if answer.status_code != 201:
            return
        told.note(comment=body)
        self.look_for(body, comments)

    def look_for(self, body: str, comments: str) -> None:
        """Page by page, the oldest first."""
        cursor = ""
        while True:
            path = f"{comments}?limit=100{cursor}"
            with self.client.get(path, name="/api/posts/{post}/comments", catch_response=True) as read:
                if read.status_code != 200:
                    return
                page = read.json()
                if body in [one["body"] for one in page["items"]]:
                    return
                if page["next_cursor"] is None:
                    read.failure(f"{self.name} does not see the comment that was just written")
                    return
                cursor = f"&cursor={page['next_cursor']}"


class Sender(Member):
    """Looks at the wallet and the transfers, and now and then sends a cent, which must be there at once."""

    NAMES = SENDERS
    fixed_count = len(SENDERS)
    wait_time = constant_throughput(6)

    @task
    def look(self) -> None:
        turn = next(self.turns)
        if since := turn % A_TRANSFER:
            # What is about to change is left alone: see POSTS.
            moves = since < A_TRANSFER // 2
            self.client.get(("/api/wallet", "/api/transfers?limit=5")[turn % 2] if moves else "/api/me")
            return
        key = f"{told.mark}-{self.name}-{turn}"
        order = {"to_account_id": RECEIVERS[turn // A_TRANSFER % len(RECEIVERS)], "amount_cents": 1}
        answer = self.client.post("/api/transfers", json=order, headers={"Idempotency-Key": key})
        if answer.status_code != 201:
            return
        told.note(transfer=key)
        number = answer.json()["id"]
        with self.client.get("/api/transfers?limit=5", catch_response=True) as read:
            if read.status_code == 200 and number not in [one["id"] for one in read.json()["items"]]:
                read.failure(f"{self.name} does not see the transfer that was just made")
