"""Forth and back, under load, and nobody notices."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from sqlalchemy import insert

from crossfade.cli import main
from crossfade.store import cutovers, tables
from crossfade.store.actors import Actor, ActorType, Role, Via
from crossfade.store.store import Store
from dualwrite import verify
from dualwrite.verify import Compared
from flags.change import SetAuthority
from flags.model import Phase
from tests.admin.client import WHY, Client, conforms
from tests.cutover.faults import one_is_open
from tests.cutover.scene import CUTOVER, Night


async def test_forth_and_back_and_forth_again(eve: Night) -> None:
    await eve.prepare()
    assert (await eve.does("plan"))["possible"]
    async with eve.people(rest=0.01) as load:
        await load.grows_by(100)
        for what, side in (("run", "new"), ("back", "legacy"), ("run", "new")):
            answer = await eve.does(what)
            assert answer["side"] == side
            assert answer["walks"][0]["held_seconds"] < 5
            await load.grows_by(100)
            load.must_be_fine()
        # New is written to now, and so it is what is read first.
        compared = await eve.cf.command("data", "verify", "-o", "json")
        assert compared.code == 0, compared
    load.must_be_fine()
    await eve.nothing_is_lost(load)
    await eve.both_are_equal()
    measured = await eve.cf.metrics()
    assert measured.total("crossfade_cutovers_total", outcome="done") == 3
    assert measured.total("crossfade_authority", cutover=CUTOVER, side="new") == 1
    assert measured.total("crossfade_authority_phase", phase="open") == 1
    assert measured.total("crossfade_held_requests_total", outcome="went_on") > 0


async def test_what_stands_against_it_is_said_at_once_and_nothing_is_changed(eve: Night) -> None:
    plan = await eve.does("plan", code=6)
    assert {one["reason"] for one in plan["blockers"]} >= {"not_prepared", "no_stream"}
    assert all(one["remedy"] for one in plan["blockers"])
    refused = await eve.does("run", code=6)
    assert refused["error"] == "blocked"
    assert "not_prepared" in refused["message"]
    assert "no_stream" in refused["message"]
    assert (await eve.does("status"))["walks"] == []

    await eve.prepare()
    async with await psycopg.AsyncConnection.connect(eve.urls["legacy"]) as cron:
        await cron.execute("SET application_name = 'nightly'")
        await cron.execute("UPDATE users SET about = about WHERE user_id = 1")
        async with await psycopg.AsyncConnection.connect(eve.urls["new"]) as new:
            await new.execute(
                "INSERT INTO crossfade_sync.quarantine VALUES ('to_new', 'public.users to public.accounts',"
                " '{1}', '0/1', '0/1', 1, 'put', '{}', 'too long')"
            )
        await eve.end_sync("legacy")
        async with asyncio.timeout(60):
            while True:
                plan = await eve.does("plan", code=6)
                reasons = {one["reason"] for one in plan["blockers"]}
                if reasons >= {"long_transaction", "no_process", "quarantined"}:
                    break
        named = next(one for one in plan["blockers"] if one["reason"] == "long_transaction")
        assert "nightly" in named["message"]
    assert await eve.side() == "legacy"


async def test_nobody_is_sent_to_a_side_that_is_not_well(eve: Night) -> None:
    await eve.prepare()
    await eve.is_possible()
    done = await eve.cf.command("guardrail", "set", "shop", "--signal", "errors", "--reason", "a test")
    assert done.code == 0, done
    async with await psycopg.AsyncConnection.connect(eve.store_url, autocommit=True) as store:
        await store.execute(
            "UPDATE crossfade_store.guardrails SET state = 'tripped',"
            ' evidence = evidence || \'{"message": "too many"}\''
        )
        eve.new.stop()
        found = {one["reason"]: one for one in (await eve.does("plan", code=6))["blockers"]}
        assert found["backend"]["message"].startswith("new's backend at 127.0.0.1:")
        assert found["guardrail"]["message"] == "the guardrail shop:errors has tripped: too many"
        assert "crossfade guardrail rearm shop:errors" in found["guardrail"]["remedy"]
        eve.new.start()
        assert (await eve.cutover("run"))[0] == 6
        # What becomes so while everything is compared cancels the walk before anybody waits.
        person = Actor(ActorType.HUMAN, "somebody", Role.ADMIN, None, Via.API)
        known = Store(eve.store_url)
        try:
            authority = (await known.flag_set()).authority(CUTOVER)
            assert authority is not None
            await cutovers.begin(known, person, authority, reason="a test")
            await nobody_walks(known)
        finally:
            await known.close()
    walk = (await eve.does("status"))["walks"][0]
    assert (walk["state"], walk["held_seconds"]) == ("cancelled", None)
    assert walk["message"] == "the guardrail shop:errors has tripped: too many"
    assert (await eve.cf.command("guardrail", "rearm", "shop:errors", "--reason", "well again")).code == 0
    await eve.does("run")


async def nobody_walks(store: Store) -> None:
    """What was begun has ended, by the process that walks."""
    async with asyncio.timeout(60):
        while await cutovers.under_way(store):  # noqa: ASYNC110  (another process walks)
            await asyncio.sleep(0.05)


async def test_a_rehearsal_moves_nothing_and_says_how_long_it_would_take(eve: Night) -> None:
    await eve.prepare()
    async with eve.people(rest=0.02) as load:
        await load.grows_by(30)
        answer = await eve.does("run", "--rehearse")
        walk = answer["walks"][0]
        assert (answer["side"], walk["state"]) == ("legacy", "cancelled")
        assert walk["message"].startswith("rehearsed")
        assert 0 < walk["held_seconds"] < 5
        await load.grows_by(30)
    load.must_be_fine()
    assert await one_is_open(eve) == "legacy"
    await eve.nothing_is_lost(load)
    assert (await eve.does("plan"))["held_last"] == walk["held_seconds"]


async def test_who_follows_one_that_died_after_arming_disarms_before_it_compares_anew(eve: Night) -> None:
    """Comparing may take hours, and an outage of the store must not stop writes in them."""
    await eve.prepare()
    store = Store(eve.store_url)
    try:
        known = (await store.flag_set()).authority(CUTOVER)
        assert known is not None
        dead = Actor(ActorType.CUTOVER, "one that died", None, None, Via.CUTOVER)
        armed = replace(known, phase=Phase.ARM)
        first = (await store.change(dead, SetAuthority(armed), reason="it was armed")).version
        person = Actor(ActorType.HUMAN, "somebody", Role.ADMIN, None, Via.API)
        await cutovers.begin(store, person, armed, reason="a test", rehearsal=True)
        await nobody_walks(store)
        told = [row for row in await store.audit_tail(limit=20) if (row.to_version or 0) >= first]
        phases = [row.command["authority"]["phase"] for row in told if row.action == "authority.set"]
        assert phases == ["arm", "open", "arm", "hold", "turn", "open"]
    finally:
        await store.close()


async def test_a_walk_towards_who_has_the_authority_leaves_the_other_fence_closed(eve: Night) -> None:
    """However it came to be: what it takes back is what it has done, and that is nothing."""
    await eve.prepare()
    store = Store(eve.store_url)
    try:
        await eve.does("run")
        async with store.transaction() as connection:
            await connection.execute(
                insert(tables.cutovers).values(
                    name=CUTOVER, towards="new", generation=1, state="preparing", rehearsal=False,
                    started_by="somebody", reason="a test", document={},
                )
            )  # fmt: skip
        await nobody_walks(store)
    finally:
        await store.close()
    walk = (await eve.does("status"))["walks"][0]
    assert (walk["state"], walk["message"]) == ("cancelled", "new has the authority already")
    assert await one_is_open(eve) == "new"
    assert await eve.side() == "new"


async def test_a_comparison_in_which_the_authority_moves_says_nothing(
    eve: Night, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    await eve.prepare()
    compare, loop = verify.compare, asyncio.get_running_loop()

    async def compared_and_moved(*about: Any, **more: Any) -> Compared:
        found = await compare(*about, **more)
        asyncio.run_coroutine_threadsafe(eve.does("run"), loop).result()
        return found

    monkeypatch.setattr(verify, "compare", compared_and_moved)
    words = ["data", "verify", "--table", "comments", "-c", str(eve.cf.config_path)]
    assert await asyncio.to_thread(main, words) == 7
    assert "the authority has moved while it was compared" in capsys.readouterr().err


async def test_a_row_that_differs_cancels_it_before_anybody_waits(eve: Night) -> None:
    await eve.prepare()
    async with as_our_apply(eve.urls["new"]) as faulty:
        await faulty.execute("UPDATE accounts SET bio = 'spoiled' WHERE id = 2")
    answer = await eve.does("run", code=6)
    walk = answer["walks"][0]
    assert "key 2 (different, bio)" in walk["message"]
    assert walk["held_seconds"] is None
    assert await eve.side() == "legacy"


@contextlib.asynccontextmanager
async def as_our_apply(url: str) -> AsyncIterator[psycopg.AsyncConnection]:
    """A session that the fence takes for ours: a fault of our own would come by it."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as faulty:
        await faulty.execute("SELECT pg_replication_origin_create('crossfade_fault')")
        try:
            await faulty.execute("SELECT pg_replication_origin_session_setup('crossfade_fault')")
            yield faulty
            await faulty.execute("SELECT pg_replication_origin_session_reset()")
        finally:
            await faulty.execute("SELECT pg_replication_origin_drop('crossfade_fault')")


