"""Where no adapter is, none is paid for: counted in steps of the interpreter, which no neighbour disturbs."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import proxy
from flags.model import AdapterUse, Route, Side
from legacy_adapter.adapter import Plugs
from legacy_adapter.messages import Answer, Request
from tests.support.world import World, echo, get

OURS = str(Path(proxy.__file__).parents[1])
ASKED = 8


class Unused:
    def request(self, request: Request) -> Request:
        raise NotImplementedError

    def answer(self, answer: Answer, request: Request) -> Answer:
        raise NotImplementedError


class Steps:
    """Counts the bytecodes that are executed in the data plane."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> Steps:
        sys.settrace(self._entered)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _entered(self, frame: FrameType, event: str, arg: Any) -> Any:
        path = frame.f_code.co_filename
        if not path.startswith((f"{OURS}/proxy", f"{OURS}/flags", f"{OURS}/legacy_adapter")):
            return None
        frame.f_trace_lines = False
        frame.f_trace_opcodes = True
        return self._stepped

    def _stepped(self, frame: FrameType, event: str, arg: Any) -> Any:
        self.count += event == "opcode"
        return self._stepped


async def steps_per_request(*adapters: AdapterUse) -> int:
    """The fewest bytecodes of one request on the plain route, beside another route with these adapters."""
    routes = (
        Route("other", "/other/{id}", adapters=adapters),
        Route("items", "/items/{id}", side=Side.NEW),
    )
    counts = []
    async with World.of(routes, plugs=Plugs({"unused": Unused()}), new=echo) as world:
        client = await world.client()
        for _ in range(ASKED):
            with Steps() as steps:
                client.send(get(b"/items/7"))
                await client.answer()
            counts.append(steps.count)
    assert min(counts) > 500, "they are counted"
    return min(counts)


async def test_a_route_without_an_adapter_takes_the_same_steps_whoever_has_one() -> None:
    without = await steps_per_request()
    beside = await steps_per_request(AdapterUse(Side.NEW, "unused"), AdapterUse(Side.LEGACY, "unused"))
    assert beside == without
