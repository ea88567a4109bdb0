"""Nobody starts a process for a stream: the instance works on both, and readers are kept from what is old."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from crossfade.embedded.postgres import EmbeddedPostgres
from crossfade.embedded.valkey import EmbeddedValkey
from tests.cutover.scene import Night, databases, night
from tests.support.crossfade_process import PATIENCE

ANSWERS = "crossfade_requests_total"


async def does(eve: Night, *arguments: str) -> None:
    done = await eve.cf.command(*arguments, "--reason", "a test")
    assert done.code == 0, (done, eve.cf.log()[-3000:])


async def answered(eve: Night, reason: str, side: str) -> None:
    """Until somebody who reads is answered by that side, and for that reason."""
    before = (await eve.cf.metrics()).total(ANSWERS, reason=reason, side=side)
    async with asyncio.timeout(PATIENCE):
        while (await eve.cf.metrics()).total(ANSWERS, reason=reason, side=side) <= before:
            await eve.cf.get("/api/posts")


async def test_from_the_first_copy_to_the_switch_by_commands_alone(
    tmp_path: Path, postgres: EmbeddedPostgres, store_url: str, bus: EmbeddedValkey
) -> None:
    with databases(postgres) as (legacy, new):
        async with night(tmp_path, store_url, bus.url(), legacy, new, own_writes=True, max_lag=2.0) as eve:
            await does(eve, "data", "start")
            await eve.follows("new")
            await eve.does("prepare")
            await eve.follows("legacy")
            for stage in ("shadow", "live"):
                await does(eve, "flag", "move", "shop", "--to", stage, "--wait")
            await answered(eve, "stage", "new")

            # A stream that does not run takes no reader with it.
            await does(eve, "data", "stop")
            await answered(eve, "lag", "legacy")
            blocked = await eve.does("plan", code=6)
            assert {one["reason"] for one in blocked["blockers"]} == {"no_process"}
            assert "crossfade data start --towards new" in json.dumps(blocked["next"])
            await does(eve, "data", "start")
            await answered(eve, "stage", "new")

            async with eve.people(rest=0.1, number=2) as load:
                await load.grows_by(20)
                async with asyncio.timeout(PATIENCE):
                    while (await eve.cutover("plan"))[0]:
                        pass  # on a busy machine the streams may be a second behind for a while
                await eve.does("run")
                await load.grows_by(20)
            load.must_be_fine()
            assert await eve.side() == "new"
            await eve.nothing_is_lost(load)
