from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from crossfade.store.store import Store
from tests.ramps.scene import Scene


@pytest.fixture
async def scene(store_url: str) -> AsyncIterator[Scene]:
    """A store with one flag, `items.read`, in shadow, and one instance that reports."""
    store = await Store.open(store_url)
    scene = Scene(store_url, store)
    await scene.begin()
    yield scene
    await store.close()
