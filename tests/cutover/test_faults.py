"""Faults in the middle of a walk: each ends in a state that is right, by itself, and nothing is lost.

`make faults` plays many more of them.
"""

from __future__ import annotations

import asyncio
import os
import signal

import psycopg
import pytest
from sqlalchemy import make_url

from tests.cutover.faults import FAULTS, ended, one_run, reached
from tests.cutover.scene import Night

RUNS = int(os.environ.get("CROSSFADE_FAULT_RUNS", str(len(FAULTS))))
FIRST = int(os.environ.get("CROSSFADE_FAULT_SEED", "0"))


@pytest.mark.timeout(60 + 15 * RUNS)
async def test_whatever_goes_wrong_nothing_is_lost(eve: Night) -> None:
    await eve.prepare()
    async with eve.people(rest=0.02) as load:
        await load.grows_by(30)
        for seed in range(FIRST, FIRST + RUNS):
            print(await one_run(eve, load, seed), flush=True)
    await eve.nothing_is_lost(load)
    await eve.both_are_equal()


@pytest.mark.timeout(200)
async def test_a_side_that_is_gone_is_not_waited_for(eve: Night) -> None:
    """New's database goes away in the middle of the hold: legacy answers on, and another night comes."""
    await eve.prepare()
    name = make_url(eve.urls["new"]).database
    async with (
        eve.people(rest=0.02) as load,
        await psycopg.AsyncConnection.connect(eve.urls["legacy"], autocommit=True) as admin,
    ):
        await load.grows_by(30)
        await eve.look_around()
        began = asyncio.create_task(eve.cutover("run"))
        await reached(eve, "preparing")
        # It says nothing, so the walk gets no further than the hold.
        os.kill(eve.workers[0], signal.SIGSTOP)
        await reached(eve, "holding")
        await admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false".encode())
        try:
            await admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,)
            )
            walk = await ended(eve)
            assert walk["state"] == "cancelled", walk
            assert "not all workers have acknowledged" in walk["message"]
            os.kill(eve.workers[0], signal.SIGCONT)
            await load.grows_by(50)
            load.must_be_fine()
        finally:
            os.kill(eve.workers[0], signal.SIGCONT)
            await admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true".encode())
        code, _ = await began
        assert code == 6
        await eve.follows("new")
        await eve.follows("legacy")
        async with asyncio.timeout(40):
            while (await eve.cutover("plan"))[0]:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        await eve.does("run")
    load.must_be_fine()
    await eve.nothing_is_lost(load)