async def test_repair_writes_over_the_side_that_is_fed_and_never_over_the_other(eve: Night) -> None:
    await eve.prepare()
    # What legacy writes in two ways (NULL and '') is no difference, whichever way is asked for.
    untouched = await eve.cf.command("data", "verify", "--towards", "legacy")
    assert untouched.code == 0, untouched
    await eve.does("run")
    async with as_our_apply(eve.urls["legacy"]) as faulty:
        await faulty.execute("UPDATE users SET fullname = 'spoiled' WHERE user_id = 2")
    found = await eve.cf.command("data", "verify")
    assert found.code == 6
    assert "crossfade data repair --towards legacy" in found.err, "and none that is refused"
    refused = await eve.cf.command("data", "repair")
    assert refused.code == 6
    assert "new has the authority over public.accounts" in refused.err
    await eve.cf.command("data", "repair", "--towards", "legacy")
    await eve.both_are_equal()
    async with await psycopg.AsyncConnection.connect(eve.urls["legacy"]) as legacy:
        query = "SELECT fullname FROM users WHERE user_id = 2"
        assert await (await legacy.execute(query)).fetchone() != ("spoiled",)


async def test_who_writes_to_the_other_side_in_spite_of_the_fence_is_found_out(eve: Night) -> None:
    await eve.prepare()
    async with await psycopg.AsyncConnection.connect(eve.urls["new"], autocommit=True) as stubborn:
        await stubborn.execute("ALTER TABLE accounts DISABLE TRIGGER crossfade_fence")
        await stubborn.execute("UPDATE accounts SET bio = 'mine' WHERE id = 2")
        await stubborn.execute("ALTER TABLE accounts ENABLE ALWAYS TRIGGER crossfade_fence")
    async with asyncio.timeout(60):
        while True:
            _, plan = await eve.cutover("plan")
            stopped = [one for one in plan["blockers"] if one["reason"] == "stopped"]
            if stopped:
                break
    # Its write has come to legacy by the way back, which takes nothing of ours while it has the authority.
    assert "legacy has stopped (refused)" in stopped[0]["message"]
    assert "nothing is applied to it" in stopped[0]["message"]


