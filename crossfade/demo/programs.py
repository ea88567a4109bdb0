"""The programs of the demo: each a process of its own, with a log, ended with the demo."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from crossfade.embedded import launch

START_WITHIN = 60.0
END_WITHIN = 15.0
"""Seconds."""
LAST_WORDS = 20
"""Lines of its log that are shown of a program that fails."""


class DemoError(Exception):
    """The demo cannot go on; the message is one line."""


@dataclass(frozen=True, slots=True)
class Program:
    """A running program; what it says on stderr goes to `log`."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def address(self) -> str:
        """What it announces as the first line of its output, `listening on http://127.0.0.1:PORT`."""
        output = self.process.stdout
        assert output is not None
        ready, _, _ = select.select([output], [], [], START_WITHIN)
        line = output.readline().decode().strip() if ready else ""
        said, found, address = line.partition("listening on ")
        if said or not found:
            raise self.failed("did not start")
        return address

    def logged(self, name: str) -> str:
        """The first value of that name in its log of JSON lines."""
        deadline = time.monotonic() + START_WITHIN
        while time.monotonic() < deadline and self.process.poll() is None:
            for line in self.log.read_text(errors="replace").splitlines():
                if line.startswith("{") and line.endswith("}") and name in (said := json.loads(line)):
                    return str(said[name])
            time.sleep(0.05)
        raise self.failed("did not start")

    def must_live(self) -> None:
        if (code := self.process.poll()) is not None:
            raise self.failed(f"ended with {code} in the middle of the demo")

    def end(self) -> None:
        """SIGTERM, and SIGKILL where that takes too long. One that has ended is left alone."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(END_WITHIN)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def failed(self, what: str) -> DemoError:
        """The error that says so; what the program said itself is shown first, for its file may go."""
        for line in self.log.read_text(errors="replace").splitlines()[-LAST_WORDS:]:
            sys.stderr.write(f"demo: {self.name}: {line}\n")
        return DemoError(f"{self.name} {what}")


@contextmanager
def program(
    log: Path, module: str, *arguments: str, environment: Mapping[str, str] | None = None
) -> Iterator[Program]:
    """Run `python -m MODULE ARG…` until the end of the block, or of this process if that comes first.

    What nobody else may read, such as a URL with a password in it, goes by the environment. To be called from
    the main thread: the kernel ends the program with the thread that started it.
    """
    # -P: nothing in the current folder may be imported in place of what is installed.
    command = launch.command("self", sys.executable, "-P", "-m", module, *arguments)
    with (
        log.open("wb") as errors,
        subprocess.Popen(  # noqa: S603
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd=log.parent,
            env={**os.environ, **(environment or {})},
        ) as process,
    ):
        running = Program(module, process, log)
        try:
            yield running
        finally:
            running.end()
