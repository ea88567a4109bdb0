from __future__ import annotations

from collections.abc import Iterator

import pytest

from crossfade.embedded.postgres import EmbeddedPostgres
from tests.sample.backends import Backend
from tests.support.databases import fresh_database


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
