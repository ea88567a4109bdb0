"""People and their tokens. The store knows a token's hash only; the token is shown once, when it is issued.

A plain SHA-256 is enough: a token is 256 random bits, so there is nothing to guess that a slow hash
would slow down.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Select, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from crossfade.store.actors import Actor, ActorType, Role, Via
from crossfade.store.audit import Deed, Head
from crossfade.store.changes import Done, perform
from crossfade.store.connection import Database
from crossfade.store.tables import people
from flags.change import Refused

_TOKEN = re.compile(r"cf_[A-Za-z0-9_-]{43}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._@+-]{0,62}")
USED_EVERY = 60
"""Seconds in which the use of a token is written down at most once."""


@dataclass(frozen=True, slots=True)
class Person:
    """A token that was issued, without the token."""

    name: str
    role: Role
    created_at: datetime
    revoked_at: datetime | None
    last_used: datetime | None


async def issue_token(database: Database, actor: Actor, name: str, role: Role, *, reason: str) -> str:
    """A new token for `name`, who must not have a valid one. Nobody can be shown it again."""
    token = f"cf_{secrets.token_urlsafe(32)}"

    async def issue(connection: AsyncConnection, _: Head) -> Done[str]:
        if not _NAME.fullmatch(name):
            raise Refused(
                "invalid",
                f"{name!r} cannot be a person's name: up to 63 letters, digits, spaces and ._@+- "
                "that begin with a letter or digit",
            )
        if (await connection.execute(_valid(name))).first() is not None:
            raise Refused(
                "conflict",
                f"{name} has a token already; `crossfade person revoke {name}` ends it, then add them anew",
            )
        await connection.execute(insert(people).values(name=name, role=role.value, token_hash=_hash(token)))
        return Done(token, after={"name": name, "role": role.value})

    wish = {"name": name, "role": role.value}
    done = await perform(database, actor, Deed("person.add", "person", (name,), reason, wish), issue)
    return done.value


async def revoke_token(database: Database, actor: Actor, name: str, *, reason: str) -> None:
    """The person's token is worth nothing from now on."""

    async def revoke(connection: AsyncConnection, _: Head) -> Done[None]:
        ended = (
            update(people)
            .where(people.c.name == name, people.c.revoked_at.is_(None))
            .values(revoked_at=func.clock_timestamp())
            .returning(people.c.role)
        )
        known = _NAME.fullmatch(name)
        role = (await connection.execute(ended)).scalar_one_or_none() if known else None
        if role is None:
            raise Refused(
                "not_found", f"nobody named {name!r} has a valid token; `crossfade person list` shows who has"
            )
        return Done(None, before={"name": name, "role": role})

    await perform(database, actor, Deed("person.revoke", "person", (name,), reason, {"name": name}), revoke)


async def authenticate(
    database: Database, token: str, *, via: Via = Via.API, address: str | None = None
) -> Actor | None:
    """Whose token that is, or None for one that nobody has (any more)."""
    if not _TOKEN.fullmatch(token):
        return None
    theirs = (people.c.token_hash == _hash(token), people.c.revoked_at.is_(None))
    now = func.clock_timestamp()
    long_ago = people.c.last_used < now - func.make_interval(0, 0, 0, 0, 0, 0, USED_EVERY)
    async with database.transaction() as connection:
        row = (await connection.execute(select(people.c.name, people.c.role).where(*theirs))).first()
        if row is None:
            return None
        await connection.execute(
            update(people).where(*theirs, or_(people.c.last_used.is_(None), long_ago)).values(last_used=now)
        )
    return Actor(ActorType.HUMAN, row.name, Role(row.role), address, via)


async def list_people(database: Database) -> list[Person]:
    """Everybody who ever had a token, in the order in which they got it."""
    columns = (people.c.name, people.c.role, people.c.created_at, people.c.revoked_at, people.c.last_used)
    async with database.transaction() as connection:
        rows = await connection.execute(select(*columns).order_by(people.c.id))
        return [Person(row.name, Role(row.role), *row[2:]) for row in rows]


def _valid(name: str) -> Select[Any]:
    return select(people.c.id).where(people.c.name == name, people.c.revoked_at.is_(None))


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode("ascii")).digest()
