"""A real browser: fetch with cookies, a form with a file, EventSource and WebSocket, with and without us."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from websockets.asyncio.client import ClientConnection, connect

from tests.clients.conftest import Stage
from tests.support.programs import require_program

PATIENCE = 60.0
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--ignore-certificate-errors",
    "--remote-debugging-port=0",
)  # fmt: skip


class Browser:
    """A page of chromium, spoken to over its debugging protocol."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._number = 0

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        await self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        async with asyncio.timeout(PATIENCE):
            while True:
                said = json.loads(await self._socket.recv())
                if said.get("id") == self._number:
                    assert "error" not in said, said
                    result: dict[str, Any] = said["result"]
                    return result

    async def open(self, url: str) -> None:
        await self.call("Page.enable")
        await self.call("Page.navigate", url=url)
        async with asyncio.timeout(PATIENCE):
            while json.loads(await self._socket.recv()).get("method") != "Page.loadEventFired":
                pass

    async def evaluate(self, script: str) -> Any:
        done = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done
        return done["result"]["value"]


@pytest.fixture
async def browser(tmp_path: Path) -> AsyncIterator[Browser]:
    program = require_program("chromium")
    with subprocess.Popen(  # noqa: ASYNC220 (its start is waited for in a thread)
        [program, *OPTIONS, f"--user-data-dir={tmp_path}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            port = await asyncio.to_thread(_debugging_port, process.stderr)
            pages = await asyncio.to_thread(_pages, port)
            address = next(page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page")
            async with connect(address, max_size=None) as socket:
                yield Browser(socket)
        finally:
            process.kill()


def _debugging_port(lines: Any) -> int:
    for line in lines:
        if line.startswith("DevTools listening on"):
            return int(line.split(":")[2].partition("/")[0])
    raise AssertionError("chromium did not start")


def _pages(port: int) -> list[dict[str, Any]]:
    with urlopen(f"http://127.0.0.1:{port}/json/list", timeout=PATIENCE) as answer:
        pages: list[dict[str, Any]] = json.loads(answer.read())
    return pages


def without_address(told: str, origin: str) -> dict[str, Any]:
    """What a page told, with what must differ between two origins made equal."""
    host = origin.partition("://")[2]
    found: dict[str, Any] = json.loads(told.replace(origin, "ORIGIN").replace(host, "HOST"))
    return found


async def test_a_page_does_everything_as_without_us(browser: Browser, stage: Stage) -> None:
    place = stage.places["aiohttp"]
    told = []
    for origin in (place.direct, *place.fronts):
        await browser.open(origin + "/page")
        told.append(without_address(await browser.evaluate("everything()"), origin))
    direct, plain, secure = told
    assert direct["get"][0] == 200
    assert direct["form"] == [200, True]
    assert [number for number, _ in direct["events"]] == ["1", "2", "3", "4"]
    assert direct["socket"] == ["chat.v1", ["hello /socket", "wörd", 300_000], 4001, "enough", True]
    for told_through_us in (plain, secure):
        for what in ("form", "gzip", "events", "socket"):
            assert told_through_us[what] == direct[what], what
        status, heard = told_through_us["get"]
        assert status == 200
        assert heard["method"] == direct["get"][1]["method"]
