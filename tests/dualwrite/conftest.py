from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator

import psycopg
import pytest

SLOT = "crossfade_test"
PUBLICATION = "crossfade_test"
TABLES = """
    CREATE TABLE notes (id int PRIMARY KEY, title text, body text);
    ALTER TABLE notes ALTER body SET STORAGE EXTERNAL;
    CREATE TABLE whole (id int PRIMARY KEY, title text, body text);
    ALTER TABLE whole ALTER body SET STORAGE EXTERNAL;
    ALTER TABLE whole REPLICA IDENTITY FULL;
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
