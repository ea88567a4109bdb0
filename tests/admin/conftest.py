from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.supervisor.backend import backend
from tests.support.crossfade_process import RunningCrossfade, running_crossfade


@pytest.fixture
def config(database_url: str) -> dict[str, Any]:
    """One worker, a store of this test alone, and no bus: what is changed here is known here at once."""
    return {
        "workers": 1,
        "store": database_url,
        "bus": "none",
        "targets": {"legacy": {"url": "http://127.0.0.1:1"}, "new": {"url": "http://127.0.0.1:2"}},
        "routes": [
            {"flag": "items.read", "match": {"methods": ["GET"], "path": "/items/{id}"}},
            {"flag": "items.write", "match": {"path": "/items/**"}},
        ],
        "timeouts": {"drain": 2},
    }


@pytest.fixture
async def cf(tmp_path: Path, config: dict[str, Any]) -> AsyncIterator[RunningCrossfade]:
    """Running, with its flags from the store."""
    async with backend("legacy") as legacy, backend("new") as new:
        config["targets"] = {"legacy": {"url": legacy.url}, "new": {"url": new.url}}
        async with running_crossfade(tmp_path, config) as running:
            await running.until(lambda status: status["flags"]["version"] > 0)
            yield running