async def test_who_passes_by_the_proxy_is_refused_where_the_authority_is_not(eve: Night) -> None:
    await eve.prepare()
    update = "UPDATE users SET about = 'by a job' WHERE user_id = 1"
    async with await psycopg.AsyncConnection.connect(eve.urls["legacy"], autocommit=True) as cron:
        await cron.execute(update)
        await eve.does("run")
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction, match="users is fenced"):
            await cron.execute(update)
        await eve.does("back")
        await cron.execute(update)


async def test_a_job_that_writes_for_long_cancels_the_walk_and_keeps_nobody_waiting(eve: Night) -> None:
    await eve.prepare()
    async with (
        eve.people(rest=0.05) as load,
        await psycopg.AsyncConnection.connect(eve.urls["legacy"]) as nightly,
    ):
        await load.grows_by(20)
        # It begins when the plan has been looked at: nobody can name it before.
        await eve.is_possible()
        began = asyncio.create_task(eve.cutover("run"))
        await nightly.execute(
            "UPDATE users SET about = about WHERE user_id = (SELECT max(user_id) FROM users)"
        )
        code, answer = await began
        walk = answer["walks"][0]
        assert (code, walk["state"]) == (6, "cancelled"), walk
        assert "transactions that write have not ended within 3 s: pid " in walk["message"]
        assert walk["held_seconds"] < 10, "and the job goes on"
        await load.grows_by(20)
        load.must_be_fine()
        await nightly.rollback()


