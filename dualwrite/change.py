"""What a source of changes says: transactions in the order of their commits, each with a position.

These are values without a wire and without a database. PostgreSQL's stream is the first source; one that
reads another kind of log speaks the same words. A value of a row is the text that the source's database
writes for it (UTF-8 bytes), `None` for NULL, or `ABSENT` for a value that the source did not send because
it has not changed (PostgreSQL does so with large, out-of-line values). ABSENT is not NULL, and must never
be written as NULL.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple, TypeAlias


class Absence(Enum):
    """Of a value: the source says nothing about it."""

    ABSENT = "absent"

    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Final = Absence.ABSENT

Value: TypeAlias = bytes | Absence | None
Row: TypeAlias = tuple[Value, ...]

Position: TypeAlias = int
"""How far a stream has come. Grows with every transaction of one source; of PostgreSQL an LSN."""


class Identity(Enum):
    """What an UPDATE or DELETE tells of the row as it was."""

    KEY = "key"
    """The columns of the key, and those only where the key changed or the row went."""
    FULL = "full"
    """The whole row, always."""
    NOTHING = "nothing"


class Kind(Enum):
    INSERT = "insert"
    UPDATE = "update"
    DELETE = "delete"
    TRUNCATE = "truncate"


@dataclass(frozen=True, slots=True)
class SourceColumn:
    name: str
    type_oid: int
    in_identity: bool


@dataclass(frozen=True, slots=True)
class Relation:
    """A table as it was when the change was made."""

    schema: str
    name: str
    identity: Identity
    columns: tuple[SourceColumn, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"


class Change(NamedTuple):
    """One row, or one emptied table. `old` is None where the source sent no old image."""

    kind: Kind
    relation: Relation
    old: Row | None
    new: Row | None


class Message(NamedTuple):
    """What somebody has written into the stream itself: `pg_logical_emit_message`."""

    prefix: str
    content: bytes
    transactional: bool


class Part(NamedTuple):
    """A source transaction, or a stretch of a large one. `end` is None where more of it follows.

    `end` is the position behind the transaction: when it has been applied, nothing up to there is asked for
    again.
    """

    xid: int
    commit_time: float
    """Unix time in seconds, by the source's clock. For people; nothing may be decided by it."""
    at: Position
    """Of the commit itself: what was applied up to a later position holds this transaction."""
    origin: str | None
    """Who wrote it, if the writer said so: our own apply does, and is not sent back."""
    changes: list[Change]
    messages: list[Message]
    end: Position | None
