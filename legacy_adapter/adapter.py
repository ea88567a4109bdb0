"""What an adapter is. An adapter of a route stands on one side: it makes of what clients say what that
backend understands, and of what that backend answers what clients understand.

Both functions compute and do not wait: they run in the worker's event loop. What it means when one of
them raises, or returns something that cannot be sent: nothing of that message is sent on; the client
gets a 502 of Crossfade's own, or, where the route says so, the message goes on as it came. Either way it
is counted (`crossfade_adapter_failures_total`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol, TypeAlias

from legacy_adapter.messages import Answer, Request


class Adapter(Protocol):
    """One translation, in both directions."""

    def request(self, request: Request) -> Request:
        """What the backend is asked for what the client has asked."""
        ...

    def answer(self, answer: Answer, request: Request) -> Answer:
        """What the client is answered; `request` is the client's, as it came."""
        ...


AttributesOf: TypeAlias = Callable[[Request], Mapping[str, str]]
"""What users' code says of a request, for conditions on `attr:NAME`. The request has no body yet.

If it raises, the request has no attributes, and that is counted.
"""


@dataclass(frozen=True, slots=True)
class Plugs:
    """What the data plane takes of users' code and of the configuration."""

    adapters: Mapping[str, Adapter] = field(default_factory=lambda: MappingProxyType({}))
    attributes: AttributesOf | None = None
