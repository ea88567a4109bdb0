"""Change after change under load: every worker acknowledges each, and no request is decided by half of one.

Each change moves the two flags of one pair at once. On one connection, thus in one worker, whoever has seen
one flag of a pair moved must from then on see both moved, and those of all changes before: a snapshot that
held half a version, or an older one after a newer one, would show as an answer of legacy.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path

from crossfade.convergence import Convergence
from crossfade.embedded.postgres import EmbeddedPostgres
from crossfade.embedded.valkey import EmbeddedValkey
from flags.model import Stage
from tests.flags_live.scene import scene
from tests.supervisor.backend import Backend
from tests.support.crossfade_process import PATIENCE, RunningCrossfade

CHANGES = 100
PROBERS = 3


class Probers:
    """Clients that ask for the flags around the last change."""

    def __init__(self, cf: RunningCrossfade) -> None:
        self._cf = cf
        self.frontier = 0
        """How many changes there have been, or are just being made."""
        self.asked = 0
        self.seen_in_the_making = 0
        """Answers that showed a change before its acknowledgements had come."""
        self.wrong: list[str] = []
        self._stopped = False

    async def probe(self, seed: int) -> None:
        chance = random.Random(seed)
        connection = await self._cf.connect()
        known = -1
        """The last change that this connection has seen at work."""
        while not self._stopped:
            pair = min(max(0, self.frontier - chance.randrange(4)), CHANGES - 1)
            for half in chance.sample("ab", 2):
                answer = await connection.get(f"/p{pair}{half}")
                self.asked += 1
                moved = answer.body == b"new"
                if moved:
                    self.seen_in_the_making += pair > known and pair == self.frontier - 1
                    known = max(known, pair)
                elif pair <= known:
                    self.wrong.append(f"p{pair}{half} was legacy's after p{known} had been seen moved")
            await asyncio.sleep(0.003)
        connection.close()

    @contextlib.asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self.probe(seed)) for seed in range(PROBERS)]
        try:
            yield
        finally:
            self._stopped = True
            async with asyncio.timeout(PATIENCE):
                await asyncio.gather(*tasks)


async def test_a_hundred_changes_under_load(
    store: EmbeddedPostgres, bus: EmbeddedValkey, legacy: Backend, new: Backend, tmp_path: Path
) -> None:
    flags = [f"p{pair}{half}" for pair in range(CHANGES) for half in "ab"]
    config = {
        "workers": 2,
        "store": store.url(),
        "bus": bus.url(),
        "targets": {"legacy": {"url": legacy.url}, "new": {"url": new.url}},
        "routes": [{"flag": flag, "match": {"path": f"/{flag}"}, "target": "legacy"} for flag in flags],
    }
    acknowledged: list[Convergence] = []
    async with scene(tmp_path, config, store, bus) as live:
        probers = Probers(live.cf)
        began = time.monotonic()
        async with probers.at_work():
            for pair in range(CHANGES):
                probers.frontier = pair + 1
                version = await live.settle(Stage.LIVE, f"p{pair}a", f"p{pair}b")
                acknowledged.append(await live.obeyed(version))
        lasted = time.monotonic() - began
    took = sorted(found.milliseconds for found in acknowledged)
    p50, p90, p99 = (took[int(len(took) * share)] for share in (0.5, 0.9, 0.99))
    print(
        f"{CHANGES} changes of {len(flags)} flags in {lasted:.1f} s under {probers.asked} requests; all "
        f"workers acknowledged after p50 {p50:.0f} ms, p90 {p90:.0f} ms, p99 {p99:.0f} ms; "
        f"{probers.seen_in_the_making} answers showed a change while it was being made"
    )
    assert probers.wrong == []
    assert probers.asked > CHANGES
    assert probers.seen_in_the_making > 0, "nobody asked at a moment that proves anything"
