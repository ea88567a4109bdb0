"""One connection to a target: it sends what it is told and reads one answer at a time.

A connection serves one exchange and then returns to its pool. While it lies there, nothing may
arrive on it: bytes that nobody asked for would become the answer to the next client's request, so
the connection is thrown away (RFC 9112, 9.2), and `is_fit` looks into the socket itself just before
reuse, because such bytes may not have reached the event loop yet.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
from typing import TYPE_CHECKING, Protocol, cast

from core.http import ResponseHead
from proxy.head import parse_response

if TYPE_CHECKING:
    from proxy.body import Body
    from proxy.pool import Pool
    from proxy.runtime import Runtime

WRITE_BUFFER = 256 * 1024
"""Bytes that may wait in the process for a slow peer before its source is paused."""


class Source(Protocol):
    """Where an asker's request comes from, as far as a connection cares."""

    @property
    def write_paused(self) -> bool: ...
    def balance_reading(self) -> None: ...
    def on_bug(self, bug: Exception) -> None: ...


class Asker(Protocol):
    """Who has a connection, or waits for one: a client's exchange, or an asking on nobody's behalf."""

    @property
    def client(self) -> Source: ...
    @property
    def runtime(self) -> Runtime: ...
    @property
    def request_body(self) -> Body | None: ...
    def connected(self, connection: UpstreamConnection) -> bool: ...
    def fail(self, status: int, reason: str) -> None: ...
    def on_interim(self, head: ResponseHead) -> None: ...
    def on_answer(self, upstream: UpstreamConnection, head: ResponseHead, data: bytes) -> None: ...
    def on_answer_body(self, data: bytes, start: int) -> None: ...
    def on_target_end(self, exc: Exception | None, *, half_closed: bool) -> bool: ...


class UpstreamConnection(asyncio.Protocol):
    """The client's half of HTTP/1.1 on one socket."""

    __slots__ = (
        "_buffer", "_paused", "_poll", "_pool", "_sock", "answering", "exchange", "expires", "heard",
        "reused", "sent", "transport", "write_paused",
    )  # fmt: skip

    transport: asyncio.Transport

    def __init__(self, pool: Pool, sock: socket.socket) -> None:
        self._pool = pool
        self._poll = select.poll()
        self._sock = sock
        self._poll.register(sock.fileno(), select.POLLIN | select.POLLRDHUP)
        self._buffer = b""
        self._paused = False
        self.exchange: Asker | None = None
        self.answering = False
        """The answer's head has been handed over; what comes now is its body."""
        self.expires = 0.0
        """Loop time at which it is no longer reused."""
        self.heard = False
        """Something has arrived since the request was sent."""
        self.reused = False
        self.sent = 0
        self.write_paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", transport)  # uvloop's are not subclasses
        self.transport = transport
        transport.set_write_buffer_limits(WRITE_BUFFER)

    def is_fit(self, now: float) -> bool:
        """Whether the connection may carry another request: alive, and silent as it should be."""
        return now < self.expires and not self._poll.poll(0)

    def send(self, data: bytes) -> None:
        self.sent += len(data)
        self.transport.write(data)

    def stop_reading(self) -> None:
        if not self._paused and not self.transport.is_closing():
            self._paused = True
            self.transport.pause_reading()

    def go_on_reading(self) -> None:
        if self._paused and not self.transport.is_closing():
            self._paused = False
            self.transport.resume_reading()

    def breathe(self) -> None:
        """Let the others have a turn: the event loop would read on for as long as there is something."""
        if not self._paused and not self.transport.is_closing():
            self.stop_reading()
            asyncio.get_running_loop().call_soon(self._breathed)

    def _breathed(self) -> None:
        if self.exchange is None or not self.exchange.client.write_paused:
            self.go_on_reading()

    def rest(self) -> None:
        """Forget the exchange that has ended, ready for the next."""
        self.exchange = None
        self.answering = False
        self.heard = False
        self.reused = True
        if self._paused:
            self.go_on_reading()

    def close(self) -> None:
        """Close without waiting for the peer; whoever owns the exchange has let go of it."""
        self.exchange = None
        self.transport.abort()

    def finish(self, patience: float) -> None:
        """Close when what was sent has gone out, at the latest after `patience` seconds."""
        self.exchange = None
        if not self.transport.is_closing():
            self.transport.close()
            if self.transport.get_write_buffer_size():
                asyncio.get_running_loop().call_later(patience, self.transport.abort)

    def data_received(self, data: bytes) -> None:
        try:
            self._receive(data)
        except Exception as bug:
            if self.exchange is None:
                raise
            self.exchange.client.on_bug(bug)

    def _receive(self, data: bytes) -> None:
        exchange = self.exchange
        if exchange is None:
            self._pool.discard(self, "unsolicited_bytes")
            return
        if self.answering:
            exchange.on_answer_body(data, 0)
            return
        self.heard = True
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        while True:
            head = parse_response(data, max_head=exchange.runtime.config.limits.head_bytes)
            if isinstance(head, ResponseHead):
                if head.status >= 200 or head.status == 101:
                    self.answering = True
                    exchange.on_answer(self, head, data)
                    return
                exchange.on_interim(head)
                data = data[head.size :]
                if not data or self.exchange is not exchange:
                    return
            elif head is None:
                self._buffer = data
                return
            else:
                exchange.fail(head.status, head.reason)
                return

    def eof_received(self) -> bool:
        if self.exchange is not None:
            return self.exchange.on_target_end(None, half_closed=True)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._pool.lost(self)
        if exc is not None and self.exchange is not None and self.exchange.request_body is not None:
            self._hear_last_words()
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.on_target_end(exc, half_closed=False)

    def _hear_last_words(self) -> None:
        """Read what the kernel still holds of a connection that broke while a body was being sent.

        A target that does not want a body answers, closes, and so resets the connection. If sending
        meets the reset before the answer was read, the answer (a 413, say) still lies in the kernel.
        """
        if self.answering or self.transport.get_extra_info("ssl_object") is not None:
            return
        with contextlib.suppress(OSError):
            data = self._sock.recv(WRITE_BUFFER)
            if data:
                self.data_received(data)

    def pause_writing(self) -> None:
        self.write_paused = True
        if self.exchange is not None:
            self.exchange.client.balance_reading()

    def resume_writing(self) -> None:
        self.write_paused = False
        if self.exchange is not None:
            self.exchange.client.balance_reading()
