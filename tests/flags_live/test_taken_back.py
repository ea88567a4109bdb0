"""A kill of a host that is taken back there just while the store takes it over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from crossfade.channel import Message
from crossfade.feed import Feed
from crossfade.store.actors import Actor, ActorType, Role, Via
from crossfade.store.store import Store
from flags.change import Create, KillAll, KillFlag
from flags.model import Bucketing, Flag, Stage
from flags.stages import settled_at

ADA = Actor(ActorType.LOCAL, "ada", Role.ADMIN, None, Via.CLI)
AT, LATER = "2026-11-29T10:00:00.000+00:00", "2026-11-29T10:00:01.000+00:00"


def taken_back(flag: str | None) -> dict[str, Any]:
    """As the supervisor remembers it until the audit knows."""
    return {
        "flag": flag,
        "kill": {"reason": "it burns", "by": "ada", "at": AT},
        "end": {"reason": "a mistake", "by": "eve", "at": LATER},
    }


@pytest.mark.parametrize("flag", ["items", None], ids=["of a flag", "of everything"])
async def test_it_ends_in_the_store_too_and_a_later_one_does_not(
    tmp_path: Path, store_url: str, flag: str | None
) -> None:
    async def ask(_: Message) -> Message:
        return {}

    feed = Feed({"data_dir": str(tmp_path), "bus": "none", "store": store_url, "routes": []}, ask)
    store = await Store.open(store_url)
    try:
        made = Flag("items", 0, settled_at(Stage.NEW), Bucketing((), "items"))
        await store.change(ADA, Create(made), reason="x")

        async def killed(at: str) -> None:
            kill = KillAll("it burns", "ada", at) if flag is None else KillFlag(flag, "it burns", "ada", at)
            name = f"kill of {flag or '*'} on {feed.instance} at {at}"
            await store.change(ADA, kill, reason="carried", request_id=name)

        async def stands() -> bool:
            found = await store.flag_set()
            return found.kill is not None if flag is None else found.flags[0].kill is not None

        await killed(AT)
        await feed._tell_of_the_past(store, [taken_back(flag)])
        assert not await stands()
        last = (await store.audit_tail(limit=1))[-1]
        assert (last.actor["name"], last.reason) == ("eve", f"taken back on {feed.instance}: a mistake")
        # Somebody kills it anew: that is another one, whatever is remembered of the first.
        await killed(LATER)
        await feed._tell_of_the_past(store, [taken_back(flag)])
        assert await stands()
    finally:
        await store.close()
