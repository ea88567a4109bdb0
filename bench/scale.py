"""Two workers against one, as far as this machine can tell.

Workers, backend and load generator share the cores, so on a small machine two workers cannot show twice
the throughput of one: there is no core left to ask them from. Hence two comparisons. *Shared*: one worker
and two, everything else equal, everybody free to use every core. *Whole*: one worker, one backend and one
load generator all on one core, against two of each on two cores. The second says whether the workers get
in each other's way, and is the one held against the target where there are fewer than six cores.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass

from bench import contenders, processes, rig
from bench.load import Order
from bench.table import Verdict, median, spread, table

LIMIT = 1.8
ENOUGH_CORES = 6
CONNECTIONS = 32
"""Of each load generator."""
TIME_LIMIT = 40.0
"""Seconds after which no further round begins."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Requests per second, one value a round; `busier` is the busier worker's share of both workers' CPU."""

    cores: int
    shared_one: list[float]
    shared_two: list[float]
    whole_one: list[float]
    whole_two: list[float]
    busier: list[float]

    def verdicts(self) -> list[Verdict]:
        if self.cores >= ENOUGH_CORES:
            ratio = _ratio(self.shared_two, self.shared_one)
            return [Verdict("throughput, 2 workers/1", ratio, LIMIT, at_most=False)]
        if not self.whole_one:
            return []
        what = "throughput, 2 of everything on 2 cores/1 of everything on 1 core"
        return [Verdict(what, _ratio(self.whole_two, self.whole_one), LIMIT, at_most=False)]

    def __str__(self) -> str:
        rows = [
            [what, spread(one, 0), spread(two, 0), f"{_ratio(two, one):.2f}"]
            for what, one, two in (
                ("shared cores", self.shared_one, self.shared_two),
                ("whole sets", self.whole_one, self.whole_two),
            )
            if one
        ]
        lines = [
            f"Two workers (crossfade), {self.cores} cores in this machine, requests/s",
            table(["", "1 worker", "2 workers", "ratio"], rows),
            "shared cores: load generators and backends run on the workers' cores, so this ratio is a floor.",
        ]
        if self.busier:
            share = f"{median(self.busier):.0%}"
            lines.append(f"whole sets: 1 or 2 of everything on as many cores; the busier worker did {share}.")
        return "\n".join(lines)


def _ratio(two: list[float], one: list[float]) -> float:
    return median([more / less for more, less in zip(two, one, strict=True)])


def measure(rounds: int, requests: int) -> Scale:
    cores = sorted(os.sched_getaffinity(0))
    everywhere, first = frozenset(cores), frozenset(cores[:1])
    found = Scale(len(cores), [], [], [], [], [])
    for _ in rig.rounds(rounds, TIME_LIMIT):
        found.shared_one.append(_rate(1, 2, everywhere, requests)[0])
        found.shared_two.append(_rate(2, 2, everywhere, requests)[0])
        if len(cores) >= 2:
            pair = frozenset(cores[:2])
            found.whole_one.append(_rate(1, 1, first, requests)[0])
            rate, busier = _rate(2, 2, pair, requests)
            found.whole_two.append(rate)
            found.busier.append(busier)
    return found


def _rate(workers: int, others: int, cores: frozenset[int], requests: int) -> tuple[float, float]:
    """Requests per second with `others` load generators and backends; the busier worker's share of CPU."""
    with contextlib.ExitStack() as stack:
        backends = [stack.enter_context(rig.backend(cores)) for _ in range(others)]
        proxy = stack.enter_context(
            contenders.running(
                "crossfade", backends[0].legacy, backends[-1].new, workers=workers, cores=cores
            )
        )
        before = processes.cpu_by_process(proxy.pid)
        order = Order(proxy.port, "small", CONNECTIONS, requests, warmup=2_000)
        results = rig.loads([order] * others, proxy, cores)
        after = processes.cpu_by_process(proxy.pid)
    spent = sorted((after[pid] - before.get(pid, 0.0) for pid in after), reverse=True)
    busiest = spent[0] / max(sum(spent[:workers]), 1e-9)
    return others * requests / max(result.outcome.seconds for result in results), busiest
