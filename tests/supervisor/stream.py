"""A stream of requests that notices every failure: nothing is retried, nothing is forgiven.

But where this process stood still for so long that a worker was free to end the connection, none has failed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from tests.support.crossfade_process import RunningCrossfade


@dataclass(slots=True)
class Stream:
    answered: int = 0
    bodies: set[bytes] = field(default_factory=set)
    failures: list[str] = field(default_factory=list)
    stopped: bool = False
    _answer: asyncio.Event = field(default_factory=asyncio.Event)

    def note(self, body: bytes) -> None:
        self.answered += 1
        self.bodies.add(body)
        self._answer.set()

    async def grows_by(self, number: int) -> None:
        """Wait until so many more requests have been answered."""
        goal = self.answered + number
        async with asyncio.timeout(30):
            while self.answered < goal:
                self._answer.clear()
                await self._answer.wait()


@contextlib.asynccontextmanager
async def stream(cf: RunningCrossfade, *, keeping: int = 2, fresh: int = 2) -> AsyncIterator[Stream]:
    """`keeping` clients use a connection for as long as they may, `fresh` ones a new one each time."""
    found = Stream()
    clients = [
        asyncio.create_task(_client(cf, found, keep=number < keeping)) for number in range(keeping + fresh)
    ]
    try:
        yield found
    finally:
        found.stopped = True
        async with asyncio.timeout(30):
            await asyncio.gather(*clients)


async def _client(cf: RunningCrossfade, found: Stream, *, keep: bool) -> None:
    connection = None
    while not found.stopped:
        try:
            if connection is None:
                connection = await cf.connect()
            answer = await connection.get("/x")
            found.note(answer.body)
            if answer.status != 200:
                found.failures.append(f"status {answer.status}")
            # A moment to breathe for the two cores that all of this runs on.
            await asyncio.sleep(0.002)
            if keep and not answer.closes:
                continue
        except (OSError, EOFError) as error:
            if connection is None or not connection.was_left_alone:
                found.failures.append(repr(error))
        if connection is not None:
            connection.close()
            connection = None
    if connection is not None:
        connection.close()
