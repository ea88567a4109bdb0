"""What a worker has to know to compare pairs of answers; it travels with its orders."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from shadow.openapi import Operation


@dataclass(frozen=True, slots=True)
class Observing:
    bus: str
    data_dir: str
    key: str
    """Of this installation, in hexadecimal: what secrets are made tokens with."""
    inspect: float
    longest: int
    also: tuple[str, ...] = ()
    never: tuple[str, ...] = ()
    emails: bool = True
    operations: tuple[Operation, ...] = ()

    def to_wire(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_wire(cls, found: dict[str, Any]) -> Observing:
        operations = tuple((method, path) for method, path in found.get("operations", ()))
        lists = {name: tuple(found[name]) for name in ("also", "never")}
        return cls(**{**found, **lists, "operations": operations})
