"""The process of the admin API (`crossfade.control`), as the supervisor knows it."""

from __future__ import annotations

import asyncio
import base64
import signal
from collections.abc import Awaitable, Callable
from typing import Any

from crossfade.channel import Channel, Message
from crossfade.processes import Children, Process, own
from crossfade.sockets import Listener

READY_WITHIN = 30.0
LEAVE_WITHIN = 3.0
"""Seconds."""

Answer = Callable[[Message], Awaitable[Message]]


class NotStartedError(Exception):
    """The admin API did not come up; the message says why."""


class AdminChild:
    """One such process. It asks, the supervisor answers."""

    def __init__(self, process: Process, answer: Answer) -> None:
        self.process = process
        self._answer = answer
        self._answering: set[asyncio.Task[None]] = set()
        self.channel = Channel(self._asked)

    @classmethod
    async def start(
        cls, children: Children, listener: Listener, answer: Answer, context: Message
    ) -> AdminChild:
        """A process that serves on `listener` and knows `context`. Raises NotStartedError."""
        try:
            process, line = children.spawn_with_line("crossfade.control", listener.sockets)
        except OSError as error:
            raise NotStartedError(f"cannot start a process: {error.strerror}") from error
        child = cls(process, answer)
        try:
            await child.channel.open(line)
            sockets = [sock.fileno() for sock in listener.sockets]
            await child.channel.ask({"do": "start", "sockets": sockets, "context": context}, READY_WITHIN)
        except (TimeoutError, ConnectionResetError) as error:
            process.kill()
            raise NotStartedError(f"it ended with {await process.wait()}") from error
        except BaseException:
            process.kill()
            raise
        return child

    @classmethod
    async def adopt(cls, children: Children, wire: dict[str, Any], answer: Answer) -> AdminChild:
        child = cls(children.adopt(wire["pid"]), answer)
        await child.channel.open(own(wire["channel"]), base64.b64decode(wire["unread"]))
        return child

    def to_wire(self) -> dict[str, Any]:
        unread = base64.b64encode(self.channel.unread).decode()
        return {"pid": self.process.pid, "channel": self.channel.fileno(), "unread": unread}

    def tell(self, context: Message) -> None:
        """What it has to know has changed."""
        self.channel.send({"do": "context", "context": context})

    def leave(self) -> None:
        """Have it answer what it has begun and end; another one comes."""
        self.channel.send({"do": "stop", "for_good": False})

    async def end(self) -> None:
        """No worker is left, and no other one comes."""
        self.channel.send({"do": "stop", "for_good": True})
        try:
            async with asyncio.timeout(LEAVE_WITHIN):
                await self.process.wait()
        except TimeoutError:
            self.process.kill(signal.SIGKILL)
            await self.process.wait()

    def _asked(self, question: Message) -> None:
        task = asyncio.get_running_loop().create_task(self._reply(question))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def _reply(self, question: Message) -> None:
        self.channel.answer(question, await self._answer(question))
