"""Whatever dies, traffic does not notice, goes on by the last good flags, and mends itself.

Each scene has clients that ask all the time; its end demands that none of them saw anything but 200.
"""

from __future__ import annotations

import asyncio
import os
import signal
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import redis.asyncio

from crossfade.convergence import converged
from crossfade.embedded.postgres import EmbeddedPostgres
from crossfade.store.audit import AuditRow
from crossfade.store.instances import Instance
from flags.change import Apply, Unkill
from flags.model import Bucketing, Flag, Stage, Transition
from tests.flags_live.scene import Scene
from tests.supervisor.backend import Backend
from tests.support.crossfade_process import PATIENCE, running_crossfade


async def test_the_store_goes_away_and_comes_back(live: Scene) -> None:
    await live.load.only(items="legacy", orders="legacy")
    version = await live.settle(Stage.LIVE, "items")
    assert (await live.obeyed(version)).workers == 2
    live.store.stop()

    await live.load.only(items="new", orders="legacy")
    flags = await live.until_flags(lambda flags: flags["age_seconds"] > 3)
    assert flags["version"] == version
    await live.until_measured(lambda measured: measured.total("crossfade_flags_age_seconds") > 3)
    assert (await live.cf.status())["ready"]

    # A worker that is started meanwhile decides as the others do.
    await end_a_worker(live)
    assert {worker["flags_version"] for worker in (await live.cf.status())["workers"]} == {version}
    await live.load.only(items="new", orders="legacy")

    # A kill of everything, and the way back.
    await live.kill(None)
    await live.load.only(items="legacy", orders="legacy", users="legacy")
    back = {"do": "unkill", "flag": None, "reason": "a false alarm", "by": "bob"}
    await live.order(back)
    await live.load.only(items="new", orders="legacy")

    live.store.start()
    await live.until_flags(lambda flags: flags["age_seconds"] < 3)
    await live.obeyed(await live.settle(Stage.LIVE, "orders"))
    # The audit hears of both, once, although the store never had that kill.
    told: list[AuditRow] = []
    async with asyncio.timeout(PATIENCE):
        while not told:
            told = [r for r in await live.book.audit_tail(0, 500) if r.action == "flag.kill_over"]
    (row,) = told
    assert row.before is not None
    assert row.after is not None
    assert (row.before["killed"]["by"], row.after["taken back"]["by"]) == ("ada", "bob")
    assert row.after["taken back"]["reason"] == "a false alarm"
    assert row.before["killed"]["at"] < row.after["taken back"]["at"] < row.at.isoformat()
    await live.load.only(items="new", orders="new")


async def test_the_bus_goes_away_and_comes_back_and_forgets(live: Scene) -> None:
    live.bus.stop()
    await live.obeyed(await live.settle(Stage.LIVE, "items"))
    await live.load.only(items="new", orders="legacy")
    by_bell = await pushed(live)

    live.bus.start()
    await until_the_bell_is_heard(live, by_bell)

    by_bell = await pushed(live)
    async with redis.asyncio.Redis.from_url(live.bus.url()) as client:
        await client.flushall()
        await client.client_kill_filter(_type="pubsub")
    await live.load.only(items="new", users="legacy")
    await until_the_bell_is_heard(live, by_bell)


async def test_a_kill_needs_neither_store_nor_bus_and_is_in_the_audit_afterwards(live: Scene) -> None:
    version = await live.settle(Stage.LIVE, "items", "orders")
    await live.obeyed(version)
    live.store.stop()
    live.bus.stop()

    said = await live.kill("items", "new answers nonsense\n\udce9 \x1b[31m" + "!" * 2000)

    assert said.startswith("killed items: ")
    await live.load.only(items="legacy", orders="new")
    assert (await live.flags_status())["kills"] == ["items"]
    await live.cf.measured("crossfade_kill_active", 1, flag="items")

    # Whatever is started meanwhile obeys it too.
    await end_a_worker(live)
    await live.load.only(items="legacy", orders="new")
    assert (await live.cf.command("restart")).code == 0
    await live.load.only(items="legacy", orders="new")
    assert (await live.flags_status())["kills"] == ["items"]

    recovered = datetime.now(UTC).isoformat()
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
    assert killed.kill.at < recovered  # when this host obeyed, and not when the store heard of it
    (row,) = [row for row in await live.book.history("items") if row.action == "flag.kill"]
    assert "new answers nonsense" in row.reason
    assert row.actor["name"] == "ada"


