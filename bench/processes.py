"""Starting programs, ending them by their id, and reading what they spend from /proc (Linux).

A program is measured with all its descendants: Crossfade's supervisor and control process, nginx's
master and Envoy's main thread all count.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_TICKS = os.sysconf("SC_CLK_TCK")
_LIBC = ctypes.CDLL(None)
MIB = 1 << 20


def raise_file_limit() -> int:
    """Allows this process and all it starts as many descriptors as the system lets it; returns the number."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def start(
    argv: Sequence[str | Path],
    *,
    log: IO[bytes] | int | None = None,
    cores: Iterable[int] | None = None,
    pipes: bool = False,
) -> subprocess.Popen[bytes]:
    """Starts `argv`, on `cores` only if given; it is told to end if this process dies.

    `log` takes its standard error (and its standard output, unless `pipes` keeps that and standard
    input for the caller).
    """
    wanted = set(cores) if cores is not None else None

    def before_exec() -> None:
        _LIBC.prctl(1, signal.SIGTERM, 0, 0, 0)  # PR_SET_PDEATHSIG
        if wanted is not None:
            os.sched_setaffinity(0, wanted)

    # A preexec_fn is safe here: the bench has one thread.
    return subprocess.Popen(
        [str(part) for part in argv],
        stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
        stdout=subprocess.PIPE if pipes else log,
        stderr=log,
        preexec_fn=before_exec,  # noqa: PLW1509
    )


def descendants(pid: int) -> list[int]:
    """`pid` and every process below it, parents first."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                children.setdefault(_stat(int(entry)).parent, []).append(int(entry))
    found = [pid]
    for parent in found:  # grows while it is walked
        found.extend(children.get(parent, ()))
    return found


def foreign_load(seconds: float = 0.5) -> float:
    """The share of all cores' time that somebody else takes while this process waits, 0 to 1.

    Time that a hypervisor gave to another guest (steal) counts as taken. The load average is no
    substitute: it says what was, and on some virtual machines nothing at all.
    """
    before = _core_time()
    sleep(seconds)
    after = _core_time()
    total = sum(after) - sum(before)
    idle = (after[3] + after[4]) - (before[3] + before[4])
    return 1 - idle / total if total else 0.0


def _core_time() -> list[int]:
    first = Path("/proc/stat").read_text().partition("\n")[0]
    return [int(field) for field in first.split()[1:9]]


@dataclass(frozen=True, slots=True)
class _Stat:
    parent: int
    own_ticks: int
    buried_ticks: int
    """Of children that have ended and been waited for."""


def _stat(pid: int) -> _Stat:
    # The name in brackets may hold spaces and brackets itself; the fields begin after the last one.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    user, system, buried_user, buried_system = (int(field) for field in fields[11:15])
    return _Stat(int(fields[1]), user + system, buried_user + buried_system)


def cpu_seconds(pid: int) -> float:
    """User and system time of `pid` and its descendants so far, with the children they have buried."""
    total = 0
    for member in descendants(pid):
        with contextlib.suppress(OSError):
            stat = _stat(member)
            total += stat.own_ticks + stat.buried_ticks
    return total / _TICKS


def settle(pid: int, patience: float = 4.0) -> None:
    """Waits until the tree has hardly worked for a quarter of a second: what starts late has started."""
    deadline = monotonic() + patience
    before = cpu_seconds(pid)
    while monotonic() < deadline:
        sleep(0.25)
        after = cpu_seconds(pid)
        if after - before <= 0.02:
            return
        before = after


def cpu_by_process(pid: int) -> dict[int, float]:
    """User and system time of each living process of the tree, without that of children it has buried."""
    found: dict[int, float] = {}
    for member in descendants(pid):
        with contextlib.suppress(OSError):
            found[member] = _stat(member).own_ticks / _TICKS
    return found


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one process: resident now, and the peak since the last `forget_peak`."""

    resident: int
    peak: int


def memory(pid: int) -> dict[int, Memory]:
    """Per process of the tree below and with `pid`."""
    found: dict[int, Memory] = {}
    for member in descendants(pid):
        with contextlib.suppress(OSError, KeyError):
            status = dict(
                line.split(":", 1) for line in Path(f"/proc/{member}/status").read_text().splitlines()
            )
            found[member] = Memory(
                resident=int(status["VmRSS"].split()[0]) << 10, peak=int(status["VmHWM"].split()[0]) << 10
            )
    return found


def resident(pid: int) -> int:
    """Resident bytes of the whole tree; pages that processes share count once for each of them."""
    return sum(one.resident for one in memory(pid).values())


def forget_peak(pid: int) -> None:
    """Sets VmHWM of every process of the tree to what it holds now."""
    for member in descendants(pid):
        with contextlib.suppress(OSError):
            Path(f"/proc/{member}/clear_refs").write_text("5")


def largest_growth(before: dict[int, Memory], after: dict[int, Memory]) -> int:
    """Bytes by which the peak of that process which grew most lies above what it held before."""
    return max((after[pid].peak - before[pid].resident for pid in before.keys() & after.keys()), default=0)


def end(process: subprocess.Popen[bytes], patience: float = 10.0) -> None:
    """SIGTERM to `process`, and SIGKILL by id to whatever of its tree is there `patience` seconds later."""
    tree = descendants(process.pid)
    if process.poll() is None:
        process.terminate()
    deadline = monotonic() + patience
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(patience)
    while any(_is_running(member) for member in tree) and monotonic() < deadline:
        sleep(0.01)
    for member in tree:
        if _is_running(member):
            with contextlib.suppress(ProcessLookupError):
                os.kill(member, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def _is_running(pid: int) -> bool:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return fields[0] != "Z"
