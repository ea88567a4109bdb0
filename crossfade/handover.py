"""The restart of the whole program: one exec, through which everything that serves lives on.

The supervisor replaces its own program and keeps its pid, so neither systemd, a container nor a
terminal notices. Through the exec go, by inherited descriptor: the listening sockets, the control
socket, the lock, the lines to the old workers (which remain its children and go on serving), and a
memory file with what must be known about them. Nothing is given up before the new image has new
workers that accept.

What could go wrong after the exec is tried before it: `check` runs the new code in a process of its
own, has it import everything, read the configuration, the command line and the very state that it
is going to be given.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from crossfade.processes import inheritable

FORMAT = 1
"""Of the state and of the messages to workers. Another number cannot take over from this one."""
VARIABLE = "CROSSFADE_HANDOVER"
CHECK_WITHIN = 30.0
"""Seconds."""
SIGNALS = frozenset(
    {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD}
)
"""Held back while nobody could handle them; the new image gets those that arrive meanwhile."""


class HandoverError(Exception):
    """The new program cannot take over; the message says why."""


@dataclass(frozen=True, slots=True)
class Handover:
    """All that the next image is told. Numbers that are called `…_fd` or `sockets` are descriptors."""

    data_dir: str
    listeners: list[dict[str, Any]]
    admin: dict[str, Any]
    lock_fd: int
    control_fd: int
    client_fd: int | None
    """The connection of whoever asked for the restart and waits for an answer."""
    fleet: dict[str, Any]
    api: dict[str, Any] | None
    """The old process of the admin API."""
    servers: dict[str, Any] | None
    """The process of the embedded servers, which lives on."""
    sync: dict[str, Any]
    """The old processes that work on streams, by the side that they go to."""
    ledger: dict[str, Any]
    started_at: str
    started: float
    """On the monotonic clock, seconds."""
    restarts: int
    on_terminal: bool

    def descriptors(self) -> list[int]:
        found = [self.lock_fd, self.control_fd]
        found += [fd for listener in [*self.listeners, self.admin] for fd in listener["sockets"]]
        found += [worker["channel"] for worker in self.fleet["workers"]]
        if self.client_fd is not None:
            found.append(self.client_fd)
        if self.api is not None:
            found.append(self.api["channel"])
        if self.servers is not None:
            found.append(self.servers["line"])
        found += [child["channel"] for child in self.sync.values()]
        return found

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **{name: getattr(self, name) for name in self.__slots__}})

    @classmethod
    def from_json(cls, text: str) -> Handover:
        """Raises HandoverError for the state of a program that is too different."""
        state = json.loads(text)
        if state.pop("format", None) != FORMAT:
            raise HandoverError("the new version cannot take over from the running one; stop it and start it")
        try:
            return cls(**state)
        except TypeError as error:
            raise HandoverError(f"the new version does not understand the running one: {error}") from error


async def check(config: Path, handover: Handover) -> None:
    """Try the next image as far as that is possible without replacing this one. Raises HandoverError."""
    command = [sys.executable, "-P", "-m", "crossfade.handover", str(config), *sys.argv[1:]]
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
    except OSError as error:
        raise HandoverError(f"the new program does not start: {sys.executable}: {error.strerror}") from error
    try:
        async with asyncio.timeout(CHECK_WITHIN):
            out, err = await process.communicate(handover.to_json().encode())
    except TimeoutError:
        process.kill()
        await process.wait()
        raise HandoverError(f"the new program was not checked within {CHECK_WITHIN:.0f} s") from None
    if process.returncode == 0:
        return
    lines = (out or err).decode(errors="replace").strip().splitlines()
    # A refusal in words is on stdout; without one the last line of a traceback names the trouble.
    raise HandoverError("\n".join(lines) if out else f"the new program fails: {lines[-1] if lines else '?'}")


def execute(handover: Handover) -> NoReturn:
    """Become the next image; to be called while signals are held. Comes back only by raising OSError."""
    state = os.memfd_create("crossfade-handover", 0)
    try:
        os.write(state, handover.to_json().encode())
        os.lseek(state, 0, os.SEEK_SET)
        with inheritable(handover.descriptors()):
            arguments = [sys.executable, *sys.orig_argv[1:]]
            environment = {**os.environ, VARIABLE: str(state)}
            os.execve(sys.executable, arguments, environment)  # noqa: S606  (ourselves, no shell wanted)
    finally:
        os.close(state)


def hold_signals() -> None:
    """From here on signals wait, in this image and in the next, until they are let in."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def let_signals_in() -> None:
    """To be called once the handlers stand."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def received() -> Handover | None:
    """The state that this image was started with, if it is one that takes over."""
    number = os.environ.pop(VARIABLE, None)
    if number is None:
        return None
    with os.fdopen(int(number), encoding="utf-8") as state:
        return Handover.from_json(state.read())


def main(arguments: Sequence[str]) -> int:
    """The rehearsal: `python -m crossfade.handover CONFIG ARGUMENTS…`, the state on stdin."""
    import crossfade.control  # noqa: PLC0415
    import crossfade.servers_process  # noqa: PLC0415
    import crossfade.supervisor  # noqa: PLC0415
    import crossfade.worker_process  # noqa: PLC0415
    from crossfade import cli, settings  # noqa: PLC0415

    try:
        cli.parser().parse_args(arguments[1:])
        settings.load_to_run(Path(arguments[0]), os.environ)
        handover = Handover.from_json(sys.stdin.read())
        crossfade.supervisor.understand(handover)
    except (settings.SettingsError, HandoverError) as error:
        sys.stdout.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
