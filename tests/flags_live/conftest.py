from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from crossfade.embedded.postgres import EmbeddedPostgres
from crossfade.embedded.valkey import EmbeddedValkey
from crossfade.store.store import Store
from tests.flags_live.scene import Scene, scene
from tests.supervisor.backend import Backend, backend


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a PostgreSQL that was started once: a copy of it starts sooner than a new one."""
    folder = tmp_path_factory.mktemp("cluster") / "pg"
    with EmbeddedPostgres(folder, durable=False) as server:
        asyncio.run(_migrate(server.url()))
    yield folder
    shutil.rmtree(folder)


async def _migrate(url: str) -> None:
    store = await Store.open(url)
    await store.migrate()
    await store.close()


@pytest.fixture
def store(cluster: Path, tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    """A store of this test alone, which may stop and start it."""
    folder = tmp_path / "pg"
    shutil.copytree(cluster, folder)
    with EmbeddedPostgres(folder, durable=False) as server:
        yield server


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey(tmp_path / "valkey") as server:
        yield server


@pytest.fixture
async def legacy() -> AsyncIterator[Backend]:
    async with backend("legacy") as found:
        yield found


@pytest.fixture
async def new() -> AsyncIterator[Backend]:
    async with backend("new") as found:
        yield found


@pytest.fixture
async def live(
    store: EmbeddedPostgres, bus: EmbeddedValkey, legacy: Backend, new: Backend, tmp_path: Path
) -> AsyncIterator[Scene]:
    """Crossfade on that store and that bus, under load; three flags at shadow, so legacy answers."""
    config = {
        "workers": 2,
        "store": store.url(),
        "bus": bus.url(),
        "targets": {"legacy": {"url": legacy.url}, "new": {"url": new.url}},
        "routes": [
            {"flag": name, "match": {"path": f"/{name}"}, "target": "legacy"}
            for name in ("items", "orders", "users")
        ],
        "timeouts": {"drain": 10},
    }
    async with scene(tmp_path, config, store, bus) as found:
        yield found
