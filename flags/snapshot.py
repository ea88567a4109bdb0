"""The compiled set of routes that decisions are made from: immutable, swapped by one assignment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flags.match import Matcher
from flags.model import NO_ROUTE, Decision, Reason, Route, Side


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One version of the routes. A request is decided by exactly one snapshot."""

    version: int
    matcher: Matcher
    decisions: tuple[Decision, ...]
    """What each route decides, in the order of the routes."""
    unclaimed: Decision
    """What is decided for a request that no route matches."""


def compile_snapshot(routes: Sequence[Route], version: int) -> Snapshot:
    """Compile `routes`; raises `flags.match.InvalidRouteError` for one that cannot be compiled."""
    return Snapshot(
        version=version,
        matcher=Matcher(routes),
        decisions=tuple(Decision(route.side, Reason.ROUTE, route.flag, version) for route in routes),
        unclaimed=Decision(Side.LEGACY, Reason.NO_ROUTE, NO_ROUTE, version),
    )
