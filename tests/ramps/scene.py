"""A store with a flag, people who act on it, and instances that count requests."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import psycopg

from crossfade.reconciler import Reconciler
from crossfade.store import ramps
from crossfade.store.actors import Actor, ActorType, Role, Via
from crossfade.store.audit import AuditRow
from crossfade.store.guardrails import Watch, get_guardrail, set_guardrail
from crossfade.store.instances import InstanceReport
from crossfade.store.ramps import RampRow
from crossfade.store.store import Store
from flags.change import Create, Move, SetAuthority
from flags.model import Authority, Bucketing, Flag, Phase, Side, Stage, Transition
from flags.ramp import Step
from flags.stages import described

ANNA = Actor(ActorType.HUMAN, "anna", Role.OPERATOR, "192.0.2.1", Via.CLI)
WALTER = Actor(ActorType.HUMAN, "walter", Role.VIEWER, "192.0.2.2", Via.API)
FLAG = "items.read"
STEPS = (Step(50_000, 60.0, 100), Step(200_000, 60.0, 100), Step(500_000, 60.0))


@dataclass
class Scene:
    """What the tests say happens; `look` is one look of the reconciler."""

    url: str
    store: Store
    counted: dict[str, dict[str, Counter[str]]] = field(default_factory=dict)
    started: dict[str, float] = field(default_factory=dict)

    async def begin(self) -> None:
        flag = Flag(FLAG, 0, Transition(Stage.SHADOW, Stage.LIVE, 0), Bucketing(("cookie:sid",), FLAG))
        await self.store.change(ANNA, Create(flag), reason="begin")
        self.reconciler = Reconciler(self.store)

    async def look(self, times: int = 1) -> None:
        for _ in range(times):
            await self.reconciler.look()

    async def report(
        self,
        new: tuple[int, int] = (0, 0),
        legacy: tuple[int, int] = (0, 0),
        *,
        instance: str = "one",
        anew: bool = False,
    ) -> None:
        """An instance has answered so many more requests of each side, with so many more errors."""
        if anew or instance not in self.counted:
            self.counted[instance] = {"new": Counter(), "legacy": Counter()}
            self.started[instance] = self.started.get(instance, time.time() // 1 - 600.0) + 1.0
        for side, (requests, errors) in (("new", new), ("legacy", legacy)):
            self.counted[instance][side].update(requests=requests, errors=errors)
        await self.store.report(
            InstanceReport(
                id=instance, host="host", address="127.0.0.1:8081", flags_version=1,
                started_at=self.started[instance], kill_overlay={}, workers=[],
                counts={FLAG: {side: dict(counts) for side, counts in self.counted[instance].items()}},
            )
        )  # fmt: skip

    async def start(self, steps: tuple[Step, ...] = STEPS, **other: Any) -> RampRow:
        return await ramps.start_ramp(
            self.store, ANNA, FLAG, to=Stage.LIVE, steps=steps, reason="out it goes", **other
        )

    async def guard(self, signal: str = "errors", **definition: Any) -> Watch:
        said = {"signal": signal, **definition}
        return await set_guardrail(self.store, ANNA, FLAG, said, reason="be careful")

    async def canary(self, weight_ppm: int = 50_000) -> None:
        await self.store.change(ANNA, Move(FLAG, Stage.LIVE, weight_ppm), reason="by hand")

    async def walks(self, phase: Phase) -> None:
        """A cutover that moves the flag's data is as far as that."""
        held = Authority("shop", (FLAG,), Side.LEGACY, 0, phase)
        walker = Actor(ActorType.CUTOVER, "walk 1 of anna", None, None, Via.CUTOVER)
        await self.store.change(walker, SetAuthority(held), reason="tonight")

    async def watch(self, guardrail_id: str = f"{FLAG}:errors") -> Watch:
        return await get_guardrail(self.store, guardrail_id)

    async def ramp(self) -> RampRow:
        return await ramps.ramp_status(self.store, FLAG)

    async def stands(self) -> str:
        """Where the flag is, in words."""
        flag = (await self.store.flag_set()).flag(FLAG)
        assert flag is not None
        return described(flag.transition) + (", killed" if flag.kill else "")

    async def acts(self, actor: str, *actions: str) -> list[AuditRow]:
        """What actors of a type have done, in its order."""
        rows = await self.store.audit_tail(0, 500)
        return [row for row in rows if row.actor["type"] == actor and (not actions or row.action in actions)]

    def pass_time(self, seconds: float) -> None:
        """As if it had begun so much earlier: the store's clock is nobody's to set."""
        with psycopg.connect(self.url) as connection:
            connection.execute(
                "UPDATE crossfade_store.ramps"
                " SET step_started_at = step_started_at - make_interval(secs => %s)",
                (seconds,),
            )
