"""How fast a copy may go: what it has to wait for before its next chunk, and why. Pure.

A copy is never in a hurry, and the source has people to serve. It waits while the stream is further behind
than `MOST_LAG`, and rests where the source has become slow: by how long its commits take (a beat is one), and
by how long it takes to read a row, each against its own running median. What is slow for good is the median
soon, so no rest lasts for ever. Besides there may be a ceiling of rows a second.

Chunks are sized by time besides (`backfill.py`): where all is slow they are small.
"""

from __future__ import annotations

from collections import Counter, deque
from enum import StrEnum
from statistics import median
from typing import Final, NamedTuple

MOST_LAG: Final = 5.0
"""Seconds that the stream may be behind while rows are copied."""
REST: Final = 1.0
"""Seconds for which the source is left alone."""
LOOK_AGAIN: Final = 0.25
"""Seconds until the lag is looked at again."""
SLOW: Final = 4.0
"""Times the median."""
SLOW_COMMIT: Final = 0.5
"""Seconds: what a commit takes beside our own work says nothing below that."""
SLOW_READ: Final = 0.1
"""Seconds that a chunk is read before it can count as slow."""
REMEMBERED, ENOUGH = 31, 5
"""Of how many latencies the median is taken, at the most and at the least."""
RATE_OVER: Final = 10.0
"""Seconds over which the rate is told."""


class Reason(StrEnum):
    """Why a copy waits. The word in metrics, in `data status`, and in the runbook."""

    LAG = "lag"
    SOURCE_SLOW = "source_slow"
    CEILING = "ceiling"


class Pause(NamedTuple):
    reason: Reason
    seconds: float


class Latency:
    """Whether what is measured is far above what it usually is."""

    def __init__(self) -> None:
        self._seen: deque[float] = deque(maxlen=REMEMBERED)

    def is_slow(self, now: float) -> bool:
        """`now` is remembered, too."""
        known = len(self._seen) >= ENOUGH
        usual = median(self._seen) if known else 0.0
        self._seen.append(now)
        return known and now > SLOW * usual


class Pace:
    """Of one process's copying. Moments are seconds of one clock that only goes forward."""

    def __init__(self, ceiling: int | None = None, counted: Counter[Reason] | None = None) -> None:
        """`counted` counts the pauses of several, one after the other."""
        self._ceiling = ceiling
        self._counted: Counter[Reason] = Counter() if counted is None else counted
        self._due = 0.0
        self._commits = Latency()
        self._reads = Latency()
        self._slow_commit = self._slow_read = False
        self._last: Reason | None = None
        self._copied: deque[tuple[float, int]] = deque()
        self.pauses: Counter[Reason] = Counter()
        """How often it had to wait; what goes on for the same reason is one."""
        self.waited: Counter[Reason] = Counter()
        """Milliseconds."""

    def committed(self, took: float) -> None:
        """The source has committed something of ours."""
        self._slow_commit = self._commits.is_slow(took) and took > SLOW_COMMIT

    def copied(self, rows: int, took: float, now: float) -> None:
        """A chunk was read in `took` seconds, and written."""
        if rows:
            self._slow_read = self._reads.is_slow(took / rows) and took > SLOW_READ
        if self._ceiling:
            self._due = max(self._due, now) + rows / self._ceiling
        self._copied.append((now, rows))
        while self._copied[0][0] < now - RATE_OVER:
            self._copied.popleft()

    def pause(self, now: float, lag: float | None) -> Pause | None:
        """What to wait for before the next chunk; None for nothing. To be asked again after each wait."""
        found = self._pause(now, lag)
        if found is not None:
            if found.reason is not self._last:
                self.pauses[found.reason] += 1
                self._counted[found.reason] += 1
            self.waited[found.reason] += round(found.seconds * 1000)
        self._last = None if found is None else found.reason
        return found

    def _pause(self, now: float, lag: float | None) -> Pause | None:
        if lag is not None and lag > MOST_LAG:
            return Pause(Reason.LAG, LOOK_AGAIN)
        if self._slow_commit or self._slow_read:
            # The next beat tells of commits; of reads only another chunk can.
            self._slow_read = False
            return Pause(Reason.SOURCE_SLOW, REST)
        if self._ceiling and self._due > now:
            return Pause(Reason.CEILING, min(self._due - now, REST))
        return None

    def rate(self, now: float) -> float | None:
        """Rows a second, waits included; None before there is anything to tell."""
        if len(self._copied) < 2 or now <= self._copied[0][0]:
            return None
        # What the first of them has brought was brought before its moment.
        return sum(rows for _, rows in list(self._copied)[1:]) / (now - self._copied[0][0])
