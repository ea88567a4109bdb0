"""The processes that work on streams (`crossfade.sync_process`), as the supervisor keeps them: one a side.

They are started again when they die, and replaced when what they go by has changed. Nobody waits for them:
the proxy serves without.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import signal
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from core.metrics import Sample
from crossfade import exposition
from crossfade.channel import Channel, Message
from crossfade.fleet import EARLY, backoff
from crossfade.ledger import Ledger
from crossfade.logs import Log
from crossfade.processes import Children, Process, own
from flags.model import Side

LEAVE_WITHIN: Final = 5.0
SAMPLES_WITHIN: Final = 0.5
BEGIN_WITHIN: Final = 20.0
"""Seconds."""


class SyncChild:
    """One such process."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.channel = Channel(lambda _: None)
        self.samples: list[Sample] = []
        """What it said last."""

    @classmethod
    async def start(cls, children: Children, orders: Message) -> SyncChild:
        """Raises OSError."""
        process, line = children.spawn_with_line("crossfade.sync_process", [])
        child = cls(process)
        try:
            await child.channel.open(line)
        except BaseException:
            process.kill()
            raise
        child.channel.send({"do": "start", "orders": orders})
        return child

    @classmethod
    async def adopt(cls, children: Children, wire: dict[str, Any]) -> SyncChild:
        child = cls(children.adopt(wire["pid"]))
        child.samples = exposition.from_wire(wire["samples"])
        await child.channel.open(own(wire["channel"]), base64.b64decode(wire["unread"]))
        return child

    def to_wire(self) -> dict[str, Any]:
        return {
            "pid": self.process.pid,
            "channel": self.channel.fileno(),
            "unread": base64.b64encode(self.channel.unread).decode(),
            "samples": exposition.to_wire(self.samples),
        }

    async def ask(self, within: float = SAMPLES_WITHIN) -> None:
        """Learn what it has counted, if it says so in time."""
        try:
            answer = await self.channel.ask({"do": "samples"}, within)
        except (TimeoutError, ConnectionResetError):
            return
        self.samples = exposition.from_wire(answer["samples"])

    async def end(self) -> None:
        """Have it end what it does; another host may go on at once then."""
        self.channel.send({"do": "stop"})
        try:
            async with asyncio.timeout(LEAVE_WITHIN):
                await self.process.wait()
        except TimeoutError:
            self.process.kill(signal.SIGKILL)
            await self.process.wait()


class SyncChildren:
    """One process towards each side, if there is anything that they are to go by."""

    def __init__(self, children: Children, ledger: Ledger, log: Log) -> None:
        self._children = children
        self._ledger = ledger
        self._log = log
        self._orders: Message | None = None
        self._living: dict[Side, SyncChild] = {}
        self._leaving: list[SyncChild] = []
        """Those that were told to end, and have not yet."""
        self._keepers: list[asyncio.Task[None]] = []
        self._changing = asyncio.Lock()
        self._over = False
        self._beginning: asyncio.Task[None] | None = None

    async def change(self, orders: Message | None, *, afresh: bool = False) -> None:
        """Have them go by `orders` (None: there shall be none); those that do so already go on.

        With `afresh` they are replaced all the same, as the program has been.
        """
        async with self._changing:
            if self._over or (orders == self._orders and not afresh):
                return
            leaving = await self._let_go()
            self._orders = orders
            if orders is not None:
                self._keepers = [asyncio.create_task(self._keep(side, orders)) for side in Side]
                # They stand by until those before them have ended: a stream is left alone for a moment only.
                self._beginning = asyncio.create_task(self._answering())
                await asyncio.wait((self._beginning,))
            await self._end(leaving)

    async def end(self) -> None:
        """For good."""
        self._over = True
        if self._beginning is not None:
            self._beginning.cancel()
        async with self._changing:
            await self._end(await self._let_go())

    async def _let_go(self) -> list[SyncChild]:
        """Those that there are, which nobody will start again."""
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        found, self._keepers, self._living = list(self._living.values()), [], {}
        self._leaving += found
        return found

    async def _answering(self) -> None:
        """Until all have begun, or it takes too long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(BEGIN_WITHIN):
                while len(self._living) < len(self._keepers):  # noqa: ASYNC110  (their keepers start them)
                    await asyncio.sleep(0.05)
                await asyncio.gather(*(child.ask(BEGIN_WITHIN) for child in self._living.values()))

    async def _end(self, leaving: Sequence[SyncChild]) -> None:
        await asyncio.gather(*(child.end() for child in leaving))
        for child in leaving:
            self._leaving.remove(child)
            self._bury(child)

    async def _keep(self, side: Side, orders: Message) -> None:
        deaths = 0
        while True:
            born = time.monotonic()
            try:
                child = self._living[side] = await SyncChild.start(
                    self._children, {**orders, "towards": side.value}
                )
            except OSError as error:
                self._log.error("cannot start a process to sync", towards=side.value, reason=error.strerror)
            else:
                code = await child.process.wait()
                del self._living[side]
                self._bury(child)
                self._log.error("syncing ended", towards=side.value, pid=child.process.pid, exit=code)
            deaths = deaths + 1 if time.monotonic() - born < EARLY else 0
            await asyncio.sleep(backoff(deaths))

    def _bury(self, child: SyncChild) -> None:
        child.channel.close()
        self._ledger.keep(child.samples)

    # What a restart needs.

    def to_wire(self) -> dict[str, Any]:
        return {side.value: child.to_wire() for side, child in self._living.items()}

    async def adopt(self, wire: Mapping[str, Any]) -> None:
        """Have those of another image of this program, until `change` replaces them."""
        for side, child in wire.items():
            self._living[Side(side)] = await SyncChild.adopt(self._children, child)

    @property
    def lines(self) -> list[Channel]:
        return [child.channel for child in self._living.values()]

    # What it knows.

    @property
    def pids(self) -> dict[str, int]:
        return {side.value: child.process.pid for side, child in self._living.items()}

    async def refresh(self) -> None:
        """Ask them what they have counted."""
        await asyncio.gather(*(child.ask() for child in self._living.values()))

    def samples(self) -> list[Sequence[Sample]]:
        """What those that have not ended have said last."""
        return [child.samples for child in (*self._living.values(), *self._leaving)]
