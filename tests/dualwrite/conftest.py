from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest

from crossfade.embedded.postgres import EmbeddedPostgres
from dualwrite import target
from dualwrite.plan import TargetTable
from dualwrite.target import Source
from tests.support.sample_databases import legacy_database, new_database

SLOT = "crossfade_test"
PUBLICATION = "crossfade_test"
TABLES = """
    CREATE TABLE notes (id int PRIMARY KEY, title text, body text);
    ALTER TABLE notes ALTER body SET STORAGE EXTERNAL;
    CREATE TABLE whole (id int PRIMARY KEY, title text, body text);
    ALTER TABLE whole ALTER body SET STORAGE EXTERNAL;
    ALTER TABLE whole REPLICA IDENTITY FULL;
"""


NAME = "forward"
NOTES = TargetTable("public", "notes", ("id", "title", "body"), (0,))
SOURCE = Source("7", 1, SLOT)
TARGET_TABLES = """
    CREATE TABLE notes (id int PRIMARY KEY, title text UNIQUE, body text CHECK (body <> 'bad'));
    CREATE TABLE parts (note int REFERENCES notes, number int, PRIMARY KEY (note, number));
    CREATE FUNCTION shout() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN NEW.body := upper(NEW.body); RETURN NEW; END $$;
    CREATE TRIGGER shout BEFORE INSERT OR UPDATE ON notes FOR EACH ROW EXECUTE FUNCTION shout();
"""


@pytest.fixture
def source_url(database_url: str) -> Iterator[str]:
    """A database with two tables, a publication of both and a slot that nobody reads yet."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(TABLES)
        connection.execute(f"CREATE PUBLICATION {PUBLICATION} FOR TABLE notes, whole")
        connection.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (SLOT,))
    yield database_url
    with psycopg.connect(database_url, autocommit=True) as connection:
        _drop_slot(connection)


def _drop_slot(connection: psycopg.Connection) -> None:
    """The server notices a reader that has gone only after a moment."""
    deadline = time.monotonic() + 20
    while True:
        try:
            connection.execute(
                "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s",
                (SLOT,),
            )
            return
        except psycopg.errors.ObjectInUse:
            if time.monotonic() > deadline:
                raise
            connection.execute(
                "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = %s",
                (SLOT,),
            )


@pytest.fixture
async def writer(source_url: str) -> AsyncIterator[psycopg.AsyncConnection]:
    """Somebody who writes to the source, and whose commits are in the log when they return."""
    connection = await psycopg.AsyncConnection.connect(source_url, autocommit=True)
    await connection.execute("SET synchronous_commit = on")
    yield connection
    await connection.close()


@pytest.fixture
def target_url(postgres: EmbeddedPostgres) -> Iterator[str]:
    """A database with the new tables, among them what would change our rows if it could."""
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        connection.execute("CREATE DATABASE applied_to")
    with psycopg.connect(postgres.url("applied_to"), autocommit=True) as connection:
        connection.execute(TARGET_TABLES)
    yield postgres.url("applied_to")
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        connection.execute("DROP DATABASE applied_to WITH (FORCE)")
        connection.execute(
            "SELECT pg_replication_origin_drop(roname) FROM pg_replication_origin WHERE roname = %s",
            (f"crossfade_{NAME}",),
        )


@pytest.fixture
async def looking(target_url: str) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    """Somebody who looks at the target, where a stream has been noted."""
    connection = await psycopg.AsyncConnection.connect(target_url, autocommit=True)
    await target.prepare(connection)
    await target.create(connection, NAME, SOURCE, 100)
    yield connection
    await connection.close()


@pytest.fixture
def legacy_url(postgres: EmbeddedPostgres) -> Iterator[str]:
    """The sample product's, with its data."""
    with legacy_database(postgres) as url:
        yield url


@pytest.fixture
def new_url(postgres: EmbeddedPostgres) -> Iterator[str]:
    """The sample product's, empty."""
    with new_database(postgres) as url:
        yield url
