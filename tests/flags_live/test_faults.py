"""Whatever dies, traffic does not notice, goes on by the last good flags, and mends itself.

Each scene has clients that ask all the time; its end demands that none of them saw anything but 200.
"""

from __future__ import annotations

import asyncio
import os
import signal

import psycopg
import pytest
import redis.asyncio

from flags.model import Stage
from tests.flags_live.scene import Scene


async def test_a_change_reaches_every_worker(live: Scene) -> None:
    await live.load.only(items="legacy", orders="legacy")

    found = await live.obeyed(await live.settle(Stage.LIVE, "items"))

    assert found.workers == 2
    await live.load.only(items="new", orders="legacy")


async def test_without_the_store_the_last_flags_hold_and_their_age_shows(live: Scene) -> None:
    version = await live.settle(Stage.LIVE, "items")
    await live.obeyed(version)
    live.store.stop()

    await live.load.only(items="new", orders="legacy")
    flags = await live.until_flags(lambda flags: flags["age_seconds"] > 3)
    assert flags["version"] == version
    assert (await live.cf.metrics()).total("crossfade_flags_age_seconds") > 3
    assert (await live.cf.status())["ready"]

    live.store.start()
    await live.until_flags(lambda flags: flags["age_seconds"] < 3)
    await live.obeyed(await live.settle(Stage.LIVE, "orders"))
    await live.load.only(items="new", orders="new")


async def test_without_the_bus_a_change_comes_by_poll_and_the_bell_is_heard_again_later(live: Scene) -> None:
    live.bus.stop()
    await live.obeyed(await live.settle(Stage.LIVE, "items"))
    await live.load.only(items="new", orders="legacy")
    pushed = (await live.cf.metrics()).total("crossfade_flag_propagation_seconds_count", source="push")

    live.bus.start()
    stage = Stage.SHADOW
    async with asyncio.timeout(30):
        while True:  # the poll may be sooner than the bell, but not for ever
            stage = Stage.LIVE if stage is Stage.SHADOW else Stage.SHADOW
            await live.obeyed(await live.settle(stage, "orders"))
            measured = await live.cf.metrics()
            if measured.total("crossfade_flag_propagation_seconds_count", source="push") > pushed:
                break


async def test_a_flushed_bus_loses_nothing(live: Scene) -> None:
    await live.obeyed(await live.settle(Stage.LIVE, "items"))
    async with redis.asyncio.Redis.from_url(live.bus.url()) as client:
        await client.flushall()
        await client.client_kill_filter(_type="pubsub")
    await live.load.only(items="new", orders="legacy")

    await live.obeyed(await live.settle(Stage.LIVE, "orders"))

    await live.load.only(items="new", orders="new")


async def test_a_kill_needs_neither_store_nor_bus_and_is_in_the_audit_afterwards(live: Scene) -> None:
    version = await live.settle(Stage.LIVE, "items", "orders")
    await live.obeyed(version)
    live.store.stop()
    live.bus.stop()

    answer = await live.kill("items", "new answers nonsense")

    assert answer["code"] == 0
    assert answer["lines"][0].startswith("killed items: 2/2 workers")
    await live.load.only(items="legacy", orders="new")
    assert (await live.flags_status())["kills"] == ["items"]
    assert (await live.cf.metrics()).total("crossfade_kill_active", flag="items") == 1

    # Whatever is started meanwhile obeys it too.
    await _end_a_worker(live)
    await live.load.only(items="legacy", orders="new")
    assert (await live.cf.command("restart")).code == 0
    await live.load.only(items="legacy", orders="new")
    assert (await live.flags_status())["kills"] == ["items"]

    live.store.start()
    live.bus.start()
    flags = await live.until_flags(lambda flags: flags["kills"] == [] and flags["version"] > version)
    await live.load.only(items="legacy", orders="new")
    kept = await live.book.flag_set()
    assert kept.version == flags["version"]
    killed = kept.flag("items")
    assert killed is not None
    assert killed.kill is not None
    assert killed.kill.by == "ada"
    (row,) = [row for row in await live.book.history("items") if row.action == "flag.kill"]
    assert "new answers nonsense" in row.reason
    assert row.actor["name"] == "ada"


async def test_a_kill_of_everything_without_a_store_can_be_taken_back_there(live: Scene) -> None:
    await live.obeyed(await live.settle(Stage.LIVE, "items", "orders", "users"))
    live.store.stop()

    assert (await live.kill(None))["code"] == 0
    await live.load.only(items="legacy", orders="legacy", users="legacy")
    again = await live.cf.tell({"do": "unkill", "flag": None})

    assert again["code"] == 0
    await live.load.only(items="new", orders="new", users="new")


async def test_the_control_process_may_die_at_any_moment(live: Scene) -> None:
    for stage in (Stage.LIVE, Stage.SHADOW, Stage.LIVE):
        version = await live.settle(stage, "items", "orders")
        pid = (await live.cf.until(lambda status: status["control_pid"] != 0))["control_pid"]
        os.kill(pid, signal.SIGKILL)
        await live.obeyed(version)
    await live.load.only(items="new", orders="new", users="legacy")


async def test_a_worker_that_dies_comes_back_with_the_same_flags_while_the_store_is_away(live: Scene) -> None:
    await live.obeyed(await live.settle(Stage.LIVE, "items"))
    live.store.stop()

    await _end_a_worker(live)

    await live.load.only(items="new", orders="legacy")
    versions = {worker["flags_version"] for worker in (await live.cf.status())["workers"]}
    assert versions == {(await live.flags_status())["version"]}


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        ("UPDATE crossfade_store.flag_set SET version = version - 1", "older"),
        (
            "DELETE FROM crossfade_store.flags; UPDATE crossfade_store.flag_set SET version = version + 1",
            "empty",
        ),
        ("DELETE FROM crossfade_store.flags; UPDATE crossfade_store.flag_set SET version = 0", "older"),
    ],
    ids=["restored from an old copy", "emptied", "new and empty"],
)
async def test_a_store_that_has_lost_something_moves_no_traffic(live: Scene, harm: str, reason: str) -> None:
    version = await live.settle(Stage.LIVE, "items")
    await live.obeyed(version)
    async with await psycopg.AsyncConnection.connect(live.store.url(), autocommit=True) as connection:
        await connection.execute(harm)

    await live.until_measured(lambda m: m.total("crossfade_flags_refused_total", reason=reason) > 1)

    await live.load.only(items="new", orders="legacy")
    flags = await live.flags_status()
    assert flags["version"] == version
    assert "store" in flags["trouble"]


async def test_a_flag_that_nobody_understands_moves_no_traffic(live: Scene) -> None:
    version = await live.settle(Stage.LIVE, "items")
    await live.obeyed(version)
    async with await psycopg.AsyncConnection.connect(live.store.url(), autocommit=True) as connection:
        await connection.execute(
            'UPDATE crossfade_store.flags SET document = document || \'{"of": "tomorrow"}\''
        )
        await connection.execute("UPDATE crossfade_store.flag_set SET version = version + 1")

    await live.until_flags(lambda flags: flags["age_seconds"] > 3)

    await live.load.only(items="new", orders="legacy")
    assert (await live.flags_status())["version"] == version


async def _end_a_worker(live: Scene) -> None:
    """Tell one worker to drain, as somebody with `kill` would: its end cuts no request."""
    pid = (await live.cf.worker_pids())[0]
    os.kill(pid, signal.SIGTERM)
    await live.cf.until(
        lambda status: pid not in [worker["pid"] for worker in status["workers"]] and status["ready"]
    )
