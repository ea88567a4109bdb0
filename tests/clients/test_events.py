"""Server-sent events: each is delivered while the next does not exist yet."""

from __future__ import annotations

import asyncio
import itertools
import ssl

import aiohttp
import httpx
import pytest

from tests.clients.conftest import Stage

PATIENCE = 20.0
_names = itertools.count()


@pytest.fixture(params=["direct", "http", "https"])
def origin(request: pytest.FixtureRequest, stage: Stage) -> str:
    place = stage.places["aiohttp"]
    return {"direct": place.direct, "http": place.fronts[0], "https": place.fronts[1]}[request.param]


async def test_events_are_not_held_back(origin: str, stage: Stage) -> None:
    """The next event is posted only after the last one was read, so a buffering proxy would stand still."""
    secure = ssl.create_default_context(cafile=stage.ca_file)
    url = f"{origin}/conversation/{next(_names)}"
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=secure)) as session,
        asyncio.timeout(PATIENCE),
        session.get(url) as stream,
    ):
        assert stream.headers["Content-Type"] == "text/event-stream"
        for said in (b"first", b"second", b"x" * 100_000, b"last"):
            async with session.post(url, data=said) as response:
                assert response.status == 204
            assert await stream.content.readuntil(b"\n\n") == b"data: " + said + b"\n\n"
        async with session.post(url, data=b"bye"):
            pass
        assert await stream.content.read() == b""


def test_events_by_httpx(origin: str, stage: Stage) -> None:
    secure = ssl.create_default_context(cafile=stage.ca_file)
    url = f"{origin}/conversation/{next(_names)}"
    with (
        httpx.Client(verify=secure, trust_env=False, timeout=PATIENCE) as client,
        client.stream("GET", url) as stream,
    ):
        lines = stream.iter_lines()
        for said in ("first", "second", "last"):
            assert client.post(url, content=said).status_code == 204
            assert [next(lines), next(lines)] == [f"data: {said}", ""]
        client.post(url, content="bye")
        assert list(lines) == []


def test_a_reader_that_comes_back(origin: str, stage: Stage) -> None:
    secure = ssl.create_default_context(cafile=stage.ca_file)
    with httpx.Client(verify=secure, trust_env=False, timeout=PATIENCE) as client:
        first = client.get(f"{origin}/events")
        assert first.text.startswith(": a comment\nretry: 10\n\nid: 1\nevent: count\ndata: number 1\n")
        again = client.get(f"{origin}/events", headers={"Last-Event-ID": "2"})
        assert [line for line in again.text.splitlines() if line.startswith("id:")] == ["id: 3", "id: 4"]
