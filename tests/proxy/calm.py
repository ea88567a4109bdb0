"""Scenes with short timers are about a machine that lets us run: one that stood still is shown again.

    @in_a_calm_moment
    async def test_an_idle_connection_is_closed() -> None:
        ...

A machine that is shared stops a process for a second or two, and every short timer in it has then ended,
whoever it was for. A fault of ours does not need that: it fails a calm scene, and every repeated one.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, ParamSpec

PAUSE = 0.05
"""Seconds without a turn of the event loop after which a failure says nothing: a quarter of the shortest
timer that a scene has."""
SHOWN = 10
"""How often a scene is shown at most; the last time it counts in any case."""

P = ParamSpec("P")


def in_a_calm_moment(scene: Callable[P, Awaitable[None]]) -> Callable[P, Coroutine[Any, Any, None]]:
    """The scene, shown again if it failed while the event loop did not turn for `PAUSE` seconds."""

    @functools.wraps(scene)
    async def shown(*args: P.args, **named: P.kwargs) -> None:
        for _ in range(SHOWN - 1):
            clock = Clock()
            try:
                await scene(*args, **named)
            except Exception:
                if clock.longest() < PAUSE:
                    raise
            else:
                return
            finally:
                clock.stop()
        await scene(*args, **named)

    return shown


class Clock:
    """Strikes all the time, and knows the longest pause between two strokes."""

    def __init__(self) -> None:
        self._longest = 0.0
        self._struck = time.monotonic()
        self._striking = asyncio.get_running_loop().create_task(self._strike())

    def longest(self) -> float:
        """Seconds; the pause that has not ended yet counts, too."""
        return max(self._longest, time.monotonic() - self._struck)

    def stop(self) -> None:
        self._striking.cancel()

    async def _strike(self) -> None:
        while True:
            await asyncio.sleep(0.01)
            self._longest = self.longest()
            self._struck = time.monotonic()
