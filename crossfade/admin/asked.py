"""A request that is understood."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from pydantic import BaseModel

from crossfade.store.actors import Actor

B_co = TypeVar("B_co", bound=BaseModel, covariant=True)


@dataclass(frozen=True, slots=True)
class Asked(Generic[B_co]):
    """Who asks, what they say, and which parts of the path they name."""

    actor: Actor
    said: B_co
    path: Mapping[str, str]
    request_id: str | None
