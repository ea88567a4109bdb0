"""From exec to the first request answered through the proxy.

One start of each before, uncounted, warms the disk cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench import contenders, rig
from bench.table import spread, table

if TYPE_CHECKING:
    from collections.abc import Sequence


TIME_LIMIT = 30.0
"""Seconds after which no further round begins."""


@dataclass(frozen=True, slots=True)
class Startup:
    """Milliseconds, one value a round."""

    milliseconds: dict[str, list[float]]

    def __str__(self) -> str:
        rows = [[name, spread(values, 0)] for name, values in self.milliseconds.items()]
        return "Start-up: from exec to the first proxied 200\n" + table(["", "ms"], rows)


def measure(names: Sequence[str], backend: rig.Backend, rounds: int) -> Startup:
    found: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        with contenders.running(name, backend.legacy, backend.new):
            pass
    for _ in rig.rounds(rounds, TIME_LIMIT):
        for name in names:
            with contenders.running(name, backend.legacy, backend.new, settled=False) as proxy:
                found[name].append(proxy.start_seconds * 1e3)
    return Startup(found)
