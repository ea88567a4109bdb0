"""Who may do what. Pure: values in, a yes or no out."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Role(IntEnum):
    """Each role may do what the roles before it may."""

    NOBODY = 0
    MEMBER = 1
    MODERATOR = 2
    ADMIN = 3

    @property
    def word(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Actor:
    """Who is asking."""

    id: int
    role: Role
    token_hash: bytes = b""


NOBODY = Actor(0, Role.NOBODY)


def may_edit(actor: Actor, author_id: int) -> bool:
    """Nobody puts words into another's mouth, not even an admin."""
    return actor.id == author_id


def may_remove(actor: Actor, author_id: int) -> bool:
    return actor.id == author_id or actor.role >= Role.MODERATOR
