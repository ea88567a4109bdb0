"""Somebody vanishes in the middle of a walk: it goes on, and whoever vanished does no harm by itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import yaml

from crossfade.embedded.postgres import EmbeddedPostgres
from crossfade.embedded.valkey import EmbeddedValkey
from tests.cutover.faults import one_is_open
from tests.cutover.planted import AFTER_ARMING, Stop, planted
from tests.cutover.scene import Night, _logged_in, databases, night
from tests.store.relay import Relay
from tests.support.crossfade_process import PATIENCE, RunningCrossfade, running_crossfade

NEVER_WALKS = """
    async def look_on(self):
        await asyncio.Event().wait()

    Conductor.run = look_on
"""


@contextlib.asynccontextmanager
async def eve_of(
    folder: Path, postgres: EmbeddedPostgres, store_url: str, bus: EmbeddedValkey
) -> AsyncIterator[tuple[Night, Stop]]:
    """A night whose walks stop between arming and the hold, until they are told to go on."""
    stop = Stop(folder, AFTER_ARMING)
    with databases(postgres) as (legacy, new):
        async with night(
            folder, store_url, bus.url(), legacy, new, environment=planted(folder, stop.code)
        ) as found:
            await found.prepare()
            yield found, stop


@pytest.mark.timeout(240)
async def test_a_worker_that_is_stopped_is_outwaited_and_does_no_harm_when_it_wakes_up(
    tmp_path: Path, postgres: EmbeddedPostgres, store_url: str, bus: EmbeddedValkey
) -> None:
    async with (
        eve_of(tmp_path, postgres, store_url, bus) as (eve, stop),
        eve.people(rest=0.05) as load,
    ):
        await load.grows_by(50)
        await eve.look_around()
        stopped = eve.workers[0]
        await nobody_waits_for_who_cannot_be_armed(eve, stopped)
        await load.grows_by(50)
        load.must_be_fine()
        walking = asyncio.create_task(eve.cutover("run", "--wait", "60"))
        await stop.reached()
        for what in ("prepare", "finish", "run", "back"):
            refused = await eve.does(what, code=6 if what in ("run", "back") else 9)
            assert "a walk of shop is under way" in refused["message"], what
        os.kill(stopped, signal.SIGSTOP)
        try:
            stop.go_on()
            code, answer = await walking
        finally:
            # What its clients have asked meanwhile is there when it wakes up.
            os.kill(stopped, signal.SIGCONT)
        walk = answer["walks"][0]
        assert (code, walk["state"], answer["side"]) == (0, "done", "new"), walk
        assert len(walk["found"]["outlasted"]) == 1
        assert walk["found"]["outlasted"][0].endswith(f"/{stopped}")
        assert 1.5 < walk["held_seconds"] < 6
        await load.grows_by(100)
        load.must_be_fine()
        assert await one_is_open(eve) == "new"
        await eve.does("back")
        await load.grows_by(50)
        await load.stop()
        load.must_be_fine()
        await eve.nothing_is_lost(load)


async def nobody_waits_for_who_cannot_be_armed(eve: Night, stopped: int) -> None:
    """Whoever has not said that it knows would send what changes something as it did before."""
    os.kill(stopped, signal.SIGSTOP)
    try:
        code, answer = await eve.cutover("run", "--wait", "60")
    finally:
        os.kill(stopped, signal.SIGCONT)
    walk = answer["walks"][0]
    assert code == 6, walk
    assert (walk["state"], walk["held_seconds"]) == ("cancelled", None)
    assert "not all workers are armed for the hold: worker" in walk["message"]


@pytest.mark.timeout(240)
async def test_an_instance_that_is_cut_off_lets_writes_wait_by_itself_and_the_walk_goes_on(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    postgres: EmbeddedPostgres,
    store_url: str,
    bus: EmbeddedValkey,
) -> None:
    folder = tmp_path_factory.mktemp("other")
    async with (
        eve_of(tmp_path, postgres, store_url, bus) as (eve, stop),
        Relay.to(store_url) as relay,
        another(folder, eve, relay.url) as other,
        eve.people(rest=0.05) as load,
        aiohttp.ClientSession(f"http://127.0.0.1:{other.port}", cookie_jar=aiohttp.DummyCookieJar()) as far,
    ):
        await load.grows_by(30)
        await eve.look_around()
        cookie = {"Cookie": f"sid={await _logged_in(far, load.people[0].name)}"}
        walking = asyncio.create_task(eve.cutover("run", "--wait", "60"))
        await stop.reached()
        # It can be asked, it has a lease, and then it hears and says nothing any more.
        known = load.people[0].titles
        known["night-before"] = await wrote(far, cookie, "night-before")
        relay.speaks.clear()
        stop.go_on()
        code, answer = await walking
        assert (code, answer["side"]) == (0, "new"), answer["walks"][0]
        assert len(answer["walks"][0]["found"]["outlasted"]) == 1
        waiting = asyncio.create_task(wrote(far, cookie, "night-meanwhile"))
        async with asyncio.timeout(PATIENCE):
            while not (await other.metrics()).total("crossfade_holding_requests"):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        # What reads is answered there all the same.
        async with far.get("/api/posts?limit=1", headers=cookie) as read:
            assert read.status == 200
        await load.grows_by(50)
        assert not waiting.done()
        relay.speaks.set()
        known["night-meanwhile"] = await waiting
        await load.stop()
        load.must_be_fine()
        await eve.nothing_is_lost(load)


async def wrote(session: aiohttp.ClientSession, cookie: dict[str, str], title: str) -> int:
    """The post's id."""
    async with session.post(
        "/api/posts", json={"title": title, "body": "from afar", "tags": []}, headers=cookie
    ) as answer:
        assert answer.status == 201, await answer.text()
        number: int = (await answer.json())["id"]
        return number


@contextlib.asynccontextmanager
async def another(folder: Path, first: Night, store_url: str) -> AsyncIterator[RunningCrossfade]:
    """A second instance of the same service, which never walks itself and hears no bell."""
    config = yaml.safe_load(first.cf.config_path.read_text())
    config = {key: config[key] for key in ("targets", "routes", "code", "data", "cutovers")}
    (folder / "migration.py").write_text((first.cf.config_path.parent / "migration.py").read_text())
    config |= {"workers": 1, "store": store_url, "bus": "none"}
    async with running_crossfade(folder, config, environment=planted(folder, NEVER_WALKS)) as cf:
        async with asyncio.timeout(PATIENCE):
            while "shop" not in (await cf.command("flag", "list")).out:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        yield cf
