"""The request's way, on one screen: decide, take a connection, forward, relay the answer, settle.

An `Exchange` is one request and its answer. It stands between a client's connection and a target's,
relays in both directions as bytes arrive, and settles everything when it ends, however it ends.
Everything here runs in callbacks of one event loop: there is no task per request, and no step waits.

How an exchange may end:

- the answer was relayed whole: both connections go on, if both messages allow it;
- it failed before the client saw a byte of the answer: the client gets an answer of our own;
- it failed after that: the client's connection is broken off without the end that its framing
  promises, because an answer that is cut must never look whole;
- the client went away: the target's connection is closed, so that the target can know.

While a cutover settles which side may change the data, a request that changes some waits before anything of
it is sent (`holding.py`), and is decided anew afterwards.

A request is sent a second time only if the target cannot have acted on it: it went out on a pooled
connection that died before one byte of an answer, its method is safe and it has no body (RFC 9110,
9.2.2; RFC 9112, 9.3.1). Where its flag says so, a safe request that new has failed is asked once more
of legacy (fallback), as long as the client has seen no byte of an answer; that new failed is counted
before it is hidden. Whoever asks once more is a new exchange with the client's request as it came.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from secrets import token_urlsafe
from typing import TYPE_CHECKING

from core import metrics
from core.http import SAFE_METHODS, Refusal, RequestHead, ResponseHead, field_values
from flags.decide import decide
from flags.model import NO_ROUTE, Decision, Reason
from proxy.adapted import checked_attributes, request_of
from proxy.answers import CONTINUE, own_answer
from proxy.body import BadFramingError, Body, ChunkedBody, LengthBody, UntilCloseBody, chunk, last_chunk
from proxy.head import without
from proxy.outgoing import outgoing_head, without_framing
from proxy.stall import Stall

if TYPE_CHECKING:
    from proxy.client import ClientConnection
    from proxy.mirror import Witness
    from proxy.pool import Pool
    from proxy.runtime import Runtime
    from proxy.upstream import UpstreamConnection

MANY_CHUNKS = 1000
"""Chunks in one read after which the others get a turn: they cost far more than their bytes."""
INTERIM_LIMIT = 100
"""1xx answers to one request; a target that says more is not going to say anything else."""
_CORK = 16 * 1024
"""Payloads up to this size are joined with their head into one write."""

_TARGETS_FAULT = frozenset({502, 503, 504})
"""Statuses of ours that say that the target has failed, and not the client or Crossfade."""
_IDENTITY_SECONDS = 34_560_000
"""400 days: as long as browsers keep a cookie at the most."""
_IDENTITY_BYTES = 16

_REFUSED = {b"TRACE": "trace_refused", b"CONNECT": "connect_refused"}
"""Methods that would show a client what was added on the way, or open a way past this proxy."""


class Exchange:
    """One request, from its complete head to the last byte of its answer.

    `received` and `sent` count payload bytes that were relayed; `error` says in one word why the
    exchange did not end as it should have; `request_body` is the part of the request that is still
    to come, None once it has been sent whole; at loop time `deadline`, `on_deadline` is called;
    `identity` is a cookie (name, value) that the answer is to set.

    It also is the `flags.attributes.Facts` of its own decision.
    """

    __slots__ = (
        "_answer", "_answer_body", "_answered_after", "_attributes", "_body_stall", "_chunk_answer",
        "_close_client", "_held_until", "_idle_stall", "_interim", "_interim_sent", "_pool", "_repeated",
        "_started", "_target_stall", "_was_held", "client", "deadline", "decision", "error", "head",
        "identity", "received", "request_body", "runtime", "sent", "status", "tunnelled", "upstream",
        "witness",
    )  # fmt: skip

    decision: Decision
    _pool: Pool
    _attributes: Mapping[str, str]

    collects = False
    """Whether the request's body is taken whole before there is a connection for it."""

    def __init__(self, client: ClientConnection, head: RequestHead, runtime: Runtime) -> None:
        self._started = time.perf_counter()
        self.runtime = runtime
        self.client = client
        self.head = head
        self.upstream: UpstreamConnection | None = None
        self.request_body: Body | None = None
        self.received = 0
        self.sent = 0
        self.status = 0
        self.error: str | None = None
        self.tunnelled = False
        self.identity: tuple[str, str] | None = None
        self.witness: Witness | None = None
        self.deadline = math.inf
        self._answer: ResponseHead | None = None
        self._answer_body: Body | None = None
        self._answered_after: float | None = None
        self._chunk_answer = False
        self._close_client = False
        self._held_until: float | None = None
        self._was_held = False
        self._repeated = False
        self._interim = 0
        self._interim_sent = False
        self._body_stall: Stall | None = None
        self._idle_stall: Stall | None = None
        self._target_stall: Stall | None = None

    # The way of a request, in order.

    def start(self, instead: Decision | None = None) -> None:
        """Decide who answers, unless it is decided, and forward as soon as there is a connection."""
        head = self.head
        runtime = self.runtime
        decision = self.decision = decide(runtime.snapshot, head, self) if instead is None else instead
        pool = self._pool = runtime.pools[decision.side]
        if not head.plain and (refusal := self._refusal()) is not None:
            self.fail(refusal.status, refusal.reason)
            return
        if decision.hold and self._must_wait(decision):
            self._wait_for_authority()
            return
        if decision.translation is not None:
            self.client.hand_over(self, decision)
            return
        if decision.mirror is not None and runtime.mirror is not None:
            self.witness = runtime.mirror.witness(self)
        if head.has_body:
            limit = runtime.config.limits.body_bytes
            if limit and head.content_length > limit:
                self.fail(413, "body_too_large")
                return
            self.request_body = self._body_of_request()
        connection = pool.take()
        if connection is not None:
            self.forward(connection)
        else:
            self._wait_for_connection()

    def go_on(self) -> None:
        """It has waited long enough to be decided anew."""
        if self.client.has_gone():
            self.fail(503, "client_left_while_held")
            return
        until, self._held_until = self._held_until, None
        self._was_held = True
        self.request_body = None
        runtime = self.runtime = self.client.worker.runtime
        decision = decide(runtime.snapshot, self.head, self)
        if decision.hold and self._must_wait(decision):
            self._held_until = until
        else:
            self.client.worker.holding.count(decision.flag, "went_on")
        self.start(decision)

    def connected(self, connection: UpstreamConnection) -> bool:
        """It has waited for `connection`, which it takes, unless its client has gone while it was held."""
        if self._was_held and self.client.has_gone():
            self.fail(503, "client_left_while_held")
            return False
        self.forward(connection)
        return True

    def forward(self, connection: UpstreamConnection) -> None:
        """Send the request head, and what has arrived of its body, over `connection`."""
        self.upstream = connection
        connection.exchange = self
        client = self.client
        if self.request_body is None:
            connection.transport.write(outgoing_head(self.head, self.client.peer, self._pool))
            self.deadline = client.loop.time() + self.runtime.config.timeouts.response
            if client.half_closed and not self.head.upgrade:
                self._pass_on_half_close()
            return
        self.deadline = math.inf
        rest = self.client.take_buffer()
        if rest:
            self.on_request_body(rest, outgoing_head(self.head, self.client.peer, self._pool))
        else:
            connection.send(outgoing_head(self.head, self.client.peer, self._pool))
            if self.head.expect_continue:
                self.deadline = self.client.now() + self.runtime.config.timeouts.expect
        if self.request_body is not None:
            self._body_stall = Stall(self.client.now(), 0)
        self.client.balance_reading()

    def on_request_body(self, data: bytes, before: bytes = b"") -> None:
        """Relay request body bytes; `before` is what has to precede them on the wire."""
        body = self.request_body
        upstream = self.upstream
        assert body is not None
        assert upstream is not None
        try:
            payload, end = body.feed(data)
        except BadFramingError as problem:
            self.fail(400, problem.reason)
            return
        self.received += len(payload)
        limit = self.runtime.config.limits.body_bytes
        if limit and self.received > limit:
            self.fail(413, "body_too_large")
            return
        if self.witness is not None:
            self.witness.saw_request(payload)
        if isinstance(body, ChunkedBody):
            if body.pieces > MANY_CHUNKS:
                self.client.breathe()
            if payload:
                payload = chunk(payload)
            if body.done:
                payload += last_chunk(body.trailers)
        if len(before) + len(payload) <= _CORK:
            payload = before + payload
        elif before:
            upstream.send(before)
        if payload:
            upstream.send(payload)
        if body.done:
            self.client.put_back(data[end:])
            self.request_body = None
            self._request_sent()

    def on_interim(self, head: ResponseHead) -> None:
        """Pass a 1xx on to a client that understands it."""
        self._interim += 1
        if self._interim > INTERIM_LIMIT:
            self.fail(502, "too_many_interim_answers")
            return
        if head.status == 100:
            self.deadline = math.inf if self.request_body is not None else self.deadline
            if self._interim_sent:
                return  # ours was faster than the target's
            self._interim_sent = True
        if self.head.minor and self.status == 0:
            self.client.send(without_framing(_outgoing(head)))

    def on_answer(self, upstream: UpstreamConnection, head: ResponseHead, data: bytes) -> None:
        """Relay an answer's head; `data` holds it and what came after it."""
        request = self.head
        if head.status >= 500 and self._fall_back("http_5xx", head, len(data)):
            return
        if (
            head.plain
            and head.content_length == len(data) - head.size
            and self.request_body is None
            and (request.plain or self._expects_plain_answer())
            and not self.client.is_leaving
            and self.runtime.via is None
            and self.identity is None
            and not self.decision.noted
        ):
            # The plain case: the whole answer is in hand, and both connections go on.
            self.status = head.status
            self.sent = head.content_length
            if self.witness is not None:
                self.witness.saw_answer(head)
                self.witness.saw_body(data[head.size :])
            self.client.send(data if head.cuts is None else without(data, head.cuts, len(data)))
            self._answered(head, upstream)
        elif head.status == 101:
            self._switch_protocols(head, data)
        else:
            self._begin_answer(upstream, head, data)

    def _expects_plain_answer(self) -> bool:
        """Whether a request that is not plain itself can still be answered plainly."""
        request = self.head
        return request.minor == 1 and request.keep_alive and request.method != b"HEAD"

    def _begin_answer(self, upstream: UpstreamConnection, head: ResponseHead, data: bytes) -> None:
        """Relay the head of an answer whose body is still to come, or has no plain end."""
        request = self.head
        self._answer = head
        self.status = head.status
        if self.witness is not None:
            self.witness.saw_answer(head)
        self.deadline = math.inf
        body: Body | None
        if head.status in (204, 304) or request.method == b"HEAD":
            body = None
        elif head.chunked:
            body = ChunkedBody(self.runtime.config.limits.head_bytes)
        elif head.content_length >= 0:
            body = LengthBody(head.content_length) if head.content_length else None
        else:
            body = UntilCloseBody()
            head.keep_alive = False
        close = isinstance(body, UntilCloseBody) or not request.keep_alive or self.client.is_leaving
        if isinstance(body, ChunkedBody):
            if request.minor:
                self._chunk_answer = True
            else:
                close = True
        if self.request_body is not None:
            close = True  # an answer before the end of the request: the rest is not waited for
        self._close_client = close
        start = self._outgoing_answer_head(head, close)
        if body is None:
            self.client.send(start)
            if len(data) > head.size:
                head.keep_alive = False  # bytes behind the end of the answer
            self._answered(head, upstream)
            return
        self._answer_body = body
        self._idle_stall = Stall(self.client.now(), 0)
        if len(data) > head.size:
            self.on_answer_body(data, head.size, start)
        else:
            self.client.send(start)

    def on_answer_body(self, data: bytes, start: int, before: bytes = b"") -> None:
        """Relay answer bytes from `start` on; `before` is what has to precede them on the wire."""
        if self.client.is_closing:
            self.client.give_up()
            return
        if self.tunnelled:
            self.sent += len(data)
            self.client.send(data)
            return
        body = self._answer_body
        assert body is not None
        try:
            payload, end = body.feed(data, start)
        except BadFramingError as problem:
            if before:
                self._answer = None  # nothing of it has been sent yet
                self.fail(502, problem.reason)
            else:
                self._break_off(problem.reason)
            return
        self.sent += len(payload)
        if self.witness is not None:
            self.witness.saw_body(payload)
        if isinstance(body, ChunkedBody) and body.pieces > MANY_CHUNKS and self.upstream is not None:
            self.upstream.breathe()
        if self._chunk_answer:
            if payload:
                payload = chunk(payload)
            if body.done:
                payload += last_chunk(body.trailers if isinstance(body, ChunkedBody) else b"")
        if len(before) + len(payload) <= _CORK:
            payload = before + payload
        elif before:
            self.client.send(before)
        if payload:
            self.client.send(payload)
        if body.done:
            answer, upstream = self._answer, self.upstream
            assert answer is not None
            assert upstream is not None
            if end < len(data):
                answer.keep_alive = False  # bytes behind the end of the answer
            self._answered(answer, upstream)

    def on_tunnel_bytes(self, data: bytes) -> None:
        """Relay bytes of an upgraded connection to the target."""
        assert self.upstream is not None
        self.received += len(data)
        self.upstream.send(data)

    # The ways in which an exchange ends.

    def _answered(self, answer: ResponseHead, upstream: UpstreamConnection) -> None:
        """The whole answer has been handed to the client's connection."""
        client = self.client
        complete = self.request_body is None
        self.upstream = None
        if answer.keep_alive and complete and not client.half_closed:
            self._pool.release(upstream, answer.keep_alive_timeout)
        else:
            upstream.close()
        self._settle()
        client.exchange_ended(keep=complete and not self._close_client)

    def fail(self, status: int, reason: str) -> None:
        """End the exchange for a reason of ours: answer, or break off what has begun."""
        if self._answer is not None:
            self._break_off(reason)
            return
        if status in _TARGETS_FAULT and self._fall_back(reason):
            return
        self._let_go_of_target()
        self.error = reason
        self.status = status
        keep = (
            status >= 500
            and self.request_body is None
            and self.head.keep_alive
            and self.head.minor == 1  # an HTTP/1.0 client would have to be told that it may stay
            and not self.client.is_leaving
        )
        self.client.send(
            own_answer(
                status,
                reason,
                now=time.time(),
                head_only=self.head.method == b"HEAD",
                close=not keep,
                more=b"" if self.identity is None else self._identity_cookie(*self.identity),
            )
        )
        self._settle()
        self.client.exchange_ended(keep=keep)

    def _fall_back(self, cause: str, answer: ResponseHead | None = None, size: int = 0) -> bool:
        """Let legacy answer what new has failed, if the flag, the request and the budget allow it.

        `answer` is what new did answer, and `size` how many bytes of it there are.
        """
        decision = self.decision
        instead = decision.fallback
        if instead is None or not self._may_ask_again() or self.head.upgrade or self._interim:
            return False
        runtime = self.runtime
        answers = runtime.counters.answers(decision.flag, decision.side)
        covered = runtime.budgets.take(decision.flag, decision.fallback_ppm, answers, self.client.now())
        outcome = "taken" if covered else "over_budget"
        runtime.counters.event(metrics.FALLBACKS, decision.flag, cause, outcome)
        if covered and decision.reason is Reason.WEIGHT:
            runtime.counters.event(metrics.COHORT_FALLBACKS, decision.flag)
        if covered:
            if self.witness is not None and runtime.mirror is not None:
                runtime.mirror.skip(decision.flag, "fallback")
            upstream = self.upstream
            if upstream is not None and answer is not None and _is_whole(answer, size):
                self.upstream = None
                self._pool.release(upstream, answer.keep_alive_timeout)
            else:
                self._let_go_of_target()
            self.client.hand_over(self, instead)
        return covered

    def succeed(self, before: Exchange) -> None:
        """Go on for the client where `before` has given up."""
        self._started = before._started
        self.identity = before.identity
        self._interim_sent = before._interim_sent
        self._was_held = before._was_held
        if before.witness is not None:
            before.witness.let_go("handed_over")

    def _break_off(self, reason: str) -> None:
        """End an exchange whose answer has begun and cannot be completed."""
        self._let_go_of_target()
        self.error = reason
        self._settle()
        ends_with_connection = isinstance(self._answer_body, UntilCloseBody) or (
            isinstance(self._answer_body, ChunkedBody) and not self._chunk_answer
        )
        self.client.break_off(reset=ends_with_connection)

    def on_bug(self) -> None:
        """A fault of ours has left this exchange where it is: end it in whatever way is left."""
        if self.status == 0 and hasattr(self, "_pool"):
            self.fail(500, "proxy_internal_error")
        else:
            self.runtime.counters.event(metrics.ERRORS, "-", "proxy_internal_error")
            if self.witness is not None:
                self.witness.let_go("fault")
            upstream, self.upstream = self.upstream, None
            if upstream is not None:
                upstream.close()
            self.client.break_off(reset=True)

    def on_client_gone(self) -> None:
        """The client's connection is lost; nobody is left to answer."""
        if self.tunnelled and self.client.half_closed and self.upstream is not None:
            # It has said all it had to say, and the target is to hear all of it.
            self.upstream.finish(self.runtime.config.timeouts.write_idle)
            self.upstream = None
        else:
            self._let_go_of_target()
        if not self.tunnelled:
            self.error = self.error or "client_gone"
            self.status = self.status or 499
        self._settle()

    def on_client_half_closed(self) -> bool:
        """The client will send no more. Returns whether its connection stays open for the answer."""
        if self.request_body is not None:
            return False  # a request that was cut short is not completed by us
        if self._held_until is not None:
            self.fail(503, "client_left_while_held")
            return True
        if self.upstream is None:
            return True  # the target hears of it once it has the request
        if not self.upstream.transport.can_write_eof():
            return False  # TLS cannot be half closed; a client that says no more counts as gone
        self.upstream.transport.write_eof()  # the target sees what it would see without us
        return True

    def _pass_on_half_close(self) -> None:
        if not self.on_client_half_closed():
            self.client.hang_up()

    def on_target_end(self, exc: Exception | None, *, half_closed: bool) -> bool:
        """The target's connection has ended (`half_closed`: in its direction only).

        Returns whether the connection should stay open for our direction.
        """
        if self.tunnelled:
            return self._end_tunnel(half_closed=half_closed)
        upstream = self.upstream
        if isinstance(self._answer_body, UntilCloseBody) and exc is None:
            assert self._answer is not None
            assert upstream is not None
            self._answered(self._answer, upstream)
        elif self._answer is not None:
            self._break_off("http_response_incomplete")
        elif (
            upstream is not None
            and upstream.reused
            and not upstream.heard
            and not self._repeated
            and self._may_ask_again()
        ):
            self.runtime.counters.event(metrics.RETRIES, self.decision.side.value, "stale_connection")
            self._repeated = True
            self._let_go_of_target()
            self._wait_for_connection()
        elif upstream is not None and upstream.heard:
            self.fail(502, "http_response_incomplete")
        else:
            self.fail(502, "connection_terminated")
        return False

    def on_deadline(self) -> None:
        """What was waited for has not come in time."""
        self.deadline = math.inf
        if self._held_until is not None:
            self.fail(503, "hold_timeout")
        elif self.upstream is None:
            self.fail(503, "connection_limit_reached")
        elif self.request_body is not None and self.head.expect_continue and not self._interim_sent:
            # Nobody has said 100; a client may wait for it without limit (RFC 9110, 10.1.1).
            self._interim_sent = True
            self.client.send(CONTINUE)
        else:
            self.fail(504, "http_response_timeout")

    def sweep(self, now: float) -> None:
        """Cut off what has stopped moving. Called a few times in the shortest timeout."""
        if now >= self.deadline:
            self.on_deadline()
            return
        upstream = self.upstream
        if upstream is None:
            return
        timeouts = self.runtime.config.timeouts
        waiting = upstream.transport.get_write_buffer_size()
        if waiting:
            if self._target_stall is None:
                self._target_stall = Stall(now, upstream.sent - waiting)
            elif self._target_stall.lasts(now, upstream.sent - waiting, timeouts.write_idle):
                self.fail(504, "connection_write_timeout")
                return
        else:
            self._target_stall = None
        if self.tunnelled:
            assert self._idle_stall is not None
            if self._idle_stall.lasts(now, self.received + self.sent, timeouts.tunnel_idle):
                self._break_off("tunnel_idle")
            return
        if self._idle_stall is not None and self._answer_body is not None:
            if self.client.write_paused:
                self._idle_stall = Stall(now, self.sent)  # the client holds the answer up, not the target
            elif self._idle_stall.lasts(now, self.sent, timeouts.response_idle):
                self._break_off("connection_read_timeout")
                return
        if self._body_stall is not None and self.request_body is not None:
            if self.client.reading_paused or self.deadline != math.inf:
                self._body_stall = Stall(now, self.received)  # we hold the body up, not the client
            elif self._body_stall.lasts(
                now, self.received, timeouts.body_idle, self.runtime.config.limits.min_body_rate
            ):
                self.fail(408, "request_body_timeout")

    # Details.

    def _refusal(self) -> Refusal | None:
        """Why a request that is not plain is not served by anybody."""
        head = self.head
        if head.method in _REFUSED:
            return Refusal(405, _REFUSED[head.method])
        if head.marked and not self.client.peer.trusted:
            return Refusal(508, "mirrored_request")
        return None

    def _must_wait(self, decision: Decision) -> bool:
        return not (decision.leased and self.client.worker.lease.lasts())

    def _wait_for_authority(self) -> None:
        limits = self.runtime.config.holding
        if self._held_until is None:
            self._held_until = self.client.now() + limits.seconds
        self.deadline = self._held_until
        if self.head.has_body:
            self.request_body = self._body_of_request()
        refusal = self.client.worker.holding.hold(self, limits.requests)
        if refusal is not None:
            self.fail(refusal.status, refusal.reason)
        else:
            self.client.balance_reading()

    def _body_of_request(self) -> Body:
        if self.head.chunked:
            return ChunkedBody(self.runtime.config.limits.head_bytes)
        return LengthBody(self.head.content_length)

    @property
    def is_under_way(self) -> bool:
        """Whether it may still change something at a target."""
        return self._held_until is None and (self.decision.writes or self.head.method not in SAFE_METHODS)

    def _wait_for_connection(self) -> None:
        self.deadline = self.client.now() + self._pool.target.wait_timeout
        refusal = self._pool.wait(self)
        if refusal is not None:
            self.fail(refusal.status, refusal.reason)
        else:
            self.client.balance_reading()

    def _request_sent(self) -> None:
        if self._answer is None:
            self.deadline = self.client.now() + self.runtime.config.timeouts.response
        if self.client.half_closed and not self.head.upgrade:  # a tunnel may still have bytes to carry
            self._pass_on_half_close()

    def _may_ask_again(self) -> bool:
        """Whether nothing changes by asking twice."""
        return not self.head.has_body and self.runtime.snapshot.is_safe(self.head)

    def _let_go_of_target(self) -> None:
        upstream, self.upstream = self.upstream, None
        if upstream is not None:
            upstream.close()
        else:
            self._pool.give_up_waiting(self)

    def _outgoing_answer_head(self, head: ResponseHead, close: bool) -> bytes:
        extra = b""
        if self.runtime.via is not None:
            extra = b"Via: 1.1 " + self.runtime.via + b"\r\n"
        if head.status == 426 and head.upgrade:
            extra += b"Connection: upgrade\r\n"
        if self.identity is not None and not _is_shared(head.fields):
            extra += self._identity_cookie(*self.identity)
        if self.decision.noted:
            secure = self.client.peer.came_by_tls(self.head)
            extra += self.client.worker.freshness.note(secure=secure)
        if close:
            extra += b"Connection: close\r\n"
        elif self.head.minor == 0:
            extra += b"Connection: keep-alive\r\n"
        start = _outgoing(head)
        if head.chunked and not self._chunk_answer and (head.status == 204 or not self.head.minor):
            start = without_framing(start)
        return start[:-2] + extra + b"\r\n" if extra else start

    def _identity_cookie(self, name: str, value: str) -> bytes:
        secure = "; Secure" if self.client.peer.came_by_tls(self.head) else ""
        attributes = f"Path=/; Max-Age={_IDENTITY_SECONDS}; HttpOnly; SameSite=Lax{secure}"
        return f"Set-Cookie: {name}={value}; {attributes}\r\n".encode()

    def _switch_protocols(self, head: ResponseHead, data: bytes) -> None:
        if not (self.head.upgrade and head.upgrade and self.request_body is None):
            self.fail(502, "http_upgrade_failed")
            return
        self._answer = head
        self.status = 101
        self.tunnelled = True
        self._answered_after = time.perf_counter() - self._started
        self.deadline = math.inf
        self._idle_stall = Stall(self.client.now(), 0)
        self.runtime.counters.event(metrics.TUNNELS, self.decision.side.value)
        start = without_framing(_outgoing(head))
        self.client.send(start[:-2] + b"Connection: upgrade\r\n\r\n" + data[head.size :])
        early = self.client.take_buffer()
        if early:
            self.on_tunnel_bytes(early)
        if self.client.half_closed:
            self._pass_on_half_close()
        self.client.balance_reading()

    def _end_tunnel(self, *, half_closed: bool) -> bool:
        if half_closed and not self.client.half_closed:
            return self.client.send_eof()
        self.upstream, upstream = None, self.upstream
        if upstream is not None:
            upstream.finish(self.runtime.config.timeouts.write_idle)
        self._settle()
        self.client.exchange_ended(keep=False)
        return False

    def _settle(self) -> None:
        """Count the exchange; it is over."""
        if self._held_until is not None:
            self.client.worker.holding.end(self)
        seconds = time.perf_counter() - self._started
        decision = self.decision
        counters = self.runtime.counters
        # The life of a tunnel is no latency; its handshake is.
        taken = seconds if self._answered_after is None else self._answered_after
        counters.count(decision, self.status, taken, self.received, self.sent)
        if self.error is not None:
            counters.event(metrics.ERRORS, decision.side.value, self.error)
        if self.runtime.recent.is_turn():
            self._note_bucket()
        if self.witness is not None and self.runtime.mirror is not None:
            self.runtime.mirror.observe(self, self.witness, taken, time.time())
        log = self.client.worker.runtime.access_log  # today's: a reload may have closed the one before
        if log is not None and log.wants(self.status):
            self.client.log_exchange(log, self, seconds)

    def _ask_for_attributes(self) -> Mapping[str, str]:
        attributes_of = self.runtime.plugs.attributes
        if attributes_of is None:
            return {}
        try:
            return checked_attributes(attributes_of(request_of(self.head, b"")))
        except Exception as fault:
            # The request is decided without them; that nobody could tell them must be seen.
            self._note_foreign_fault(NO_ROUTE, "attributes", fault)
            return {}

    def _note_foreign_fault(self, flag: str, direction: str, fault: Exception) -> None:
        """Count a fault of an adapter or of users' code, and log it."""
        self.runtime.counters.event(metrics.ADAPTER_FAILURES, flag, direction)
        self.client.worker.note_foreign_fault(f"{direction} not translated, flag {flag}", fault)

    def _note_bucket(self) -> None:
        key = self.runtime.snapshot.keys.get(self.decision.flag)
        bucket = None if key is None else key.known_bucket(self.head, self)
        if bucket is not None:
            self.runtime.recent.note(self.decision.flag, bucket, time.time())

    # The facts that a decision may ask for (`flags.attributes.Facts`).

    def client_address(self) -> str:
        return self.client.peer.client_address(self.head)

    def now(self) -> float:
        return time.time()

    def claims(self) -> Mapping[str, object]:
        return self.runtime.tokens.claims(self.head, time.time())

    def attributes(self) -> Mapping[str, str]:
        if not hasattr(self, "_attributes"):
            self._attributes = self._ask_for_attributes()
        return self._attributes

    def is_behind(self, cutover: str) -> bool:
        return self.client.worker.freshness.is_behind(self.head, self, cutover)

    def is_late(self, cutover: str, most_ms: int) -> bool:
        return self.client.worker.freshness.is_late(cutover, most_ms)

    def assigned_identity(self, cookie: str) -> str:
        if self.identity is None:
            self.identity = (cookie, token_urlsafe(_IDENTITY_BYTES))
        return self.identity[1]


def _is_whole(head: ResponseHead, size: int) -> bool:
    """Whether `size` bytes are exactly the answer, after which its connection goes on."""
    return head.plain and head.content_length == size - head.size


_MAY_BE_KEPT = (b"public", b"s-maxage", b"max-age", b"no-cache", b"must-revalidate")
"""Directives with which a shared cache may keep an answer; no-cache keeps it, and asks before it gives it."""


def _is_shared(fields: bytes) -> bool:
    """Whether caches may give this answer to others, who would get the identity in it too (RFC 9111, 3)."""
    directives = b",".join(field_values(fields, b"cache-control")).lower()
    names = {directive.partition(b"=")[0].strip(): directive for directive in directives.split(b",")}
    # private="a-field" allows the rest of the answer to be shared.
    if b"no-store" in names or b"=" not in names.get(b"private", b"="):
        return False
    return not names.keys().isdisjoint(_MAY_BE_KEPT) or any(
        field_values(fields, name) for name in (b"expires", b"last-modified")
    )


def _outgoing(head: ResponseHead) -> bytes:
    """An answer's head as the client gets it, without what ends at this hop."""
    return head.raw if head.cuts is None else without(head.raw, head.cuts, len(head.raw))
