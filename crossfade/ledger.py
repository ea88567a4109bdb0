"""What must outlive workers and restarts: counts of those that have ended, and of what was done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from core.metrics import RELOADS, WORKER_EXITS, Sample
from crossfade import exposition


class Ledger:
    def __init__(self) -> None:
        self._ended: list[Sample] = []
        self._exits: Counter[str] = Counter()
        self._reloads: Counter[str] = Counter()

    def bury(self, samples: Iterable[Sample], reason: str) -> None:
        """Keep the counts of a worker that has ended for `reason`."""
        self.keep(samples)
        self._exits[reason] += 1

    def keep(self, samples: Iterable[Sample]) -> None:
        """Keep the counts of any other process that has ended."""
        self._ended = exposition.summed(self._ended, exposition.lasting(samples))

    def reloaded(self, outcome: str) -> None:
        self._reloads[outcome] += 1

    def exits(self) -> dict[str, int]:
        return dict(self._exits)

    def samples(self) -> list[Sample]:
        return [
            *self._ended,
            *(Sample(WORKER_EXITS.name, (reason,), count) for reason, count in self._exits.items()),
            *(Sample(RELOADS.name, (outcome,), count) for outcome, count in self._reloads.items()),
        ]

    def to_wire(self) -> dict[str, Any]:
        return {
            "ended": exposition.to_wire(self._ended),
            "exits": dict(self._exits),
            "reloads": dict(self._reloads),
        }

    def restore(self, wire: dict[str, Any]) -> None:
        """Begin where another image of this program has stopped."""
        self._ended = exposition.from_wire(wire["ended"])
        self._exits = Counter(wire["exits"])
        self._reloads = Counter(wire["reloads"])
