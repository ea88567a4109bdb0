"""How long people wait for a cutover: many of them, forth and back, under load, and everything checked.

    python -m bench.cutover [WALKS] [--people N] [--think SECONDS]

The sample product in real processes on this machine: two workers, two databases, both streams, and people
who read, write and transfer. At the end every write that was acknowledged is looked for in both databases.
The figures of others, for the pause of writes: Vitess "usually a few seconds", pg_easy_replicate "up to a
minute", GitHub about 100 ms (docs/performance.md has where they come from; none was measured here).
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from bench.load import percentile
from crossfade.embedded.postgres import EmbeddedPostgres
from crossfade.embedded.valkey import EmbeddedValkey
from tests.cutover.scene import Night, databases, fresh_store, night


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("walks", type=int, nargs="?", default=20)
    parser.add_argument("--people", type=int, default=8)
    parser.add_argument("--think", type=float, default=0.02)
    return asyncio.run(_run(parser.parse_args()))


async def _run(options: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="crossfade-cutover-") as name:
        folder = Path(name)
        with (
            EmbeddedPostgres(folder / "pg", durable=False) as postgres,
            EmbeddedValkey(folder / "valkey") as bus,
            databases(postgres) as (legacy, new),
            fresh_store(postgres) as store,
        ):
            (folder / "run").mkdir()
            async with night(folder / "run", store, bus.url(), legacy, new) as eve:
                return await _walk(eve, options)


async def _walk(eve: Night, options: argparse.Namespace) -> int:
    await eve.prepare()
    holds: list[float] = []
    parts: Counter[str] = Counter()
    began = time.monotonic()
    async with eve.people(rest=options.think, number=options.people) as load:
        await load.grows_by(50)
        for turn in range(options.walks):
            code, answer = await eve.cutover("run" if turn % 2 == 0 else "back")
            walk = answer.get("walks", [answer])[0]
            if code:
                print(f"walk {turn}: exit {code}: {walk.get('message')}")
                continue
            holds.append(walk["held_seconds"])
            parts.update(walk["found"].get("times", {}))
            if load.failures or load.backwards:
                break
        await load.grows_by(50)
        took = time.monotonic() - began
        rate = load.answers / took
    await eve.nothing_is_lost(load)
    wrong = [*load.failures, *load.backwards]
    holds.sort()
    print(f"walks          {len(holds)} of {options.walks} done")
    print(f"load           {rate:.0f} requests/s of {options.people} people, {load.answers} in all")
    print(f"failed         {len(load.failures)}, gone back in time {len(load.backwards)}")
    middle, late = (percentile(holds, share) * 1000 for share in (0.5, 0.99))
    print(f"hold           p50 {middle:.0f} ms, p99 {late:.0f} ms, longest {holds[-1] * 1000:.0f} ms")
    print(f"slowest answer {load.slowest * 1000:.0f} ms")
    mean = {name: f"{total / len(holds) * 1000:.0f} ms" for name, total in parts.items()}
    print(f"mean of each state: {mean}")
    for line in wrong[:5]:
        print(f"WRONG: {line}")
    return 1 if wrong or len(holds) < options.walks else 0


if __name__ == "__main__":
    sys.exit(main())
