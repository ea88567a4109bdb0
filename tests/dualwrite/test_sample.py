"""The sample product's rows, from the legacy schema to the new one, while people go on writing."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

import new_backend.schema
from crossfade.embedded.postgres import EmbeddedPostgres
from dualwrite import repair, sync, target
from dualwrite.mapped import towards
from dualwrite.mapping import FollowUp, Table, Values
from dualwrite.stream_states import State
from dualwrite.sync import Direction, StoppedError, Told
from examples.legacy import database, seed
from examples.migration import follow_ups, tables
from flags.model import Side
from tests.sample.conftest import fresh_database

Connection = psycopg.AsyncConnection[Any]
NAME = "to_new"


@pytest.fixture
def legacy_url(postgres: EmbeddedPostgres) -> Iterator[str]:
    with fresh_database(postgres) as url:
        with contextlib.closing(database.connect(url)) as connection:
            database.create_schema(connection)
            seed.plant(connection, Path("examples/seed.json"))
            connection.execute(Path("examples/copies.sql").read_text())
        yield url
        _forget(url, postgres, f"crossfade_{NAME}")


@pytest.fixture
def new_url(postgres: EmbeddedPostgres) -> Iterator[str]:
    with fresh_database(postgres) as url:
        new_backend.schema.upgrade(url)
        yield url
        _forget(url, postgres, "crossfade_to_legacy")


def _forget(url: str, postgres: EmbeddedPostgres, slot: str) -> None:
    """A slot and an origin outlive their databases' tests."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(active_pid, 5000) FROM pg_replication_slots"
            " WHERE slot_name = %s AND active",
            (slot,),
        )
        connection.execute(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s",
            (slot,),
        )
        connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = %s",
            (f"crossfade apply {slot.removeprefix('crossfade_')}",),
        )
        connection.execute(
            "SELECT pg_replication_origin_drop(roname) FROM pg_replication_origin WHERE roname = %s", (slot,)
        )


@contextlib.asynccontextmanager
async def running(
    legacy_url: str,
    new_url: str,
    mapped: Sequence[Table] = tables,
    after: Sequence[FollowUp] = follow_ups,
    side: Side = Side.NEW,
) -> AsyncIterator[Told]:
    urls = (legacy_url, new_url) if side is Side.NEW else (new_url, legacy_url)
    direction = Direction(f"to_{side.value}", *urls, towards(side, mapped, after))
    told = Told()
    task = asyncio.create_task(sync.run(direction, told))
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


async def test_all_tables_come_over_while_people_write_and_processes_end(
    legacy_url: str, new_url: str
) -> None:
    chance = random.Random(5)
    async with connected(legacy_url) as legacy, connected(new_url) as new:
        for _ in range(4):
            async with running(legacy_url, new_url) as told:
                for _ in range(chance.randint(1, 30)):
                    await write(legacy, chance)
                await until(_became(told, 0), "it has begun")
        async with running(legacy_url, new_url) as told:
            for _ in range(40):
                await write(legacy, chance)
            await until(lambda: _is(told, State.FOLLOWING), "it follows")
            for _ in range(40):
                await write(legacy, chance)
            await until(lambda: alike(legacy, new), "both are alike")
            assert told.lag() is not None
        assert await rows(new, "SELECT count(*) > 8 FROM accounts") == [(True,)]
        orphans = "SELECT count(*) FROM comments WHERE post_id NOT IN (SELECT id FROM posts)"
        assert await rows(new, orphans) == [(0,)]


def _became(told: Told, before: int) -> Any:
    async def fact() -> bool:
        return told.epoch > before

    return fact


async def _is(told: Told, state: State) -> bool:
    return told.state is state


