"""A worker's lease: while a cutover is armed, what changes something is sent only under it.

Whoever walks cannot tell a worker to hold that it does not reach. So it waits until the lease of such a
worker has ended, and goes on: by then the worker lets what changes something wait by itself. A lease counts
from the moment at which this host asked for it, by the clock that all processes of this host share, so it has
ended here before whoever gave none any more has counted as long. No clocks have to agree; they only
have to go about as fast.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable


class Lease:
    """Of one worker. It has ended until it is renewed."""

    __slots__ = ("_clock", "_until")

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        # Not the loop's clock: that one stands still within a turn, also when the process has been stopped.
        self._clock = clock
        self._until = -math.inf

    def renew(self, until: float) -> None:
        self._until = max(self._until, until)

    def lasts(self) -> bool:
        return self._clock() < self._until
