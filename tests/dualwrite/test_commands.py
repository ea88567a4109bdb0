"""The commands of the data half, as somebody types them, with the process that syncs killed on the way."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from crossfade.kept_progress import OLDEST, KeptProgress
from dualwrite.segments import Progress
from dualwrite.stream_states import State
from tests.dualwrite.sample import alike, connected, is_, running, until, write
from tests.support.crossfade_process import crossfade_command

MIGRATION = Path(__file__).parents[2] / "examples" / "migration.py"


@pytest.fixture
def config(tmp_path: Path, legacy_url: str, new_url: str) -> Path:
    (tmp_path / "migration.py").write_text(MIGRATION.read_text())
    file = tmp_path / "crossfade.yaml"
    said = {
        "targets": {"legacy": {"url": "http://127.0.0.1:1"}, "new": {"url": "http://127.0.0.1:2"}},
        "code": "migration.py",
        "data": {"legacy": {"url": legacy_url}, "new": {"url": new_url}},
    }
    file.write_text(json.dumps(said))
    return file


async def data(config: Path, *arguments: str, code: int = 0) -> Any:
    done = await crossfade_command("data", *arguments, "-o", "json", "-c", str(config))
    assert done.code == code, done
    return json.loads(done.out or done.err)


@contextlib.asynccontextmanager
async def syncing(config: Path, *more: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "crossfade", "sync", *more, "-c", str(config),
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE, env={**os.environ},
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _works(config: Path, pid: int) -> bool:
    done = await crossfade_command("data", "status", "-o", "json", "-c", str(config))
    return str(json.loads(done.out)["holder"]).endswith(f"pid {pid}")


async def stands(config: Path, state: str) -> bool:
    done = await crossfade_command("data", "status", "-o", "json", "-c", str(config))
    return bool(done.out) and json.loads(done.out)["state"] == state


async def test_from_the_plan_to_the_repair(config: Path, legacy_url: str, new_url: str) -> None:
    plan = await data(config, "plan")
    assert plan["possible"]
    assert [one["name"] for one in plan["planned"]][-1] == "after public.posts, 0"
    assert "not_empty" not in {one["reason"] for one in plan["findings"]}
    assert (await data(config, "plan", "--towards", "legacy"))["possible"]
    nothing = await data(config, "status", code=3)
    assert nothing["error"] == "not_found"
    assert "crossfade data start" in nothing["next"][1]
    for what in ("verify", "repair"):
        nothing = await data(config, what, "--towards", "legacy", code=3)
        assert nothing["message"] == "the stream to_legacy was never begun"

    chance = random.Random(2)
    async with connected(legacy_url) as legacy, connected(new_url) as new:
        for _ in range(3):
            before = await _epoch(new)
            async with syncing(config) as process:
                await until(_begun(new, before), "it has begun")
                for _ in range(20):
                    await write(legacy, chance)
                process.kill()
        async with syncing(config) as process:
            await until(lambda: stands(config, "following"), "it follows")
            for _ in range(20):
                await write(legacy, chance)
            await until(lambda: alike(legacy, new), "both are alike")

            status = await data(config, "status")
            assert status["epoch"] >= 4
            assert status["slot"]["wal_status"] == "reserved"
            assert all(one["done"] for one in status["copies"])

            assert (await data(config, "verify"))["equal"]
            await new.execute("UPDATE accounts SET bio = 'spoiled' WHERE id = 2")
            await new.execute("DELETE FROM comments")
            found = await data(config, "verify", code=6)
            accounts = next(one for one in found["compared"] if one["name"].endswith("public.accounts"))
            assert accounts["differences"] == [
                {"kind": "different", "key": ["2"], "source_key": ["2"], "columns": ["bio"]}
            ]
            report = config.with_name("report.json")
            again = await data(config, "verify", "--portable", "--fresh", "--report", str(report), code=6)
            written = json.loads(report.read_text())
            assert written == again
            exact = await data(config, "verify", "--exact", code=6)
            assert [one["differences"] for one in exact["compared"]] == [
                one["differences"] for one in written["compared"]
            ]
            # One moment for all tables.
            (at,) = {json.dumps(one["cut"]) for one in exact["compared"]}
            assert json.loads(at).keys() == {"stream", "position", "applied", "stood"}
            assert {one["cut"] for one in written["compared"]} == {None}
            # The sample's rows go through functions; none of them can be compared by hashes.
            assert {one["form"] for one in written["compared"]} == {None}
            assert not list(config.parent.glob(".crossfade/verify/*/*"))
            dry = await crossfade_command("data", "repair", "--dry-run", "-c", str(config))
            assert dry.code == 6
            assert "key 2  different: bio" in dry.out
            only = await crossfade_command(
                "data", "repair", "--dry-run", "--table", "public.accounts", "-c", str(config)
            )
            assert "dry run: 1 row would be written anew" in only.err
            assert (await data(config, "repair"))["equal"]
            assert await alike(legacy, new)
            jobs = {(one["kind"], one["state"]) for one in (await data(config, "status"))["jobs"]}
            assert jobs == {("backfill", "done"), ("repair", "done")}

            # One that comes later stands by, unless it is to take over; the one before stands by then.
            before = await _epoch(new)
            async with syncing(config) as second, syncing(config, "--take-over") as third:
                # Between the end of the one before and the beginning of the next the other may have it for a
                # moment, and is taken over from as well.
                await until(lambda: _works(config, third.pid), "it has taken over")
                assert await _epoch(new) > before
                holder = (await data(config, "status"))["holder"]
                assert (process.returncode, second.returncode) == (None, None)
                await write(legacy, chance)
                await until(lambda: alike(legacy, new), "both are alike")
                assert (await data(config, "status"))["holder"] == holder

        # Nobody is there any more, and the status says so.
        await until(lambda: _nobody(config), "the server has noticed")
        before = await _epoch(new)
        async with syncing(config) as process:
            await until(_begun(new, before), "it has begun")
            assert (await data(config, "status"))["held"]
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(30):
                assert await process.wait() == 0


def test_what_is_kept_of_a_comparison_comes_back_unless_it_is_old(tmp_path: Path) -> None:
    kept = KeptProgress(tmp_path, "to_new")
    assert kept.load("public.a to public.b") == Progress()
    half = Progress("of a and b", ("7", "ä"), 1000, 5000, 4, {(("3", "x"), -(2**63)), (("3", "x"), 5)})
    kept.save("public.a to public.b", half)
    assert KeptProgress(tmp_path, "to_new").load("public.a to public.b") == half
    assert kept.load("public.a to public.c") == Progress()
    (file,) = (tmp_path / "verify" / "to_new").iterdir()
    os.utime(file, (time.time() - OLDEST - 1,) * 2)
    assert kept.load("public.a to public.b") == Progress()
    file.write_text('{"of": "of a and b"')
    assert kept.load("public.a to public.b") == Progress()
    kept.forget()
    assert not file.exists()


async def _nobody(config: Path) -> bool:
    return not (await data(config, "status"))["held"]


async def _epoch(new: psycopg.AsyncConnection) -> int:
    try:
        cursor = await new.execute("SELECT max(epoch) FROM crossfade_sync.streams")
    except psycopg.errors.UndefinedTable:
        return 0
    return (await cursor.fetchone() or (0,))[0] or 0


def _begun(new: psycopg.AsyncConnection, before: int) -> Callable[[], Awaitable[bool]]:
    async def fact() -> bool:
        return await _epoch(new) > before

    return fact


async def test_what_stops_it_is_told_everywhere(config: Path, legacy_url: str) -> None:
    async with connected(legacy_url) as legacy, syncing(config) as process:
        await until(lambda: stands(config, "following"), "it follows")
        await legacy.execute("ALTER TABLE users ADD COLUMN more text")
        await legacy.execute("UPDATE users SET more = 'x' WHERE user_id = 1")
        async with asyncio.timeout(30):
            assert await process.wait() == 1
        assert process.stderr is not None
        said = (await process.stderr.read()).decode()
        assert "stopped (column_unknown)" in said
        status = await data(config, "status", code=6)
        assert (status["state"], status["reason"]) == ("stopped", "column_unknown")
        plan = await data(config, "plan", code=1)
        assert "column_unknown" in {one["reason"] for one in plan["findings"]}


async def test_the_plan_names_all_that_is_wrong_and_touches_nothing(
    config: Path, legacy_url: str, new_url: str
) -> None:
    async with connected(legacy_url) as legacy, connected(new_url) as new:
        await legacy.execute("ALTER TABLE sessions DROP CONSTRAINT sessions_pkey")
        await new.execute("ALTER TABLE accounts ADD COLUMN needed text NOT NULL")
        await new.execute("ALTER TABLE transfers ALTER amount_cents TYPE int")
        await new.execute("DROP TABLE comments")
        await new.execute("SET session_replication_role = replica")
        await new.execute("INSERT INTO wallets (account_id, balance_cents) VALUES (7, 0)")
        plan = await data(config, "plan", code=1)
        [there] = [one for one in plan["findings"] if one["reason"] == "not_empty"]
        assert (there["weight"], there["message"].partition(" at ")[0]) == ("warns", "public.wallets")
        found = {(one["weight"], one["reason"]) for one in plan["findings"]}
        assert {("stops", "no_identity"), ("stops", "column_unfilled"), ("stops", "no_table")} <= found
        slots = await legacy.execute("SELECT count(*) FROM pg_publication")
        assert await slots.fetchall() == [(0,)]
        schemas = await new.execute("SELECT to_regclass('crossfade_sync.streams')")
        assert await schemas.fetchall() == [(None,)]


def _without_legacy(config: Path) -> Path:
    said = json.loads(config.read_text())
    said["data"]["legacy"]["url"] = "postgresql://127.0.0.1:1/legacy"
    config.write_text(json.dumps(said))
    return config


async def test_which_side_cannot_be_reached_is_said(config: Path) -> None:
    message = (await data(_without_legacy(config), "plan", code=1))["message"]
    assert message.startswith("legacy's database cannot be reached: "), message
    assert "new's" not in message


async def test_a_source_that_is_away_hides_nothing_of_what_the_target_knows(
    config: Path, legacy_url: str, new_url: str
) -> None:
    """It is the night on which one looks, and may have to stop what runs."""
    async with running(legacy_url, new_url) as told:
        await until(lambda: is_(told, State.FOLLOWING), "it follows")
    away = _without_legacy(config)
    known = await data(away, "status", code=1)
    assert (known["state"], known["slot"], known["copies"][0]["done"]) == ("following", None, True)
    assert known["unreached"].startswith("legacy's database cannot be reached: ")
    shown = await crossfade_command("data", "status", "-c", str(away))
    assert shown.code == 1
    assert "this is what its target knows" in shown.out
    stopped = await crossfade_command("data", "stop", "-c", str(away), "--reason", "the source is away")
    assert stopped.code == 0, stopped


@pytest.mark.parametrize(("line", "says"), [
    ("data: {legacy: {url: 'mysql://h/a'}, new: {url: 'postgresql:///b'}}", "is no PostgreSQL"),
    ("bus: none", "data: is missing"),
])  # fmt: skip
async def test_what_cannot_be_synced_is_said(tmp_path: Path, line: str, says: str) -> None:
    (tmp_path / "migration.py").write_text(MIGRATION.read_text())
    file = tmp_path / "crossfade.yaml"
    file.write_text(
        "targets: {legacy: {url: 'http://127.0.0.1:1'}, new: {url: 'http://127.0.0.1:2'}}\n"
        f"code: migration.py\n{line}\n"
    )
    done = await crossfade_command("data", "plan", "-c", str(file))
    assert (done.code, says in done.err) == (2, True)
    done = await crossfade_command("sync", "-c", str(file))
    assert (done.code, says in done.err) == (2, True)