async def test_rows_that_somebody_spoiled_are_written_anew(legacy_url: str, new_url: str) -> None:
    async with (
        connected(legacy_url) as legacy,
        connected(new_url) as new,
        running(legacy_url, new_url) as told,
    ):
        await until(lambda: _is(told, State.FOLLOWING), "it follows")
        await new.execute("UPDATE accounts SET bio = 'spoiled' WHERE id = 1")
        await new.execute("DELETE FROM transfers WHERE id = 1")
        await new.execute("INSERT INTO accounts (id, username, password_hash, display_name)"
                          " VALUES (999, 'nobody', 'x', 'x')")  # fmt: skip
        await repair.ask_for(new, NAME, "public.users to public.accounts", [["1"], ["999"]])
        await repair.ask_for(new, NAME, "public.transfers to public.transfers", [["1"]])
        await until(lambda: alike(legacy, new), "both are alike")
        await until(lambda: _is(told, State.FOLLOWING), "it follows again")
        assert await repair.waiting(new, NAME) == 0


async def test_a_repair_waits_for_what_it_cannot_see_and_lets_the_stream_go_on(
    legacy_url: str, new_url: str
) -> None:
    async with (
        connected(legacy_url) as legacy,
        connected(legacy_url) as holder,
        connected(new_url) as new,
        running(legacy_url, new_url) as told,
    ):
        await until(lambda: _is(told, State.FOLLOWING), "it follows")
        async with holder.transaction():
            await holder.execute("UPDATE users SET about = 'later' WHERE user_id = 5")
            await repair.ask_for(new, NAME, "public.users to public.accounts", [["1"]])
            await until(lambda: _is(told, State.COPYING), "it repairs")
            await legacy.execute("UPDATE users SET about = 'meanwhile' WHERE user_id = 1")
            arrived = "SELECT bio FROM accounts WHERE id = 1"
            await until(lambda: _says(new, arrived, "meanwhile"), "the stream goes on")
            assert await repair.waiting(new, NAME) == 1
        await until(lambda: alike(legacy, new), "both are alike")
        await until(lambda: _is(told, State.FOLLOWING), "it follows again")
        assert await repair.waiting(new, NAME) == 0


async def _says(connection: Connection, query: str, value: object) -> bool:
    return await rows(connection, query) == [(value,)]


async def test_a_value_that_no_mapping_knows_stops_with_the_row_named(legacy_url: str, new_url: str) -> None:
    direction = Direction(NAME, legacy_url, new_url, towards(Side.NEW, tables, follow_ups))
    told = Told()
    async with connected(legacy_url) as legacy, connected(new_url) as new, asyncio.timeout(60):
        task = asyncio.create_task(sync.run(direction, told))
        await until(lambda: _is(told, State.FOLLOWING), "it follows")
        await legacy.execute("UPDATE users SET level = 7 WHERE user_id = 3")
        with pytest.raises(StoppedError, match=r"level to public\.accounts\.role: '7'"):
            await task
        assert await rows(new, "SELECT state, reason FROM crossfade_sync.streams") == [
            ("stopped", "mapping_failed")
        ]
        # Once the mapping knows the value, it goes on where it was, and nothing was lost meanwhile.
        await legacy.execute("UPDATE users SET fullname = 'later' WHERE user_id = 4")
        accounts = tables[0]
        roles = Values("role", {"0": "member", "5": "moderator", "9": "admin", "7": "moderator"})
        mended = replace(accounts, columns={**accounts.pairs, "level": roles})
        async with running(legacy_url, new_url, [mended, *tables[1:]]):
            await until(
                lambda: _says(new, "SELECT role FROM accounts WHERE id = 3", "moderator"), "it goes on"
            )
            later = "SELECT display_name FROM accounts WHERE id = 4"
            await until(lambda: _says(new, later, "later"), "nothing was lost")


