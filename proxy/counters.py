"""What one worker counts, in plain Python objects, and how it hands the counts out.

The hot path pays for a dictionary look-up by the identity of its decision and a few additions.
Names and labels are those of `core.metrics`; they are put together only when somebody asks.
"""

from __future__ import annotations

import resource
from bisect import bisect_left
from collections import Counter

from core import metrics
from core.metrics import LATENCY_BUCKETS, Histogram, Metric, Sample
from flags.model import Decision, Reason, Side


class _Tally:
    """Answers under one flag, side and reason."""

    __slots__ = ("buckets", "codes", "received", "seconds", "sent")

    def __init__(self) -> None:
        self.codes = [0] * 10
        self.buckets = [0] * (len(LATENCY_BUCKETS) + 1)
        self.seconds = 0.0
        self.received = 0
        self.sent = 0


class Counters:
    """All counters of one worker. Not thread-safe: they belong to the worker's event loop."""

    def __init__(self) -> None:
        self._tallies: dict[tuple[str, str, str], _Tally] = {}
        self._by_decision: dict[int, _Tally] = {}
        self._decisions: list[Decision] = []
        """Kept alive, so that the identity of a decision is not given to another one."""
        self._events: Counter[tuple[str, tuple[str, ...]]] = Counter()

    def count(self, decision: Decision, status: int, seconds: float, received: int, sent: int) -> None:
        """Count one exchange: its answer's status, its time, and the bytes of both bodies."""
        tally = self._by_decision.get(id(decision)) or self._open_tally(decision)
        tally.codes[status // 100] += 1
        tally.buckets[bisect_left(LATENCY_BUCKETS, seconds)] += 1
        tally.seconds += seconds
        tally.received += received
        tally.sent += sent

    def _open_tally(self, decision: Decision) -> _Tally:
        labels = (decision.flag, decision.side.value, decision.reason.value)
        tally = self._by_decision[id(decision)] = self._tallies.setdefault(labels, _Tally())
        self._decisions.append(decision)
        return tally

    def answers(self, flag: str, side: Side) -> int:
        """Answers of `side` under `flag` so far. Asked with each failure, and failures come in storms."""
        tallies = (self._tallies.get((flag, side.value, reason.value)) for reason in Reason)
        return sum(sum(tally.codes) for tally in tallies if tally is not None)

    def forget_decisions(self) -> None:
        """Let go of the decisions of replaced snapshots; the counts stay."""
        self._by_decision.clear()
        self._decisions.clear()

    def event(self, metric: Metric, *labels: str) -> None:
        """Count one occurrence of a counter that is off the hot path."""
        self._events[metric.name, labels] += 1

    def samples(self) -> list[Sample]:
        """Everything counted so far, and this process's CPU time."""
        found = [Sample(name, labels, count) for (name, labels), count in self._events.items()]
        bytes_by_side: Counter[tuple[str, str]] = Counter()
        latency: dict[tuple[str, str], tuple[list[int], float]] = {}
        for (flag, side, reason), tally in self._tallies.items():
            for hundreds, count in enumerate(tally.codes):
                if count:
                    labels = (flag, side, reason, f"{hundreds}xx")
                    found.append(Sample(metrics.REQUESTS.name, labels, count))
            buckets, seconds = latency.get((flag, side), ([0] * len(tally.buckets), 0.0))
            merged = [a + b for a, b in zip(buckets, tally.buckets, strict=True)]
            latency[flag, side] = (merged, seconds + tally.seconds)
            if reason == Reason.WEIGHT.value:
                seen = Histogram(tuple(tally.buckets), tally.seconds)
                found.append(Sample(metrics.COHORT_SECONDS.name, (flag, side), seen))
            bytes_by_side[metrics.RECEIVED_BYTES.name, side] += tally.received
            bytes_by_side[metrics.SENT_BYTES.name, side] += tally.sent
        for key, (merged, seconds) in latency.items():
            found.append(Sample(metrics.REQUEST_SECONDS.name, key, Histogram(tuple(merged), seconds)))
        for (name, side), count in bytes_by_side.items():
            found.append(Sample(name, (side,), count))
        usage = resource.getrusage(resource.RUSAGE_SELF)
        found.append(Sample(metrics.WORKER_CPU_SECONDS.name, (), usage.ru_utime + usage.ru_stime))
        return found
