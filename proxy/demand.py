"""How much of its time a worker computes, or would if it were let: what is left over is for mirroring.

A bound on how late the event loop is comes too late: a loop that is busy all the time may still turn quickly,
while requests wait in its sockets.
"""

from __future__ import annotations

import math
import os
import time
from typing import Final

LOOK_EVERY: Final = 0.05
"""Seconds."""
_GAIN, _LEAST = 3.0, 0.01


class Demand:
    """`look` is called every `LOOK_EVERY` seconds; `allowed` is the share of the requests to be mirrored."""

    def __init__(self) -> None:
        try:
            self._file: int | None = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._file = None  # then how long it waited for a processor is not known
        self._wall, self._wanted = time.monotonic(), self._read()
        self.allowed = 1.0

    def look(self, most: float) -> None:
        """Allow less where more than `most` of the time was wanted since the last look, else more."""
        wall, wanted = time.monotonic(), self._read()
        elapsed = wall - self._wall
        if elapsed <= 0.0:
            return
        share = min(2.0, max(0.0, (wanted - self._wanted) / elapsed))
        self._wall, self._wanted = wall, wanted
        # As much up as down for one distance: looks are short and differ, and their mean is to be `most`.
        self.allowed = min(1.0, max(_LEAST, self.allowed * math.exp(_GAIN * (most - share))))

    def rest(self) -> None:
        """Nothing was asked for a while: what was measured says nothing any more."""
        self._wall, self._wanted = time.monotonic(), self._read()

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
            self.rest()

    def _read(self) -> float:
        """Seconds that this thread has run, or waited for a processor, so far."""
        if self._file is not None:
            try:
                ran, waited, _ = os.pread(self._file, 100, 0).split()
                return (int(ran) + int(waited)) / 1e9
            except (OSError, ValueError):
                pass
        return time.thread_time()
