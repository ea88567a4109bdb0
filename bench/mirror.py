"""What mirroring costs, and whether clients notice a bad mirror.

*Cost*: legacy answers everything and new is asked the same, both well: CPU per request of all processes,
beside nginx (`mirror`) and Envoy (`request_mirror_policies`), which throw the second answer away, while
Crossfade compares both and counts them.

*Bad mirrors*: an open loop at half of the rate that this instance reaches without mirroring, alternating runs
with mirroring switched off and on; new hangs, is slow, refuses, answers garbage or 100 MB.
"""

from __future__ import annotations

import contextlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.request import urlopen

from bench import contenders, processes, rig
from bench.bad_backend import KINDS
from bench.load import Order
from bench.table import Verdict, median, spread, table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CONNECTIONS = 32
ENVOY_LIMIT, NGINX_LIMIT = 0.9, 1.0
TIME_LIMIT = 60.0
RUN_SECONDS = 3.0
SLACK_US = 1000.0
"""A p99 may rise by a tenth or by this, whichever is more."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Microseconds of CPU per mirrored request, one value a round."""

    requests: int
    cpu_us: dict[str, list[float]]
    rate: dict[str, list[float]]

    def ratio(self, other: str) -> float:
        pairs = zip(self.cpu_us["crossfade"], self.cpu_us[other], strict=True)
        return median([ours / theirs for ours, theirs in pairs])

    def verdicts(self) -> list[Verdict]:
        limits = {"envoy": ENVOY_LIMIT, "nginx": NGINX_LIMIT}
        return [
            Verdict(f"CPU per mirrored request, crossfade/{name}", self.ratio(name), limit)
            for name, limit in limits.items()
            if name in self.cpu_us
        ]

    def __str__(self) -> str:
        rows = [
            [name, spread(values), spread(self.rate[name], 0), f"{self.ratio(name):.2f}"]
            for name, values in self.cpu_us.items()
        ]
        rounds = len(self.cpu_us["crossfade"])
        title = f"Mirroring: {CONNECTIONS} connections, {rounds} rounds of {self.requests:,} requests each"
        return f"{title}\n" + table(["", "CPU us", "requests/s", "crossfade/this"], rows)


def cost(names: Sequence[str], cores: rig.Cores, rounds: int, requests: int) -> Cost:
    names = [name for name in ("crossfade", "nginx", "envoy") if name in names]
    with contextlib.ExitStack() as stack:
        backend = stack.enter_context(rig.backend(cores.rest))
        running = stack.enter_context(rig.all_running(names, backend, cores.proxy, job="mirror"))
        for proxy in running.values():
            rig.load(Order(proxy.port, requests=requests // 4), proxy, cores.rest)
        cpu_us: dict[str, list[float]] = {name: [] for name in names}
        rate: dict[str, list[float]] = {name: [] for name in names}
        for _ in rig.rounds(rounds, TIME_LIMIT):
            for name, proxy in running.items():
                measured = rig.load(Order(proxy.port, "small", CONNECTIONS, requests), proxy, cores.rest)
                cpu_us[name].append(measured.cpu_us_per_request)
                rate[name].append(measured.rate)
    return Cost(requests, cpu_us, rate)


@dataclass(frozen=True, slots=True)
class BadMirrors:
    """By kind of mirror: requests per second and p99 in microseconds, without and with mirroring."""

    rate: float
    runs: dict[str, list[tuple[float, float, float, float]]]
    mirrored: dict[str, float]
    """The share of the requests that was mirrored; the others were counted with their reason."""

    def verdicts(self) -> list[Verdict]:
        found = []
        for kind, runs in self.runs.items():
            lost = median([1 - with_ / without for without, with_, _, _ in runs])
            found.append(Verdict(f"throughput lost to a mirror that is {kind}", lost, 0.05))
            over = median([after - max(before * 1.1, before + SLACK_US) for _, _, before, after in runs])
            found.append(Verdict(f"p99 beyond what it may be, mirror {kind}", max(0.0, over), 0.0, " us"))
        return found

    def __str__(self) -> str:
        rows = [
            [
                kind,
                spread([one[0] for one in runs], 0), spread([one[1] for one in runs], 0),
                spread([one[2] for one in runs], 0), spread([one[3] for one in runs], 0),
                f"{self.mirrored[kind]:.0%}",
            ]
            for kind, runs in self.runs.items()
        ]  # fmt: skip
        title = f"Bad mirrors: {self.rate:,.0f} requests/s at random intervals, each {RUN_SECONDS:g} s"
        heads = ["new is", "requests/s without", "with", "p99 us without", "with", "mirrored"]
        return f"{title}\n" + table(heads, rows)


def bad_mirrors(cores: rig.Cores, rounds: int) -> BadMirrors:
    runs: dict[str, list[tuple[float, float, float, float]]] = {}
    mirrored: dict[str, float] = {}
    rate = 0.0
    for kind in ("fine", *KINDS):
        with contextlib.ExitStack() as stack:
            backend = stack.enter_context(rig.backend(cores.rest))
            new = backend.new if kind == "fine" else stack.enter_context(_bad(kind, cores))
            proxy = stack.enter_context(
                contenders.running("crossfade", backend.legacy, new, cores=cores.proxy, job="bad mirror")
            )
            _switch(proxy, "off")
            if not rate:
                rate = rig.load(Order(proxy.port, requests=40_000), proxy, cores.rest).rate / 2
            order = Order(proxy.port, "small", CONNECTIONS, int(rate * RUN_SECONDS), rate=rate)
            runs[kind] = []
            for _ in range(rounds):
                without = rig.load(order, proxy, cores.rest).outcome
                _switch(proxy, "on")
                with_ = rig.load(order, proxy, cores.rest).outcome
                _switch(proxy, "off")
                runs[kind].append(
                    (
                        without.requests / without.seconds, with_.requests / with_.seconds,
                        without.p99_us, with_.p99_us,
                    )
                )  # fmt: skip
            mirrored[kind] = _mirrored_share(proxy)
    return BadMirrors(rate, runs, mirrored)


def _mirrored_share(proxy: contenders.Running) -> float:
    with urlopen(f"http://127.0.0.1:{proxy.admin_port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()

    def total(metric: str) -> float:
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(metric + "{"))

    done = total("crossfade_mirrored_total")
    return done / max(1.0, done + total("crossfade_mirror_skipped_total"))


def _switch(proxy: contenders.Running, how: str) -> None:
    contenders.tell(_folder(proxy), "shadow", how)


def _folder(proxy: contenders.Running) -> Path:
    """Where its configuration is: the last of its words."""
    args = proxy.process.args
    assert isinstance(args, list)
    return Path(args[-1]).parent


@contextlib.contextmanager
def _bad(kind: str, cores: rig.Cores) -> Iterator[int]:
    process = processes.start([sys.executable, "-m", "bench.bad_backend", kind], pipes=True, cores=cores.rest)
    try:
        assert process.stdout is not None
        yield int(json.loads(process.stdout.readline())["port"])
    finally:
        processes.end(process)
