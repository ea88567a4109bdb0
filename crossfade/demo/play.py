"""What an act is played with: commands as anybody would type them, their answers, and waits for facts."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from crossfade.commands.api import ApiError
from crossfade.demo.people import Crowd
from crossfade.demo.programs import DemoError
from crossfade.demo.screen import Screen
from crossfade.demo.stage import Stage

COMMAND_WITHIN = 120.0
FACT_WITHIN = 90.0
LOOK_EVERY = 0.25
"""All in seconds."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Answered:
    """What a command has said."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """All of it but what could be typed next."""
        both = [*self.out.splitlines(), *self.err.splitlines()]
        return [line for line in both if line.strip() and not line.startswith("  next: ")]


@dataclass(slots=True)
class Play:
    stage: Stage
    screen: Screen
    crowd: Crowd
    report: Path
    """Where the report that opens the gate is written to."""
    digest: str = ""
    """Of that report."""
    held: list[float] = field(default_factory=list)
    """How long requests have waited, in seconds, of each walk that has moved the authority."""

    def says(self, line: str) -> None:
        self.screen.say(f"   {line}")

    def syncs(self, towards: str) -> None:
        self.screen.say(f"$ crossfade sync --towards {towards} &")
        self.stage.sync(towards)

    def deploys(self, release: str) -> None:
        self.screen.say(f"$ python -m new_backend --release {release} --reuse-port … &")
        self.stage.deploy(release)

    def types(self, command: str, *, code: int = 0, most: int = 6, only: str = "") -> Answered:
        """Run `crossfade COMMAND`; show it and what it says: at most so many lines that have `only` in them.

        Raises DemoError where its exit code is another one than the story asks for.
        """
        self.screen.say(f"$ crossfade {command}")
        done = self.run(command)
        as_told = done.code == code
        shown = [line for line in done.lines if only in line or not as_told]
        for line in shown[: most if as_told else None]:
            self.screen.say(f"    {line}")
        if as_told and len(shown) > most:
            self.screen.say(f"    … and {len(shown) - most} more lines")
        if done.code:
            self.screen.say(f"    exit code {done.code}")
        if not as_told:
            raise DemoError(f"crossfade {command} ended with {done.code}, not with {code}; see above")
        return done

    def run(self, command: str) -> Answered:
        self.stage.must_live()
        self.crowd.must_be_here()
        done = subprocess.run(  # noqa: S603
            [sys.executable, "-P", "-m", "crossfade", *shlex.split(command)],
            cwd=self.stage.folder, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=COMMAND_WITHIN, check=False,
        )  # fmt: skip
        return Answered(done.returncode, done.stdout, done.stderr)

    def until(
        self, what: str, fact: Callable[[], T | None], within: float = FACT_WITHIN, shows: str = ""
    ) -> T:
        """The first that `fact` returns and that is not None.

        Raises DemoError where `what` does not come about; what the command `shows` says is shown before.
        """
        deadline = time.monotonic() + within
        while (found := self._found(fact)) is None:
            self.stage.must_live()
            self.crowd.must_be_here()
            if time.monotonic() > deadline:
                if shows:
                    self.screen.say("\n".join((f"$ crossfade {shows}", *self.run(shows).lines)))
                raise DemoError(f"{what} did not come about within {within:g} s")
            time.sleep(LOOK_EVERY)
        return found

    def ask(self, path: str, **query: str | float) -> dict[str, Any]:
        return self.stage.ask(path, **query)

    def _found(self, fact: Callable[[], T | None]) -> T | None:
        try:
            return fact()
        except (ApiError, OSError):
            return None
