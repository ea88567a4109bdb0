from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.supervisor.backend import Backend, backend


@pytest.fixture
async def legacy() -> AsyncIterator[Backend]:
    async with backend("legacy") as found:
        yield found


@pytest.fixture
async def new() -> AsyncIterator[Backend]:
    async with backend("new") as found:
        yield found


@pytest.fixture
def config(legacy: Backend, new: Backend) -> dict[str, Any]:
    """Two workers; everything goes to legacy. What a test holds is not cut before the test lets it go."""
    return {
        "workers": 2,
        "targets": {"legacy": {"url": legacy.url}, "new": {"url": new.url}},
        "routes": [{"flag": "all", "match": {"path": "/**"}, "target": "legacy"}],
        "timeouts": {"drain": 60},
    }
