"""One client connection: it reads requests one after the other and writes their answers in order.

While an exchange is under way, what the client sends is either the body of that request or belongs
to a later one; the later ones wait as bytes in a bounded buffer (pipelining). Reading is paused
whenever more bytes could not be passed on, so a fast sender never fills the process.
"""

from __future__ import annotations

import asyncio
import math
import socket
import struct
import time
from collections.abc import Collection
from typing import TYPE_CHECKING, cast

from core import metrics
from core.http import Refusal, RequestHead, field_values
from flags.model import NO_ROUTE, Decision
from proxy.access_log import Entry
from proxy.answers import own_answer
from proxy.forwarding import Peer
from proxy.head import parse_request
from proxy.holding import has_hung_up
from proxy.pipeline import Exchange
from proxy.stall import Stall
from proxy.translation import TranslatedExchange
from proxy.upstream import WRITE_BUFFER

if TYPE_CHECKING:
    from proxy.access_log import AccessLogWriter
    from proxy.worker import Worker

_AHEAD = 64 * 1024
"""Bytes of later requests that are read while one is being answered."""
_LINGER_SECONDS = 2.0
"""How long a connection that we have ended may go on sending before it is cut."""


class ClientConnection(asyncio.Protocol):
    """The server's half of HTTP/1.1 on one socket."""

    __slots__ = (
        "_buffer", "_deadline", "_deadline_reason", "_eof_sent", "_exchange", "_idle_since", "_lingering",
        "_sent", "_source", "_stall", "_transport", "half_closed", "is_leaving", "loop", "peer",
        "reading_paused", "worker", "write_paused",
    )  # fmt: skip

    _transport: asyncio.Transport
    peer: Peer

    def __init__(self, worker: Worker, source: str | None = None) -> None:
        """`source` is the client's address where the PROXY protocol has told it."""
        self.worker = worker
        self._source = source
        self.loop = worker.loop
        self._buffer = b""
        self._exchange: Exchange | None = None
        self._deadline = math.inf
        self._deadline_reason = ""
        self._idle_since = 0.0
        self._lingering = False
        self._eof_sent = False
        self._sent = 0
        self._stall: Stall | None = None
        self.half_closed = False
        self.is_leaving = worker.draining
        """The answer under way is the last on this connection."""
        self.reading_paused = False
        self.write_paused = False

    # What the event loop says.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", transport)  # uvloop's are not subclasses
        self._transport = transport
        if not self.worker.admit(self):
            transport.abort()
            return
        transport.set_write_buffer_limits(WRITE_BUFFER)
        peername = transport.get_extra_info("peername")
        address = self._source or (str(peername[0]) if peername else "")
        tls = transport.get_extra_info("ssl_object") is not None
        config = self.worker.runtime.config
        self.peer = Peer(config.forwarding, address, tls=tls)
        self.is_leaving = self.worker.draining
        self._idle_since = self.loop.time()
        self._set_deadline(config.timeouts.header, "header_timeout")

    def data_received(self, data: bytes) -> None:
        try:
            self._receive(data)
        except Exception as bug:
            self.on_bug(bug)

    def _receive(self, data: bytes) -> None:
        exchange = self._exchange
        if exchange is None:
            if self._lingering:
                return  # read and forgotten, so that our last answer is not destroyed by a reset
            if self.write_paused:
                self._buffer += data
                self.balance_reading()
            elif self._buffer:
                self._read_more_of_head(data)
            else:
                self._read_head(data)
        elif exchange.tunnelled:
            exchange.on_tunnel_bytes(data)
        elif exchange.request_body is not None and (exchange.upstream is not None or exchange.collects):
            exchange.on_request_body(data)
        else:
            self._buffer += data
            self.balance_reading()

    def eof_received(self) -> bool:
        self.half_closed = True
        if not self._buffer:
            self.is_leaving = True
        exchange = self._exchange
        if exchange is None:
            if not self._buffer or not self._transport.can_write_eof():
                return False
            self.loop.call_soon(self._go_on)  # what was sent before may hold whole requests
            return True
        if not self._transport.can_write_eof():
            return self._end_of_tls(exchange)
        if self._buffer and not exchange.tunnelled:
            return True  # requests are waiting; the target hears of it after the last of them
        if exchange.tunnelled and self._eof_sent:
            return False
        return exchange.on_client_half_closed()

    def connection_lost(self, _exc: Exception | None) -> None:
        self.worker.forget(self)
        self.give_up()

    def pause_writing(self) -> None:
        self.write_paused = True
        exchange = self._exchange
        if exchange is not None and exchange.upstream is not None:
            exchange.upstream.stop_reading()

    def resume_writing(self) -> None:
        self.write_paused = False
        exchange = self._exchange
        if exchange is None:
            self.loop.call_soon(self._go_on)
        elif exchange.upstream is not None:
            exchange.upstream.go_on_reading()

    # What the exchange says.

    def now(self) -> float:
        """The event loop's time in seconds."""
        return self.loop.time()

    def hand_over(self, before: Exchange, decision: Decision) -> None:
        """Let another exchange answer by `decision` what `before`, which is over, has not answered."""
        kind = Exchange if decision.translation is None else TranslatedExchange
        exchange = self._exchange = kind(self, before.head, before.runtime)
        exchange.succeed(before)
        exchange.start(decision)

    def send(self, data: bytes) -> None:
        self._sent += len(data)
        self._transport.write(data)
        if self.write_paused:
            exchange = self._exchange
            if exchange is not None and exchange.upstream is not None:
                exchange.upstream.stop_reading()

    def send_eof(self) -> bool:
        """End our direction; returns whether the other direction can go on."""
        if self._eof_sent or not self._transport.can_write_eof():
            self._close()
            return False
        self._eof_sent = True
        self._transport.write_eof()
        return True

    def break_off(self, *, reset: bool) -> None:
        """End the connection in the middle of an answer.

        What was relayed still goes out; then the connection ends before its framing says so. An
        answer that has no framing but the end of its connection must not end like a whole one, so
        it is `reset`.
        """
        self._exchange = None
        if reset:
            sock = self._transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()
        else:
            self._close()

    @property
    def is_closing(self) -> bool:
        """Whether what is sent goes nowhere any more, although the loss may be reported much later."""
        return self._transport.is_closing()

    def has_gone(self) -> bool:
        """Whether the client has hung up, or sends no more, even if that has not been read yet."""
        if self.half_closed or self.is_closing:
            return True
        sock = self._transport.get_extra_info("socket")
        return sock is None or has_hung_up(sock.fileno())

    def changes_under(self, flags: Collection[str]) -> bool:
        """Whether a request is being answered that changes something and is under one of `flags`."""
        exchange = self._exchange
        return exchange is not None and exchange.decision.flag in flags and exchange.is_under_way

    def give_up(self) -> None:
        """End the exchange: the client is as good as gone."""
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.on_client_gone()

    def hang_up(self) -> None:
        """End the exchange and the connection: the client counts as gone."""
        self.give_up()
        self._close()

    def on_bug(self, bug: Exception) -> None:
        """The boundary for faults of ours: counted, logged, and kept to this one connection."""
        self.worker.note_bug(bug)
        exchange = self._exchange
        try:
            if exchange is not None:
                exchange.on_bug()
            else:
                self.worker.counters.event(metrics.ERRORS, "-", "proxy_internal_error")
                self._transport.abort()
        except Exception as another:
            self.worker.note_bug(another)
            self._exchange = None
            self._transport.abort()

    def take_buffer(self) -> bytes:
        """Bytes that were received and belong to nobody yet."""
        data, self._buffer = self._buffer, b""
        return data

    def put_back(self, data: bytes) -> None:
        """Bytes behind the end of the request: they begin the next one."""
        self._buffer = data

    def balance_reading(self) -> None:
        """Read from the client exactly while there is room for what it sends."""
        exchange = self._exchange
        if exchange is None:
            full = self.write_paused and len(self._buffer) > _AHEAD
        elif exchange.upstream is None:
            waits = exchange.request_body is not None and not exchange.collects
            full = waits or len(self._buffer) > _AHEAD
        elif exchange.request_body is not None or exchange.tunnelled:
            full = exchange.upstream.write_paused
        else:
            full = len(self._buffer) > _AHEAD
        if full != self.reading_paused and not self._transport.is_closing():
            self.reading_paused = full
            if full:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def breathe(self) -> None:
        """Let the others have a turn: the event loop would read on for as long as there is something."""
        if not self.reading_paused and not self._transport.is_closing():
            self.reading_paused = True
            self._transport.pause_reading()
            self.loop.call_soon(self.balance_reading)

    def exchange_ended(self, *, keep: bool) -> None:
        """The exchange has been settled; go on with the next request or end the connection."""
        self._exchange = None
        if self._transport.is_closing():
            return
        if not keep:
            self._end()
            return
        now = self._idle_since = self.loop.time()
        self._deadline = now + self.worker.runtime.config.timeouts.keepalive
        self._deadline_reason = "keepalive"
        if self._buffer:
            # Not at once: a long pipeline would be a long recursion.
            self.loop.call_soon(self._go_on)
        elif self.half_closed:
            self._close()
        if self.reading_paused:
            self.balance_reading()

    def log_exchange(self, log: AccessLogWriter, exchange: Exchange, seconds: float) -> None:
        """Hand one settled exchange to the access log."""
        log.offer(
            Entry(
                time=time.time(),
                client=self.peer.address,
                method=exchange.head.method,
                target=exchange.head.sent_target,
                status=exchange.status,
                flag=exchange.decision.flag,
                side=exchange.decision.side.value,
                reason=exchange.decision.reason.value,
                error=exchange.error,
                bytes_in=exchange.received,
                bytes_out=exchange.sent,
                seconds=seconds,
                agent=next(iter(field_values(exchange.head.fields, b"user-agent")), None),
            )
        )

    # What the worker says.

    def sweep(self, now: float) -> None:
        """Cut off what takes too long. Called a few times in the shortest timeout."""
        if now >= self._deadline:
            self._on_deadline()
            return
        waiting = self._transport.get_write_buffer_size()
        if waiting:
            timeouts = self.worker.runtime.config.timeouts
            limits = self.worker.runtime.config.limits
            drained = self._sent - waiting
            if self._stall is None:
                self._stall = Stall(now, drained)
            elif self._stall.lasts(now, drained, timeouts.write_idle, limits.min_body_rate):
                self.worker.count_closed("slow_reader")
                self._transport.abort()
                return
        else:
            self._stall = None
        if self._exchange is not None:
            self._exchange.sweep(now)

    @property
    def is_busy(self) -> bool:
        """Whether a request is being answered."""
        return self._exchange is not None

    def cut(self) -> None:
        """End the connection at once, whatever it is doing."""
        if self._exchange is not None:
            self._exchange.error = "drain_timeout"
        self._transport.abort()

    def leave(self) -> None:
        """Let the next answer be the last."""
        self.is_leaving = True

    def leave_if_idle(self, idle_for: float) -> None:
        """While draining: end the connection if it has had no request for `idle_for` seconds."""
        if (
            self._exchange is None
            and not self._buffer
            and not self._lingering
            and not self._transport.is_closing()
            and self.loop.time() - self._idle_since >= idle_for
        ):
            self.worker.count_closed("drain")
            self._close()

    # Details.

    def _read_more_of_head(self, data: bytes) -> None:
        # Parsing costs the length of the whole head, so it is tried again only when an end has
        # come: a client that sends byte by byte must not cost the square of it.
        seen = len(self._buffer)
        self._buffer += data
        buffer = self._buffer
        limits = self.worker.runtime.config.limits
        tail = max(0, seen - 3)
        if buffer.find(b"\n\r\n", tail) < 0 and buffer.find(b"\n\n", tail) < 0:
            first_line_ends_here = b"\n" in data and buffer.find(b"\n", 2) >= seen
            within_limits = len(buffer) <= limits.head_bytes and (
                len(buffer) <= limits.target_bytes or b"\n" in buffer
            )
            if within_limits and seen > 2 and not first_line_ends_here:
                return
        self._buffer = b""
        self._read_head(buffer)

    def _end_of_tls(self, exchange: Exchange) -> bool:
        """The client has said goodbye over TLS, which the event loop never leaves half open.

        Nothing that is written from now on reaches the client. What it said last in a tunnel still
        goes out; the tunnel ends when the connection is lost.
        """
        if exchange.tunnelled:
            exchange.on_client_half_closed()
        else:
            self.give_up()
        return False

    def _go_on(self) -> None:
        """Begin the next request of a pipeline, unless the client has yet to take the last answers."""
        if (
            self._exchange is None
            and not self.write_paused
            and not self._lingering
            and not self._transport.is_closing()
        ):
            data = self.take_buffer()
            if data:
                self._read_head(data)

    def _read_head(self, data: bytes) -> None:
        runtime = self.worker.runtime
        limits = runtime.config.limits
        head = parse_request(
            data, max_head=limits.head_bytes, max_target=limits.target_bytes, max_fields=limits.headers
        )
        if isinstance(head, RequestHead):
            if len(data) > head.size:
                self._buffer = data[head.size :]
            elif self.half_closed:
                self.is_leaving = True
            self._deadline = math.inf
            exchange = self._exchange = Exchange(self, head, runtime)
            exchange.start()
        elif head is None:
            self._buffer = data
            if self.half_closed:
                self._close()
            elif self._deadline_reason != "header_timeout" or self._deadline == math.inf:
                self._set_deadline(runtime.config.timeouts.header, "header_timeout")
        else:
            self._refuse(head, data)

    def _refuse(self, refusal: Refusal, data: bytes) -> None:
        """Answer a request that could not even be read; nothing behind it can be trusted."""
        self._buffer = b""
        runtime = self.worker.runtime
        runtime.counters.event(metrics.ERRORS, "-", refusal.reason)
        head_only = data.removeprefix(b"\r\n").startswith(b"HEAD ")
        self.send(
            own_answer(refusal.status, refusal.reason, now=time.time(), head_only=head_only, close=True)
        )
        log = runtime.access_log
        if log is not None and log.wants(refusal.status):
            log.offer(
                Entry(
                    time=time.time(),
                    client=self.peer.address,
                    method=b"-",
                    target=b"-",
                    status=refusal.status,
                    flag=NO_ROUTE,
                    side="-",
                    reason="-",
                    error=refusal.reason,
                    bytes_in=0,
                    bytes_out=0,
                    seconds=0.0,
                )
            )
        self._end()

    def _end(self) -> None:
        """End the connection so that the last answer arrives although the client may still send."""
        if self._transport.is_closing():
            return
        if self.half_closed or not self._transport.can_write_eof():
            self._close()
            return
        self._lingering = True
        self._buffer = b""
        if self.reading_paused:
            self.balance_reading()
        self._set_deadline(_LINGER_SECONDS, "linger")
        self._transport.write_eof()

    def _set_deadline(self, seconds: float, reason: str) -> None:
        self._deadline = self.loop.time() + seconds
        self._deadline_reason = reason

    def _on_deadline(self) -> None:
        reason = self._deadline_reason
        if reason in ("linger", "closing") and self._transport.get_write_buffer_size():
            # Our last answer is still on its way to a slow reader; `sweep` judges how slow.
            self._set_deadline(_LINGER_SECONDS, reason)
            return
        if reason == "closing":
            self._transport.abort()  # over TLS the peer has not said goodbye in return
            return
        self.worker.count_closed(reason)
        if reason == "header_timeout" and self._buffer:
            self._refuse(Refusal(408, "header_timeout"), self._buffer)
        elif reason == "keepalive":
            self._close()
        else:
            self._transport.abort()

    def _close(self) -> None:
        """End the connection in order, with a limit to the patience for it."""
        if not self._transport.is_closing():
            self._transport.close()
            self._set_deadline(_LINGER_SECONDS, "closing")
