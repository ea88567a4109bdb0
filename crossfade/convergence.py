"""Whether everybody runs a version: every worker of every instance that has been heard of lately."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from crossfade.store.instances import Instance, InstanceReport
from crossfade.store.store import Store

ALIVE_WITHIN = 10.0
"""Seconds after which an instance that has said nothing is not waited for."""
LOOK_EVERY = 0.02
"""Seconds between two looks at what the instances have said."""


@dataclass(frozen=True, slots=True)
class Convergence:
    """How many workers of all living instances run at least some version."""

    version: int
    obeying: int
    workers: int
    milliseconds: float
    """From the question to the last acknowledgement, or to the end of the wait."""
    missing: tuple[str, ...]
    """Who does not run it: one line each."""

    @property
    def complete(self) -> bool:
        return not self.missing


async def converged(
    store: Store,
    version: int,
    within: float,
    wake: asyncio.Event | None = None,
    own: Callable[[], InstanceReport | None] = lambda: None,
) -> Convergence:
    """Wait until every worker runs `version` or a later one. `wake` is set when there may be news.

    `own` is what this instance would say now, which the store may hear a moment later. Raises StoreError.
    """
    began = time.monotonic()
    while True:
        if wake is not None:
            wake.clear()
        obeying, missing = who_runs(version, _with(own(), await store.instances()))
        waited = time.monotonic() - began
        if not missing or waited >= within:
            return Convergence(version, obeying, obeying + len(missing), waited * 1000, missing)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_EVERY):
                await (wake or asyncio.Event()).wait()


def _with(own: InstanceReport | None, instances: Sequence[Instance]) -> list[Instance]:
    if own is None:
        return list(instances)
    return [*(other for other in instances if other.report.id != own.id), Instance(own, 0.0)]


def who_runs(version: int, instances: Sequence[Instance]) -> tuple[int, tuple[str, ...]]:
    """How many workers run at least `version`, and a line for each that does not."""
    obeying = 0
    missing = []
    living = [instance for instance in instances if instance.age <= ALIVE_WITHIN]
    for instance in living:
        name = instance.report.id
        for worker in instance.report.workers:
            if worker["version"] >= version:
                obeying += 1
            else:
                missing.append(f"worker {worker['worker']} of {name} runs v{worker['version']}")
        if not instance.report.workers:
            missing.append(f"{name} has no worker")
    if not living:
        missing.append("no instance has said anything for a while")
    return obeying, tuple(missing)
