"""The runbooks' own commands, one after the other, as somebody on call would copy them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cutover.scene import Night

RUNBOOKS = Path(__file__).parents[2] / "runbooks"
ORDER = ("first-shadow", "canary", "kill", "cutover", "way-back")


def commands(page: str) -> Iterator[list[str]]:
    text = (RUNBOOKS / f"{page}.md").read_text()
    for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL):
        for line in block.splitlines():
            yield shlex.split(line.removeprefix("$ crossfade "))


def inline(page: str) -> Iterator[list[str]]:
    """The commands that stand in a sentence: those for when something is otherwise."""
    text = (RUNBOOKS / f"{page}.md").read_text()
    for words in re.findall(r"`crossfade ([^`]+)`", text):
        yield shlex.split(" ".join(words.split()))


@pytest.mark.timeout(240)
async def test_every_step_of_them_works(eve: Night) -> None:
    await eve.prepare()
    sides = []
    async with eve.people(rest=0.05) as load:
        await load.grows_by(20)
        for page in ORDER:
            for words in commands(page):
                done = await eve.cf.command(*words)
                # So few pairs are not ready, which the gate tells by its exit code.
                assert done.code == (6 if "--gate" in words else 0), (page, words, done)
            sides.append(await eve.side())
        # Of the last page that is about a stream which has stopped, only looking is done here.
        load.must_be_fine()
        await eve.does("run")
        refused = await eve.cf.command("kill", "shop", "--reason", "errors")
        assert refused.code == 6
        assert "crossfade cutover back shop" in refused.err
    assert sides == ["legacy", "legacy", "legacy", "new", "legacy"]
    await eve.nothing_is_lost(load)
