"""What is wrong with the store comes out as one error that says where and why, and soon."""

from __future__ import annotations

import asyncio
import socket

import psycopg
import pytest
from sqlalchemy import text

from crossfade.store.connection import Database, StoreError, StoreReason, StoreUrlError
from tests.store.relay import Relay

ONE = text("SELECT 1")
WRITE = "UPDATE crossfade_store.flag_set SET version = version + 1"
VERSION = text("SELECT version FROM crossfade_store.flag_set")


async def one(database: Database, within: float = 20.0) -> None:
    async with database.transaction(within) as connection:
        assert (await connection.execute(ONE)).scalar_one() == 1


async def run(database: Database, *statements: str) -> None:
    async with database.transaction() as connection:
        for statement in statements:
            await connection.execute(text(statement))


async def fall_silent(relay: Relay, database: Database, within: float) -> None:
    async with database.transaction(within) as connection:
        relay.speaks.clear()
        await connection.execute(ONE)


async def failure(database: Database, within: float = 20.0) -> StoreError:
    with pytest.raises(StoreError) as caught:
        await one(database, within)
    assert "s3cret" not in str(caught.value)
    return caught.value


async def test_nobody_listens() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        database = Database(f"postgresql://ada:s3cret@127.0.0.1:{port}/flags")
        error = await failure(database)
    assert error.reason is StoreReason.UNREACHABLE
    assert f"127.0.0.1:{port}/flags" in str(error)
    assert "refused" in str(error)
    assert "Traffic goes on" in str(error)
    await database.close()


async def test_no_such_folder_of_a_socket() -> None:
    database = Database("postgresql://ada:s3cret@/flags?host=/nowhere/at/all")
    error = await failure(database)
    assert error.reason is StoreReason.UNREACHABLE
    assert "/nowhere/at/all/flags" in str(error)
    await database.close()


async def test_a_host_that_accepts_and_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        database = Database(f"postgresql://ada:s3cret@127.0.0.1:{silent.getsockname()[1]}/flags")
        error = await failure(database, within=0.3)
        assert error.reason is StoreReason.UNREACHABLE
        assert "it does not answer" in str(error)
        await database.close()


async def test_a_wrong_password_is_named_without_it(store_url: str) -> None:
    database = Database(store_url.replace("crossfade:", "crossfade:s3cret"))
    error = await failure(database)
    assert error.reason is StoreReason.UNREACHABLE
    assert "password authentication failed" in str(error)
    await database.close()


@pytest.mark.parametrize(
    "url", ["", "redis://host/0", "postgresql//x", "sqlite:///x.db", "postgresql://h:x/d"]
)
def test_what_is_no_url_of_a_postgresql(url: str) -> None:
    with pytest.raises(StoreUrlError, match="postgresql://user:password@host:5432/crossfade"):
        Database(url)


async def test_a_server_that_falls_silent_in_the_middle_is_cut_off(store_url: str) -> None:
    async with Relay.to(store_url) as relay:
        database = Database(relay.url)
        with pytest.raises(StoreError) as caught:
            await fall_silent(relay, database, within=1.0)
        assert caught.value.reason is StoreReason.UNREACHABLE
        relay.speaks.set()
        await one(database)
        await database.close()


async def test_a_silent_server_does_not_hold_a_connection_of_the_pool(store_url: str) -> None:
    async with Relay.to(store_url) as relay:
        database = Database(relay.url)
        await one(database)
        relay.speaks.clear()
        errors = await asyncio.gather(*(failure(database, 1.0) for _ in range(6)))
        assert {error.reason for error in errors} == {StoreReason.UNREACHABLE}
        relay.speaks.set()
        await asyncio.gather(*(one(database) for _ in range(6)))
        await database.close()


async def test_a_restarted_server_is_not_noticed(store_url: str) -> None:
    """Connections of the pool that have died since are replaced before anything is asked over them."""
    async with Relay.to(store_url) as relay:
        database = Database(relay.url)
        await asyncio.gather(*(one(database) for _ in range(3)))
        relay.hang_up()
        await asyncio.gather(*(one(database) for _ in range(3)))
        await database.close()


@pytest.mark.parametrize("written", [False, True])
async def test_a_commit_without_an_answer_is_neither_claimed_nor_denied(
    store_url: str, written: bool
) -> None:
    async with Relay.to(store_url) as relay:
        database = Database(relay.url)
        relay.lose, relay.lose_after_passing = b"COMMIT", written
        with pytest.raises(StoreError, match="look whether it is there") as caught:
            await run(database, WRITE)
        assert caught.value.reason is StoreReason.UNKNOWN_OUTCOME
        await database.close()
    with psycopg.connect(store_url) as connection:
        # Behind the lock of the writer, should it still be at it.
        row = connection.execute("SELECT version FROM crossfade_store.flag_set FOR UPDATE").fetchone()
    assert row == (int(written),)


async def test_a_fault_of_ours_takes_the_transaction_back(store_url: str) -> None:
    database = Database(store_url)

    async def fail() -> None:
        async with database.transaction() as connection:
            await connection.execute(text(WRITE))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    async with database.transaction() as connection:
        assert (await connection.execute(VERSION)).scalar_one() == 0
    await database.close()


async def test_an_empty_database_says_that_it_is_not_migrated(database: Database) -> None:
    with pytest.raises(StoreError, match="has not been migrated") as caught:
        await run(database, WRITE)
    assert caught.value.reason is StoreReason.NOT_MIGRATED


async def test_a_lock_that_somebody_keeps_is_not_waited_for_without_end(store_url: str) -> None:
    database = Database(store_url)
    with psycopg.connect(store_url) as other:
        other.execute("SELECT FROM crossfade_store.flag_set FOR UPDATE")
        with pytest.raises(StoreError, match="busy with another change") as caught:
            await run(database, WRITE)
        assert caught.value.reason is StoreReason.BUSY
    await database.close()


async def test_a_user_without_rights_is_told_so(store_url: str) -> None:
    database = Database(store_url)
    await run(database, "CREATE ROLE guest_of_the_store")
    try:
        with pytest.raises(StoreError, match="permission denied") as caught:
            await run(database, "SET LOCAL ROLE guest_of_the_store", WRITE)
        assert caught.value.reason is StoreReason.FORBIDDEN
    finally:
        await run(database, "DROP ROLE guest_of_the_store")
        await database.close()


async def test_a_process_that_stands_still_loses_its_locks_by_a_limit_of_each_transaction(
    store_url: str,
) -> None:
    """The limits hold inside a transaction only, so that a pooler's next user does not inherit them."""
    names = ("idle_in_transaction_session_timeout", "lock_timeout", "statement_timeout")
    shown = text(f"SELECT setting::int, reset_val::int FROM pg_settings WHERE name IN {names} ORDER BY name")
    database = Database(store_url)
    async with database.transaction() as connection:
        assert [tuple(row) for row in await connection.execute(shown)] == [
            (10_000, 0),
            (4_000, 0),
            (6_000, 0),
        ]
    await database.close()
