"""The states of a cut (`cut.py`), and who takes each step. Pure.

    asked -> standing -> told -> reached

Who compares asks, tells and, by deleting the row, releases. Whoever holds the stream stands and reaches, and
deletes the row before it goes on by itself. So a row that says `reached` says that it has not gone on.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class CutState(StrEnum):
    """How far both have come."""

    ASKED = "asked"
    STANDING = "standing"
    """Nothing more is applied; the cut lies behind all that was."""
    TOLD = "told"
    """Up to which position the stream may go."""
    REACHED = "reached"


KNOWN: Final = ", ".join(f"'{state.value}'" for state in CutState)
"""For the CHECK of the column."""
