"""The people who use the product while it moves: a process of locust, and what it says they were told."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from crossfade.demo.programs import DemoError, Program, program
from crossfade.demo.stage import Sample, Stage

LONGEST = 420
"""Seconds after which they go home, whatever happens here."""
ARRIVE_WITHIN = 60.0
HOME_WITHIN = 45.0
"""Seconds."""


@dataclass(slots=True)
class Told:
    """What all of them were told until now, as `examples/people.py` writes it."""

    mark: str
    """What all that they write begins with."""
    requests: int = 0
    failures: int = 0
    slowest: float = 0.0
    """In seconds."""
    failed: list[str] = field(default_factory=list)
    comments: list[str] = field(default_factory=list)
    transfers: list[str] = field(default_factory=list)
    """What was acknowledged."""
    over: bool = False

    def take_in(self, line: str) -> None:
        said = json.loads(line)
        if "failed" in said:
            self.failed.append(said["failed"])
        elif "comment" in said:
            self.comments.append(said["comment"])
        elif "transfer" in said:
            self.transfers.append(said["transfer"])
        else:
            self.requests, self.failures = said["requests"], said["failures"]
            self.slowest, self.over = said["slowest"], said["over"]


class Crowd:
    """All of them. Any thread may look."""

    def __init__(self, running: Program, path: Path, mark: str) -> None:
        self._running = running
        self._path = path
        self._read = 0
        self._told = Told(mark)
        self._sent_home = False
        self._lock = threading.Lock()

    def look(self) -> Told:
        with self._lock:
            if self._path.exists():
                with self._path.open("rb") as file:
                    file.seek(self._read)
                    # The last line may be only half written.
                    whole, newline, _ = file.read().rpartition(b"\n")
                self._read += len(whole) + len(newline)
                for line in whole.decode().splitlines():
                    self._told.take_in(line)
            told = self._told
            return replace(
                told, failed=[*told.failed], comments=[*told.comments], transfers=[*told.transfers]
            )

    def must_be_here(self) -> None:
        """Raises DemoError where they have gone without having been sent home."""
        if not self._sent_home:
            self._running.must_live()

    def go_home(self) -> Told:
        """Each ends what was begun; then what all of them were told is whole."""
        self._sent_home = True
        self._running.process.terminate()
        deadline = time.monotonic() + HOME_WITHIN
        while not (told := self.look()).over:
            if time.monotonic() > deadline:
                raise self._running.failed(f"has not ended within {HOME_WITHIN:g} s")
            time.sleep(0.05)
        return told


@contextmanager
def people(stage: Stage, sample: Sample) -> Iterator[Crowd]:
    """They come, and use the product until the end of the block or until they are sent home."""
    mark = f"demo-{time.time_ns()}"
    path = stage.folder / f"{mark}.jsonl"
    arguments = (
        "-f", str(sample.people), "--headless", "--only-summary", "--host", stage.front,
        "--users", "15", "--spawn-rate", "15", "--run-time", f"{LONGEST}s", "--stop-timeout", "20s",
        "--told", str(path), "--mark", mark,
    )  # fmt: skip
    with program(stage.folder / "people.log", "locust", *arguments) as running:
        crowd = Crowd(running, path, mark)
        deadline = time.monotonic() + ARRIVE_WITHIN
        while crowd.look().requests < 100:
            crowd.must_be_here()
            if time.monotonic() > deadline:
                raise DemoError(f"the people have not come within {ARRIVE_WITHIN:g} s")
            time.sleep(0.05)
        yield crowd
