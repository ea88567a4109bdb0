"""Fixtures that every test may use. What belongs to one topic lives in `tests/support/`."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator

import psycopg
import pytest

from crossfade.embedded.postgres import EmbeddedPostgres
from crossfade.store import schema
from crossfade.store.connection import Database
from tests.support.databases import fresh_database

TEMPLATE = "store_template"


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """One real server for the whole run."""
    folder = tmp_path_factory.mktemp("pg")
    with EmbeddedPostgres(folder, durable=False) as server:
        yield server
    shutil.rmtree(folder)


@pytest.fixture
def database_url(postgres: EmbeddedPostgres) -> Iterator[str]:
    """The URL of a fresh, empty database of this test alone."""
    with fresh_database(postgres) as url:
        yield url


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
    with fresh_database(postgres, template) as url:
        yield url
