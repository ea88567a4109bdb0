"""A real browser sees no difference: fetch, forms, cookies, cache, events and WebSockets of one page."""

from __future__ import annotations

import json
from typing import Any

from tests.clients.browser import Browser
from tests.clients.conftest import Stage
from tests.support.programs import require_program


async def test_a_page_behaves_as_directly(stage: Stage) -> None:
    place = stage.places["aiohttp"]
    async with Browser(require_program("chromium")) as browser:
        direct, plain, secure = [
            await _results(browser, origin, f"browser-{number}")
            for number, origin in enumerate((place.direct, *place.fronts))
        ]
    assert not [name for name, result in direct.items() if str(result).startswith("failed")], direct
    assert direct["socket"]["code"] == 4321
    assert direct["socket"]["heard"][:3] == ["hello /socket?name=browser", "short", "ünï"]
    assert [number for number, _ in direct["events"]] == ["1", "2", "3", "4", "5", "6"]
    assert direct["cookies"] == {
        "script": "first=1; second=2; a=1",  # one of the four is HttpOnly
        "server": ["a=1", 'b="x y"', "first=1", "second=2"],
    }
    assert direct["cut"] == direct["cutChunks"] == "TypeError"
    for name, result in direct.items():
        assert plain[name] == result, name
        assert secure[name] == result, name
    for number in range(3):
        assert place.diary.left(f"browser-{number}").wait(10), (
            "the backend was not told that the browser left"
        )


async def _results(browser: Browser, origin: str, name: str) -> dict[str, Any]:
    text = await browser.run(f"{origin}/page?name={name}", "finished")
    text = text.replace(origin, "ORIGIN").replace(origin.partition("://")[2], "ORIGIN").replace(name, "NAME")
    return dict(json.loads(text))
