"""An exchange on a route with an adapter: whole messages are translated, or nothing is sent on.

The request is held until it is whole, translated, and only then sent; its answer likewise. What is held
is bounded (`limits.translated_bytes`); a message that is longer, or a stream that has no end, is one that
the adapter fails on. Interim answers and trailers are not passed on. In all else this is an exchange like
any other: it is retried, falls back, times out and is counted in the same way.

When the adapter fails, the message goes on as it came where the route says so (a request then by an
exchange of the plain kind, so that its answer is not translated either); otherwise the client gets a 502.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from core.http import SAFE_METHODS, RequestHead, ResponseHead, field_values
from flags.model import Decision
from legacy_adapter.adapter import Adapter
from legacy_adapter.messages import Request
from proxy.adapted import answer_of, outgoing_answer, outgoing_request, request_of, without_other_body
from proxy.answers import CONTINUE
from proxy.body import BadFramingError, Body, ChunkedBody, LengthBody, UntilCloseBody
from proxy.head import parse_response
from proxy.outgoing import outgoing_head
from proxy.pipeline import INTERIM_LIMIT, MANY_CHUNKS, Exchange
from proxy.stall import Stall

if TYPE_CHECKING:
    from proxy.upstream import UpstreamConnection


_FRAMING_BYTES = 64 * 1024
"""Head and chunk sizes of a message that is held, beside as many again as its body may have."""


class TooLongError(Exception):
    """A message that is not held whole: longer than the limit, or without an end."""


class TranslatedExchange(Exchange):
    """One request and its answer, both translated by the adapter that the decision names."""

    __slots__ = (
        "_asked", "_came", "_held", "_incoming", "_received", "_sent_body", "_sent_head",
    )  # fmt: skip

    collects = True

    _asked: Request
    """The client's request, as the adapter was given it."""
    _sent_head: RequestHead
    _came: ResponseHead
    """The target's answer, of which the body is still being held."""

    def start(self, instead: Decision | None = None) -> None:
        """Hold the request until it is whole."""
        assert instead is not None
        assert instead.translation is not None
        self.decision = instead
        self._pool = self.runtime.pools[instead.side]
        self._received = bytearray()
        """The message that is being held, as it came, framing included."""
        self._held = bytearray()
        """Its body."""
        self._incoming: Body | None = None
        """The answer's body while it is being held."""
        self._sent_body = b""
        mirror = self.runtime.mirror
        if instead.mirror is not None and mirror is not None:
            self.witness = mirror.witness(self)
        head = self.head
        if not head.has_body:
            self._translate_request()
            return
        limits = self.runtime.config.limits
        if head.content_length > limits.translated_bytes:
            self._request_failed(TooLongError("the request's body is longer than limits.translated_bytes"))
            return
        self.request_body = (
            ChunkedBody(limits.head_bytes) if head.chunked else LengthBody(head.content_length)
        )
        self._body_stall = Stall(self.client.now(), 0)
        if head.expect_continue and not self._interim_sent:
            self._interim_sent = True
            self.client.send(CONTINUE)
        rest = self.client.take_buffer()
        if rest:
            self.on_request_body(rest)
        self.client.balance_reading()

    def on_request_body(self, data: bytes, before: bytes = b"") -> None:  # noqa: ARG002  (of the base)
        body = self.request_body
        assert body is not None
        try:
            payload, end = body.feed(data)
        except BadFramingError as problem:
            self.fail(400, problem.reason)
            return
        self.received += len(payload)
        if self.witness is not None:
            self.witness.saw_request(payload)
        self._hold(data[:end], payload)
        limits = self.runtime.config.limits
        if limits.body_bytes and self.received > limits.body_bytes:
            self.fail(413, "body_too_large")
        elif self._is_too_much():
            self.client.put_back(data[end:])
            self._request_failed(TooLongError("the request's body is longer than limits.translated_bytes"))
        elif body.done:
            self.client.put_back(data[end:])
            self.request_body = None
            self._translate_request()
        elif isinstance(body, ChunkedBody) and body.pieces > MANY_CHUNKS:
            self.client.breathe()

    def _translate_request(self) -> None:
        head = self.head
        try:
            self._asked = request_of(head, bytes(self._held))
            self._sent_head, self._sent_body = outgoing_request(
                self._adapter().request(self._asked), head, self._pool.authority, self.runtime.config.limits
            )
        except Exception as fault:
            self._request_failed(fault)
            return
        self._forget_held()
        connection = self._pool.take()
        if connection is not None:
            self.forward(connection)
        else:
            self._wait_for_connection()

    def forward(self, connection: UpstreamConnection) -> None:
        self.upstream = connection
        connection.exchange = self
        connection.send(outgoing_head(self._sent_head, self.client.peer, self._pool) + self._sent_body)
        self._request_sent()
        self.client.balance_reading()

    def on_interim(self, head: ResponseHead) -> None:  # noqa: ARG002  (of the base)
        self._interim += 1
        if self._interim > INTERIM_LIMIT:
            self.fail(502, "too_many_interim_answers")

    def on_answer(self, upstream: UpstreamConnection, head: ResponseHead, data: bytes) -> None:
        """Hold the answer until it is whole."""
        if head.status >= 500 and self._fall_back("http_5xx", head, len(data)):
            return
        if head.status == 101:
            self._switch_protocols(head, data)
            return
        self._came = head
        self.deadline = math.inf
        self._idle_stall = Stall(self.client.now(), 0)
        self._hold(data[: head.size], b"")
        limits = self.runtime.config.limits
        if head.status in (204, 304) or self.head.method == b"HEAD":
            body: Body = LengthBody(0)
        elif head.chunked:
            body = ChunkedBody(limits.head_bytes)
        elif head.content_length >= 0:
            body = LengthBody(head.content_length)
        else:
            body = UntilCloseBody()
            head.keep_alive = False
        self._incoming = body
        if _has_no_end(head) or (isinstance(body, LengthBody) and body.left > limits.translated_bytes):
            self._hold(data[head.size :], b"")
            self._answer_failed(upstream, TooLongError("the answer is a stream, or longer than the limit"))
        else:
            self.on_answer_body(data, head.size)

    def on_answer_body(self, data: bytes, start: int, before: bytes = b"") -> None:
        body, upstream = self._incoming, self.upstream
        if body is None or self.client.is_closing:
            super().on_answer_body(data, start, before)
            return
        assert upstream is not None
        try:
            payload, end = body.feed(data, start)
        except BadFramingError as problem:
            self.fail(502, problem.reason)
            return
        self._hold(data[start:], payload)
        if self._is_too_much():
            self._answer_failed(upstream, TooLongError("the answer is longer than limits.translated_bytes"))
        elif body.done:
            if end < len(data):
                self._came.keep_alive = False  # bytes behind the end of the answer
            self._translate_answer(upstream)
        elif isinstance(body, ChunkedBody) and body.pieces > MANY_CHUNKS:
            upstream.breathe()

    def _translate_answer(self, upstream: UpstreamConnection) -> None:
        came = self._came
        try:
            answer = answer_of(came, bytes(self._held))
            translated = without_other_body(answer, self._adapter().answer(answer, self._asked))
            whole = outgoing_answer(translated, came, self.head, self.runtime.config.limits)
            head = parse_response(whole, max_head=len(whole))
            assert isinstance(head, ResponseHead)
        except Exception as fault:
            self._answer_failed(upstream, fault)
            return
        self._incoming = None
        self._forget_held()
        head.keep_alive = came.keep_alive
        head.keep_alive_timeout = came.keep_alive_timeout
        self._begin_answer(upstream, head, whole)

    def on_target_end(self, exc: Exception | None, *, half_closed: bool) -> bool:
        if self._incoming is None:
            return super().on_target_end(exc, half_closed=half_closed)
        upstream = self.upstream
        assert upstream is not None
        if not isinstance(self._incoming, UntilCloseBody) or exc is not None:
            self.fail(502, "http_response_incomplete")
            return False
        self._translate_answer(upstream)
        if isinstance(self._answer_body, UntilCloseBody):  # it went on as it came, and here is its end
            return super().on_target_end(exc, half_closed=half_closed)
        return False

    def sweep(self, now: float) -> None:
        config = self.runtime.config
        if self.request_body is not None and self._body_stall is not None:
            if self._body_stall.lasts(
                now, self.received, config.timeouts.body_idle, config.limits.min_body_rate
            ):
                self.fail(408, "request_body_timeout")
            return
        if self._incoming is not None and self._idle_stall is not None:
            if self._idle_stall.lasts(now, len(self._received), config.timeouts.response_idle):
                self.fail(504, "connection_read_timeout")
            return
        super().sweep(now)

    def _may_ask_again(self) -> bool:
        # The adapter may have made another method of it, or given it a body.
        translated = getattr(self, "_sent_head", None)
        harmless = translated is None or (translated.method in SAFE_METHODS and not self._sent_body)
        return harmless and super()._may_ask_again()

    # The ways in which a translation fails.

    def _request_failed(self, fault: Exception) -> None:
        self._note_foreign_fault(self.decision.flag, "request", fault)
        translation = self.decision.translation
        assert translation is not None
        if translation.otherwise is not None:
            self.client.put_back(bytes(self._received) + self.client.take_buffer())
            self.client.hand_over(self, translation.otherwise)
        elif isinstance(fault, TooLongError):
            self.fail(413, "body_too_large_to_translate")
        else:
            self.fail(502, "adapter_failed")

    def _answer_failed(self, upstream: UpstreamConnection, fault: Exception) -> None:
        self._note_foreign_fault(self.decision.flag, "answer", fault)
        translation = self.decision.translation
        assert translation is not None
        self._incoming = None
        if translation.otherwise is None:
            self.fail(502, "adapter_failed")
            return
        received = bytes(self._received)
        self._forget_held()
        self._begin_answer(upstream, self._came, received)

    # Details.

    def _adapter(self) -> Adapter:
        translation = self.decision.translation
        assert translation is not None
        return self.runtime.plugs.adapters[translation.adapter]

    def _hold(self, data: bytes, payload: bytes) -> None:
        self._received += data
        self._held += payload

    def _is_too_much(self) -> bool:
        # Chunks may be far longer than what is in them.
        limit = self.runtime.config.limits.translated_bytes
        return len(self._held) > limit or len(self._received) > 2 * limit + _FRAMING_BYTES

    def _forget_held(self) -> None:
        self._received = bytearray()
        self._held = bytearray()


def _has_no_end(head: ResponseHead) -> bool:
    kinds = field_values(head.fields, b"content-type")
    return bool(kinds) and kinds[0].lower().startswith(b"text/event-stream")
