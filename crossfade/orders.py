"""What the supervisor tells its workers to run: the generation, and the settings as a packed text.

Packed settings are a pickle, so that a worker needs neither YAML nor pydantic. It travels on the
private line from parent to child only. Since it may wait in the memory of a restarted program for
a worker of newer code, it carries the layout of the values in it and is refused by any other code.
"""

from __future__ import annotations

import base64
import dataclasses
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flags.model import AdapterUse, Route
from legacy_adapter import declared, shape
from proxy import config
from proxy.config import ProxyConfig


class OtherLayoutError(Exception):
    """The settings were packed by another version of this program."""


@dataclasses.dataclass(frozen=True, slots=True)
class Orders:
    generation: int
    drain: float
    """Seconds that requests in flight may go on after a worker was told to stop."""
    packed: str
    code: tuple[str, str] | None = None
    """Path and text of the users' Python file."""
    observing: dict[str, Any] | None = None
    """How pairs of answers are compared (`pair_line.Observing`)."""

    def unpack(self) -> tuple[ProxyConfig, tuple[Route, ...]]:
        """Raises OtherLayoutError."""
        layout, values = pickle.loads(base64.b64decode(self.packed))  # noqa: S301  (from our own parent)
        if layout != _layout():
            raise OtherLayoutError("the configuration was read by another version of crossfade; reload it")
        proxy, routes = pickle.loads(values)  # noqa: S301
        return proxy, routes

    def to_wire(self) -> dict[str, Any]:
        return {
            "generation": self.generation, "drain": self.drain, "packed": self.packed, "code": self.code,
            "observing": self.observing,
        }  # fmt: skip

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> Orders:
        code = wire.get("code")
        return cls(
            wire["generation"], wire["drain"], wire["packed"], tuple(code) if code else None,
            wire.get("observing"),
        )  # fmt: skip


def orders(
    generation: int,
    proxy: ProxyConfig,
    routes: Sequence[Route],
    code: tuple[Path, str] | None = None,
    observing: dict[str, Any] | None = None,
) -> Orders:
    values = pickle.dumps((proxy, tuple(routes)))
    packed = base64.b64encode(pickle.dumps((_layout(), values))).decode()
    text = None if code is None else (str(code[0]), code[1])
    return Orders(generation, proxy.timeouts.drain, packed, text, observing)


def _layout() -> tuple[tuple[str, ...], ...]:
    modules = (config, declared, shape)
    known = [each for module in modules for each in vars(module).values() if isinstance(each, type)]
    classes = [Route, AdapterUse, *dict.fromkeys(known)]
    return tuple(
        (each.__name__, *(field.name for field in dataclasses.fields(each)))
        for each in classes
        if dataclasses.is_dataclass(each)
    )
