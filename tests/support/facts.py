"""What a decision is told in tests: facts that are known beforehand, and which of them were asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass
class KnownFacts:
    """`flags.attributes.Facts` of fixed values; `identities` are the cookies that were asked for."""

    client: str = "192.0.2.1"
    time: float = 1_000_000.0
    known_claims: Mapping[str, object] = field(default_factory=dict)
    known_attributes: Mapping[str, str] = field(default_factory=dict)
    identity: str = "fresh"
    identities: list[str] = field(default_factory=list)
    behind: frozenset[str] = frozenset()
    """Cutovers of whose data this session has written what new may not have."""
    lag_ms: float = 0.0
    """How far new is behind."""

    def client_address(self) -> str:
        return self.client

    def now(self) -> float:
        return self.time

    def claims(self) -> Mapping[str, object]:
        return self.known_claims

    def attributes(self) -> Mapping[str, str]:
        return self.known_attributes

    def assigned_identity(self, cookie: str) -> str:
        self.identities.append(cookie)
        return self.identity

    def is_behind(self, cutover: str) -> bool:
        return cutover in self.behind

    def is_late(self, cutover: str, most_ms: int) -> bool:
        return self.lag_ms > most_ms
