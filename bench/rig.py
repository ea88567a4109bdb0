"""The bench's machinery: who runs on which core, the backend, and load runs with the proxy's CPU beside.

The program under test has the first core for itself; backend, load generator and this process have the
others. On two cores that is one and one, so that what a proxy spends is not blurred by who else happened
to run where it was. With one core nothing is pinned.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from time import monotonic
from typing import TYPE_CHECKING

from bench import contenders, processes
from bench.load import Order, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class LoadFailedError(Exception):
    """The load generator got an answer it must not get, or none; the message says which."""


@dataclass(frozen=True, slots=True)
class Cores:
    """None means: wherever the system likes."""

    proxy: frozenset[int] | None
    rest: frozenset[int] | None


@dataclass(frozen=True, slots=True)
class Backend:
    legacy: int
    new: int
    process: subprocess.Popen[bytes]


@dataclass(frozen=True, slots=True)
class Measured:
    """One load run and the CPU seconds that the proxy's whole tree spent on it, and its busiest process."""

    outcome: Outcome
    cpu_seconds: float
    busiest_seconds: float

    @property
    def cpu_us_per_request(self) -> float:
        return self.cpu_seconds / self.outcome.requests * 1e6

    @property
    def busiest_us_per_request(self) -> float:
        return self.busiest_seconds / self.outcome.requests * 1e6

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.outcome.requests / self.outcome.seconds


def split_cores() -> Cores:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        return Cores(None, None)
    return Cores(frozenset(cores[:1]), frozenset(cores[1:]))


def rounds(count: int, seconds: float) -> Iterator[int]:
    """Numbers from 0 up to `count`, fewer (but at least one) when `seconds` are over on a slow machine."""
    deadline = monotonic() + seconds
    for number in range(count):
        if number and monotonic() > deadline:
            return
        yield number


@contextlib.contextmanager
def backend(cores: frozenset[int] | None, module: str = "bench.backend") -> Iterator[Backend]:
    process = processes.start([sys.executable, "-m", module], pipes=True, cores=cores)
    try:
        assert process.stdout is not None
        ports = json.loads(process.stdout.readline())
        yield Backend(ports["legacy"], ports["new"], process)
    finally:
        processes.end(process)


def load(order: Order, proxy: contenders.Running | None, cores: frozenset[int] | None) -> Measured:
    """Runs `order` in a process of its own; `proxy` None is a direct run. Raises LoadFailedError."""
    (measured,) = loads([order], proxy, cores)
    return measured


def loads(
    orders: Sequence[Order], proxy: contenders.Running | None, cores: frozenset[int] | None
) -> list[Measured]:
    """Several load generators at once; each result carries the CPU that all of them caused."""
    name = "direct" if proxy is None else proxy.name
    generators: list[subprocess.Popen[bytes]] = []
    try:
        for order in orders:
            argv = [sys.executable, "-m", "bench.load", json.dumps(asdict(order))]
            generators.append(processes.start(argv, pipes=True, log=subprocess.PIPE, cores=cores))
        for generator in generators:
            _line(generator, name)
        before = _Spent.by(proxy)
        for generator in generators:
            assert generator.stdin is not None
            generator.stdin.write(b"go\n")
            generator.stdin.flush()
        outcomes = [Outcome(**json.loads(_line(generator, name))) for generator in generators]
        after = _Spent.by(proxy)
    finally:
        for generator in generators:
            processes.end(generator)
    busiest = max((seconds - before.each.get(pid, 0.0) for pid, seconds in after.each.items()), default=0.0)
    return [Measured(outcome, after.total - before.total, busiest) for outcome in outcomes]


@dataclass(frozen=True, slots=True)
class _Spent:
    """CPU seconds of a tree so far. The processes alone do not add up to the total when one has ended."""

    total: float
    each: dict[int, float]

    @classmethod
    def by(cls, proxy: contenders.Running | None) -> _Spent:
        if proxy is None:
            return cls(0.0, {})
        return cls(processes.cpu_seconds(proxy.pid), processes.cpu_by_process(proxy.pid))


def _line(generator: subprocess.Popen[bytes], name: str) -> bytes:
    assert generator.stdout is not None
    assert generator.stderr is not None
    line = generator.stdout.readline()
    if not line:
        said = generator.stderr.read().decode(errors="replace").strip() or "the load generator ended"
        raise LoadFailedError(f"{name}: {said}")
    return line


@contextlib.contextmanager
def all_running(
    names: Sequence[str], target: Backend, cores: frozenset[int] | None, *, job: contenders.Job = "usual"
) -> Iterator[dict[str, contenders.Running]]:
    """All of `names` side by side in front of `target`, so that rounds can be interleaved."""
    with contextlib.ExitStack() as stack:
        yield {
            name: stack.enter_context(
                contenders.running(name, target.legacy, target.new, cores=cores, job=job)
            )
            for name in names
        }
