"""The sample product's rows by SQL alone, under a name of their own, and what the slot costs the source."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from crossfade import sync_role
from crossfade.directions import direction
from crossfade.embedded.postgres import EmbeddedPostgres
from dualwrite import pg_capture, survey, sync, verify
from dualwrite.capture import CaptureStopped, Way
from dualwrite.mapped import by_table
from dualwrite.pg_connect import connect
from dualwrite.preflight import SlotFacts, near_limit
from dualwrite.runbooks import runbook
from dualwrite.sync import Direction, StoppedError, Told
from dualwrite.target import State
from flags.model import Side
from tests.cutover.scene import MIGRATION
from tests.dualwrite.sample import alike, connected, is_, rows, until, worked_on, write
from tests.support.crossfade_process import crossfade_command
from tests.support.sample_databases import forget


@pytest.fixture
def shop(tmp_path: Path, postgres: EmbeddedPostgres, legacy_url: str, new_url: str) -> Iterator[Direction]:
    (tmp_path / "migration.py").write_text(MIGRATION.read_text())
    file = tmp_path / "crossfade.yaml"
    file.write_text(
        "targets: {legacy: {url: 'http://127.0.0.1:1'}, new: {url: 'http://127.0.0.1:2'}}\n"
        "code: migration.py\n"
        f"data: {{name: shop, legacy: {{url: '{legacy_url}', capture: peek}}, new: {{url: '{new_url}'}}}}\n"
    )
    found = direction(file, Side.NEW)
    back = direction(file, Side.LEGACY)
    assert (found.name, found.slot, found.way) == ("shop_to_new", "crossfade_shop_to_new", Way.PEEK)
    assert (back.name, back.way, back.way_back) == ("shop_to_legacy", Way.STREAM, "shop_to_new")
    yield found
    forget(legacy_url, found.slot)


async def test_all_tables_come_over_by_sql_alone(shop: Direction) -> None:
    chance = random.Random(3)
    async with connected(shop.source_url) as legacy, connected(shop.target_url) as new:
        for _ in range(2):
            async with worked_on(shop) as told:
                await until(lambda: is_(told, State.FOLLOWING), "it follows")
                for _ in range(20):
                    await write(legacy, chance)
                await until(lambda: alike(legacy, new), "both are alike")
                senders = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walsender'"
                assert await rows(legacy, senders) == [(0,)]
                await until(lambda: _watched(told), "the slot is looked at")
            for _ in range(10):
                await write(legacy, chance)
        async with worked_on(shop):
            await until(lambda: alike(legacy, new), "what was written meanwhile is there")
            for source, mapping in by_table(shop.sources):
                found = await verify.compare(
                    shop.name, shop.source_url, shop.target_url, source, mapping, backwards=False
                )
                assert found.equal, found
        stands = "SELECT name, slot FROM crossfade_sync.streams"
        assert await rows(new, stands) == [("shop_to_new", "crossfade_shop_to_new")]
        made = "SELECT pubname FROM pg_publication"
        assert await rows(legacy, made) == [("crossfade_shop_to_new",)]
        origins = "SELECT count(*) FROM pg_replication_origin WHERE roname = 'crossfade_shop_to_new'"
        assert await rows(new, origins) == [(1,)]
        shown = {(one.metric, one.labels[1:]) for one in sync_role.samples(shop.name, told)}
        assert ("crossfade_sync_slot_retained_bytes", ()) in shown
        assert ("crossfade_sync_slot_status", ("reserved",)) in shown


async def test_who_else_writes_is_counted_and_the_doctor_warns(shop: Direction, tmp_path: Path) -> None:
    async with worked_on(shop) as told:
        await until(lambda: is_(told, State.FOLLOWING), "it follows")
    async with connected(shop.target_url) as stranger:
        await stranger.execute("SET application_name = 'a forgotten job'")
        await stranger.execute("UPDATE accounts SET bio = 'mine'")
    async with worked_on(shop) as told:
        await until(lambda: _knows_strangers(told), "it has looked")
        [counted] = [
            one
            for one in sync_role.samples(shop.name, told)
            if one.metric == "crossfade_sync_foreign_writers"
        ]
        assert counted.value == 1
    done = await crossfade_command("doctor", "-c", str(tmp_path / "crossfade.yaml"), "-o", "json")
    [warned] = [one for one in json.loads(done.out) if "a forgotten job" in one["what"]]
    assert warned["level"] == "warning"
    assert "written into public.accounts beside us: UPDATE" in warned["what"]
    assert "runbooks/foreign-writes.md" in warned["todo"]


async def _knows_strangers(told: Told) -> bool:
    return bool(told.strangers)


async def _watched(told: Told) -> bool:
    return told.slot is not None and told.slot.name == "crossfade_shop_to_new"


async def test_a_slot_that_is_gone_is_told_by_all_who_look_and_stops_the_stream(
    shop: Direction, tmp_path: Path
) -> None:
    config = str(tmp_path / "crossfade.yaml")

    async def doctor() -> list[tuple[str, str]]:
        done = await crossfade_command("doctor", "-c", config, "-o", "json")
        assert done.code == 1
        return [(one["level"], one["what"]) for one in json.loads(done.out) if one["about"] == "shop_to_new"]

    async with connected(shop.source_url) as legacy:
        async with worked_on(shop) as told:
            await until(lambda: is_(told, State.FOLLOWING), "it follows")
            found = await doctor()
            assert found[0][0] == "ok"
            assert "following" in found[0][1]
            assert any("MiB of log for it (reserved" in what for _, what in found)
        await legacy.execute("SELECT pg_drop_replication_slot(%s)", (shop.slot,))
        await _is_told(shop, "slot_missing")
        found = await doctor()
        assert found[0][0] == "problem"
        assert "no process works on it" in found[0][1]
        assert ("problem", "slot_missing") in {(level, what.partition(":")[0]) for level, what in found}
        with pytest.raises(StoppedError) as stopped:
            await sync.run(shop, Told())
        assert stopped.value.reason == "slot_missing"
        status = await crossfade_command("data", "status", "-c", config)
        assert status.code == 6
        assert "runbooks/lost-slot.md" in status.out

        # Made anew by somebody who meant well, it begins behind what was written meanwhile.
        await legacy.execute("UPDATE users SET about = 'lost' WHERE user_id = 1")
        await legacy.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (shop.slot,))
        await _is_told(shop, "gap")
        # One that nobody reads any more is named as well.
        await legacy.execute("SELECT pg_create_logical_replication_slot('crossfade_old_to_new', 'pgoutput')")
        try:
            await _is_told(shop, "idle_slot")
        finally:
            await legacy.execute("SELECT pg_drop_replication_slot('crossfade_old_to_new')")


async def _is_told(shop: Direction, reason: str) -> None:
    found = {one.reason: one for one in (await survey.survey(shop)).findings}
    assert reason in found
    page = found[reason].runbook
    assert page is not None
    assert (MIGRATION.parents[1] / page).exists()


@pytest.mark.parametrize("reason", ["gap", "wal_level", "missing_privilege", "poison_row"])
def test_each_kind_of_reason_has_a_runbook_that_is_there(reason: str) -> None:
    page = runbook(reason)
    assert page is not None
    assert (MIGRATION.parents[1] / page).exists()


async def test_a_host_that_allows_no_replication_connection_is_told_of_the_peek(
    postgres: EmbeddedPostgres, legacy_url: str
) -> None:
    with psycopg.connect(legacy_url, autocommit=True) as admin:
        admin.execute("CREATE ROLE no_sender LOGIN PASSWORD 'x'")
    try:
        user = psycopg.conninfo.make_conninfo(legacy_url, user="no_sender", password="x")
        said = await pg_capture.refused(Way.STREAM, user)
        assert said is not None
        assert "capture: peek" in said
        assert await pg_capture.refused(Way.PEEK, user) is None
        assert await pg_capture.refused(Way.STREAM, legacy_url) is None
        async with await connect(user) as source:
            with pytest.raises(CaptureStopped) as stopped:
                await pg_capture.identify(Way.STREAM, user, source, "none")
        assert (stopped.value.reason, stopped.value.passing) == ("no_replication", False)
    finally:
        with psycopg.connect(legacy_url, autocommit=True) as admin:
            admin.execute("DROP ROLE no_sender")


SLOT = SlotFacts(
    confirmed=1, wal_status="reserved", retained=49, database="d", plugin="p", limit=100, name="s"
)


@pytest.mark.parametrize(("slot", "alarms"), [
    (SLOT, False), (replace(SLOT, retained=50), True), (replace(SLOT, wal_status="unreserved"), True),
    (replace(SLOT, limit=None, retained=10**12), False),
])  # fmt: skip
def test_a_slot_alarms_from_half_of_what_it_may_hold_back(slot: SlotFacts, alarms: bool) -> None:
    assert (near_limit(slot) is not None) == alarms
