"""The words of a routing decision. Frozen values; no clock, no I/O.

A route names the requests that one flag governs. What the flag decides for a request is a
`Decision`, which always carries its reason; the reason is also the metric label and the log word.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

NO_ROUTE = "-"
"""The flag name that stands in metrics and logs for a request that no route matched."""


class Side(StrEnum):
    """The backend that answers a client."""

    LEGACY = "legacy"
    NEW = "new"

    __hash__ = str.__hash__
    """An enum's own hash is a Python function, and sides are looked up for each request."""


class Reason(StrEnum):
    """Why a request went where it went."""

    ROUTE = "route"
    """The matching route names this side in the configuration."""
    NO_ROUTE = "no_route"
    """No route matched; legacy answers everything that nobody has claimed."""


@dataclass(frozen=True, slots=True)
class Route:
    """The requests that one flag governs.

    `methods` empty means any method; methods are compared exactly, as HTTP demands.
    `path` is a template: literal segments, `{name}` for one segment, and a last `**` for any rest.
    `host` is a name without port, `*.example.com` for its subdomains, or None for any host.
    """

    flag: str
    path: str
    methods: frozenset[str] = frozenset()
    host: str | None = None
    side: Side = Side.LEGACY


@dataclass(frozen=True, slots=True)
class Decision:
    """Who answers one request, why, under which flag, and by which version of the routes."""

    side: Side
    reason: Reason
    flag: str
    version: int
