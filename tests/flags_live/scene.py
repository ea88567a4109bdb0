"""Crossfade with a store and a bus that the test holds in its hands, and clients that notice everything."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis.asyncio

from crossfade.bell import CHANNEL
from crossfade.convergence import Convergence, converged
from crossfade.embedded.postgres import EmbeddedPostgres
from crossfade.embedded.valkey import EmbeddedValkey
from crossfade.fleet import FLAGS_WITHIN
from crossfade.store.actors import Actor, ActorType, Role, Via
from crossfade.store.store import Store
from flags.change import Apply, Command
from flags.model import Bucketing, Flag, FlagSet, Stage
from flags.stages import settled_at
from tests.support.crossfade_process import PATIENCE, RunningCrossfade, running_crossfade

ADA = Actor(ActorType.HUMAN, "ada", Role.ADMIN, None, Via.API)


@dataclass(slots=True)
class Load:
    """Who answered on each path, and everything that went wrong."""

    answers: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    stopped: bool = False
    had: list[int] = field(default_factory=list)
    """How many answers each client has had."""

    @property
    def answered(self) -> int:
        return sum(self.answers.values())

    async def grows_by(self, number: int) -> None:
        """Wait for so many answers to requests, most of which have not even been sent yet."""
        goal = self.answered + number
        async with asyncio.timeout(PATIENCE):
            while self.answered < goal:  # noqa: ASYNC110  (four clients count here)
                await asyncio.sleep(0.005)

    async def each_has(self, number: int) -> None:
        """Wait until every client has had so many more answers."""
        goals = [had + number for had in self.had]
        async with asyncio.timeout(PATIENCE):
            while any(had < goal for had, goal in zip(self.had, goals, strict=True)):  # noqa: ASYNC110
                await asyncio.sleep(0.005)

    async def only(self, **sides: str) -> None:
        """From now on these sides answer, and no other: `a="new"`."""
        await self.each_has(2)  # the first may be to what was under way
        before = self.answers.copy()
        await self.grows_by(60)
        during = self.answers - before
        for path, side in sides.items():
            seen = {found for (asked, found) in during if asked == path}
            assert seen == {side}, f"/{path} was answered by {seen}"

    _clients: list[asyncio.Task[None]] = field(default_factory=list)


class Scene:
    def __init__(
        self, cf: RunningCrossfade, store: EmbeddedPostgres, bus: EmbeddedValkey, book: Store
    ) -> None:
        self.cf = cf
        self.store = store
        self.bus = bus
        self.book = book
        self.load = Load()

    async def change(self, command: Command) -> int:
        """Change the flags as another process would: in the store, then the bell if it can be rung."""
        applied = await self.book.change(ADA, command, reason="a test")
        with contextlib.suppress(redis.RedisError, OSError):
            async with redis.asyncio.Redis.from_url(self.bus.url()) as client:
                await client.publish(CHANNEL, applied.version)
        return applied.version

    async def settle(self, stage: Stage, *keys: str) -> int:
        """Have these flags at `stage`, one transition away from where they are."""
        before = await self.book.flag_set()
        return await self.change(Apply(tuple(placed(before, key, stage) for key in keys)))

    async def obeyed(self, version: int) -> Convergence:
        found = await converged(self.book, version, PATIENCE)
        assert found.complete, found.missing
        return found

    async def kill(self, flag: str | None, reason: str = "it burns") -> str:
        """As the command line does it where the API or the store is down."""
        return await self.order({"do": "kill", "flag": flag, "reason": reason, "by": "ada"})

    async def order(self, order: dict[str, Any]) -> str:
        """What the control socket says of an order that both workers obey at once.

        One that the machine kept from it for as long as it is waited for obeys a moment later.
        """
        began = time.monotonic()
        answer = await self.cf.tell(order)
        if answer["code"] != 7 or time.monotonic() - began < FLAGS_WITHIN:
            assert answer["code"] == 0, answer
            assert "2/2 workers" in answer["lines"][0]
        said: str = answer["lines"][0]
        return said

    async def flags_status(self) -> dict[str, Any]:
        flags: dict[str, Any] = (await self.cf.status())["flags"]
        return flags

    async def until_flags(self, fact: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        flags: dict[str, Any] = (await self.cf.until(lambda status: fact(status["flags"])))["flags"]
        return flags

    async def until_measured(self, fact: Callable[[Any], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not fact(await self.cf.metrics()):  # noqa: ASYNC110  (it is another process)
                await asyncio.sleep(0.05)


def placed(before: FlagSet, key: str, stage: Stage) -> Flag:
    found = before.flag(key) or Flag(key, 0, settled_at(stage), Bucketing((), key))
    return Flag(found.key, found.version, settled_at(stage), found.bucketing)


@contextlib.asynccontextmanager
async def scene(
    folder: Path, config: Mapping[str, Any], store: EmbeddedPostgres, bus: EmbeddedValkey
) -> AsyncIterator[Scene]:
    book = await Store.open(store.url())
    try:
        async with running_crossfade(folder, config) as cf:
            found = Scene(cf, store, bus, book)
            await cf.until(lambda status: status["flags"]["version"] > 0)
            await found.obeyed(await found.settle(Stage.SHADOW, *(r["flag"] for r in config["routes"])))
            async with load(cf, found.load, [route["flag"] for route in config["routes"]]):
                await found.load.grows_by(20)
                yield found
            assert found.load.failures == []
    finally:
        await book.close()


@contextlib.asynccontextmanager
async def load(cf: RunningCrossfade, found: Load, paths: list[str]) -> AsyncIterator[None]:
    """Two clients that keep their connections and two that open one each time."""
    found.had = [0] * 4
    found._clients = [asyncio.create_task(_client(cf, found, paths, number)) for number in range(4)]
    try:
        yield
    finally:
        found.stopped = True
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*found._clients)


async def _client(cf: RunningCrossfade, found: Load, paths: list[str], number: int) -> None:
    keep = number < 2
    connection = None
    while not found.stopped:
        for path in paths:
            try:
                if connection is None:
                    connection = await cf.connect()
                answer = await connection.get(f"/{path}")
            except (OSError, EOFError) as error:
                if connection is None or not connection.was_left_alone:
                    found.failures.append(repr(error))
                connection = None
                continue
            if answer.status != 200:
                found.failures.append(f"status {answer.status}")
            found.answers[path, answer.body.decode()] += 1
            found.had[number] += 1
            if not keep or answer.closes:
                connection.close()
                connection = None
            # A moment to breathe for the two cores that all of this runs on.
            await asyncio.sleep(0.004)
    if connection is not None:
        connection.close()
