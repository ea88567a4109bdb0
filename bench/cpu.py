"""CPU per request: what a proxy's whole process tree spends, in rounds A B C D A B C D."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench import rig
from bench.load import Order
from bench.table import Verdict, median, spread, table
from bench.traffic import KINDS, Kind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.contenders import Running

CONNECTIONS = 32
LIMITS = {"envoy": 0.65, "nginx": 2.0}
"""Crossfade's CPU per request as a share of theirs, for the small answer."""
TIME_LIMIT: dict[Kind, float] = {"small": 70.0, "large": 30.0, "post": 30.0}
"""Seconds after which no further round begins."""


@dataclass(frozen=True, slots=True)
class Cpu:
    """Per contender one value a round: microseconds of CPU per request, and requests per second."""

    kind: Kind
    requests: int
    cpu_us: dict[str, list[float]]
    busiest_us: dict[str, list[float]]
    """The same of the busiest process alone: the worker, if all is well."""
    rate: dict[str, list[float]]

    def verdicts(self) -> list[Verdict]:
        if self.kind != "small" or "crossfade" not in self.cpu_us:
            return []
        return [
            Verdict(f"CPU per request, crossfade/{other}", self.ratio(other), limit)
            for other, limit in LIMITS.items()
            if other in self.cpu_us
        ]

    def ratio(self, other: str) -> float:
        """Crossfade over `other`: the median of the rounds' own ratios, so that a slow minute hits both."""
        pairs = zip(self.cpu_us["crossfade"], self.cpu_us[other], strict=True)
        return median([ours / theirs for ours, theirs in pairs])

    def __str__(self) -> str:
        rows = [
            [
                name,
                spread(values),
                f"{median(self.busiest_us[name]):.1f}",
                spread(self.rate[name], 0),
                f"{self.ratio(name):.2f}" if "crossfade" in self.cpu_us else "-",
            ]
            for name, values in self.cpu_us.items()
        ]
        title = f"CPU per request: {KINDS[self.kind]}, {CONNECTIONS} connections"
        rounds = max(len(values) for values in self.cpu_us.values())
        title += f", {rounds} rounds of {self.requests:,} requests each"
        return f"{title}\n" + table(["", "CPU us", "busiest process", "requests/s", "crossfade/this"], rows)


def measure(
    proxies: dict[str, Running], cores: rig.Cores, kinds: Sequence[Kind], rounds: int, requests: int
) -> list[Cpu]:
    for proxy in proxies.values():  # code paths, pools and branch predictors of all, before anyone counts
        rig.load(Order(proxy.port, requests=requests // 4), proxy, cores.rest)
    return [_measure(proxies, cores, kind, rounds, requests) for kind in kinds]


def _measure(proxies: dict[str, Running], cores: rig.Cores, kind: Kind, rounds: int, requests: int) -> Cpu:
    cpu_us: dict[str, list[float]] = {name: [] for name in proxies}
    busiest_us: dict[str, list[float]] = {name: [] for name in proxies}
    rate: dict[str, list[float]] = {name: [] for name in proxies}
    for _ in rig.rounds(rounds, TIME_LIMIT[kind]):
        for name, proxy in proxies.items():
            measured = rig.load(Order(proxy.port, kind, CONNECTIONS, requests), proxy, cores.rest)
            cpu_us[name].append(measured.cpu_us_per_request)
            busiest_us[name].append(measured.busiest_us_per_request)
            rate[name].append(measured.rate)
    return Cpu(kind, requests, cpu_us, busiest_us, rate)
