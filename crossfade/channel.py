"""The private line between the supervisor and one of its children: framed JSON over a socket pair.

A frame is four bytes of length, most significant first, and one JSON object. `ask` is a question,
the other side's `answer` resolves it; everything else is a message without an answer. A question
whose line breaks ends in ConnectionResetError, so nobody waits for a dead child.

The line outlives the program that holds it: before a restart it is paused, and what has been read
but not understood yet travels with the descriptor.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable
from typing import Any, cast

Message = dict[str, Any]

LARGEST = 64 * 1024 * 1024
"""No message of ours comes near; more than this is a broken peer."""


class Channel(asyncio.Protocol):
    """One end of the line. `receive` is called for each message that is not an answer."""

    def __init__(self, receive: Callable[[Message], None]) -> None:
        self._receive = receive
        self._transport: asyncio.Transport | None = None
        self._unread = b""
        self._questions: dict[int, asyncio.Future[Message]] = {}
        # Numbers never repeat, not even in the next image of a restarted program.
        self._number = time.monotonic_ns()
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def open(self, sock: socket.socket, unread: bytes = b"") -> None:
        """Begin to talk over `sock`, which from now on belongs to this channel."""
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=sock)
        except BaseException:
            self.connection_lost(None)
            raise
        if unread:
            self.data_received(unread)

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def send(self, message: Message) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        body = json.dumps(message, separators=(",", ":")).encode()
        self._transport.write(len(body).to_bytes(4, "big") + body)

    async def ask(self, message: Message, timeout: float) -> Message:
        """The other side's answer. Raises TimeoutError, or ConnectionResetError for a broken line."""
        if self._transport is None or self._transport.is_closing():
            raise ConnectionResetError("the line is closed")
        self._number += 1
        number = self._number
        question: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._questions[number] = question
        self.send({**message, "question": number})
        try:
            async with asyncio.timeout(timeout):
                return await question
        finally:
            del self._questions[number]

    def answer(self, question: Message, answer: Message) -> None:
        self.send({**answer, "answers": question["question"]})

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    # What a restart needs.

    def pause(self) -> None:
        """Read nothing more from the line; what arrives waits in the kernel."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    @property
    def flushed(self) -> bool:
        """Whether all that was sent has left this process."""
        return self._transport is None or self._transport.get_write_buffer_size() == 0

    @property
    def unread(self) -> bytes:
        return self._unread

    def fileno(self) -> int:
        """-1 for a channel that is not open."""
        if self._transport is None:
            return -1
        return int(self._transport.get_extra_info("socket").fileno())

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclass of asyncio's.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._unread += data
        while len(self._unread) >= 4:
            length = int.from_bytes(self._unread[:4], "big")
            if length > LARGEST:
                self.close()
                return
            if len(self._unread) < 4 + length:
                return
            body, self._unread = self._unread[4 : 4 + length], self._unread[4 + length :]
            self._understand(json.loads(body))

    def _understand(self, message: Message) -> None:
        number = message.get("answers")
        if number is None:
            self._receive(message)
            return
        question = self._questions.get(number)
        # An answer that nobody waits for any more came too late; it is no error.
        if question is not None and not question.done():
            question.set_result(message)

    def connection_lost(self, _: Exception | None) -> None:
        for question in self._questions.values():
            if not question.done():
                question.set_exception(ConnectionResetError("the other side is gone"))
        if not self.closed.done():
            self.closed.set_result(None)