async def test_a_kill_that_was_taken_back_does_not_come_back(live: Scene) -> None:
    """The program died after the store had the kill, before the disk knew; then somebody took it back."""
    await live.obeyed(await live.settle(Stage.LIVE, "items"))
    live.store.stop()
    await live.kill("items")
    kills = live.cf.data_dir / "flags" / "kills.json"
    made_here = kills.read_bytes()
    live.store.start()
    await live.until_flags(lambda flags: flags["kills"] == [])
    await live.obeyed(await live.change(Unkill("items")))
    await live.load.only(items="new")

    kills.write_bytes(made_here)
    assert (await live.cf.command("restart")).code == 0

    await live.until_flags(lambda flags: flags["kills"] == [] and flags["age_seconds"] is not None)
    await live.load.only(items="new")
    assert [row.action for row in await live.book.history("items")].count("flag.kill") == 1


async def test_the_control_process_and_workers_may_die_in_the_middle_of_changes(live: Scene) -> None:
    for stage in (Stage.LIVE, Stage.SHADOW, Stage.LIVE):
        pid = (await live.cf.until(lambda status: status["control_pid"] != 0))["control_pid"]
        version, _ = await asyncio.gather(
            live.settle(stage, "items", "orders"), asyncio.to_thread(os.kill, pid, signal.SIGKILL)
        )
        await live.obeyed(version)
    await live.load.only(items="new", orders="new", users="legacy")

    version, _ = await asyncio.gather(live.settle(Stage.LIVE, "users"), end_a_worker(live))
    await live.obeyed(version)
    await live.load.only(users="new")

    version, restarted = await asyncio.gather(
        live.settle(Stage.SHADOW, "items", "users"), live.cf.command("restart")
    )
    assert restarted.code == 0
    await live.obeyed(version)
    await live.load.only(items="legacy", orders="new", users="legacy")


async def test_what_was_counted_never_goes_back_when_the_control_process_begins_anew(live: Scene) -> None:
    """Guardrails and ramps would take in the whole history a second time."""

    def counted(instance: Instance) -> int:
        return sum(side["requests"] for flag in instance.report.counts.values() for side in flag.values())

    async def since(pid: int) -> int:
        """Who reports once the control process is another one and has read all counts."""
        highest = 0
        begun = False
        async with asyncio.timeout(PATIENCE):
            while not begun:
                (instance,) = await live.book.instances()
                assert counted(instance) >= highest
                begun = begun or (counted(instance) > highest > 0 and await another(pid))
                highest = counted(instance)
        return highest

    async def another(pid: int) -> bool:
        return (await live.cf.status())["control_pid"] not in (0, pid)

    (before,) = [flag for flag in (await live.book.flag_set()).flags if flag.key == "items"]
    half = Transition(Stage.SHADOW, Stage.LIVE, 500_000)
    await live.change(Apply((Flag("items", before.version, half, Bucketing((), "items", "who")),)))
    for _ in range(3):
        pid = (await live.cf.until(lambda status: status["control_pid"] != 0))["control_pid"]
        os.kill(pid, signal.SIGKILL)
        assert await since(pid) > 0


async def test_a_worker_that_hangs_for_a_while_is_named_until_it_obeys(live: Scene) -> None:
    pid = (await live.cf.worker_pids())[0]
    os.kill(pid, signal.SIGSTOP)
    try:
        version = await live.settle(Stage.LIVE, "items")
        line = f'"pid": {pid}, "reason": "no answer within 2 s"'
        async with asyncio.timeout(PATIENCE):
            while line not in live.cf.log():  # noqa: ASYNC110  (it is another process)
                await asyncio.sleep(0.05)
            # By then everybody has given up waiting for it; the other one obeys.
            while len(missing := (await converged(live.book, version, 0.0)).missing) > 1:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        (name,) = missing
        assert name.startswith("worker ")
        assert name.endswith(f"runs v{version - 1}")
    finally:
        os.kill(pid, signal.SIGCONT)

    await live.obeyed(version)
    await live.load.only(items="new")


