from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from crossfade.store.connection import Database


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """The way to an empty database."""
    opened = Database(database_url)
    yield opened
    await opened.close()
