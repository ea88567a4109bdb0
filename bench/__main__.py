"""`make bench`: Crossfade, nginx, HAProxy and Envoy side by side.

`python -m bench [SECTION …] [--rounds N] [--quick] [--json FILE]`; the sections are
cpu, flags, latency, bulk, idle, startup, scale, rollback, changes, mirror and sync.

Everything runs on 127.0.0.1, is bounded in count and time (the whole run stays under ten minutes on two
cores), and ends what it started. How to read it: docs/performance.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from bench import (
    bulk,
    changes,
    contenders,
    cpu,
    flags,
    idle,
    latency,
    mirror,
    processes,
    rig,
    rollback,
    scale,
    startup,
    sync,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.table import Verdict

SECTIONS = (
    "cpu",
    "flags",
    "latency",
    "bulk",
    "idle",
    "startup",
    "scale",
    "rollback",
    "changes",
    "mirror",
    "sync",
)
NEEDED_DESCRIPTORS = 12_000
QUIET = 0.05
"""Share of the machine that others may take before it is said aloud."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much of everything; `quick` is for trying the bench, not for numbers."""

    rounds: int
    cpu_requests: int
    latency_requests: int
    bulk_bytes: int
    slow_seconds: float
    idle_steps: tuple[int, ...]
    scale_requests: int


def _size(rounds: int | None, quick: bool) -> Size:
    if quick:
        return Size(rounds or 2, 8_000, 2_000, 256 << 20, 1.0, (1_000,), 10_000)
    return Size(rounds or 5, 60_000, 10_000, 1 << 30, 3.0, idle.STEPS, 30_000)


