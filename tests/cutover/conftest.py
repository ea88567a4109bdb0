from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from crossfade.embedded.postgres import EmbeddedPostgres
from crossfade.embedded.valkey import EmbeddedValkey
from tests.cutover.scene import Night, databases, night


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey(tmp_path / "valkey") as server:
        yield server


@pytest.fixture
async def eve(
    tmp_path: Path, postgres: EmbeddedPostgres, store_url: str, bus: EmbeddedValkey
) -> AsyncIterator[Night]:
    """The sample product before the switch; nothing is prepared."""
    with databases(postgres) as (legacy, new):
        async with night(tmp_path, store_url, bus.url(), legacy, new) as found:
            yield found
