"""The states of a stream, and what may follow what. Pure.

    copying <-> following
       \\          /
        -> stopped -> copying

Whoever holds the stream says so under its epoch, and the row takes only what this table knows: the CHECK and
the guard of each UPDATE are made of it (`target.py`). Whether anybody holds a stream is no state of it: that
is told by the lease (`lease.py`), and whether somebody should by what people desire (`desired.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final


class State(StrEnum):
    """Where a stream stands."""

    COPYING = "copying"
    """What was there before it began is not whole yet."""
    FOLLOWING = "following"
    STOPPED = "stopped"
    """It waits for a person; `reason` says why."""


NEXT: Final[Mapping[State, frozenset[State]]] = MappingProxyType(
    {
        State.COPYING: frozenset({State.FOLLOWING, State.STOPPED}),
        # A repair is a copy of some rows.
        State.FOLLOWING: frozenset({State.COPYING, State.STOPPED}),
        State.STOPPED: frozenset({State.COPYING}),
    }
)


def before(after: State) -> list[str]:
    """The states from which a stream may come to `after`: what an UPDATE demands of its row."""
    return [state.value for state, allowed in NEXT.items() if after in allowed]


KNOWN: Final = ", ".join(f"'{state.value}'" for state in State)
"""For the CHECK of the column."""
