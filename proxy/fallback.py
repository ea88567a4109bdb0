"""How often legacy may answer for new: a budget per flag, so that new cannot lean on legacy for ever.

Within a window a few failures are always covered, and beyond them a share of what new was asked in it.
A new backend that fails altogether is so covered only in part; the rest of its failures reach the clients,
as they must before everything of it lands on a legacy backend that does not expect it.
"""

from __future__ import annotations

WINDOW = 10.0
"""Seconds."""
ALWAYS = 10
"""Failures of a window that are covered whatever was asked in it, in each worker."""


class _Window:
    __slots__ = ("answers_before", "began", "taken")

    def __init__(self, began: float, answers_before: int) -> None:
        self.began = began
        self.answers_before = answers_before
        self.taken = 0


class Budgets:
    """The budgets of one worker."""

    def __init__(self) -> None:
        self._windows: dict[str, _Window] = {}

    def take(self, flag: str, share_ppm: int, answers: int, now: float) -> bool:
        """Whether one more failure of new may be covered.

        `answers` is how many answers new has given under `flag` so far; `now` is in seconds.
        """
        window = self._windows.get(flag)
        if window is None or now - window.began > WINDOW or answers < window.answers_before:
            window = self._windows[flag] = _Window(now, answers)
        asked = answers - window.answers_before + window.taken + 1
        if window.taken >= ALWAYS + asked * share_ppm // 1_000_000:
            return False
        window.taken += 1
        return True
