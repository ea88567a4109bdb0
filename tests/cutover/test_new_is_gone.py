"""New is gone: legacy takes over without what new still has. The runbook's own steps."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from datetime import datetime

import aiohttp
import psycopg
import pytest
from sqlalchemy import make_url

from tests.cutover.faults import one_is_open
from tests.cutover.scene import PEOPLE, Night, _logged_in
from tests.cutover.test_runbooks import RUNBOOKS, commands, inline

PAGE = "new-is-gone"


async def posted(session: aiohttp.ClientSession, token: str, title: str) -> int:
    async with session.post(
        "/api/posts", json={"title": title, "body": "-", "tags": []}, headers={"Cookie": f"sid={token}"}
    ) as answer:
        assert answer.status == 201, await answer.text()
        number: int = (await answer.json())["id"]
        return number


async def follow(eve: Night, words: list[str]) -> None:
    """One step of the page. Looking tells by its exit code that something is wrong, which it is."""
    done = await eve.cf.command(*words)
    allowed = (0, 6) if words[:2] == ["data", "verify"] else (0,)
    assert done.code in allowed, (words, done)


async def begin_anew(eve: Night) -> None:
    """The page's SQL, in the database that it names."""
    block = re.findall(r"```sql\n(.*?)```", (RUNBOOKS / f"{PAGE}.md").read_text(), re.DOTALL)[-1]
    for part in block.split("-- in ")[1:]:
        side, _, text = part.partition("\n")
        async with await psycopg.AsyncConnection.connect(eve.urls[side], autocommit=True) as connection:
            for statement in text.strip().rstrip(";").split(";\n"):
                await connection.execute(statement.encode())


@pytest.mark.timeout(240)
async def test_legacy_takes_over_without_new_and_another_night_comes(eve: Night) -> None:
    steps = [*commands(PAGE)]
    taking_over = steps.index(["kill", "shop", "--reason", "new is gone"]) + 1
    await eve.prepare()
    none = await eve.does("back", "--accept-loss", "--confirm", "shop", code=6)
    assert "there is nothing to lose" in none["message"]
    await eve.does("run")
    name = make_url(eve.urls["new"]).database
    base = f"http://127.0.0.1:{eve.cf.port}"
    async with (
        aiohttp.ClientSession(base, cookie_jar=aiohttp.DummyCookieJar()) as people,
        await psycopg.AsyncConnection.connect(eve.urls["legacy"], autocommit=True) as admin,
        contextlib.AsyncExitStack() as at_the_end,
    ):
        token = await _logged_in(people, PEOPLE[0])
        kept = await posted(people, token, "kept")
        await eve.settled()
        possible = await eve.does("back", "--accept-loss", "--confirm", "shop", code=6)
        assert "nothing has to be lost: crossfade cutover back shop" in possible["message"]
        await eve.end_sync("legacy")
        lost = await posted(people, token, "lost")
        there_again = f"ALTER DATABASE {name} ALLOW_CONNECTIONS true".encode()
        at_the_end.push_async_callback(admin.execute, there_again)
        await admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false".encode())
        await admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,)
        )
        gone = await eve.does("back", code=6)
        assert "shop: new cannot be reached: " in gone["message"]
        assert "runbooks/new-is-gone.md" in (await eve.does("plan", code=6))["message"]
        unsaid = await eve.cf.command("cutover", "back", "shop", "--accept-loss", "--reason", "a test")
        assert unsaid.code == 2
        assert "new cannot be reached" in unsaid.err
        assert "legacy has what came from new until" in unsaid.err
        assert "sequences leap by 10000" in unsaid.err
        assert "this loses data: say --confirm shop" in unsaid.err
        wrong = await eve.does("back", "--accept-loss", "--confirm", "shops", code=2)
        assert "nothing was done" in wrong["message"]
        for words in steps[:taking_over]:
            await follow(eve, words)
        walk = (await eve.does("status"))["walks"][0]
        assert (await eve.side(), walk["state"], walk["generation"]) == ("legacy", "done", 2)
        assert "new's fence is still open" in walk["message"]
        audit = json.loads((await eve.cf.command("audit", "tail", "-n", "50", "-o", "json")).out)["rows"]
        accepted = next(one for one in audit if one["action"] == "cutover.accept_loss")
        evidence = accepted["evidence"]
        assert "new cannot be reached" in evidence["why"]
        accepted_at = datetime.fromisoformat(accepted["at"]).timestamp()
        assert accepted_at - 30 < evidence["upto"] + evidence["seconds"] <= accepted_at
        after = await posted(people, token, "after")
        assert after > lost > kept  # a number that somebody has seen is not given to another
        await admin.execute(there_again)
        await eve.sync("legacy")
        async with asyncio.timeout(30):
            while True:
                code, plan = await eve.cutover("plan")
                found = {one["reason"]: (one["message"], one["remedy"]) for one in plan.get("blockers", ())}
                if (
                    found.get("fence") == ("new's fence is open", f"runbooks/{PAGE}.md")
                    and "stopped" in found
                ):
                    break
                await asyncio.sleep(0.1)
        assert code == 6
        for towards in list(eve.streams):
            await eve.end_sync(towards)
        for words in inline(PAGE):
            if words[:2] == ["data", "stop"]:
                await follow(eve, words)
        await begin_anew(eve)
        start = next(one for one in inline(PAGE) if one[:4] == ["data", "start", "--towards", "new"])
        await follow(eve, start)
        await eve.follows("new")
        for words in steps[taking_over:]:
            await follow(eve, words)
        # `prepare` has had the way back run as well; to say it once more does no harm.
        start = next(one for one in inline(PAGE) if one[:4] == ["data", "start", "--towards", "legacy"])
        await follow(eve, start)
        await eve.follows("legacy")
        await eve.cf.command("unkill", "shop", "--reason", "new is there again")
        assert await one_is_open(eve) == "legacy"
        await eve.is_possible()
        await eve.does("run")
        await eve.settled()
        await eve.both_are_equal()
        async with people.get(f"/api/posts/{after}", headers={"Cookie": f"sid={token}"}) as answer:
            assert answer.status == 200
        # Whoever works on it has two seconds to hear of that; the plan says it at once.
        await follow(eve, ["data", "stop", "--towards", "new", "--reason", "it is over"])
        stopped = (await eve.does("plan", code=6))["blockers"]
        assert "no process works on the way back towards new" in [one["message"] for one in stopped]
