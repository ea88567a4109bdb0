"""What instances say of themselves, and how old it is by the store's clock."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import psycopg

from crossfade.convergence import ALIVE_WITHIN
from crossfade.store import instances
from crossfade.store.connection import Database
from crossfade.store.instances import InstanceReport

SAID = InstanceReport(
    id="host-1", host="host", address="127.0.0.1:8081", flags_version=7, started_at=1_700_000_000.5,
    kill_overlay={"flags": {}}, workers=[{"worker": 0, "version": 7, "ms": 3.5}],
    counts={"items.read": {"new": {"requests": 3}}},
)  # fmt: skip


async def test_the_last_word_of_each_instance_is_kept(store_url: str) -> None:
    store = Database(store_url)
    assert await instances.everybody(store) == []
    await instances.report(store, SAID)
    await instances.report(store, replace(SAID, id="host-0"))
    last = replace(SAID, flags_version=8, workers=[])
    await instances.report(store, last)
    found = await instances.everybody(store)
    assert [one.report for one in found] == [replace(SAID, id="host-0"), last]
    assert all(0.0 <= one.age < 60.0 for one in found)
    await store.close()


async def test_who_has_taken_leave_is_waited_for_by_nobody_and_its_counts_stay(store_url: str) -> None:
    store = Database(store_url)
    await instances.report(store, SAID)
    await instances.leave(store, SAID.id, ALIVE_WITHIN)
    (found,) = await instances.everybody(store)
    assert found.report == SAID
    assert found.age >= ALIVE_WITHIN
    await instances.report(store, SAID)  # it is started again
    assert (await instances.everybody(store))[0].age < ALIVE_WITHIN
    await store.close()


async def test_age_counts_by_the_clock_of_the_store_and_silence_is_forgotten(store_url: str) -> None:
    store = Database(store_url)
    for name, silence in (("gone", "25 hours"), ("quiet", "23 hours")):
        await instances.report(store, replace(SAID, id=name))
        with psycopg.connect(store_url) as connection:
            connection.execute(
                "UPDATE crossfade_store.instances SET heard_at = heard_at - %s::interval WHERE id = %s",
                (silence, name),
            )
    reports = [replace(SAID, id=f"host-{number}") for number in range(8)]
    await asyncio.gather(*(instances.report(store, said) for said in reports))
    found = {one.report.id: one.age for one in await instances.everybody(store)}
    assert set(found) == {"quiet", *(said.id for said in reports)}
    assert 82_800.0 <= found["quiet"] < 83_400.0
    await store.close()
