"""Adapters are played on the event loop that the data plane runs on."""

from tests.proxy.conftest import pytest_asyncio_loop_factories

__all__ = ["pytest_asyncio_loop_factories"]
