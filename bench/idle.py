"""Memory of idle keep-alive connections: each has asked once, then all are left open.

Resident memory of the whole process tree; what the kernel keeps per socket is the same for all four and
not in it.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench import contenders, processes, rig
from bench.load import Connection, UnexpectedAnswerError, closed_loop
from bench.processes import MIB
from bench.rig import LoadFailedError
from bench.table import table
from bench.traffic import requests

if TYPE_CHECKING:
    from collections.abc import Sequence

STEPS = (1_000, 5_000)


@dataclass(frozen=True, slots=True)
class Idle:
    """Per contender: resident bytes after the warm-up, and at each number of connections."""

    steps: tuple[int, ...]
    empty: dict[str, int]
    resident: dict[str, list[int]]

    def __str__(self) -> str:
        rows = []
        for name, empty in self.empty.items():
            cells = [name, f"{empty / MIB:.1f}"]
            for count, held in zip(self.steps, self.resident[name], strict=True):
                cells += [f"{held / MIB:.1f}", f"{(held - empty) / count / 1024:.2f}"]
            rows.append(cells)
        head = ["", "MiB at 1", *(text for count in self.steps for text in (f"MiB at {count:,}", "KiB each"))]
        return "Idle keep-alive connections: resident memory of all processes\n" + table(head, rows)


def measure(names: Sequence[str], cores: rig.Cores, backend: rig.Backend, steps: tuple[int, ...]) -> Idle:
    found = Idle(steps, {}, {})
    texts = requests("small")
    for name in names:
        with (
            contenders.running(name, backend.legacy, backend.new, cores=cores.proxy) as proxy,
            contextlib.ExitStack() as stack,
        ):
            try:
                warm = Connection(proxy.port)
                stack.callback(warm.socket.close)
                closed_loop([warm], texts, 2_000)
                found.empty[name] = processes.resident(proxy.pid)
                found.resident[name] = []
                idle: list[Connection] = []
                for count in steps:
                    while len(idle) < count:
                        connection = Connection(proxy.port)
                        stack.callback(connection.socket.close)
                        closed_loop([connection], texts, 1)
                        idle.append(connection)
                    found.resident[name].append(processes.resident(proxy.pid))
                for connection in (idle[0], idle[-1]):  # they are idle, not dead
                    closed_loop([connection], texts, 1)
            except (UnexpectedAnswerError, OSError) as fault:
                raise LoadFailedError(f"{name}: {fault}") from fault
    return found
