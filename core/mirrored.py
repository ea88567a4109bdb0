"""What the proxy hands over when it has asked both sides the same: the request, and each answer in its bytes.

The proxy gives one `Mirrored` to whatever the wiring has put behind it and forgets it. Everything in here is
as it went over the wire, secrets included: it must not leave the process before it has been redacted.
Both are made for each mirrored request, so they are slotted and not frozen, and nobody writes to them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Leg:
    """One side's answer to one asking, or why there is none. `body` holds what was kept of it, unframed."""

    side: str
    """`legacy` or `new`."""
    began: float
    """Unix time in seconds at which the request was sent to this side."""
    seconds: float
    """Until the end of the answer."""
    status: int = 0
    """0 without an answer."""
    fields: bytes = b""
    """The answer's field section, every line ended by CRLF."""
    body: bytes = b""
    cut: bool = False
    """The body is longer than what is kept."""
    trouble: str | None = None
    """Why there is no whole answer, in one word: `http_response_timeout`, `connection_refused`, ..."""


@dataclass(slots=True)
class Mirrored:
    """One request that both sides were asked. `legs` are in the order in which they were asked."""

    flag: str
    route: str
    """The route's path template."""
    stage: str
    version: int
    """Of the flags that decided."""
    method: str
    target: bytes
    """As the client sent it: path and query."""
    fields: bytes
    """The request's field section."""
    body: bytes
    legs: tuple[Leg, Leg]
    again: tuple[Leg, ...] = ()
    """Legs that were asked once more, later: legacy's for its noise, or both after a difference."""
    sampled: bool = False
    """Whether legacy was asked again by lot, whatever the answers were: those say how often it differs."""
