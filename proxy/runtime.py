"""What a worker runs on at the moment: one configuration, its routes and its pools.

Built whole and swapped by one assignment on reload. An exchange keeps the runtime that it began
with, so no request is served half by one configuration and half by the next.
"""

from __future__ import annotations

from dataclasses import dataclass

from flags.model import Side
from flags.snapshot import Snapshot
from legacy_adapter.adapter import Plugs
from proxy.access_log import AccessLogWriter
from proxy.claims import TokenReader
from proxy.config import ProxyConfig
from proxy.counters import Counters
from proxy.fallback import Budgets
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
