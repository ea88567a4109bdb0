"""Requests that wait while a cutover settles which side may change the data.

A request that waits has read its head and a bounded part of its body; the rest stays in the socket. It holds
no connection to a target, and nothing of it has been sent. When the decision is there, requests go on in the
order in which they came, some at a time, and each is decided anew. A client that has gone meanwhile is not
served: nobody would know that its write has happened.
"""

from __future__ import annotations

import asyncio
import select
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from core import metrics
from core.http import Refusal
from core.metrics import Sample

if TYPE_CHECKING:
    from proxy.counters import Counters
    from proxy.pipeline import Exchange

AT_ONCE: Final = 32
"""Requests that go on in one turn; a burst of all of them would be a storm for the target."""
NEXT_TURN: Final = 0.002
"""Seconds."""

_GONE: Final = select.POLLRDHUP | select.POLLHUP | select.POLLERR

Later = Callable[[float, Callable[[], None]], asyncio.TimerHandle]


class Holding:
    """What waits in one worker."""

    def __init__(self, counters: Counters, later: Later) -> None:
        self._counters = counters
        self._later = later
        self._waiting: deque[Exchange] = deque()
        self._to_go = 0
        """How many of those that wait are to try again; who comes meanwhile waits for the next time."""
        self._turn: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def hold(self, exchange: Exchange, most: int) -> Refusal | None:
        """Let `exchange` wait; or say why it cannot."""
        if len(self._waiting) >= most:
            return Refusal(503, "hold_overflow")
        self._waiting.append(exchange)
        return None

    def end(self, exchange: Exchange) -> None:
        """It is over without having been sent."""
        self.count(exchange.decision.flag, exchange.error or "fault")
        try:
            place = self._waiting.index(exchange)
        except ValueError:
            return
        del self._waiting[place]
        if place < self._to_go:
            self._to_go -= 1

    def go_on(self) -> None:
        """There is another decision: let all that wait be decided anew, one after the other."""
        self._to_go = len(self._waiting)
        if self._turn is None and self._to_go:
            self._some_go_on()

    def count(self, flag: str, outcome: str) -> None:
        self._counters.event(metrics.HELD, flag, outcome)

    def samples(self) -> list[Sample]:
        return [Sample(metrics.HOLDING.name, (), len(self._waiting))]

    def _some_go_on(self) -> None:
        self._turn = None
        for _ in range(min(AT_ONCE, self._to_go)):
            self._to_go -= 1
            exchange = self._waiting.popleft()
            try:
                exchange.go_on()
            except Exception as bug:
                # Those behind it are not to wait for ever because of it.
                exchange.client.on_bug(bug)
        if self._to_go:
            self._turn = self._later(NEXT_TURN, self._some_go_on)


def has_hung_up(descriptor: int) -> bool:
    """Whether the peer of this socket sends no more, even if what it sent has not been read."""
    poll = select.poll()
    poll.register(descriptor, select.POLLRDHUP)
    return any(events & _GONE for _, events in poll.poll(0))
