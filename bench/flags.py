"""What flags cost: 200 routes under 50 flags, a quarter of the keys at new, beside Envoy with the same.

Crossfade decides by the bucket of a cookie, so a client stays where it is; Envoy by chance, which is
the cheaper thing to do. A second Crossfade with six routes and no flags runs in the same rounds and says
what the flags and the other routes add. Crossfade's embedded database and bus are idle meanwhile, and
what they spend is counted all the same.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench import contenders, rig
from bench.load import Order
from bench.table import Verdict, median, spread, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.contenders import Running
    from bench.traffic import Kind

CONNECTIONS = 32
LIMIT = 0.7
"""Crossfade's CPU per request as a share of Envoy's."""
TIME_LIMIT = 60.0
"""Seconds after which no further round begins."""
PLAIN = "crossfade, 6 routes, no flags"


@dataclass(frozen=True, slots=True)
class Flags:
    """Per contender one value a round: microseconds of CPU per request of the whole process tree."""

    requests: int
    cpu_us: dict[str, list[float]]
    busiest_us: dict[str, list[float]]
    rate: dict[str, list[float]]

    def verdicts(self) -> list[Verdict]:
        if "envoy" not in self.cpu_us:
            return []
        what = (
            f"CPU per request with {contenders.FLAGS} flags over {contenders.ROUTES} routes, crossfade/envoy"
        )
        return [Verdict(what, self.ratio("envoy"), LIMIT)]

    def ratio(self, other: str) -> float:
        """Crossfade with flags over `other`: the median of the rounds' own ratios."""
        pairs = zip(self.cpu_us["crossfade"], self.cpu_us[other], strict=True)
        return median([ours / theirs for ours, theirs in pairs])

    def __str__(self) -> str:
        rows = [
            [
                name,
                spread(values),
                f"{median(self.busiest_us[name]):.1f}",
                spread(self.rate[name], 0),
                f"{self.ratio(name):.2f}",
            ]
            for name, values in self.cpu_us.items()
        ]
        rounds = len(self.cpu_us["crossfade"])
        title = (
            f"Flags: {contenders.ROUTES} routes, {contenders.FLAGS} flags with 25 % at new, "
            f"{CONNECTIONS} connections, {rounds} rounds of {self.requests:,} requests each"
        )
        return f"{title}\n" + table(
            ["", "CPU us", "busiest process", "requests/s", "crossfade with flags/this"], rows
        )


def measure(names: Sequence[str], cores: rig.Cores, rounds: int, requests: int) -> Flags:
    names = [name for name in ("crossfade", "envoy") if name in names]
    with contextlib.ExitStack() as stack:
        backend = stack.enter_context(rig.backend(cores.rest))
        running = stack.enter_context(rig.all_running(names, backend, cores.proxy, job="flags"))
        plain = stack.enter_context(rig.all_running(["crossfade"], backend, cores.proxy))
        contestants: dict[str, tuple[Running, Kind]] = {name: (running[name], "parts") for name in names}
        contestants[PLAIN] = (plain["crossfade"], "small")
        for proxy, kind in contestants.values():
            rig.load(Order(proxy.port, kind, requests=requests // 4), proxy, cores.rest)
        cpu_us: dict[str, list[float]] = {name: [] for name in contestants}
        busiest_us: dict[str, list[float]] = {name: [] for name in contestants}
        rate: dict[str, list[float]] = {name: [] for name in contestants}
        for _ in rig.rounds(rounds, TIME_LIMIT):
            for name, (proxy, kind) in contestants.items():
                measured = rig.load(Order(proxy.port, kind, CONNECTIONS, requests), proxy, cores.rest)
                cpu_us[name].append(measured.cpu_us_per_request)
                busiest_us[name].append(measured.busiest_us_per_request)
                rate[name].append(measured.rate)
    return Flags(requests, cpu_us, busiest_us, rate)
