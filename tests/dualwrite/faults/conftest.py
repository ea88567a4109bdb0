from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.dualwrite.faults.ground import Ground, ground


@pytest.fixture(scope="package")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """Two servers that nobody else needs, since they get killed."""
    with ground(tmp_path_factory.mktemp("faults")) as found:
        yield found
