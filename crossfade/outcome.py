"""How an operation ended, for the person or program that asked for it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Outcome:
    """The exit code of the command that asked, and lines for a person."""

    code: int
    lines: list[str]
    word: str
    """For metrics and logs: applied, invalid, refused or failed."""
