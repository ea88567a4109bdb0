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
class Patience:
    """How long who was armed and has vanished is waited for, in the middle of a cutover.

    Whoever runs `armed` sends nothing that changes something without a lease, and no lease lasts longer than
    `lease` seconds from now. Those of `outlasted` have been waited for already.
    """

    armed: int
    lease: float
    outlasted: frozenset[str] = frozenset()


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
    outlasted: frozenset[str] = frozenset()
    """Those of the missing whose leases have ended, by their names."""

    @property
    def complete(self) -> bool:
        return not self.missing

    @property
    def safe(self) -> bool:
        """Whether nobody sends what changes something as it was before."""
        return len(self.missing) == len(self.outlasted)


@dataclass(frozen=True, slots=True)
class _Missing:
    """Who does not run a version."""

    name: str
    line: str
    runs: int
    takes: int
    """What it decides by: one that takes the version answers, and only has to end what is under way."""

    def is_under_lease(self, version: int, patience: Patience) -> bool:
        return patience.armed <= self.runs and self.takes < version


async def converged(
    store: Store,
    version: int,
    within: float,
    wake: asyncio.Event | None = None,
    own: Callable[[], InstanceReport | None] = lambda: None,
    patience: Patience | None = None,
) -> Convergence:
    """Wait until every worker runs `version` or a later one. `wake` is set when there may be news.

    `own` is what this instance would say now, which the store may hear a moment later. With `patience` it
    ends once no other than those are missing whose leases have ended. Raises StoreError.
    """
    began = time.monotonic()
    while True:
        if wake is not None:
            wake.clear()
        asked = time.monotonic()
        said = _with(own(), await store.instances())
        newest = version
        if any(worker["version"] > version for one in said for worker in one.report.workers):
            newest = await store.version()
        obeying, missing = _look(version, newest, said)
        waited = time.monotonic() - began
        outlasted = frozenset(
            one.name for one in missing
            if patience is not None and one.is_under_lease(version, patience)
            and (one.name in patience.outlasted or asked - began >= patience.lease)
        )  # fmt: skip
        if len(outlasted) == len(missing) or waited >= within:
            lines = tuple(one.line for one in missing)
            return Convergence(version, obeying, obeying + len(missing), waited * 1000, lines, outlasted)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_EVERY):
                await (wake or asyncio.Event()).wait()


def _with(own: InstanceReport | None, instances: Sequence[Instance]) -> list[Instance]:
    if own is None:
        return list(instances)
    return [*(other for other in instances if other.report.id != own.id), Instance(own, 0.0)]


def _look(version: int, newest: int, instances: Sequence[Instance]) -> tuple[int, list[_Missing]]:
    """Those who run `version` or later. What is later than `newest` is of another store's, or of a time that
    this one has forgotten: it says nothing of what is asked."""
    obeying = 0
    missing = []
    living = [instance for instance in instances if instance.age <= ALIVE_WITHIN]
    for instance in living:
        name = instance.report.id
        for worker in instance.report.workers:
            runs, takes = worker["version"], worker.get("taken", version)
            if version <= runs <= newest:
                obeying += 1
                continue
            line = f"worker {worker['worker']} of {name} runs v{runs}"
            if runs > newest:
                line += f", which this store (at v{newest}) has never given: docs/flags.md, Where flags live"
                runs = 0
            missing.append(_Missing(f"{name}/{worker['worker']}/{worker.get('pid')}", line, runs, takes))
        if not instance.report.workers:
            missing.append(_Missing(name, f"{name} has no worker", 0, version))
    if not living:
        missing.append(_Missing("-", "no instance has said anything for a while", 0, version))
    return obeying, missing
