"""What every way of capturing changes can do. The rest of the house knows no other words for a source.

The contract:

* transactions come in the order of their commits, whole or in parts that follow each other without another
  transaction between them, and never before they are committed;
* after `confirm(position)` nothing up to that position has to come again; whatever was not confirmed comes
  again on the next connection, and so may come twice: that is normal, and for the apply to deal with;
* what cannot be understood, or may have been lost, ends the stream with an exception. Nothing is passed over.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Final, Protocol

from dualwrite.change import Part, Position

A_MOMENT: Final = 0.05
"""Seconds."""


class Way(StrEnum):
    """How changes are got out of a PostgreSQL."""

    STREAM = "stream"
    """By a replication connection: as they come."""
    PEEK = "peek"
    """By asking in SQL, again and again: for hosts that allow no replication connection."""


class CaptureStopped(Exception):  # noqa: N818  (it is a state that the source is in, found out by asking)
    """The stream cannot go on. `reason` is one word, the message says what is wrong and what to do next.

    `passing` tells that another try may do: a connection that broke, a server that is starting. All else
    waits for a person.
    """

    def __init__(self, reason: str, message: str, *, passing: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        self.passing = passing


class Capture(Protocol):
    """A source of changes, connected."""

    async def next(self, within: float = A_MOMENT) -> Part | None:
        """The next part; None when nothing has come within so many seconds. Raises CaptureStopped."""

    def ready(self) -> Part | None:
        """The next part if one is here already. Raises CaptureStopped."""

    def on_arrival(self, hear: Callable[[], None]) -> None:
        """Have `hear` called whenever parts have come, also while their reader waits for something else."""

    async def confirm(self, position: Position) -> None:
        """Everything up to there is kept elsewhere. Raises CaptureStopped."""

    async def close(self) -> None: ...
