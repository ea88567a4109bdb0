"""`crossfade sync` as a real process over servers that may be killed, with people at work all the time."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Collection
from pathlib import Path
from typing import Any, Final

import psycopg

from tests.dualwrite.faults import ground as grounds
from tests.dualwrite.faults import points
from tests.dualwrite.faults.ground import FOUND, SLOT, STREAM, TOTAL, WANTED, Ground, Server
from tests.dualwrite.faults.history import End, Wrong, judge
from tests.dualwrite.faults.people import People, split
from tests.dualwrite.faults.wire import NeverPassedError, Relay

SYNC: Final = ("sync", "--take-over")
"""With what makes one that starts take over at once from the one before."""
SOON: Final = 60.0
"""Seconds after the last fault within which it has to be well again, or to have stopped with a reason."""
LOOK: Final = 0.05
"""Seconds between two."""
NOTICED: Final = 4.0
"""Seconds: what is written after that must not be applied where something before it was lost."""
_ROOT: Final = Path(__file__).parents[3]
_STOPPED: Final = re.compile(r"stopped \((\w+)\)")
_STATE: Final = f"""
    SELECT state, whole, (applied - '0/0')::bigint FROM crossfade_sync.streams WHERE name = '{STREAM}'
"""
_LISTS: Final = "SELECT id, items FROM lists WHERE id LIKE '%s%%'"
_LOGS: Final = "SELECT list, array_agg(said ORDER BY id) FROM log WHERE list LIKE '%s%%' GROUP BY 1"


class WrongError(AssertionError):
    """What must not be: the text says which invariants do not hold."""


class Scene:
    def __init__(self, ground: Ground, people: People, chance: random.Random, broken: str | None) -> None:
        self.ground, self.people, self.chance = ground, people, chance
        self._broken = broken
        self.process: asyncio.subprocess.Process | None = None
        self._all: list[asyncio.subprocess.Process] = []
        self._said = ground.folder / "sync 0.err"

    # The process.

    async def start(self, *more: str) -> None:
        """From then on `process` is the one that syncs; one before it is nobody's concern any more."""
        program = ["crossfade"] if self._broken is None else ["tests.dualwrite.faults.broken", self._broken]
        self._said = self.ground.folder / f"sync {len(self._all)}.err"
        with self._said.open("wb") as said:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", *program, *SYNC, *more, "-c", str(self.ground.config),
                stdout=said, stderr=said, cwd=_ROOT,
            )  # fmt: skip
        self._all.append(self.process)

    async def kill(self) -> None:
        if self.process is not None:
            await _kill(self.process)

    async def kill_all(self) -> None:
        for process in self._all:
            await _kill(process)

    async def restart(self) -> None:
        await self.kill()
        await self.start()

    def way_to(self, point: str) -> tuple[Relay, Any]:
        side, known = (
            (self.ground.source, points.SOURCE)
            if point in points.SOURCE
            else (self.ground.target, points.TARGET)
        )
        return side.relay, known[point]

    async def kill_at(self, point: str, nth: int = 1, *, starting: bool = False) -> None:
        """End the process when it says this for the `nth` time; the message goes with it."""
        relay, which = self.way_to(point)
        async with relay.hold(which, nth) as held:
            if starting:
                await self.start()
            await self._reaches(held.until_reached(), point)
            await self.kill()
            held.lose()

    async def _reaches(self, waiting: Any, point: str) -> None:
        assert self.process is not None
        ends = asyncio.ensure_future(self.process.wait())
        reaches = asyncio.ensure_future(waiting)
        await asyncio.wait((ends, reaches), return_when=asyncio.FIRST_COMPLETED)
        ends.cancel()
        if not reaches.done():
            reaches.cancel()
            raise NeverPassedError(f"it ended before {point}: {self.last_words()}")
        await reaches

    def last_words(self) -> str:
        return self._said.read_text()[-2_000:]

    # How it is.

    async def state(self) -> tuple[str, bool, int]:
        """Where the stream stands, whether all is there, and how far."""
        try:
            async with await psycopg.AsyncConnection.connect(self.ground.target.url) as target:
                row = await (await target.execute(_STATE)).fetchone()
        except (psycopg.OperationalError, psycopg.errors.UndefinedTable):
            row = None
        return ("unknown", False, 0) if row is None else (row[0], row[1], row[2])

    async def until(self, *, whole: bool = True, position: int = 0) -> None:
        """Until it follows, and has brought that. Raises WrongError where it ends or takes too long."""
        try:
            async with asyncio.timeout(SOON):
                while True:
                    state, is_whole, applied = await self.state()
                    if state == "following" and is_whole is whole and applied >= position:
                        return
                    self.must_live()
                    await asyncio.sleep(LOOK)
        except TimeoutError:
            copies = self.ground.target.ask("SELECT copy, upto, rows, done FROM crossfade_sync.copies")
            raise WrongError(
                f"I13: not well after {SOON:g} s: {await self.state()}, {copies}, {self.last_words()}"
            ) from None

    def must_live(self) -> None:
        """It may not end for what passes by itself."""
        if self.process is not None and self.process.returncode is not None:
            raise WrongError(f"I13: it has ended for nothing: {self.last_words()}")

    async def gets_beyond(self, position: int) -> None:
        """Something more has been applied, whatever the state."""
        async with asyncio.timeout(SOON):
            while (await self.state())[2] <= position:
                self.must_live()
                await asyncio.sleep(LOOK)

    async def is_well(self) -> None:
        """All that was written until now has arrived."""
        ((position,),) = self.ground.source.ask("SELECT (pg_current_wal_lsn() - '0/0')::bigint")
        await self.until(position=position)

    async def stops(self, reasons: Collection[str]) -> str:
        """It ends by itself, with one of these reasons; whoever starts it again hears the same."""
        assert self.process is not None
        began, position = time.monotonic(), None
        while self.process.returncode is None:
            if position is None and time.monotonic() - began > NOTICED:
                ((position,),) = self.ground.source.ask("SELECT (pg_current_wal_lsn() - '0/0')::bigint")
            state, _, applied = await self.state()
            goes_on = state == "following" and position is not None and applied >= position
            if goes_on or time.monotonic() - began > SOON:
                raise WrongError(f"I11: it goes on, and should have stopped: {reasons}")
            await asyncio.sleep(LOOK)
        found = _STOPPED.search(self.last_words())
        if found is None or found[1] not in reasons:
            raise WrongError(f"I11: it should stop: {reasons}, but: {self.last_words()}")
        return found[1]

    async def tries_again(self, because: str) -> None:
        """It says so, and goes on trying."""
        async with asyncio.timeout(SOON):
            while because not in self.last_words():
                self.must_live()
                await asyncio.sleep(LOOK)

    async def command(self, *words: str) -> tuple[int, Any]:
        """`crossfade data …`: its exit code, and what it says."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "crossfade", "data", *words, "-o", "json", "-c", str(self.ground.config),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd=_ROOT,
        )  # fmt: skip
        self._all.append(process)
        async with asyncio.timeout(SOON):
            out, err = await process.communicate()
        assert process.returncode is not None
        return process.returncode, json.loads(out or err)

    @contextlib.asynccontextmanager
    async def asleep(self) -> AsyncIterator[None]:
        """It sleeps, and does not know it."""
        assert self.process is not None
        pid = self.process.pid
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    @contextlib.asynccontextmanager
    async def unreachable(self, side: str) -> AsyncIterator[None]:
        """Every connection to this server breaks off, and none can be made."""
        relay = self.server(side).relay
        relay.open = False
        relay.hang_up()
        try:
            yield
        finally:
            relay.open = True

    async def compared(self, *words: str) -> set[tuple[str, str, str]]:
        """Table, key and kind of each difference that `data verify` tells."""
        code, said = await self.command("verify", *words)
        return differences(code, said)

    def server(self, side: str) -> Server:
        return self.ground.source if side == "source" else self.ground.target

    async def judged(self) -> None:
        """Nobody writes any more, and all has arrived. Raises WrongError."""
        ground, run = self.ground, self.people.run
        items = [
            {
                **split(dict(server.ask(_LISTS % run))),
                **dict(server.ask(_LOGS % run)),
            }
            for server in (ground.source, ground.target)
        ]
        ((retained,),) = ground.source.ask(
            "SELECT (pg_current_wal_lsn() - restart_lsn)::bigint FROM pg_replication_slots"
            f" WHERE slot_name = '{SLOT}'"
        )
        end = End(grounds.rows(ground.source, WANTED), grounds.rows(ground.target, FOUND), *items, retained)
        wrong = judge(self.people.history, end, TOTAL)
        if (unmarked := ground.unmarked()) > 0:
            wrong.append(Wrong("I2", f"{unmarked} rows at the target would be sent back by the way back"))
        if wrong:
            raise WrongError("\n".join(f"{one.invariant}: {one.text}" for one in wrong[:12]))


def differences(code: int, said: Any) -> set[tuple[str, str, str]]:
    """Of `verify` and `repair`. A row that changed at each look is none, and no proof of being equal."""
    found = {
        (one["name"].rpartition(".")[2], each["key"][0], each["kind"])
        for one in said["compared"]
        for each in one["differences"]
    }
    if code != (6 if found or any(one["unsettled"] for one in said["compared"]) else 0):
        raise WrongError(f"I11: exit code {code} with {found}, {said}")
    return found


async def _kill(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    await process.wait()


async def until(fact: Any, what: str) -> None:
    """Of something that a database says when it is asked."""
    ends = time.monotonic() + SOON
    while not fact():
        if time.monotonic() > ends:
            raise AssertionError(f"never: {what}")
        await asyncio.sleep(LOOK)
