"""What is printed: lines that stay, and one that says how it is now.

On a terminal that one is rewritten below the others; anywhere else it is a plain line now and then.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from crossfade.commands.api import ApiError
from crossfade.demo.people import Crowd
from crossfade.demo.stage import FLAG, Stage

LOOK_EVERY = 0.5
TELL_EVERY = 5.0
"""Seconds between two lines where there is no terminal."""
_CLEAR = "\r\x1b[2K"


class Screen:
    def __init__(self) -> None:
        self.rewrites = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        self._lock = threading.Lock()
        self._live = ""

    def head(self, title: str, why: Sequence[str]) -> None:
        self.say("")
        self.say(title)
        for line in why:
            self.say(f"   {line}")

    def say(self, line: str) -> None:
        with self._lock:
            clear = _CLEAR if self._live else ""
            sys.stdout.write(f"{clear}{line}\n{self._live}")
            sys.stdout.flush()

    def talk(self, line: str) -> None:
        """About the demo itself."""
        self.live("")
        sys.stderr.write(f"demo: {line}\n")
        sys.stderr.flush()

    def live(self, line: str) -> None:
        """How it is now. Empty: nothing is shown any more."""
        if not self.rewrites:
            if line:
                self.say(line)
            return
        with self._lock:
            clear = _CLEAR if self._live else ""
            self._live = line[: shutil.get_terminal_size().columns - 1]
            sys.stdout.write(clear + self._live)
            sys.stdout.flush()


@dataclass(slots=True)
class Now:
    """How it is now; None is not known."""

    seconds: float
    """Since the first of the people came."""
    per_second: float
    failures: int
    answered: Counter[str] = field(default_factory=Counter)
    """Requests of the last while, by the side that answered."""
    lag: float | None = None
    stands: str | None = None
    authority: str | None = None


def described(now: Now) -> str:
    total = sum(now.answered.values())
    sides = " ".join(f"{side} {100 * count / total:.0f}%" for side, count in sorted(now.answered.items()))
    parts = (
        f"{now.seconds:4.0f} s",
        f"{now.per_second:4.0f} requests/s",
        f"{now.failures} failed",
        f"authority {now.authority or '?'}",
        f"lag {'?' if now.lag is None else f'{now.lag * 1000:.0f} ms'}",
        f"{FLAG} at {now.stands or '?'}",
        f"answered by {sides or 'nobody'}",
    )
    return " | ".join(parts)


@contextmanager
def watching(screen: Screen, stage: Stage, crowd: Crowd) -> Iterator[None]:
    """Show how it is now until the end of the block."""
    over = threading.Event()
    thread = threading.Thread(target=_watch, args=(screen, stage, crowd, over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        screen.live("")


def _watch(screen: Screen, stage: Stage, crowd: Crowd, over: threading.Event) -> None:
    began = last = time.monotonic()
    requests = crowd.look().requests
    answered = _answered(stage)
    while not over.wait(LOOK_EVERY if screen.rewrites else TELL_EVERY):
        now, told, by = time.monotonic(), crowd.look(), _answered(stage)
        shown = Now(now - began, (told.requests - requests) / (now - last), told.failures, by - answered)
        last, requests, answered = now, told.requests, by
        # What cannot be asked just now is not known, and no reason to end.
        try:
            shown.authority = stage.cutover()["side"] or "legacy"
            shown.lag = stage.lag()
            # While a cutover has moved it, where it would stand besides is left out.
            shown.stands = str(stage.flag()["stands"]).partition(",")[0]
        except (ApiError, OSError):
            pass
        if not over.is_set():
            screen.live(described(shown))


def _answered(stage: Stage) -> Counter[str]:
    try:
        return stage.answered()
    except OSError:
        return Counter()
