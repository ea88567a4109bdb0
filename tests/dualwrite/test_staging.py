"""A handful of staged rows is joined with a table by its index, however large that is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
from psycopg import sql

from dualwrite.staging import expected_to_be_small

STAGE = sql.Identifier("stage")
PATCH = "EXPLAIN (FORMAT JSON) UPDATE large t SET body = s.body FROM stage s WHERE t.id = s.id"


@pytest.fixture
async def db(target_url: str) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    async with await psycopg.AsyncConnection.connect(target_url, autocommit=True) as connection:
        await connection.execute("CREATE TABLE large (id bigint PRIMARY KEY, body text)")
        await connection.execute(
            "INSERT INTO large SELECT n, repeat('x', 60) FROM generate_series(1, 20000) n"
        )
        await connection.execute("VACUUM ANALYZE large")
        yield connection


async def how_it_joins(db: psycopg.AsyncConnection[Any], rows: int) -> str:
    """With the large table, so many staged rows."""
    async with db.transaction(force_rollback=True):
        await db.execute("INSERT INTO stage SELECT n * 7, 'new' FROM generate_series(1, %s) n", (rows,))
        row = await (await db.execute(PATCH)).fetchone()
    assert row is not None
    plan: dict[str, Any] = row[0][0]["Plan"]["Plans"][0]
    return str(plan["Node Type"])


async def test_a_few_rows_go_by_the_index_and_many_do_not(db: psycopg.AsyncConnection[Any]) -> None:
    await db.execute("CREATE TEMP TABLE stage (id bigint, body text) ON COMMIT DELETE ROWS")
    assert await how_it_joins(db, 3) == "Hash Join", "what it is for"
    await db.execute("TRUNCATE stage")
    await expected_to_be_small(db, STAGE)
    for _ in range(2):
        assert await how_it_joins(db, 3) == "Nested Loop"
    assert await how_it_joins(db, 20_000) != "Nested Loop"


async def test_one_that_was_emptied_by_truncate_has_to_be_looked_at_again(
    db: psycopg.AsyncConnection[Any],
) -> None:
    await db.execute("CREATE TEMP TABLE stage (id bigint, body text) ON COMMIT DELETE ROWS")
    await expected_to_be_small(db, STAGE)
    await db.execute("TRUNCATE stage")
    assert await how_it_joins(db, 3) == "Hash Join"
    await expected_to_be_small(db, STAGE)
    assert await how_it_joins(db, 3) == "Nested Loop"


async def test_one_that_takes_no_absent_values_is_looked_at_as_it_is(
    db: psycopg.AsyncConnection[Any],
) -> None:
    await db.execute("CREATE TEMP TABLE stage (LIKE large) ON COMMIT DELETE ROWS")
    await expected_to_be_small(db, STAGE)
    looked = await (await db.execute("SELECT reltuples FROM pg_class WHERE relname = 'stage'")).fetchone()
    assert looked == (0,)
