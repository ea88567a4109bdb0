from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import pytest_asyncio

from crossfade.embedded.postgres import EmbeddedPostgres
from tests.admin.client import Client
from tests.supervisor.backend import backend
from tests.support.crossfade_process import RunningCrossfade, running_crossfade


def configuration(store: str) -> dict[str, Any]:
    """One worker and no bus: what is changed here is known here at once."""
    return {
        "workers": 1,
        "store": store,
        "bus": "none",
        "targets": {"legacy": {"url": "http://127.0.0.1:1"}, "new": {"url": "http://127.0.0.1:2"}},
        "routes": [
            {"flag": "items.read", "match": {"methods": ["GET"], "path": "/items/{id}"}},
            {"flag": "items.write", "match": {"path": "/items/**"}},
        ],
        "timeouts": {"drain": 2},
        "jwt": {"header": "X-Token"},
    }


@pytest.fixture
def config(database_url: str) -> dict[str, Any]:
    """With a store of this test alone."""
    return configuration(database_url)


@pytest.fixture
async def cf(tmp_path: Path, config: dict[str, Any]) -> AsyncIterator[RunningCrossfade]:
    async with running(tmp_path, config) as found:
        yield found


@pytest.fixture
def ask(cf: RunningCrossfade) -> Client:
    return Client(cf)


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def together(
    tmp_path_factory: pytest.TempPathFactory, postgres: EmbeddedPostgres
) -> AsyncIterator[Client]:
    """An instance for all scenes that have flags of their own: a start costs seconds."""
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        connection.execute("CREATE DATABASE admin_together")
    async with running(
        tmp_path_factory.mktemp("together"), configuration(postgres.url("admin_together"))
    ) as cf:
        yield Client(cf)


@contextlib.asynccontextmanager
async def running(folder: Path, config: dict[str, Any]) -> AsyncIterator[RunningCrossfade]:
    """With two backends, and its flags from the store."""
    async with backend("legacy") as legacy, backend("new") as new:
        config["targets"] = {"legacy": {"url": legacy.url}, "new": {"url": new.url}}
        async with running_crossfade(folder, config) as cf:
            await cf.until(lambda status: status["flags"]["version"] > 0)
            yield cf
