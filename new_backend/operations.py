"""What an operation of the API is: one value that serves it, guards it and documents it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from new_backend.permissions import Actor, Role
from new_backend.refusals import Reason

B = TypeVar("B", bound=BaseModel)
Q = TypeVar("Q", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Database:
    """The pool, in the two ways a handler may use it."""

    engine: AsyncEngine

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """Each statement on its own: saves the round trips of a transaction that reads do not need."""
        async with self.engine.connect() as connection:
            yield await connection.execution_options(isolation_level="AUTOCOMMIT")

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """One transaction, committed at the end and rolled back by any exception."""
        async with self.engine.begin() as connection:
            yield connection


class DryRun(Database):
    """The same, but nothing that is written stays: what mirrored requests are answered from.

    A handler sees what it has written within its one transaction, so its answer is the one that it would
    give. Numbers that were given out (ids) are not given out again.
    """

    __slots__ = ()

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        async with self.engine.connect() as connection, connection.begin() as transaction:
            yield connection
            await transaction.rollback()


@dataclass(frozen=True, slots=True)
class Call(Generic[B, Q]):
    """One request, checked: who asks, for what, with which input."""

    database: Database
    actor: Actor
    ids: Mapping[str, int]
    """The ids in the path, by their names in the template."""
    body: B
    query: Q
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Answer:
    """A model as JSON, or bytes of the operation's media type, or nothing."""

    content: BaseModel | bytes | None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Operation(Generic[B, Q]):
    method: str
    path: str
    summary: str
    handler: Callable[[Call[B, Q]], Awaitable[Answer]]
    body: type[B]
    query: type[Q]
    needs: Role
    """The least role that may ask at all; what depends on the thing asked for is the handler's business."""
    status: int
    answer: type[BaseModel] | str | None
    """The model of the answer, or its media type, or None where there is no content."""
    refusals: tuple[Reason, ...] = ()
    """What the handler itself refuses; the refusals of the checks before it follow from the rest."""
    request_headers: Mapping[str, str] = field(default_factory=dict)
    """Headers that the handler reads, and what they do."""