async def test_each_place_shows_one_version_while_a_worker_drains(
    store: EmbeddedPostgres, legacy: Backend, tmp_path: Path
) -> None:
    config = {
        "workers": 1,
        "store": store.url(),
        "bus": "none",
        "targets": {"legacy": {"url": legacy.url}, "new": {"url": legacy.url}},
        "routes": [{"flag": "hold", "match": {"path": "/hold"}, "target": "legacy"}],
        "timeouts": {"drain": 30},
    }
    async with running_crossfade(tmp_path, config) as cf:
        version = (await cf.until(lambda status: status["flags"]["version"] > 0))["flags"]["version"]
        client = await cf.connect()
        client.ask("/hold")
        await legacy.holding.wait()
        os.kill((await cf.worker_pids())[0], signal.SIGTERM)
        await cf.until(lambda status: {"ready", "draining"} == {w["state"] for w in status["workers"]})

        assert (await cf.metrics()).total("crossfade_flags_version") == version

        legacy.release.set()
        assert (await client.answer()).status == 200
        client.close()


async def test_a_store_that_has_lost_something_moves_no_traffic(live: Scene) -> None:
    version = await live.settle(Stage.LIVE, "items")
    await live.obeyed(version)
    harms = [
        # What a newer Crossfade might have written.
        ('UPDATE crossfade_store.flags SET document = document || \'{"of": "tomorrow"}\'', +1, "invalid"),
        # Restored from an old copy.
        ("UPDATE crossfade_store.flags SET document = document - 'of'", -2, "older"),
        # Emptied.
        ("DELETE FROM crossfade_store.flags", +5, "empty"),
        # New.
        ("UPDATE crossfade_store.flag_set SET version = 0", 0, "older"),
    ]
    async with await psycopg.AsyncConnection.connect(live.store.url(), autocommit=True) as connection:
        for harm, step, reason in harms:
            refused = (await live.cf.metrics()).total("crossfade_flags_refused_total", reason=reason)
            async with connection.transaction():
                await connection.execute(harm)
                await connection.execute("UPDATE crossfade_store.flag_set SET version = version + %s", [step])

            await live.until_measured(
                lambda m, reason=reason, refused=refused: (
                    m.total("crossfade_flags_refused_total", reason=reason) > refused
                )
            )
            await live.load.only(items="new", orders="legacy")
            flags = await live.flags_status()
            assert flags["version"] == version
            assert "store" in flags["trouble"]


async def test_a_start_without_the_store_begins_with_the_last_flags(
    store: EmbeddedPostgres, legacy: Backend, new: Backend, tmp_path: Path
) -> None:
    config = {
        "workers": 1,
        "store": store.url(),
        "targets": {"legacy": {"url": legacy.url}, "new": {"url": new.url}},
        "routes": [{"flag": "items", "match": {"path": "/**"}, "target": "legacy"}],
    }
    async with running_crossfade(tmp_path, config) as cf:
        await cf.until(lambda status: status["flags"]["version"] == 1)
        for stage in ("shadow", "live"):
            ended = await cf.command("flag", "move", "items", "--to", stage, "--reason", "x", "--wait", "20")
            assert ended.code == 0, ended.err
    store.stop()

    async with running_crossfade(tmp_path, config) as cf:
        assert (await cf.get("/items")).body == b"new"
        flags = (await cf.status())["flags"]
    assert flags["version"] == 3
    assert flags["age_seconds"] > 0


async def pushed(live: Scene) -> float:
    """How many changes have come by the bell."""
    measured = await live.cf.metrics()
    return measured.total("crossfade_flag_propagation_seconds_count", source="push")


async def until_the_bell_is_heard(live: Scene, before: float) -> None:
    """Change something until a change comes by the bell: the poll may be sooner, but not for ever."""
    stage = Stage.SHADOW
    async with asyncio.timeout(30):
        while await pushed(live) == before:
            stage = Stage.LIVE if stage is Stage.SHADOW else Stage.SHADOW
            await live.obeyed(await live.settle(stage, "orders"))


async def end_a_worker(live: Scene) -> None:
    """Tell one worker to drain, as somebody with `kill` would: its end cuts no request."""
    pid = (await live.cf.worker_pids())[0]
    os.kill(pid, signal.SIGTERM)
    await live.cf.until(
        lambda status: pid not in [worker["pid"] for worker in status["workers"]] and status["ready"]
    )
