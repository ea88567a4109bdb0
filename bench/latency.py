"""Added latency: the same requests straight to the backend and through each proxy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench import rig
from bench.load import Order
from bench.table import median, spread, table

if TYPE_CHECKING:
    from bench.contenders import Running

DIRECT = "direct"
RATE = 4_000.0
"""Requests per second of the open loop over 32 connections: busy, but nobody's limit."""
TIME_LIMIT = 35.0
"""Seconds after which no further round begins."""


@dataclass(frozen=True, slots=True)
class Latency:
    """Per contender (and for the direct way) one value a round, in microseconds."""

    what: str
    p50_us: dict[str, list[float]]
    p99_us: dict[str, list[float]]

    def added(self, name: str, values: dict[str, list[float]]) -> list[float]:
        return [through - direct for through, direct in zip(values[name], values[DIRECT], strict=True)]

    def __str__(self) -> str:
        rows = [
            [
                name,
                spread(self.p50_us[name], 0),
                spread(self.p99_us[name], 0),
                *(
                    "-" if name == DIRECT else f"{median(self.added(name, values)):,.0f}"
                    for values in (self.p50_us, self.p99_us)
                ),
            ]
            for name in self.p50_us
        ]
        return f"Latency: {self.what}\n" + table(["", "p50 us", "p99 us", "added p50", "added p99"], rows)


def measure(
    proxies: dict[str, Running], direct_port: int, cores: rig.Cores, rounds: int, requests: int
) -> list[Latency]:
    one = {"connections": 1, "requests": requests // 3, "rate": 0.0}
    many = {"connections": 32, "requests": requests, "rate": RATE}
    found = []
    for what, order in (
        ("1 connection, one request after the other", one),
        (f"32 connections, {RATE:,.0f} requests/s at random intervals, counted from when each was due", many),
    ):
        p50: dict[str, list[float]] = {name: [] for name in (DIRECT, *proxies)}
        p99: dict[str, list[float]] = {name: [] for name in (DIRECT, *proxies)}
        for _ in rig.rounds(rounds, TIME_LIMIT):
            for name in (DIRECT, *proxies):
                proxy = proxies.get(name)
                port = direct_port if proxy is None else proxy.port
                outcome = rig.load(Order(port, **order), proxy, cores.rest).outcome  # type: ignore[arg-type]
                p50[name].append(outcome.p50_us)
                p99[name].append(outcome.p99_us)
        found.append(Latency(what, p50, p99))
    return found
