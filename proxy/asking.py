"""One request to one side on nobody's behalf: its answer is kept, up to a bound, and not relayed.

It stands where an `Exchange` stands between a pool and a connection, and ends in one `Outcome`, whatever
happens: an answer, one that was cut because it is longer than what is kept, or the reason why there is none.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.http import ResponseHead
from proxy.body import BadFramingError, Body, ChunkedBody, LengthBody, UntilCloseBody

if TYPE_CHECKING:
    from proxy.pool import Pool
    from proxy.runtime import Runtime
    from proxy.upstream import UpstreamConnection


@dataclass(slots=True)
class Outcome:
    """What came back. Without a `head` there was no answer, and `trouble` says why. Nobody writes to it."""

    began: float
    """Unix time in seconds."""
    seconds: float
    head: ResponseHead | None
    body: bytes
    cut: bool
    trouble: str | None


class Asking:
    """`start` sends `request`, which is whole, and `ended` is called once with what came of it."""

    __slots__ = (
        "_began", "_body", "_cut", "_ended", "_head", "_head_only", "_keep", "_kept", "_pieces", "_pool",
        "_request", "_started", "runtime", "upstream", "write_paused",
    )  # fmt: skip

    request_body = None
    """Nothing of the request is still to come."""

    def __init__(
        self,
        runtime: Runtime,
        pool: Pool,
        request: bytes,
        *,
        head_only: bool,
        keep: int,
        ended: Callable[[Outcome], None],
    ) -> None:
        """`keep` is how many bytes of the answer's body are kept."""
        self.runtime = runtime
        self.upstream: UpstreamConnection | None = None
        self.write_paused = False
        self._pool = pool
        self._request = request
        self._head_only = head_only
        self._keep = keep
        self._ended: Callable[[Outcome], None] | None = ended
        self._began = 0.0
        self._started = 0.0
        self._head: ResponseHead | None = None
        self._body: Body | None = None
        self._pieces: list[bytes] = []
        self._kept = 0
        self._cut = False

    @property
    def client(self) -> Asking:
        """It is its own client: there is nobody to wait for."""
        return self

    def start(self) -> None:
        self._began = time.time()
        self._started = time.perf_counter()
        connection = self._pool.take()
        if connection is not None:
            self.forward(connection)
            return
        refusal = self._pool.wait(self)
        if refusal is not None:
            self._end(refusal.reason)

    def connected(self, connection: UpstreamConnection) -> bool:
        """As `Exchange.connected`; nobody leaves it."""
        self.forward(connection)
        return True

    def abandon(self, why: str) -> None:
        """End it now; `why` is one word."""
        upstream, self.upstream = self.upstream, None
        if upstream is not None:
            upstream.close()
        else:
            self._pool.give_up_waiting(self)
        self._end(why)

    # What the pool and the connection say.

    def forward(self, connection: UpstreamConnection) -> None:
        self.upstream = connection
        connection.exchange = self
        connection.send(self._request)

    def fail(self, _status: int, reason: str) -> None:
        self.abandon(reason)

    def on_interim(self, head: ResponseHead) -> None:
        """Nobody waits for it."""

    def on_answer(self, upstream: UpstreamConnection, head: ResponseHead, data: bytes) -> None:
        self._head = head
        if head.status == 101:
            self.abandon("unexpected_upgrade")
            return
        if head.status in (204, 304) or self._head_only:
            body: Body = LengthBody(0)
        elif head.chunked:
            body = ChunkedBody(self.runtime.config.limits.head_bytes)
        elif head.content_length >= 0:
            body = LengthBody(head.content_length)
        else:
            body = UntilCloseBody()
            head.keep_alive = False
        self._body = body
        if head.content_length > self._keep:
            self._cut = True
            self.abandon("")
            return
        if body.done:
            self._finish(upstream, clean=len(data) == head.size)
        else:
            self.on_answer_body(data, head.size)

    def on_answer_body(self, data: bytes, start: int, before: bytes = b"") -> None:  # noqa: ARG002
        body = self._body
        assert body is not None
        try:
            payload, end = body.feed(data, start)
        except BadFramingError as problem:
            self.abandon(problem.reason)
            return
        if payload:
            self._kept += len(payload)
            self._pieces.append(payload)
        if self._kept > self._keep:
            self._cut = True
            self.abandon("")
        elif body.done:
            upstream = self.upstream
            assert upstream is not None
            self._finish(upstream, clean=end == len(data))

    def on_target_end(self, exc: Exception | None, *, half_closed: bool) -> bool:  # noqa: ARG002
        if isinstance(self._body, UntilCloseBody) and exc is None:
            self.abandon("")
        elif self.upstream is not None and self.upstream.heard:
            self.abandon("http_response_incomplete")
        else:
            self.abandon("connection_terminated")
        return False

    def balance_reading(self) -> None:
        """There is nobody whose reading could be paused: what is sent is in hand."""

    def on_bug(self, bug: Exception) -> None:
        """A fault of ours ends the asking, and is told to whoever tells faults."""
        self.abandon("proxy_internal_error")
        raise bug

    # The end.

    def _finish(self, upstream: UpstreamConnection, *, clean: bool) -> None:
        self.upstream = None
        head = self._head
        assert head is not None
        if clean and head.keep_alive:
            self._pool.release(upstream, head.keep_alive_timeout)
        else:
            upstream.close()
        self._end("")

    def _end(self, trouble: str) -> None:
        ended, self._ended = self._ended, None
        if ended is None:
            return
        pieces = self._pieces
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        seconds = time.perf_counter() - self._started
        ended(Outcome(self._began, seconds, self._head, body[: self._keep], self._cut, trouble or None))
