"""The sample product's rows, from the legacy schema to the new one, while people go on writing."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from typing import Any

import pytest

from dualwrite import repair, sync, target
from dualwrite.mapped import towards
from dualwrite.mapping import Table, Values
from dualwrite.stream_states import State
from dualwrite.sync import Direction, StoppedError, Told
from examples.migration import follow_ups, tables
from flags.model import Side
from tests.dualwrite.sample import NAME, Connection, alike, connected, is_, rows, running, says, until, write


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
            await until(lambda: is_(told, State.FOLLOWING), "it follows")
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


async def test_rows_that_somebody_spoiled_are_written_anew(legacy_url: str, new_url: str) -> None:
    async with (
        connected(legacy_url) as legacy,
        connected(new_url) as new,
        running(legacy_url, new_url) as told,
    ):
        await until(lambda: is_(told, State.FOLLOWING), "it follows")
        await new.execute("UPDATE accounts SET bio = 'spoiled' WHERE id = 1")
        await new.execute("DELETE FROM transfers WHERE id = 1")
        await new.execute("INSERT INTO accounts (id, username, password_hash, display_name)"
                          " VALUES (999, 'nobody', 'x', 'x')")  # fmt: skip
        await repair.ask_for(new, NAME, "public.users to public.accounts", [["1"], ["999"]])
        await repair.ask_for(new, NAME, "public.transfers to public.transfers", [["1"]])
        await until(lambda: alike(legacy, new), "both are alike")
        await until(lambda: is_(told, State.FOLLOWING), "it follows again")
        assert await repair.waiting(new, NAME) == 0


async def test_a_table_that_is_mapped_later_is_published_and_copied_by_itself(
    legacy_url: str, new_url: str
) -> None:
    coupons = "CREATE TABLE coupons (id int PRIMARY KEY, text text)"
    more = Table("coupons", "coupons", key=["id"], columns=["id", "text"])
    async with connected(legacy_url) as legacy, connected(legacy_url) as slow, connected(new_url) as new:
        async with running(legacy_url, new_url) as told:
            await until(lambda: is_(told, State.FOLLOWING), "it follows")
        for side in (legacy, new):
            await side.execute(coupons)
        await legacy.execute("INSERT INTO coupons VALUES (1, 'before'), (2, 'before')")
        async with running(legacy_url, new_url, [*tables, more]) as told:
            async with slow.transaction():
                # Written before it is published and committed after it: the stream will never bring this.
                await slow.execute("INSERT INTO coupons VALUES (99, 'between')")
                published = "SELECT count(*) FROM pg_publication_tables WHERE tablename = 'coupons'"
                await until(lambda: says(legacy, published, 1), "it is published")
                await until(lambda: is_(told, State.COPYING), "it copies")
                await until(lambda: _waits_to_copy(legacy, new), "it has looked what is open")
            await until(lambda: is_(told, State.FOLLOWING), "it follows again")
            assert await rows(new, "SELECT text FROM coupons WHERE id = 99") == [("between",)]
            await legacy.execute("UPDATE coupons SET text = 'after' WHERE id = 2")
            await until(lambda: says(new, "SELECT text FROM coupons WHERE id = 2", "after"), "it has come")
            assert await rows(new, "SELECT text FROM coupons WHERE id = 1") == [("before",)]
        # One whose copy was begun, and that somebody has taken out, has lost changes.
        await legacy.execute("ALTER PUBLICATION crossfade_to_new DROP TABLE coupons")
        mapped = towards(Side.NEW, [*tables, more], follow_ups)
        with pytest.raises(StoppedError, match=r"lacks public\.coupons; changes of it are lost"):
            await sync.run(Direction(NAME, legacy_url, new_url, mapped), Told())


async def _waits_to_copy(legacy: Connection, new: Connection) -> bool:
    """Somebody looks again and again what can be seen, or has begun with the copy all the same."""
    looks = "SELECT count(*) > 0 FROM pg_stat_activity WHERE query LIKE 'SELECT pg_current_snapshot%'"
    begun = "SELECT count(*) > 0 FROM crossfade_sync.copies WHERE copy LIKE 'public.coupons%'"
    return await says(legacy, looks, True) or await says(new, begun, True)


async def test_a_repair_waits_for_what_it_cannot_see_and_lets_the_stream_go_on(
    legacy_url: str, new_url: str
) -> None:
    async with (
        connected(legacy_url) as legacy,
        connected(legacy_url) as holder,
        connected(new_url) as new,
        running(legacy_url, new_url) as told,
    ):
        await until(lambda: is_(told, State.FOLLOWING), "it follows")
        async with holder.transaction():
            await holder.execute("UPDATE users SET about = 'later' WHERE user_id = 5")
            await repair.ask_for(new, NAME, "public.users to public.accounts", [["1"]])
            await until(lambda: is_(told, State.COPYING), "it repairs")
            await legacy.execute("UPDATE users SET about = 'meanwhile' WHERE user_id = 1")
            arrived = "SELECT bio FROM accounts WHERE id = 1"
            await until(lambda: says(new, arrived, "meanwhile"), "the stream goes on")
            assert await repair.waiting(new, NAME) == 1
        await until(lambda: alike(legacy, new), "both are alike")
        await until(lambda: is_(told, State.FOLLOWING), "it follows again")
        assert await repair.waiting(new, NAME) == 0


async def test_a_value_that_no_mapping_knows_stops_with_the_row_named(legacy_url: str, new_url: str) -> None:
    direction = Direction(NAME, legacy_url, new_url, towards(Side.NEW, tables, follow_ups))
    told = Told()
    async with connected(legacy_url) as legacy, connected(new_url) as new, asyncio.timeout(60):
        task = asyncio.create_task(sync.run(direction, told))
        await until(lambda: is_(told, State.FOLLOWING), "it follows")
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
                lambda: says(new, "SELECT role FROM accounts WHERE id = 3", "moderator"), "it goes on"
            )
            later = "SELECT display_name FROM accounts WHERE id = 4"
            await until(lambda: says(new, later, "later"), "nothing was lost")


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
        await until(lambda: is_(forth, State.FOLLOWING), "it follows")
        for table in ("accounts", "posts", "comments", "transfers"):
            await new.execute(f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), 1000)")
        async with running(legacy_url, new_url, side=Side.LEGACY) as back:
            await until(lambda: is_(back, State.FOLLOWING), "it follows the other way")
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
        await until(lambda: is_(told, State.FOLLOWING), "it follows")
        assert not await target.move(new, NAME, told.epoch - 1, State.STOPPED, "gap", "there is none")
        assert await target.is_held(new, NAME)
        known = await target.state(new, NAME)
        assert known is not None
        assert (known.state, known.reason) == (State.FOLLOWING, None)
