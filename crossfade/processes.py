"""Children of the supervisor: started with the descriptors they need, reaped by pid.

Nothing here belongs to one image of the program: after a restart (which is an exec and keeps the
pid) the children of the old image are adopted by their pid and reaped like all others.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

PR_SET_PDEATHSIG = 1
BEHIND_TRAFFIC = 3
"""How nice all but the workers are: where processors are few, workers come first. Not more than that: in a
cutover clients wait for those who walk, and for those who bring the last rows."""


def look_for_few_circles() -> None:
    """In a process that brings rows, which come and go by the ten thousand, and none points in a circle.

    Looking for circles among them took a third of the time that a large transaction needs. And in the one
    that walks through cutovers: it has much that stays, and while it looks through all of it people wait.
    """
    gc.freeze()
    gc.set_threshold(200_000, 20, 20)


class Process:
    """One child. `exited` becomes its exit code, negative for the signal that killed it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def wait(self) -> int:
        """Its exit code; a cancelled waiter leaves the future to the others."""
        return await asyncio.shield(self.exited)

    def kill(self, signum: int = signal.SIGKILL) -> None:
        # Until it is reaped the pid is ours, so no stranger can be hit.
        if not self.exited.done():
            os.kill(self.pid, signum)


class Children:
    """All living children of this process that were started or adopted here."""

    def __init__(self) -> None:
        self._living: dict[int, Process] = {}

    def spawn(self, module: str, arguments: Sequence[str], sockets: Sequence[socket.socket]) -> Process:
        """Start `python -m module arguments` in a fresh interpreter that inherits `sockets`."""
        # -P: nothing in the current folder may be imported in place of a package of ours.
        command = [sys.executable, "-P", "-m", module, *arguments]
        with inheritable([sock.fileno() for sock in sockets]):
            pid = os.posix_spawn(
                sys.executable,
                command,
                os.environ,
                file_actions=[(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)],
                # Ctrl-C in a terminal is for the supervisor alone; it tells its children what to do.
                setpgroup=0,
                setsigmask=[],
            )
        return self.adopt(pid)

    def spawn_with_line(
        self, module: str, sockets: Sequence[socket.socket], more: Sequence[str] = ()
    ) -> tuple[Process, socket.socket]:
        """Start a child that has one end of a socket pair; returns the other end with it.

        The child's arguments are the descriptor of its end, our pid, and `more`.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            arguments = [str(theirs.fileno()), str(os.getpid()), *more]
            try:
                return self.spawn(module, arguments, [theirs, *sockets]), ours
            except OSError:
                ours.close()
                raise

    def adopt(self, pid: int) -> Process:
        process = self._living[pid] = Process(pid)
        return process

    def reap(self) -> None:
        """Collect whoever has ended; to be called on SIGCHLD and once after adopting."""
        for pid, process in list(self._living.items()):
            try:
                ended, status = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                ended, status = pid, 0
            if ended:
                del self._living[pid]
                process.exited.set_result(os.waitstatus_to_exitcode(status))


@contextmanager
def inheritable(descriptors: Sequence[int]) -> Iterator[None]:
    """Let a program that is started inside this block have `descriptors`."""
    with ExitStack() as undo:
        for descriptor in descriptors:
            os.set_inheritable(descriptor, True)
            undo.callback(os.set_inheritable, descriptor, False)
        yield


def own(descriptor: int) -> socket.socket:
    """An inherited socket, ours alone again."""
    os.set_inheritable(descriptor, False)
    return socket.socket(fileno=descriptor)


def die_with_parent(parent: int) -> None:
    """Have the kernel send this process SIGTERM when its parent ends, however it ends.

    Where the kernel cannot (other systems than Linux), the broken channel says the same.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        # It ended before we asked.
        raise SystemExit(0)


def resident_bytes(pid: int) -> int:
    """Resident memory of a process, 0 if it cannot be read."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGESIZE")
    except (OSError, IndexError, ValueError):
        return 0
