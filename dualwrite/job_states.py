"""The states of a job, and what may follow what. Pure.

    running <-> failed
       |  \\      |
       |   \\-> done -> running
       \\-> running, by another process, when its holder is gone

A job is work that goes on for longer than a process may live: the copy of a table, rows that are written
anew. It is done by whoever holds the stream, and by nobody else (decision 0014).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final


class JobState(StrEnum):
    RUNNING = "running"
    """By the holder of the epoch that its row names; where that one is gone, it waits for the next."""
    DONE = "done"
    FAILED = "failed"
    """The stream has stopped meanwhile; it is begun again with it."""


NEXT: Final[Mapping[JobState, frozenset[JobState]]] = MappingProxyType(
    {
        JobState.RUNNING: frozenset(JobState),
        JobState.DONE: frozenset({JobState.RUNNING}),
        # Its last row may have been written just before the stream stopped.
        JobState.FAILED: frozenset({JobState.RUNNING, JobState.DONE}),
    }
)


def before(after: JobState) -> list[str]:
    """The states from which a job may come to `after`."""
    return [state.value for state, allowed in NEXT.items() if after in allowed]


KNOWN: Final = ", ".join(f"'{state.value}'" for state in JobState)
"""For the CHECK of the column."""
