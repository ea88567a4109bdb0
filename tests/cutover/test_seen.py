"""How a cutover stands is seen wherever somebody looks: the page, `status -w`, the doctor, and a refusal."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys

import psycopg
import pytest

from tests.admin.client import WHY, Client
from tests.cutover.scene import CUTOVER, Night
from tests.support.crossfade_process import PATIENCE


async def examined(eve: Night) -> dict[str, str]:
    """What the doctor says of the cutover, by what it is about."""
    done = await eve.cf.command("doctor", "-o", "json")
    return {
        one["about"]: f"{one['level']} {one['what']}"
        for one in json.loads(done.out)
        if one["about"] in ("cutover", "cutovers", "fence", "not_fenced", "journal")
    }


async def shown(eve: Night, row: str) -> None:
    """On the page, which does not wait long for the store."""
    async with asyncio.timeout(PATIENCE):
        while row not in (page := (await eve.cf.admin("/")).body.decode()):
            assert "<html" in page
            await asyncio.sleep(0.1)


@pytest.mark.timeout(200)
async def test_who_looks_sees_it(eve: Night) -> None:
    await shown(eve, "<td>shop<td><b>not prepared</b><td>0<td>-<td>none yet")
    assert await examined(eve) == {}
    await eve.prepare()
    assert await examined(eve) == {
        "cutover": "ok shop: legacy has the authority (generation 0), and its fences and journals say so"
    }
    watching = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "crossfade", "cutover", "status", "shop", "-w", "-c", str(eve.cf.config_path),
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert watching.stdout is not None
    async with asyncio.timeout(PATIENCE):
        first = await watching.stdout.readline()
        assert first.startswith(b"shop legacy, generation 0, open, workers v")
        await eve.does("run")
        while b"shop new, generation 1, open, walk 1 done" not in await watching.stdout.readline():
            pass
        watching.send_signal(signal.SIGINT)
        assert await watching.wait() == 0
    await shown(eve, "<td>shop<td><b>new</b><td>1<td>open<td>1 to new<td><span class=good>done</span><td>")
    # Somebody opens what is closed.
    async with await psycopg.AsyncConnection.connect(eve.urls["legacy"], autocommit=True) as stubborn:
        await stubborn.execute("SELECT setval('crossfade_sync.fence_shop', 1)")
    assert await examined(eve) == {"fence": "problem shop: legacy's fence is open"}


@pytest.mark.timeout(200)
async def test_all_that_stands_against_it_is_said_at_once_and_nothing_is_changed(eve: Night) -> None:
    await eve.prepare()
    ask = Client(eve.cf)
    added = await ask.done("POST", "/api/v1/people", {"name": "otto", "role": "operator", **WHY})
    await ask.done("PATCH", "/api/v1/flags/shop", {"needs_report": True, **WHY})
    person = Client(eve.cf)
    person.token = added["token"]
    run = f"/api/v1/cutovers/{CUTOVER}/run"
    # Nothing stands against it; what `run` will ask for is said all the same.
    planned = (await person("GET", f"/api/v1/cutovers/{CUTOVER}/plan")).body
    assert {one["reason"] for one in planned["asks"]} == {"report", "approval"}
    said = await eve.cf.command("cutover", "plan", "shop")
    assert "a walk that is no rehearsal asks for report: " in said.out
    assert "asks for approval" not in said.out
    assert said.code or "--report DIGEST" in said.err
    # Alone each of them is what it is everywhere else.
    asked = await ask("POST", run, WHY)
    assert asked.body["error"] == "report_needed"
    await ask.done("PATCH", "/api/v1/flags/shop", {"needs_report": False, **WHY})
    denied = await person("POST", run, WHY)
    assert (denied.status, denied.body["error"]) == (403, "denied")
    await ask.done("PATCH", "/api/v1/flags/shop", {"needs_report": True, **WHY})
    await eve.look_around()
    await eve.end_sync("new")
    async with await psycopg.AsyncConnection.connect(eve.urls["legacy"]) as nightly:
        await nightly.execute("UPDATE users SET about = about WHERE user_id = 1")
        # More than a beat: what has not been heard for as long counts as gone, and what writes as old.
        os.kill(eve.workers[0], signal.SIGSTOP)
        try:
            await ask("PATCH", "/api/v1/flags/shop", {"description": "a later version", **WHY})
            async with asyncio.timeout(PATIENCE):
                while True:
                    refused = await person("POST", run, WHY)
                    if "long_transaction: " in refused.body["message"]:
                        break
        finally:
            os.kill(eve.workers[0], signal.SIGCONT)
    assert refused.body["error"] == "blocked"
    for reason in ("no_process", "long_transaction", "workers", "report", "approval"):
        assert f"{reason}: " in refused.body["message"], reason
    assert "otto is operator" in refused.body["message"]
    answer = await eve.does("status")
    assert (answer["walks"], answer["side"], answer["phase"]) == ([], "legacy", "open")
