from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator

import psycopg
import pytest

from crossfade.embedded.postgres import EmbeddedPostgres
from crossfade.store import schema
from crossfade.store.connection import Database

TEMPLATE = "store_template"


@pytest.fixture(scope="session")
def template(postgres: EmbeddedPostgres) -> str:
    """A migrated store that each test gets a copy of."""
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {TEMPLATE}")

    async def migrate() -> None:
        database = Database(postgres.url(TEMPLATE))
        await schema.upgrade(database)
        await database.close()

    asyncio.run(migrate())
    return TEMPLATE


@pytest.fixture
def store_url(postgres: EmbeddedPostgres, template: str) -> Iterator[str]:
    """The URL of a fresh, migrated store of this test alone."""
    name = f"store_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    yield postgres.url(name)
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """The way to an empty database."""
    opened = Database(database_url)
    yield opened
    await opened.close()
