"""Copy what was there before the stream began, chunk by chunk, between two steps of the stream.

While a chunk is read and written the stream stands still, so nothing can be applied in between. What is
left is the moment in which a commit is in the log and not yet visible (`snapshot.py`): a chunk whose
snapshot hides a transaction that was already applied is thrown away, and read again after the stream had
its turn. With that, a row that
the stream has brought is never older than the chunk's, and stays; every other row comes from the chunk, and
the stream changes it later.

Where a table is and how far it is copied stands in the target, in the transaction of the chunk's rows. The
upper bound is fixed at the start: what is written above it comes with the stream.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from psycopg import errors

from dualwrite.apply import Applier
from dualwrite.mapped import RowMapping, Touching
from dualwrite.snapshot import Snapshot, View

AIM: Final = 0.25
"""Seconds for which a chunk may hold the stream up."""
FEWEST, MOST = 100, 50_000
"""Rows of a chunk."""
LOOK_AGAIN: Final = 0.02
"""Seconds, where a snapshot hides what was applied."""
CLASHES: Final = 100
"""How often in a row a chunk may clash with rows that are there; the stream has its turn after each."""


class Rows(NamedTuple):
    """A chunk as a snapshot has shown it. `upto` is its last key; None: it reaches the bound."""

    snapshot: Snapshot
    upto: list[str] | None
    lines: list[bytes]
    binary: bool = False
    """Whether they are COPY's binary form, and not its text."""
    took: float = 0.0
    """Seconds."""


class Chunks(Protocol):
    """A table at the source, read by its key. Keys are as the source writes them in text."""

    async def bound(self) -> list[str] | None:
        """The greatest key that there is."""

    async def snapshot(self) -> Snapshot:
        """What can be seen now."""

    async def read(self, above: list[str] | None, bound: list[str], rows: int) -> Rows:
        """At most so many rows behind `above` and not behind `bound`, in one snapshot of their own.

        It may be one that was taken when `read_ahead` was told to begin; reading once more takes a new one.
        """

    def read_ahead(self, above: list[str], bound: list[str], rows: int) -> None:
        """This is what will be read next; it may be read from now on, while something else is done."""


@dataclass(frozen=True, slots=True)
class Progress:
    copied: int
    done: bool
    again: int
    """How often a snapshot hid what was applied."""
    read: int = 0
    """Rows of the last chunk, as they were read."""
    took: float = 0.0
    """Seconds that the source needed for it."""


def copy_name(table: str, what: RowMapping | Touching) -> str:
    """Under which name the target knows how far this copy has come."""
    return f"after {table}, {what.place}" if isinstance(what, Touching) else f"{table} to {what.table}"


class Backfill:
    """Copies one table for one mapping or follow-up; `name` is that of `copy_name`."""

    def __init__(
        self,
        chunks: Chunks,
        applier: Applier,
        name: str,
        what: RowMapping | Touching,
        rows: int = 2_000,
        most: int = MOST,
    ) -> None:
        """`rows` are those of the first chunk, `most` those of any."""
        self._chunks = chunks
        self._applier = applier
        self._name = name
        self._what = what
        self._rows = min(rows, most)
        self._most = most
        self._copied = 0
        self._again = 0
        self._view = View()
        self._waits = False
        self._clashes = 0

    async def step(self, applied: list[int]) -> Progress:
        """Copy one chunk, or none where it cannot see yet what was applied.

        `applied` are transactions (32 bits) that the stream has brought; the list is emptied once a snapshot
        has shown them all, for then every later one does.

        Raises psycopg.Error, and what the applier raises; what was not committed is copied again.
        """
        chunk = await self._applier.chunk(self._name)
        began = time.monotonic()
        # Of a table that is published since a moment only, the stream does not bring what was open then: the
        # bound, too, has to see it.
        if (self._waits or chunk is None) and self._view.is_too_old(await self._chunks.snapshot(), applied):
            return await self._wait()
        if chunk is None:
            chunk = await self._applier.begin_copy(self._name, await self._chunks.bound())
        if chunk.done:
            return self._progress(done=True)
        found = await self._chunks.read(chunk.upto, chunk.bound, self._rows)
        if self._view.is_too_old(found.snapshot, applied):
            return await self._wait()
        self._waits = False
        applied.clear()
        if found.upto is not None:
            self._chunks.read_ahead(found.upto, chunk.bound, self._rows)
        try:
            self._copied += await self._applier.copy_chunk(
                self._name, self._what, found.upto, found.lines,
                binary=found.binary, clash_may_pass=self._clashes < CLASHES,
            )  # fmt: skip
        except errors.UniqueViolation:
            # A unique value has gone from one row to another, and the stream has not brought that yet.
            self._clashes += 1
            if self._clashes > CLASHES:
                raise
            return await self._wait()
        self._clashes = 0
        self._rows = min(_next_size(self._rows, time.monotonic() - began), self._most)
        rows = max(0, len(found.lines) - 2 * found.binary)
        return self._progress(found.upto is None, rows, found.took)

    async def _wait(self) -> Progress:
        """Some transaction may be open for hours: meanwhile the stream has to go on."""
        self._waits = True
        self._again += 1
        await asyncio.sleep(LOOK_AGAIN)
        return self._progress(done=False)

    def _progress(self, done: bool, read: int = 0, took: float = 0.0) -> Progress:
        return Progress(self._copied, done, self._again, read, took)


def key_of(what: RowMapping | Touching) -> Sequence[str]:
    """Names at the source."""
    if isinstance(what, Touching):
        return what.follow_up.key
    return [what.inputs[at] for at in what.table.key]


def _next_size(rows: int, took: float) -> int:
    """So many rows as fit the aim, but never more than twice or less than half of the last."""
    wanted = rows * AIM / max(took, 1e-3)
    return int(min(max(wanted, rows / 2, FEWEST), rows * 2, MOST))
