"""Faults in the middle of a walk: each ends in a state that is right, by itself, and nothing is lost.

`make faults` plays many more of them.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import make_url

from crossfade.embedded.postgres import EmbeddedPostgres
from crossfade.embedded.valkey import EmbeddedValkey
from tests.cutover.faults import FAULTS, one_is_open, one_run
from tests.cutover.planted import IN_THE_HOLD, Stop, planted
from tests.cutover.scene import Night, databases, night
from tests.cutover.test_runbooks import inline
from tests.store.relay import Relay

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


async def the_runbook_aborts_it(eve: Night, stop: Stop) -> None:
    """By the page's own line, while everybody waits."""
    words = next(one for one in inline("cutover") if one[:2] == ["cutover", "abort"])
    began = asyncio.create_task(eve.cutover("run"))
    await stop.reached()
    aborting = asyncio.create_task(eve.cf.command(*words))
    await eve.is_asked_to_abort()
    stop.go_on()
    done = await aborting
    assert done.code == 0, done
    assert "aborted: stop" in done.out
    code, answer = await began
    assert (code, answer["walks"][0]["state"], answer["side"]) == (6, "cancelled", "legacy")
    nothing = await eve.cf.command(*words)
    assert nothing.code == 3
    assert "no walk of shop is under way" in nothing.err
    assert "next: crossfade cutover status" in nothing.err
    unsaid = await eve.cf.command("cutover", "abort", "shop")
    assert unsaid.code == 2
    assert "next: say why: --reason WHY" in unsaid.err
    stop.again()


async def somebody_else_has_moved_the_fence(eve: Night, stop: Stop) -> None:
    """Under a turn that no walk of this store can pass: nobody waits for ever, and it is said."""
    turned = "UPDATE crossfade_sync.fences SET turn = turn + %s"
    async with await psycopg.AsyncConnection.connect(eve.urls["legacy"], autocommit=True) as legacy:
        began = asyncio.create_task(eve.cutover("run"))
        await stop.reached()
        await legacy.execute(turned, (2**60,))
        stop.go_on()
        code, answer = await began
        walk = answer["walks"][0]
        assert (code, walk["state"], answer["phase"]) == (6, "cancelled", "open"), walk
        said = "the fence of shop was moved by a later walk, or is gone"
        assert walk["message"] == f"{said}; {said}, and is left as it is: crossfade cutover plan shop"
        assert await one_is_open(eve) == "legacy"
        await legacy.execute(turned, (-(2**60),))
    stop.again()


async def new_falls_silent(eve: Night, stop: Stop, relay: Relay) -> None:
    """In the middle of the hold its host drops every packet. Those who wait go on at legacy in time."""
    began = asyncio.create_task(eve.cutover("run"))
    await stop.reached()
    relay.speaks.clear()
    stop.go_on()
    code, answer = await began
    walk = answer["walks"][0]
    assert (code, walk["state"], answer["side"]) == (6, "cancelled", "legacy"), walk
    assert walk["held_seconds"] < 15, "what waits longer gets 503"
    relay.speaks.set()
    stop.again()


@pytest.mark.timeout(200)
async def test_a_side_that_is_gone_is_not_waited_for(
    tmp_path: Path, postgres: EmbeddedPostgres, store_url: str, bus: EmbeddedValkey
) -> None:
    """New's database goes away in the middle of the hold: legacy answers on, and another night comes."""
    stop = Stop(tmp_path, IN_THE_HOLD)
    with databases(postgres) as (legacy, new):
        async with (
            Relay.to(new) as relay,
            night(
                tmp_path,
                store_url,
                bus.url(),
                legacy,
                new,
                as_users=(legacy, relay.url),
                environment=planted(tmp_path, stop.code),
            ) as eve,
            await psycopg.AsyncConnection.connect(legacy, autocommit=True) as admin,
        ):
            await eve.prepare()
            async with eve.people(rest=0.02) as load:
                await load.grows_by(30)
                await the_runbook_aborts_it(eve, stop)
                await somebody_else_has_moved_the_fence(eve, stop)
                await new_falls_silent(eve, stop, relay)
                await eve.is_possible()
                began = asyncio.create_task(eve.cutover("run"))
                await stop.reached()
                name = make_url(new).database
                await admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false".encode())
                try:
                    await admin.execute(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,)
                    )
                    stop.go_on()
                    code, answer = await began
                    walk = answer["walks"][0]
                    assert (code, walk["state"]) == (6, "cancelled"), walk
                    assert "a database does not do what it is asked" in walk["message"]
                    await load.grows_by(50)
                    load.must_be_fine()
                finally:
                    await admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true".encode())
                await eve.follows("new")
                await eve.follows("legacy")
                await eve.is_possible()
                await eve.does("run")
            load.must_be_fine()
            await eve.nothing_is_lost(load)