def main() -> int:
    options = _options()
    began = monotonic()
    cores = rig.split_cores()
    descriptors = processes.raise_file_limit()
    absent = contenders.missing()
    names = [name for name in contenders.NAMES if name not in absent]
    facts = _facts()
    print(_machine(facts, cores))
    for name, reason in absent.items():
        print(f"left out: {name}: {reason}")
    size = _size(options.rounds, options.quick)
    if descriptors < NEEDED_DESCRIPTORS:
        size = Size(
            **{**asdict(size), "idle_steps": tuple(n for n in size.idle_steps if n * 2 + 500 < descriptors)}
        )
        print(f"only {descriptors} open files allowed: fewer idle connections")
    everywhere = os.sched_getaffinity(0)
    sections: dict[str, Callable[[], Sequence[Any]]] = {
        "cpu": lambda: _cpu(names, cores, size),
        "flags": lambda: [flags.measure(names, cores, size.rounds, size.cpu_requests // 2)],
        "latency": lambda: _latency(names, cores, size),
        "bulk": lambda: [bulk.measure(names, cores, size.bulk_bytes, size.slow_seconds)],
        "idle": lambda: _idle(names, cores, size),
        "startup": lambda: _startup(names, cores, size),
        "scale": lambda: (
            [scale.measure(max(1, size.rounds // 2), size.scale_requests)] if "crossfade" in names else []
        ),
        "changes": lambda: [changes.measure(50 if options.quick else 500)],
        "mirror": lambda: [
            mirror.cost(names, cores, size.rounds, size.cpu_requests // 2),
            mirror.bad_mirrors(cores, size.rounds),
        ],
        "rollback": lambda: [rollback.measure(1 if options.quick else size.rounds)],
        "sync": lambda: [sync.measure(*((100_000, 20_000) if options.quick else (2_000_000, 200_000)))],
    }
    report: dict[str, Any] = {"machine": facts, "left_out": absent}
    verdicts: list[Verdict] = []
    failed = False
    for section in options.sections or SECTIONS:
        # This process runs beside the load generator; only the scaling runs place everybody themselves.
        os.sched_setaffinity(
            0,
            everywhere
            if section in ("scale", "rollback", "changes", "sync") or cores.rest is None
            else cores.rest,
        )
        taken = processes.foreign_load()
        if taken > QUIET:
            print(f"\nWARNING: others take {taken:.0%} of the machine; absolute numbers will not hold")
        try:
            results = sections[section]()
        except (rig.LoadFailedError, contenders.NotStartedError, OSError) as fault:
            print(f"\n{section}: FAILED: {fault}", flush=True)
            report[section] = {"failed": str(fault)}
            failed = True
            continue
        finally:
            os.sched_setaffinity(0, everywhere)
        report[section] = [asdict(result) for result in results]
        for result in results:
            print(f"\n{result}", flush=True)
            verdicts += result.verdicts() if hasattr(result, "verdicts") else []
    print()
    for verdict in verdicts:
        print(verdict)
    print(f"took {monotonic() - began:.0f} s")
    if options.json:
        report["verdicts"] = [{**asdict(verdict), "passed": verdict.passed} for verdict in verdicts]
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 1 if failed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "sections", nargs="*", metavar="section", help=f"some of: {' '.join(SECTIONS)} (default: all)"
    )
    parser.add_argument("--rounds", type=int, help="interleaved rounds (default 5)")
    parser.add_argument("--quick", action="store_true", help="small counts: tries the bench, says little")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every measured value there, too")
    options = parser.parse_args()
    unknown = [section for section in options.sections if section not in SECTIONS]
    if unknown:
        parser.error(f"unknown section {unknown[0]!r}; there are: {' '.join(SECTIONS)}")
    return options


def _cpu(names: Sequence[str], cores: rig.Cores, size: Size) -> Sequence[cpu.Cpu]:
    with rig.backend(cores.rest) as backend, rig.all_running(names, backend, cores.proxy) as proxies:
        small = cpu.measure(proxies, cores, ["small"], size.rounds, size.cpu_requests)
        others = cpu.measure(
            proxies, cores, ["large", "post"], max(1, size.rounds // 2 + 1), size.cpu_requests // 2
        )
    return [*small, *others]


def _latency(names: Sequence[str], cores: rig.Cores, size: Size) -> Sequence[latency.Latency]:
    with rig.backend(cores.rest) as backend, rig.all_running(names, backend, cores.proxy) as proxies:
        return latency.measure(
            proxies, backend.new, cores, max(1, size.rounds // 2 + 1), size.latency_requests
        )


def _idle(names: Sequence[str], cores: rig.Cores, size: Size) -> Sequence[idle.Idle]:
    with rig.backend(cores.rest) as backend:
        return [idle.measure(names, cores, backend, size.idle_steps)]


def _startup(names: Sequence[str], cores: rig.Cores, size: Size) -> Sequence[startup.Startup]:
    with rig.backend(cores.rest) as backend:
        return [startup.measure(names, backend, max(1, size.rounds // 2 + 1))]


def _facts() -> dict[str, str]:
    model = "unknown processor"
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(
            (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model
        )
    versions = {"python": platform.python_version()}
    for name, flag in (("nginx", "-v"), ("haproxy", "-v"), ("envoy", "--version")):
        with contextlib.suppress(contenders.NotStartedError, OSError):
            said = subprocess.run(
                [contenders.program(name), flag], capture_output=True, text=True, check=False
            )
            found = re.search(r"\d+\.\d+\.\d+", said.stdout + said.stderr)
            versions[name] = found[0] if found else "unknown version"
    return {
        "processor": model,
        "cores": str(len(os.sched_getaffinity(0))),
        "kernel": platform.release(),
        "busy before": f"{processes.foreign_load():.0%}",
        **versions,
    }


def _machine(facts: dict[str, str], cores: rig.Cores) -> str:
    lines = ["  ".join(f"{key}: {value}" for key, value in facts.items())]
    pinned = (
        "not pinned"
        if cores.proxy is None or cores.rest is None
        else (f"proxies on core {min(cores.proxy)}; backend and load generator on {sorted(cores.rest)}")
    )
    return "\n".join([*lines, pinned])


if __name__ == "__main__":
    sys.exit(main())