@pytest.mark.timeout(200)
async def test_the_end_of_the_migration_and_taking_it_up_again(eve: Night) -> None:
    update = "UPDATE users SET about = 'archived' WHERE user_id = 1"
    await eve.prepare()
    async with eve.people(rest=0.02) as load:
        await eve.does("run")
        shown = (await eve.cf.command("flag", "list")).out
        assert "new, by the cutover shop (else legacy)" in shown
        answer = await eve.does("finish")
        assert answer["side"] is None
        await load.grows_by(50)
        assert (await eve.does("finish", code=3))["error"] == "not_found"
        flag = json.loads((await eve.cf.command("flag", "get", "shop", "-o", "json")).out)
        assert flag["stands"] == "new"
        said = await eve.cf.command("cutover", "status", "shop")
        assert "shop  finished; new has the data" in said.out
        assert "prepare" not in said.err
        assert "finished; new has the data" in (await eve.cf.command("cutover", "status")).out
        over = (await eve.does("plan", code=6))["blockers"][0]
        assert (over["reason"], over["message"]) == ("finished", "shop is finished; new has the data")
        refused = await eve.cf.command("flag", "move", "shop", "--to", "shadow", "--reason", "back")
        assert refused.code == 6
        assert "legacy is fenced since the cutover shop was finished" in refused.err
    await load.stop()
    load.must_be_fine()
    killed = await eve.cf.command("kill", "shop", "--reason", "errors")
    assert killed.code == 0
    assert "warning: legacy is fenced since the cutover shop was finished" in killed.err
    assert "next: crossfade unkill shop" in killed.err
    assert (await eve.cf.command("unkill", "shop", "--reason", "a mistake")).code == 0
    async with (
        await psycopg.AsyncConnection.connect(eve.urls["legacy"], autocommit=True) as legacy,
        await psycopg.AsyncConnection.connect(eve.urls["new"], autocommit=True) as new,
    ):
        await new.execute("UPDATE accounts SET bio = 'by hand' WHERE id = 1")
        # The stream towards new runs on: what is written to legacy would come over new.
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            await legacy.execute(update)
        answer = await eve.does("prepare")
        assert (answer["side"], answer["generation"]) == ("new", 1)
        await eve.does("back")
        await legacy.execute(update)
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            await new.execute("UPDATE accounts SET bio = 'by hand' WHERE id = 1")
    load.must_be_fine()
    await eve.nothing_is_lost(load)


