"""The sample product's rows while they are synced: how a stream is run, what people write, what is alike."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import psycopg

from dualwrite import sync
from dualwrite.mapped import towards
from dualwrite.mapping import FollowUp, Table
from dualwrite.stream_states import State
from dualwrite.sync import Direction, StoppedError, Told
from examples.migration import follow_ups, tables
from flags.model import Side

Connection = psycopg.AsyncConnection[Any]
NAME = "to_new"


@contextlib.asynccontextmanager
async def running(
    legacy_url: str,
    new_url: str,
    mapped: Sequence[Table] = tables,
    after: Sequence[FollowUp] = follow_ups,
    side: Side = Side.NEW,
) -> AsyncIterator[Told]:
    urls = (legacy_url, new_url) if side is Side.NEW else (new_url, legacy_url)
    async with worked_on(Direction(f"to_{side.value}", *urls, towards(side, mapped, after))) as told:
        yield told


@contextlib.asynccontextmanager
async def worked_on(of: Direction) -> AsyncIterator[Told]:
    """A process that works on this stream; what has stopped it is raised."""
    told = Told()
    task = asyncio.create_task(sync.run(of, told))
    try:
        yield told
        if task.done():
            task.result()
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, StoppedError):
            await task


async def until(fact: Callable[[], Awaitable[bool]], what: str) -> None:
    try:
        async with asyncio.timeout(60):
            while not await fact():  # noqa: ASYNC110  (a database says it)
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"never: {what}") from None


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[Connection]:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute("SET timezone = UTC")
        yield connection


async def rows(connection: Connection, query: str) -> list[tuple[Any, ...]]:
    return await (await connection.execute(query)).fetchall()


ALIKE = (
    (
        "SELECT user_id, login, passwd, fullname, nullif(email, ''), coalesce(about, ''),"
        " CASE level WHEN 0 THEN 'member' WHEN 5 THEN 'moderator' ELSE 'admin' END,"
        " created AT TIME ZONE 'Europe/Berlin' FROM users WHERE deleted = 'N' ORDER BY 1",
        "SELECT id, username, password_hash, display_name, email, bio, role, created_at FROM accounts"
        " ORDER BY 1",
    ),
    (
        "SELECT user_id, balance::bigint FROM users WHERE deleted = 'N' ORDER BY 1",
        "SELECT account_id, balance_cents FROM wallets ORDER BY 1",
    ),
    (
        "SELECT sid_hash, user_id, expires AT TIME ZONE 'Europe/Berlin' FROM sessions ORDER BY 1",
        "SELECT encode(token_hash, 'hex'), account_id, expires_at FROM sessions ORDER BY 1",
    ),
    (
        "SELECT post_id, user_id, title, body, coalesce(changed, created) AT TIME ZONE 'Europe/Berlin',"
        " ARRAY(SELECT name FROM unnest(string_to_array(trim(BOTH ',' FROM tags), ',')) name"
        " WHERE name <> '' ORDER BY name COLLATE \"C\") FROM posts WHERE deleted = 'N' ORDER BY 1",
        "SELECT id, author_id, title, body, updated_at, ARRAY(SELECT name FROM post_tags, tags"
        ' WHERE post_id = posts.id AND tag_id = tags.id ORDER BY name COLLATE "C") FROM posts ORDER BY 1',
    ),
    (
        "SELECT comment_id, post_id, user_id, body FROM comments WHERE deleted = 'N' ORDER BY 1",
        "SELECT id, post_id, author_id, body FROM comments ORDER BY 1",
    ),
    (
        "SELECT transfer_id, from_user, to_user, amount::bigint, coalesce(note, ''), idem_key FROM transfers"
        " ORDER BY 1",
        "SELECT id, sender_id, receiver_id, amount_cents, note, idempotency_key FROM transfers ORDER BY 1",
    ),
)


async def alike(legacy: Connection, new: Connection) -> bool:
    return all([await rows(legacy, one) == await rows(new, other) for one, other in ALIKE])


async def write(legacy: Connection, chance: random.Random) -> None:
    """What the legacy product does to its tables."""
    post = (await rows(legacy, "SELECT post_id FROM posts ORDER BY random() LIMIT 1"))[0][0]
    tags = ",".join(chance.sample(["linux", "web", "python", "äöü"], chance.randint(0, 3)))
    await chance.choice([
        lambda: legacy.execute(
            "UPDATE posts SET tags = %s, changed = wall_clock() WHERE post_id = %s",
            (f",{tags}," if tags else "", post),
        ),
        lambda: legacy.execute(
            "WITH gone AS (UPDATE posts SET deleted = 'Y' WHERE post_id = %s AND post_id > 3"
            " RETURNING post_id) UPDATE comments SET deleted = 'Y' FROM gone"
            " WHERE comments.post_id = gone.post_id", (post,),
        ),
        lambda: legacy.execute(
            "INSERT INTO posts (user_id, author_login, author_name, title, body, tags)"
            " SELECT user_id, login, fullname, 'new', repeat('x', 9000), %s FROM users"
            " WHERE deleted = 'N' LIMIT 1", (f",{tags},",),
        ),
        lambda: legacy.execute("UPDATE users SET balance = (balance::bigint + 5)::text, email = ''"
                               " WHERE user_id = 1"),
        lambda: legacy.execute("UPDATE users SET level = 5, about = 'x\ty\\z' WHERE user_id = 2"),
        lambda: legacy.execute("UPDATE comments SET deleted = 'Y' WHERE comment_id ="
                               " (SELECT min(comment_id) FROM comments WHERE deleted = 'N')"),
        lambda: legacy.execute(
            "INSERT INTO sessions (sid_hash, user_id, expires) VALUES (%s, 1, wall_clock())",
            (f"{chance.getrandbits(256):064x}",),
        ),
        lambda: legacy.execute("DELETE FROM sessions WHERE sid_hash = (SELECT min(sid_hash) FROM sessions)"),
    ])()  # fmt: skip


async def is_(told: Told, state: State) -> bool:
    return told.state is state


async def says(connection: Connection, query: str, value: object) -> bool:
    return await rows(connection, query) == [(value,)]
