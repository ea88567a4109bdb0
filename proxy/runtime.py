"""What a worker runs on at the moment: one configuration, its routes and its pools.

Built whole and swapped by one assignment on reload. An exchange keeps the runtime that it began
with, so no request is served half by one configuration and half by the next.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from flags.model import Side
from flags.snapshot import Snapshot
from legacy_adapter.adapter import Plugs
from proxy.access_log import AccessLogWriter
from proxy.claims import TokenReader
from proxy.config import ProxyConfig
from proxy.counters import Counters
from proxy.fallback import Budgets
from proxy.mirror import Mirror
from proxy.pool import Pool
from proxy.recent import Recent


@dataclass(frozen=True, slots=True)
class Runtime:
    """Everything that an exchange needs beside its client."""

    config: ProxyConfig
    snapshot: Snapshot
    pools: dict[Side, Pool]
    counters: Counters
    access_log: AccessLogWriter | None
    via: bytes | None
    """Our pseudonym in the Via field of answers."""
    plugs: Plugs
    tokens: TokenReader
    budgets: Budgets
    recent: Recent
    mirror: Mirror | None = None
    """None where nobody is behind it who would compare."""
    mirror_pools: Mapping[Side, Pool] = field(default_factory=dict)
    """Connections of the mirror's own."""
    sandbox: Pool | None = None
    """Where mirrored requests go that would change something, on routes that say so."""

    def all_pools(self) -> list[Pool]:
        sandbox = [] if self.sandbox is None else [self.sandbox]
        return [*self.pools.values(), *self.mirror_pools.values(), *sandbox]
