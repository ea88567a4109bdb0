"""A way by TCP to a server that is ours, which understands what is said on it, and can hold it, lose it or
break off at a named point.

What a process has done can be told from outside only by what it has sent and what it has heard. So a fault
that comes between two messages is every fault that can come there, wherever in its code the process was,
and no point has to be built into the product.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import struct
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import NamedTuple

PATIENCE = 60.0
"""Seconds that one waits for a point: what comes before it may be a whole copy."""
STREAM = "the stream"
"""The session on which the source sends its log."""
STATUS = "STATUS"
LOG = "LOG"
COPY_DATA = "COPY DATA"

_CANCEL = 80_877_102


class Sender(Enum):
    WORKER = "worker"
    SERVER = "server"


class Said(NamedTuple):
    """One message. `text` is the SQL, the tag of a command that is done, or STATUS, LOG, COPY DATA."""

    session: str
    """The application_name, or STREAM."""
    sender: Sender
    text: str
    message: bytes


@dataclass(frozen=True, slots=True)
class Point:
    """A message that one may wait for."""

    session: str
    sender: Sender
    text: str
    """A pattern that the text holds."""

    def __call__(self, said: Said) -> bool:
        return (
            said.sender is self.sender
            and re.search(self.session, said.session) is not None
            and re.search(self.text, said.text) is not None
        )


class NeverPassedError(AssertionError):
    """Nobody came by the point: it is named wrongly, or the product does not do this any more."""


@dataclass(eq=False)
class Held:
    """A message that does not get through, and all behind it on its connection."""

    point: Point
    left: int
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    lost: bool = False

    async def until_reached(self) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                await self.reached.wait()
        except TimeoutError:
            raise NeverPassedError(f"never passed: {self.point}") from None

    def go_on(self) -> None:
        self.over.set()

    def lose(self) -> None:
        """It will never get through, and its connection ends."""
        self.lost = True
        self.over.set()


def everything(said: Said) -> bytes:
    return said.message


class Relay:
    """`url` leads to the database behind, through here; what `passing` returns for a message is passed on."""

    def __init__(self, behind: Path) -> None:
        self._behind = behind
        self._held: list[Held] = []
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0
        self.passing: Callable[[Said], bytes | None] = everything
        """None: it is lost."""
        self.delay = 0.0
        """Seconds that each bunch of messages takes."""
        self.open = True
        """Whether it takes connections."""

    @contextlib.asynccontextmanager
    async def serve(self) -> AsyncIterator[Relay]:
        server = await asyncio.start_server(self._meet, "127.0.0.1", self.port)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            self.hang_up()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    @contextlib.asynccontextmanager
    async def hold(self, point: Point, nth: int = 1) -> AsyncIterator[Held]:
        """Let the `nth` message of this kind not get through, until told otherwise."""
        held = Held(point, nth)
        self._held.append(held)
        try:
            yield held
        finally:
            held.go_on()
            if held in self._held:
                self._held.remove(held)

    def hang_up(self) -> None:
        """Break every connection off, without a word: both ends are told of a reset."""
        for held in self._held:
            held.lose()
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if not self.open:
            writer.transport.abort()
            return
        try:
            behind_reader, behind = await asyncio.open_unix_connection(self._behind)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, behind}
        talk = _Talk()
        try:
            await asyncio.gather(
                self._pass(reader, behind, talk, Sender.WORKER),
                self._pass(behind_reader, writer, talk, Sender.SERVER),
            )
        finally:
            self._writers -= {writer, behind}

    async def _pass(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, talk: _Talk, sender: Sender
    ) -> None:
        rest = b""
        try:
            while data := await source.read(65_536):
                messages, rest = talk.cut(rest + data, sender)
                if self.delay and messages:
                    await asyncio.sleep(self.delay)
                for message in messages:
                    said = talk.said(message, sender)
                    if not await self._gets_through(said, sink):
                        return
                    passed = self.passing(said)
                    if passed is not None and not sink.transport.is_closing():
                        sink.write(passed)
                await sink.drain()
        except OSError:
            pass  # it has broken off, and so does the other half
        finally:
            sink.transport.abort() if sender is Sender.WORKER else sink.close()

    async def _gets_through(self, said: Said, sink: asyncio.StreamWriter) -> bool:
        for held in list(self._held):
            if held.left > 0 and held.point(said):
                held.left -= 1
                if held.left == 0:
                    await sink.drain()
                    held.reached.set()
                    await held.over.wait()
                    if held.lost:
                        return False
        return True


class _Talk:
    """What is known of one connection."""

    def __init__(self) -> None:
        self._session: str | None = None
        self._prepared: dict[bytes, str] = {}

    def cut(self, data: bytes, sender: Sender) -> tuple[list[bytes], bytes]:
        """Whole messages, and what is left."""
        found, at = [], 0
        while True:
            head = 0 if sender is Sender.WORKER and self._session is None else 1
            if len(data) < at + head + 4:
                break
            end = at + head + int.from_bytes(data[at + head : at + head + 4])
            if len(data) < end:
                break
            message = data[at:end]
            if not head:
                self._begin(message)
            found.append(message)
            at = end
        return found, data[at:]

    def _begin(self, message: bytes) -> None:
        if int.from_bytes(message[4:8]) == _CANCEL:
            self._session = "cancel"
            return
        words = message[8:].split(b"\0")
        said = dict(zip(words[::2], words[1::2], strict=False))
        self._session = STREAM if b"replication" in said else said.get(b"application_name", b"?").decode()

    def said(self, message: bytes, sender: Sender) -> Said:
        text = ""
        kind = message[:1]
        if kind == b"d":
            text = COPY_DATA
            if self._session == STREAM:
                text = STATUS if message[5:6] == b"r" else LOG if message[5:6] == b"w" else ""
        elif sender is Sender.SERVER:
            if kind == b"C":
                text = message[5:-1].decode()
        elif kind == b"Q":
            text = message[5:-1].decode()
        elif kind == b"P":
            name, query = message[5:].split(b"\0")[:2]
            self._prepared[name] = query.decode()
        elif kind == b"B":
            text = self._prepared.get(message[5:].split(b"\0")[1], "")
        return Said(self._session or "", sender, text, message)


_LOG_HEAD = struct.Struct("!cIcQQQ")


def log_message(said: Said) -> bytes:
    """What the plugin has said, of a LOG."""
    return said.message[_LOG_HEAD.size :]