async def test_a_table_that_is_mapped_after_the_fences_were_put_up(eve: Night) -> None:
    """It is copied there, never back, and goes with the others."""
    await eve.prepare()
    for side in ("new", "legacy"):
        await eve.end_sync(side)
    migration = eve.cf.config_path.parent / "migration.py"
    text = migration.read_text()
    more = 'Table("coupons", "coupons", key=["id"], columns=["id", "text"]),'
    assert text.count("tables = [") == 1
    migration.write_text(text.replace("tables = [", f"tables = [{more}"))
    async with (
        await psycopg.AsyncConnection.connect(eve.urls["legacy"], autocommit=True) as legacy,
        await psycopg.AsyncConnection.connect(eve.urls["new"], autocommit=True) as new,
    ):
        for side_ in (legacy, new):
            await side_.execute("CREATE TABLE coupons (id int PRIMARY KEY, text text)")
        await legacy.execute("INSERT INTO coupons VALUES (1, 'of legacy')")
        await new.execute("INSERT INTO coupons VALUES (2, 'nobody knows why')")
        assert (await eve.cf.command("reload")).code == 0
        await eve.sync("legacy")
        assert await eve.streams["legacy"].wait() == 1
        stopped = await eve.cf.command("data", "status", "--towards", "legacy", "-o", "json")
        assert (stopped.code, json.loads(stopped.out)["reason"]) == (6, "not_alike")
        await eve.sync("new")
        await eve.follows("new")
        await new.execute("DELETE FROM coupons WHERE id = 2")
        await eve.does("prepare")
        await eve.sync("legacy")
        await eve.follows("legacy")
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            await new.execute("INSERT INTO coupons VALUES (3, 'beside the fence')")
        await eve.is_possible()
        await eve.does("run")
        await new.execute("INSERT INTO coupons VALUES (4, 'of new')")
        await eve.settled()
        there = await (await legacy.execute("SELECT id FROM coupons ORDER BY 1")).fetchall()
        assert there == [(1,), (4,)]
    await eve.both_are_equal()


async def test_tables_that_nobody_carries_are_said(eve: Night) -> None:
    config = eve.cf.config_path.read_text()
    eve.cf.configure(config.replace("cutovers:\n  shop:\n", "cutovers:\n  shop:\n    tables: [user]\n"))
    assert (await eve.cf.command("reload")).code == 0
    async with asyncio.timeout(60):
        while (await eve.cutover("plan"))[0] != 2:  # noqa: ASYNC110  (the control process hears of it)
            await asyncio.sleep(0.05)
    _, refused = await eve.cutover("plan")
    assert "tables: public.user is no table that" in refused["message"]
    assert "public.users" in refused["message"]


async def test_the_api_says_what_it_describes(eve: Night) -> None:
    ask = Client(eve.cf)
    document = await ask.done("GET", "/api/v1/openapi.json")
    here = f"/api/v1/cutovers/{CUTOVER}"
    await eve.sync("new")
    await eve.follows("new")

    async def conforming(method: str, path: str, template: str, said: object = None) -> None:
        answer = await ask(method, path, said)
        assert answer.status == 200, (method, path, answer)
        described = document["paths"][template][method.lower()]
        conforms(answer.body, described["responses"]["200"], document)

    cutover = "/api/v1/cutovers/{name}"
    await conforming("GET", here, cutover)
    await conforming("POST", f"{here}/prepare", f"{cutover}/prepare", WHY)
    await conforming("POST", f"{here}/prepare", f"{cutover}/prepare", WHY)
    await eve.sync("legacy")
    await eve.follows("legacy")
    await conforming("GET", f"{here}/plan", f"{cutover}/plan")
    await conforming("POST", f"{here}/run", f"{cutover}/run", {**WHY, "rehearse": True})
    again = await ask("POST", f"{here}/run", WHY)
    assert (again.status, again.body["error"]) in {(409, "conflict"), (409, "blocked")}
    await conforming("POST", f"{here}/abort", f"{cutover}/abort", WHY)
    await conforming("GET", "/api/v1/cutovers", "/api/v1/cutovers")
    async with asyncio.timeout(60):
        while (await ask("GET", here)).body["walks"][0]["ended_at"] is None:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    nothing = await ask("POST", f"{here}/abort", WHY)
    assert (nothing.status, nothing.body["error"]) == (404, "not_found")
    assert (await ask("GET", "/api/v1/cutovers/other")).status == 404
    assert (await ask("POST", f"{here}/back", WHY)).body["error"] == "blocked"
    await conforming("POST", f"{here}/finish", f"{cutover}/finish", WHY)
