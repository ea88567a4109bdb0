"""The whole way, forth and back, by users who are no superusers and have what docs/data.md grants."""

from __future__ import annotations

import json
from pathlib import Path

import psycopg

from crossfade.embedded.postgres import EmbeddedPostgres
from crossfade.embedded.valkey import EmbeddedValkey
from tests.cutover.scene import Night, databases, night
from tests.cutover.test_night import as_our_apply
from tests.dualwrite.plain_users import granted, plain_user, who

COPIES = """
    GRANT USAGE ON SCHEMA crossfade_copy TO crossfade;
    GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA crossfade_copy TO crossfade;
"""
"""Of the tables that the way back needs in the sample product's legacy database."""


async def data(eve: Night, *words: str, code: int = 0) -> dict[str, object]:
    done = await eve.cf.command("data", *words, "-o", "json")
    assert done.code == code, done
    found: dict[str, object] = json.loads(done.out)
    return found


async def test_copy_verify_repair_fence_and_switch_need_no_superuser(
    tmp_path: Path, postgres: EmbeddedPostgres, store_url: str, bus: EmbeddedValkey
) -> None:
    blocks = granted().values()
    with (
        databases(postgres) as (legacy, new),
        plain_user(legacy, *blocks, COPIES) as ours,
        plain_user(new, *blocks) as theirs,
    ):
        async with night(tmp_path, store_url, bus.url(), legacy, new, as_users=(ours, theirs)) as eve:
            plan = await data(eve, "plan")
            assert not [one for one in plan["findings"] if one["reason"] == "missing_privilege"]  # type: ignore[attr-defined]
            await eve.prepare()

            assert (await data(eve, "verify"))["equal"]
            async with as_our_apply(new) as faulty:
                await faulty.execute("UPDATE accounts SET bio = 'spoiled' WHERE id = 2")
            await data(eve, "verify", code=6)
            assert (await data(eve, "repair"))["equal"]

            async with eve.people(rest=0.01) as load:
                await load.grows_by(50)
                for what, side in (("run", "new"), ("back", "legacy")):
                    assert (await eve.does(what))["side"] == side
                    await load.grows_by(50)
            load.must_be_fine()
            await eve.nothing_is_lost(load)
            await eve.both_are_equal()
            await eve.does("finish")


async def test_what_a_cutover_may_not_do_is_said_before_anything_is_touched(
    tmp_path: Path, postgres: EmbeddedPostgres, store_url: str, bus: EmbeddedValkey
) -> None:
    blocks = granted()
    needs = list(blocks.values())
    with (
        databases(postgres) as (legacy, new),
        plain_user(legacy, *needs, COPIES) as ours,
        plain_user(new, *needs) as theirs,
    ):
        user, owner, _ = who(theirs)
        async with night(tmp_path, store_url, bus.url(), legacy, new, as_users=(ours, theirs)) as eve:
            await eve.sync("new")
            await eve.follows("new")
            with psycopg.connect(new, autocommit=True) as admin:
                admin.execute(f"REVOKE {owner} FROM {user}")
                admin.execute(
                    "REVOKE EXECUTE ON FUNCTION pg_replication_origin_session_is_setup() FROM " + user
                )
            said = await eve.cf.command("cutover", "prepare", "shop", "--reason", "a test")
            assert said.code == 6
            assert f"GRANT {owner} TO {user}" in said.err
            assert "pg_replication_origin_session_is_setup() TO" in said.err
            with psycopg.connect(legacy) as looking:
                fences = looking.execute("SELECT count(*) FROM pg_trigger WHERE tgname = 'crossfade_fence'")
                assert fences.fetchone() == (0,)
