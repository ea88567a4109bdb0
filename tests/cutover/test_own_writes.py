"""Reads by new, writes by legacy, and a stream that lags: a session still sees what it wrote."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from crossfade.embedded.postgres import EmbeddedPostgres
from crossfade.embedded.valkey import EmbeddedValkey
from tests.cutover.scene import Night, databases, night
from tests.support.crossfade_process import PATIENCE

ANSWERS = "crossfade_requests_total"


async def by_new(eve: Night) -> float:
    return (await eve.cf.metrics()).total(ANSWERS, side="new")


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "not asked for"])
async def test_a_session_reads_what_it_has_written(
    kept: bool, tmp_path: Path, postgres: EmbeddedPostgres, store_url: str, bus: EmbeddedValkey
) -> None:
    with databases(postgres) as (legacy, new):
        async with night(tmp_path, store_url, bus.url(), legacy, new, own_writes=kept) as eve:
            await eve.prepare()
            for stage in ("shadow", "live"):
                done = await eve.cf.command(
                    "flag", "move", "shop", "--to", stage, "--reason", "a test", "--wait"
                )
                assert done.code == 0, done
            async with eve.people(rest=0.01) as load:
                await load.grows_by(100)
                os.kill(eve.streams["new"].pid, signal.SIGSTOP)
                try:
                    async with asyncio.timeout(PATIENCE):
                        # Until somebody misses what it wrote; who is kept from that has read often by then.
                        enough = load.answers + 300
                        while load.answers < enough and not load.backwards:  # noqa: ASYNC110
                            await asyncio.sleep(0.01)
                finally:
                    os.kill(eve.streams["new"].pid, signal.SIGCONT)
                await load.grows_by(60)
                measured = await eve.cf.metrics()
                # New answers again as soon as it has what was written.
                async with asyncio.timeout(PATIENCE):
                    while (await by_new(eve)) <= measured.total(ANSWERS, side="new"):  # noqa: ASYNC110
                        await asyncio.sleep(0.05)
            assert not load.failures, load.failures[:3]
            assert bool(load.backwards) is not kept, load.backwards[:3]
            own = measured.total(ANSWERS, reason="own_writes", side="legacy")
            assert bool(own) is kept
            await eve.nothing_is_lost(load)
