"""Play every case through a proxy: each lane takes the next case when it has finished one."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.differential.answers import ANSWERS
from tests.differential.proxies import Kind, Proxy, running
from tests.differential.requests import REQUESTS
from tests.differential.wire import Do, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.differential.case import Case

CASES: tuple[Case, ...] = REQUESTS + ANSWERS
LANES = 8
DRIP_LIMIT = 3000
"""Cases that send more bytes than this are not played byte by byte."""


@dataclass(frozen=True, slots=True)
class Played:
    """The outcomes by the names of their cases, and what the proxy's process wrote meanwhile."""

    version: str
    outcomes: dict[str, Outcome]
    log: str


async def played(kind: Kind, cases: Iterable[Case] = CASES, *, drip: bool = False) -> Played:
    """Play `cases` through a proxy of this kind; `drip` sends byte by byte."""
    async with running(kind, LANES) as proxy:
        outcomes: dict[str, Outcome] = {}
        left = [case for case in cases if not drip or sent_bytes(case) <= DRIP_LIMIT]
        await asyncio.gather(*(play_lane(proxy, n, left, outcomes, drip) for n in range(LANES)))
        return Played(proxy.version, outcomes, proxy.log.read_text())


async def play_lane(
    proxy: Proxy, lane: int, left: list[Case], outcomes: dict[str, Outcome], drip: bool
) -> None:
    while left:
        case = left.pop()
        steps = (Do.DRIP, *case.steps) if drip else case.steps
        outcomes[case.name] = await proxy.lanes[lane].run(steps, case.script, case.methods, case.deadline)
        if proxy.process.poll() is not None:
            raise RuntimeError(f"{proxy.name} ended after {case.name!r}:\n{proxy.log.read_text()}")


def sent_bytes(case: Case) -> int:
    return sum(len(step) for step in case.steps if isinstance(step, bytes))