async def _write_to_new(new: Connection, chance: random.Random) -> None:
    """What the new product does to its tables."""
    post = (await rows(new, "SELECT id FROM posts ORDER BY random() LIMIT 1"))[0][0]
    tag = chance.choice(["linux", "rust", "äöü"])
    await chance.choice([
        lambda: new.execute("WITH made AS (INSERT INTO accounts (username, password_hash, display_name)"
                            " VALUES (%s, 'x', 'X') RETURNING id)"
                            " INSERT INTO wallets SELECT id, 7 FROM made", (f"u{chance.getrandbits(60)}",)),
        lambda: new.execute("INSERT INTO posts (author_id, title, body) VALUES (1, 't', repeat('y', 9000))"),
        lambda: new.execute("UPDATE posts SET title = title || '!', updated_at = date_trunc('second', now())"
                            " WHERE id = %s", (post,)),
        lambda: new.execute("DELETE FROM posts WHERE id = %s AND id > 3", (post,)),
        lambda: new.execute("WITH tag AS (INSERT INTO tags (name) VALUES (%s) ON CONFLICT (name)"
                            " DO UPDATE SET name = EXCLUDED.name RETURNING id) INSERT INTO post_tags"
                            " SELECT %s, id FROM tag ON CONFLICT DO NOTHING", (tag, post)),
        lambda: new.execute("DELETE FROM post_tags WHERE post_id = %s", (post,)),
        lambda: new.execute("INSERT INTO comments (post_id, author_id, body) VALUES (%s, 2, 'c')", (post,)),
        lambda: new.execute("UPDATE wallets SET balance_cents = balance_cents + 3 WHERE account_id = 2"),
        lambda: new.execute("UPDATE accounts SET display_name = display_name || '.', role = 'admin'"
                            " WHERE id = 2"),
        lambda: new.execute("INSERT INTO sessions (token_hash, account_id, expires_at)"
                            " VALUES (decode(%s, 'hex'), 1, date_trunc('second', now()))",
                            (f"{chance.getrandbits(256):064x}",)),
    ])()  # fmt: skip


async def test_both_ways_at_once_nothing_runs_in_circles(legacy_url: str, new_url: str) -> None:
    chance = random.Random(11)
    async with (
        connected(legacy_url) as legacy,
        connected(new_url) as new,
        running(legacy_url, new_url) as forth,
    ):
        await until(lambda: _is(forth, State.FOLLOWING), "it follows")
        for table in ("accounts", "posts", "comments", "transfers"):
            await new.execute(f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), 1000)")
        async with running(legacy_url, new_url, side=Side.LEGACY) as back:
            await until(lambda: _is(back, State.FOLLOWING), "it follows the other way")
            for _ in range(80):
                await _write_to_new(new, chance)
            await until(lambda: alike(legacy, new), "what new has written is in legacy")
            copies = "SELECT count(*) FROM posts p JOIN users u USING (user_id) WHERE p.deleted = 'N' AND"
            wrong = (
                f"{copies} (author_login, author_name) IS DISTINCT FROM (u.login, u.fullname)",
                f"{copies} ncomments <> (SELECT count(*) FROM comments c WHERE c.post_id = p.post_id"
                " AND c.deleted = 'N')",
            )
            assert [await rows(legacy, one) for one in wrong] == [[(0,)], [(0,)]]
            # What came from the other side is not sent back: both go on with beats alone.
            ticks = [await _version_of_rows(one) for one in (legacy, new)]
            beats = (forth.arrived, back.arrived)
            await until(lambda: _other(forth, back, beats), "beats have come through both")
            assert [await _version_of_rows(one) for one in (legacy, new)] == ticks


async def _version_of_rows(connection: Connection) -> list[Any]:
    """By which transactions the rows that all write were made."""
    found = await rows(connection, "SELECT xmin::text, ctid::text FROM posts ORDER BY 1, 2")
    return [*found, *await rows(connection, "SELECT xmin::text, ctid::text FROM comments ORDER BY 1, 2")]


async def _other(forth: Told, back: Told, beats: tuple[object, object]) -> bool:
    return forth.arrived != beats[0] and back.arrived != beats[1]


async def test_one_that_was_replaced_calls_nobody_stopped(legacy_url: str, new_url: str) -> None:
    """It may find gaps that are none: the slot has moved on under somebody else."""
    async with connected(new_url) as new, running(legacy_url, new_url) as told:
        await until(lambda: _is(told, State.FOLLOWING), "it follows")
        assert not await target.move(new, NAME, told.epoch - 1, State.STOPPED, "gap", "there is none")
        assert await target.is_held(new, NAME)
        known = await target.state(new, NAME)
        assert known is not None
        assert (known.state, known.reason) == (State.FOLLOWING, None)
