"""Whether something that should move has stopped moving, or moves too slowly to be honest."""

from __future__ import annotations


class Stall:
    """Watches a count of bytes over windows of time. Looked at now and then, it costs no timer."""

    __slots__ = ("_moved", "_since")

    def __init__(self, now: float, moved: int) -> None:
        self._since = now
        self._moved = moved

    def lasts(self, now: float, moved: int, window: float, min_rate: int = 0) -> bool:
        """Whether a full `window` (seconds) has passed with less than `min_rate` bytes per second.

        A `min_rate` of 0 asks for any byte at all. A window that was long enough and moved enough
        starts the next one.
        """
        if now - self._since < window:
            return False
        if moved - self._moved < max(1, min_rate * window):
            return True
        self._since = now
        self._moved = moved
        return False
