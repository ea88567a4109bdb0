"""Filters, defaults and lookups, in the words that there are, both ways between real databases."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from crossfade import Convert, FollowUp, Only, Side, Table
from crossfade.embedded.postgres import EmbeddedPostgres
from dualwrite import survey, sync, verify
from dualwrite.mapped import by_table, towards
from dualwrite.sync import Direction
from dualwrite.target import State
from tests.dualwrite.sample import connected, is_, rows, says, until, worked_on
from tests.support.databases import fresh_database
from tests.support.sample_databases import forget

LEGACY = """
    CREATE TABLE entries (
        id bigint PRIMARY KEY, kind text NOT NULL, title text, currency char(3) NOT NULL DEFAULT 'EUR',
        price int
    );
    INSERT INTO entries VALUES
        (1, 'post', 'a', 'EUR', NULL), (2, 'page', 'b', 'USD', 5), (3, 'draft', 'c', 'EUR', 7);
    CREATE SCHEMA crossfade_copy;
    CREATE TABLE crossfade_copy.currencies (id int PRIMARY KEY, code text);
"""
NEW = """
    CREATE TABLE currencies (id int PRIMARY KEY, code text UNIQUE);
    INSERT INTO currencies VALUES (10, 'EUR'), (20, 'USD');
    CREATE TABLE posts (
        id bigint PRIMARY KEY, title text, price int NOT NULL, lang text NOT NULL,
        currency_id int NOT NULL REFERENCES currencies
    );
    CREATE TABLE pages (LIKE posts INCLUDING ALL);
"""


def entries(kind: str, table: str) -> Table:
    return Table(
        "entries",
        table,
        key=["id"],
        columns={
            "id": "id",
            "title": "title",
            # A default for what may be NULL there.
            "price": Convert("price", lambda text: text or 0, lambda text: None if text == "0" else text),
        },
        only=Only("kind", kind),
        legacy_only=["currency"],
        new_only=["lang", "currency_id"],
        # Columns that are new: one with a default, one that the follow-up looks up.
        computed={Side.NEW: {"lang": "'en'", "currency_id": "0"}},
    )


def looked_up(table: str) -> list[FollowUp]:
    return [
        FollowUp(
            "entries", Side.NEW, key=["id"], inputs=["currency"],
            sql=f"UPDATE {table} o SET currency_id = c.id FROM {{touched}} t JOIN currencies c"
                " ON c.code = t.currency WHERE o.id = t.id::bigint AND NOT t.gone",
        ),
        FollowUp(
            table, Side.LEGACY, key=["id"], inputs=["currency_id"],
            sql="UPDATE entries o SET currency = c.code FROM {touched} t JOIN crossfade_copy.currencies c"
                " ON c.id = t.currency_id::int WHERE o.id = t.id::bigint AND NOT t.gone",
        ),
    ]  # fmt: skip


TABLES = [
    Table("crossfade_copy.currencies", "currencies", key=["id"], columns=["id", "code"], towards=Side.LEGACY),
    entries("post", "posts"),
    entries("page", "pages"),
]
FOLLOW_UPS = [*looked_up("posts"), *looked_up("pages")]


@pytest.fixture
def both(postgres: EmbeddedPostgres) -> Iterator[dict[Side, Direction]]:
    with fresh_database(postgres) as legacy, fresh_database(postgres) as new:
        for url, schema in ((legacy, LEGACY), (new, NEW)):
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute(schema)
        yield {
            Side.NEW: Direction("words_to_new", legacy, new, towards(Side.NEW, TABLES, FOLLOW_UPS)),
            Side.LEGACY: Direction("words_to_legacy", new, legacy, towards(Side.LEGACY, TABLES, FOLLOW_UPS)),
        }
        forget(legacy, "crossfade_words_to_new")
        forget(new, "crossfade_words_to_legacy")


async def equal(of: Direction) -> bool:
    compared = [
        await verify.compare(of.name, of.source_url, of.target_url, source, mapping, backwards=False)
        for source, mapping in by_table(of.sources)
    ]
    return all(one.equal for one in compared)


async def test_one_table_becomes_two_by_a_filter_and_comes_back(both: dict[Side, Direction]) -> None:
    forth, back = both[Side.NEW], both[Side.LEGACY]
    plan = await survey.survey(back)
    assert plan.possible
    assert "keys_may_meet" in {one.reason for one in plan.findings}
    assert (await survey.survey(forth)).possible
    async with (
        connected(forth.source_url) as legacy,
        connected(forth.target_url) as new,
        worked_on(forth) as told,
    ):
        await until(lambda: is_(told, State.FOLLOWING), "it follows")
        assert await rows(new, "SELECT * FROM posts") == [(1, "a", 0, "en", 10)]
        assert await rows(new, "SELECT * FROM pages") == [(2, "b", 5, "en", 20)]
        await legacy.execute("UPDATE entries SET kind = 'page', currency = 'USD' WHERE id = 1")
        await legacy.execute("UPDATE entries SET kind = 'post' WHERE id = 3")
        await until(lambda: _said(new, "posts", [(3, "c", 7, "en", 10)]), "they have moved")
        pages = [(1, "a", 0, "en", 20), (2, "b", 5, "en", 20)]
        assert await rows(new, "SELECT * FROM pages ORDER BY id") == pages
        assert await equal(forth)

        # The way back begins where both are alike; what is not new's stays as it is.
        await sync.begin_alike(back)
        async with worked_on(back) as way_back:
            await until(lambda: is_(way_back, State.FOLLOWING), "the way back follows")
            await legacy.execute("INSERT INTO entries VALUES (9, 'draft', 'mine', 'EUR', 1)")
            await new.execute("INSERT INTO pages VALUES (7, 'new', 0, 'en', 20)")
            await new.execute("DELETE FROM posts WHERE id = 3")
            await until(lambda: says(legacy, "SELECT count(*) FROM entries WHERE id = 3", 0), "it has gone")
            one = "SELECT kind, title, currency, price FROM entries WHERE id = 7"
            assert await rows(legacy, one) == [("page", "new", "USD", None)]
            assert await rows(legacy, "SELECT title FROM entries WHERE id = 9") == [("mine",)]
            assert await equal(back)


async def _said(connection: psycopg.AsyncConnection[Any], table: str, wanted: list[tuple[Any, ...]]) -> bool:
    return await rows(connection, f"SELECT * FROM {table}") == wanted
