"""The states of a walk, and what may follow what. Pure.

    preparing -> holding -> fencing -> catching_up -> turning -> deciding -> releasing -> done
        \\___________\\__________\\____________\\____________\\__________\\-> cancelling -> cancelled

Until `deciding` a walk can be cancelled, and then everything is as it was. In `deciding` the journal of the
database that gains the authority says what becomes of it: its row is written once, whoever writes it. From
`releasing` on it only goes forward. A process that ends, at any line, is followed by another one, which does
the work of the state anew: all of it does no harm twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final


class State(StrEnum):
    PREPARING = "preparing"
    """Everything is compared while both sides are written to; nobody waits."""
    HOLDING = "holding"
    """Workers let what changes something wait, and end what is under way."""
    FENCING = "fencing"
    """The database that loses the authority refuses whoever else writes."""
    CATCHING_UP = "catching_up"
    """The stream brings what was written until then."""
    TURNING = "turning"
    """Reads go where they will go; the rest is compared; sequences move."""
    DECIDING = "deciding"
    """The journal says which side has the authority."""
    RELEASING = "releasing"
    """What waited goes to the side that has it now."""
    DONE = "done"
    CANCELLING = "cancelling"
    """The fence is taken back, and what waited goes where it would have gone."""
    CANCELLED = "cancelled"


_MAY_CANCEL: Final = frozenset({State.CANCELLING})

NEXT: Final[Mapping[State, frozenset[State]]] = MappingProxyType(
    {
        State.PREPARING: frozenset({State.HOLDING}) | _MAY_CANCEL,
        State.HOLDING: frozenset({State.FENCING}) | _MAY_CANCEL,
        State.FENCING: frozenset({State.CATCHING_UP}) | _MAY_CANCEL,
        State.CATCHING_UP: frozenset({State.TURNING}) | _MAY_CANCEL,
        State.TURNING: frozenset({State.DECIDING}) | _MAY_CANCEL,
        # Only where the journal says so.
        State.DECIDING: frozenset({State.RELEASING}) | _MAY_CANCEL,
        State.RELEASING: frozenset({State.DONE}),
        State.CANCELLING: frozenset({State.CANCELLED}),
        State.DONE: frozenset(),
        State.CANCELLED: frozenset(),
    }
)

ENDED: Final = frozenset({State.DONE, State.CANCELLED})
HELD: Final = frozenset({State.HOLDING, State.FENCING, State.CATCHING_UP, State.TURNING})
"""States in which requests wait and that may still be cancelled: they have a deadline."""


class StepError(ValueError):
    """A step that the table does not have: a fault of ours."""


def check(before: State, after: State) -> None:
    """Raises StepError."""
    if after not in NEXT[before]:
        raise StepError(f"a walk does not go from {before} to {after}")
