"""The data plane is tested on the event loop that it runs on."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping

import pytest
import uvloop
from hypothesis import HealthCheck, settings

settings.register_profile(
    "crossfade",
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.register_profile(
    "crossfade-deep", settings.get_profile("crossfade"), derandomize=False, max_examples=5000
)
settings.load_profile("crossfade-deep" if os.environ.get("CROSSFADE_DEEP") else "crossfade")


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}
