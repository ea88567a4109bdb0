from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest

from crossfade.embedded.postgres import EmbeddedPostgres
from tests.sample.backends import Backend


@contextmanager
def fresh_database(postgres: EmbeddedPostgres) -> Iterator[str]:
    name = f"sample_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    yield postgres.url(name)
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session", params=["legacy", "new"])
def backend(
    request: pytest.FixtureRequest, postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Backend]:
    """Either backend with the sample data. Tests write to it, and look at what they wrote only."""
    with (
        fresh_database(postgres) as database,
        Backend(request.param, database, tmp_path_factory.mktemp(request.param)) as running,
    ):
        yield running


@pytest.fixture(scope="session")
def twins(
    postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Backend, Backend]]:
    """Both backends with the same sample data, for tests that do the same to both."""
    folder = tmp_path_factory.mktemp("twins")
    with (
        fresh_database(postgres) as old,
        fresh_database(postgres) as new,
        Backend("legacy", old, folder) as legacy,
        Backend("new", new, folder) as fresh,
    ):
        yield legacy, fresh
