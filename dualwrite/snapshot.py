"""Which transactions a snapshot of PostgreSQL shows. Pure.

A commit is in the log before it can be seen: between the two, and for as long as a synchronous standby
takes, the stream may already have brought a transaction that a snapshot does not show yet. A chunk that is
read in such a snapshot is older than what was applied, and would set rows back for good.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_ROUND = 1 << 32


@dataclass(frozen=True, slots=True)
class Snapshot:
    """As pg_current_snapshot() writes it: xmin:xmax:xip,xip. Numbers are 64 bits wide."""

    xmin: int
    xmax: int
    running: frozenset[int]

    @classmethod
    def of(cls, text: str) -> Snapshot:
        xmin, xmax, running = text.split(":")
        return cls(int(xmin), int(xmax), frozenset(int(one) for one in running.split(",") if one))

    def shows(self, xid: int) -> bool:
        """Whether what transaction `xid` (64 bits) has committed can be seen."""
        return xid < self.xmin or (xid < self.xmax and xid not in self.running)

    def widened(self, xid: int) -> int:
        """The 64-bit number of a transaction of which the stream tells the lower 32 bits."""
        found = self.xmax - self.xmax % _ROUND + xid
        if found > self.xmax + _ROUND // 2:
            return found - _ROUND
        return found + _ROUND if found < self.xmax - _ROUND // 2 else found

    def hides(self, xids: Iterable[int]) -> list[int]:
        """Those of these transactions (32 bits) that cannot be seen."""
        return [xid for xid in xids if not self.shows(self.widened(xid))]


class View:
    """Whether rows that are read are no older than what was applied; from the first look on."""

    def __init__(self) -> None:
        self._settled: int | None = None

    def is_too_old(self, snapshot: Snapshot, applied: Sequence[int]) -> bool:
        """`applied` are the transactions (32 bits) that were applied since, and have not been seen yet."""
        if self._settled is None:
            # What was applied before is not known here. All of it had begun by now.
            self._settled = snapshot.xmax
        return snapshot.xmin < self._settled or bool(snapshot.hides(applied))
