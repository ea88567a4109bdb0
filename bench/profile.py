"""Where a worker spends its time: `python -m bench.profile [--kind small] [--seconds 8] [--native]`.

Starts Crossfade with one worker under closed-loop load on 32 connections, lets py-spy sample the busiest
process of its tree from outside, and prints the functions that were on top of the stack (self) and those
that were anywhere on it (total). `--native` adds frames of C extensions (uvloop); it stops the worker
longer at each sample. `--raw FILE` keeps the folded stacks for a flame graph.

To attach to another process a user needs the right to trace it: root, or `kernel.yama.ptrace_scope` 0.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from bench import contenders, processes, rig
from bench.load import Order
from bench.table import table
from bench.traffic import KINDS

LINES = 30
WAITING = "Condition.wait (threading.py"
"""A helper thread that sleeps is no work, though py-spy counts some of them as running."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.profile")
    parser.add_argument("--kind", choices=list(KINDS), default="small")
    parser.add_argument("--seconds", type=int, default=8)
    parser.add_argument("--native", action="store_true")
    parser.add_argument("--raw", type=Path, help="keep the folded stacks in this file")
    options = parser.parse_args()
    sampler = Path(sys.executable).parent / "py-spy"
    if not sampler.exists():
        print("py-spy is not in the environment; run make setup (extra dev)", file=sys.stderr)
        return 1
    processes.raise_file_limit()
    cores = rig.split_cores()
    with (
        tempfile.TemporaryDirectory(prefix="bench-profile-") as folder,
        rig.backend(cores.rest) as backend,
        contenders.running("crossfade", backend.legacy, backend.new, cores=cores.proxy) as proxy,
    ):
        before = processes.cpu_by_process(proxy.pid)
        warm = Order(proxy.port, options.kind, requests=10_000)
        rig.load(warm, proxy, cores.rest)
        after = processes.cpu_by_process(proxy.pid)
        worker = max(after, key=lambda pid: after[pid] - before.get(pid, 0.0))
        # More requests than anybody answers in that time: the load ends when it is ended.
        endless = Order(proxy.port, options.kind, requests=100_000_000)
        argv = [sys.executable, "-m", "bench.load", json.dumps(asdict(endless))]
        generator = processes.start(argv, pipes=True, cores=cores.rest)
        try:
            assert generator.stdin is not None
            assert generator.stdout is not None
            generator.stdout.readline()
            generator.stdin.write(b"go\n")
            generator.stdin.flush()
            raw = options.raw or Path(folder) / "stacks"
            spy = [str(sampler), "record", "--pid", str(worker), "--duration", str(options.seconds)]
            spy += ["--rate", "500", "--format", "raw", "--output", str(raw)]
            spy += ["--native"] if options.native else []
            said = subprocess.run(spy, capture_output=True, text=True, check=False)
            if said.returncode:
                print(said.stderr.strip() or said.stdout.strip(), file=sys.stderr)
                return 1
        finally:
            processes.end(generator)
        print(_hottest(raw.read_text()))
    return 0


def _hottest(folded: str) -> str:
    """A table of folded stacks (`outer;inner count`): share of samples on top, and anywhere, of the stack."""
    on_top: Counter[str] = Counter()
    anywhere: Counter[str] = Counter()
    for line in folded.splitlines():
        stack, _, count = line.rpartition(" ")
        if stack.rpartition(";")[2].startswith(WAITING):
            continue
        frames = [frame.rpartition(":")[0] + ")" if ":" in frame else frame for frame in stack.split(";")]
        on_top[frames[-1]] += int(count)
        for frame in set(frames):
            anywhere[frame] += int(count)
    total = sum(on_top.values()) or 1
    rows = [
        [frame, f"{count / total:.1%}", f"{anywhere[frame] / total:.1%}"]
        for frame, count in on_top.most_common(LINES)
    ]
    return f"{total:,} samples\n" + table(["function", "self", "total"], rows)


if __name__ == "__main__":
    sys.exit(main())
