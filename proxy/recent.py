"""Which buckets of which flags asked lately: what a change of weight would move, known before it is made.

A sample, so that it costs next to nothing: one exchange of `EVERY`. Bounded: a minute keeps at most
`MOST_BUCKETS` buckets of a flag, and only the last `MINUTES` are kept. No key is kept, only its bucket.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from itertools import cycle

EVERY = 16
"""Exchanges per sample; an estimate of all is the sample times this."""
MINUTES = 10
MOST_BUCKETS = 20_000


class Recent:
    """The sampled buckets of one worker."""

    def __init__(self) -> None:
        self.is_turn: Callable[[], bool] = cycle([False] * (EVERY - 1) + [True]).__next__
        """Whether the exchange that ends now is one to note; to be asked once by each that ends."""
        self._minutes: deque[tuple[int, dict[str, Counter[int]]]] = deque(maxlen=MINUTES)

    def note(self, flag: str, bucket: int, now: float) -> None:
        """Note one sample; `now` is Unix time in seconds."""
        minute = int(now // 60)
        if not self._minutes or self._minutes[-1][0] != minute:
            self._minutes.append((minute, {}))
        counts = self._minutes[-1][1].setdefault(flag, Counter())
        if bucket in counts or len(counts) < MOST_BUCKETS:
            counts[bucket] += 1

    def buckets(self, now: float) -> dict[str, dict[int, int]]:
        """By flag and bucket: how many requests there were in the last `MINUTES`, estimated."""
        oldest = int(now // 60) - MINUTES
        found: dict[str, Counter[int]] = {}
        for minute, flags in self._minutes:
            if minute > oldest:
                for flag, counts in flags.items():
                    found.setdefault(flag, Counter()).update(counts)
        return {flag: {at: seen * EVERY for at, seen in counts.items()} for flag, counts in found.items()}
