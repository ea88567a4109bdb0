"""No superuser anywhere: each missing right is found by name, and what is said to do about it does it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import psycopg
import pytest

from crossfade.embedded.postgres import EmbeddedPostgres
from dualwrite import survey, sync, target
from dualwrite.apply import Applier
from dualwrite.capture import Way
from dualwrite.mapped import towards
from dualwrite.mapping import Table
from dualwrite.pg_connect import connect
from dualwrite.preflight import Finding, Weight
from dualwrite.sync import Direction, StoppedError, Told
from dualwrite.target import Source, State
from flags.model import Side
from tests.dualwrite.plain_users import granted, in_shop, plain_user, who
from tests.dualwrite.sample import connected, is_, rows, until
from tests.support.databases import fresh_database
from tests.support.sample_databases import forget

NAME = "rights_to_new"
LEGACY = "CREATE SCHEMA shop; CREATE TABLE shop.items (id int PRIMARY KEY, title text);" \
    " INSERT INTO shop.items SELECT n, 'title ' || n FROM generate_series(1, 500) n"  # fmt: skip
NEW = "CREATE SCHEMA shop; CREATE TABLE shop.things (id serial PRIMARY KEY, title text)"
TABLES = [Table("shop.items", "shop.things", key=["id"], columns=["id", "title"])]


@pytest.fixture
def places(postgres: EmbeddedPostgres) -> Iterator[tuple[str, str]]:
    """Both databases, by a superuser."""
    with fresh_database(postgres) as legacy, fresh_database(postgres) as new:
        for url, schema in ((legacy, LEGACY), (new, NEW)):
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute(schema)
        yield legacy, new
        forget(legacy, f"crossfade_{NAME}")


def said(found: Sequence[Finding]) -> list[Finding]:
    return [one for one in found if one.reason == "missing_privilege"]


async def _do(url: str, finding: Finding) -> None:
    """What the finding says, word for word; what follows a semicolon, a comma or a bracket is for people."""
    command = finding.remedy.partition(";")[0].partition(", or ")[0].partition(" (")[0]
    assert command.startswith(("GRANT ", "ALTER ROLE ")), finding
    async with connected(url) as admin:
        await admin.execute(command.encode())


@pytest.mark.parametrize("way", Way)
async def test_from_no_right_at_all_the_plan_leads_to_a_stream_that_runs(
    places: tuple[str, str], way: Way
) -> None:
    legacy, new = places
    with plain_user(legacy) as source, plain_user(new) as fed:
        direction = Direction(NAME, source, fed, towards(Side.NEW, TABLES, ()), way=way)
        told = Told()
        with pytest.raises(StoppedError) as stopped:
            await sync.run(direction, told)
        assert stopped.value.reason == "missing_privilege"
        seen = set()
        for _ in range(30):
            found = said((await survey.survey(direction)).findings)
            if not found:
                break
            here = psycopg.conninfo.conninfo_to_dict(source)["user"]
            await _do(legacy if str(here) in found[0].remedy else new, found[0])
            seen.add(found[0].message)
        assert not found
        assert len(seen) >= 12, seen
        running = asyncio.create_task(sync.run(direction, told))
        try:
            await until(lambda: is_(told, State.FOLLOWING), "it follows")
            async with connected(legacy) as writer, connected(new) as looking:
                await writer.execute("UPDATE shop.items SET title = 'changed' WHERE id = 7")
                await until(lambda: says(looking, "changed"), "it comes over")
                # Taken away in the middle of it all, it stops by the same word.
                user, _, _ = who(fed)
                await looking.execute(f"REVOKE UPDATE, INSERT ON shop.things FROM {user}".encode())
                await writer.execute("UPDATE shop.items SET title = 'again' WHERE id = 7")
                with pytest.raises(StoppedError, match="permission denied for table things") as stopped:
                    await running
                assert stopped.value.reason == "missing_privilege"
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


async def test_who_takes_over_may_end_the_session_of_the_one_before(places: tuple[str, str]) -> None:
    """That one may sleep, and would hold the origin as long as it does."""
    _, new = places
    with plain_user(new, in_shop(granted()["the target's user"])) as user:
        async with await connect(user) as looking:
            await target.prepare(looking)
            await target.create(looking, NAME, Source("7", 1, f"crossfade_{NAME}"), 100)
            sleeps = await Applier.open(user, NAME, 1)
            after = await Applier.open(user, NAME, 2)
            with pytest.raises(psycopg.OperationalError):
                await sleeps.chunk("any")
            assert await after.chunk("any") is None
            await sleeps.close()
            await after.close()
        async with connected(new) as admin:
            await admin.execute("SELECT pg_replication_origin_drop(%s)", (f"crossfade_{NAME}",))


async def test_rows_that_a_policy_hides_are_refused_and_not_left_out(places: tuple[str, str]) -> None:
    legacy, _ = places
    with plain_user(legacy, in_shop(granted()["the source's user"])) as source:
        async with connected(legacy) as admin:
            await admin.execute("ALTER TABLE shop.items ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
        async with await connect(source) as reader:
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"):
                await rows(reader, "SELECT * FROM shop.items")


async def says(looking: psycopg.AsyncConnection[Any], title: str) -> bool:
    return await rows(looking, "SELECT title FROM shop.things WHERE id = 7") == [(title,)]


@pytest.mark.parametrize(("side", "taken", "says"), [
    ("legacy", "ALTER ROLE {user} NOREPLICATION", "may not replicate"),
    ("legacy", "REVOKE CREATE ON DATABASE {database} FROM {user}", "may not create the publication"),
    ("legacy", "REVOKE {owner} FROM {user}", "only its owner may publish"),
    ("legacy", "ALTER TABLE shop.items ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY", "row security"),
    ("new", "REVOKE INSERT, DELETE ON shop.things FROM {user}", "may not INSERT and DELETE on shop.things"),
    ("new", "REVOKE USAGE ON SCHEMA shop FROM {user}", "may not use the schema shop"),
    ("new", "REVOKE SET ON PARAMETER session_replication_role FROM {user}", "keep triggers from"),
    ("new", "REVOKE EXECUTE ON FUNCTION pg_replication_origin_create(text) FROM {user}", "origin_create"),
    ("new", "REVOKE EXECUTE ON FUNCTION pg_replication_origin_oid(text) FROM {user}", "origin_oid"),
    ("new", "REVOKE EXECUTE ON FUNCTION pg_replication_origin_session_setup(text) FROM {user}", "_setup"),
    ("new", "REVOKE CREATE ON DATABASE {database} FROM {user}", "create the schema crossfade_sync"),
    ("new", "REVOKE TEMPORARY ON DATABASE {database} FROM PUBLIC, {user}", "temporary tables"),
])  # fmt: skip
async def test_each_right_that_is_missing_is_named_and_stops_a_stream(
    places: tuple[str, str], side: str, taken: str, says: str
) -> None:
    blocks = granted()
    legacy, new = places
    with (
        plain_user(legacy, in_shop(blocks["the source's user"])) as source,
        plain_user(new, in_shop(blocks["the target's user"])) as fed,
    ):
        direction = Direction(NAME, source, fed, towards(Side.NEW, TABLES, ()))
        assert not said((await survey.survey(direction)).findings)
        user, owner, database = who(source if side == "legacy" else fed)
        async with connected(legacy if side == "legacy" else new) as admin:
            await admin.execute(taken.format(user=user, owner=owner, database=database).encode())
        plan = await survey.survey(direction)
        assert [one.weight for one in said(plan.findings) if says in one.message] == [Weight.STOPS]
        assert not plan.possible
        with pytest.raises(StoppedError, match=says) as stopped:
            await sync.run(direction, Told())
        assert stopped.value.reason == "missing_privilege"
