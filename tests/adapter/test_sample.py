"""The sample product behind Crossfade: whoever is logged in stays logged in, to and fro."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

import examples.migration
from crossfade.embedded.postgres import EmbeddedPostgres
from tests.sample.backends import PASSWORD, Backend
from tests.support.crossfade_process import RunningCrossfade, running_crossfade
from tests.support.databases import fresh_database

CODE = Path(examples.migration.__file__)
TEXT = CODE.read_text()
TO_NEW = """
    INSERT INTO sessions (token_hash, account_id, expires_at)
    VALUES (decode(%(sid_hash)s, 'hex'), %(user_id)s, %(expires)s::timestamp AT TIME ZONE 'Europe/Berlin')
"""
TO_LEGACY = """
    INSERT INTO sessions (sid_hash, user_id, expires)
    VALUES (encode(%(token_hash)s, 'hex'), %(account_id)s, %(expires_at)s AT TIME ZONE 'Europe/Berlin')
"""


class Tap:
    """Listens between Crossfade and a backend: what was asked, byte for byte."""

    def __init__(self) -> None:
        self.asked = bytearray()

    async def relay(self, port: int) -> asyncio.Server:
        async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            theirs, ours = await asyncio.open_connection("127.0.0.1", port)
            await asyncio.gather(
                self._copy(reader, ours, self.asked), self._copy(theirs, writer, bytearray())
            )

        return await asyncio.start_server(meet, "127.0.0.1", 0)

    async def _copy(self, source: asyncio.StreamReader, to: asyncio.StreamWriter, kept: bytearray) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(65536):
                kept += data
                to.write(data)
                await to.drain()
        to.close()


def config(legacy: int, new: int, side: str, code: Path = CODE) -> dict[str, Any]:
    return {
        "workers": 1,
        "targets": {
            "legacy": {"url": f"http://127.0.0.1:{legacy}"},
            "new": {"url": f"http://127.0.0.1:{new}"},
        },
        "code": str(code),
        "routes": [{"flag": "all", "match": {"path": "/**"}, "target": side, "adapter": {"new": "session"}}],
    }


@pytest.fixture
def product(postgres: EmbeddedPostgres, tmp_path: Path) -> Iterator[tuple[Backend, Backend]]:
    with (
        fresh_database(postgres) as old,
        fresh_database(postgres) as new,
        Backend("legacy", old, tmp_path) as legacy,
        Backend("new", new, tmp_path) as fresh,
    ):
        yield legacy, fresh


@contextlib.asynccontextmanager
async def browser_at(cf: RunningCrossfade) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{cf.port}", trust_env=False, timeout=30
    ) as client:
        yield client


async def log_in(browser: httpx.AsyncClient, username: str) -> None:
    answer = await browser.post("/api/session", json={"username": username, "password": PASSWORD})
    assert answer.status_code == 201
    assert browser.cookies["sid"]


async def who(browser: httpx.AsyncClient) -> str:
    """Whom the backend takes the browser's user for; the browser knows its cookie and nothing else."""
    answer = await browser.get("/api/me")
    return str(answer.json()["username"]) if answer.status_code == 200 else f"nobody, {answer.status_code}"


def carry(source: Backend, target: Backend, insert: str) -> None:
    """Copy all sessions, as the streams between the databases will."""
    with psycopg.connect(source.database, row_factory=psycopg.rows.dict_row) as ours:
        rows = ours.execute("SELECT * FROM sessions").fetchall()
    with psycopg.connect(target.database) as theirs:
        theirs.execute("DELETE FROM sessions")
        for row in rows:
            theirs.execute(insert, row)


def ready(status: dict[str, Any]) -> list[dict[str, Any]]:
    return [worker for worker in status["workers"] if worker["state"] == "ready"]


async def moved(cf: RunningCrossfade, wanted: dict[str, Any]) -> None:
    cf.configure(wanted)
    finished = await cf.command("reload")
    assert finished.code == 0, finished.err


async def test_who_is_logged_in_stays_so_when_moved_to_new_and_back(
    product: tuple[Backend, Backend], tmp_path: Path
) -> None:
    legacy, new = product
    tap = Tap()
    server = await tap.relay(new.port)
    tapped = server.sockets[0].getsockname()[1]
    at = {side: config(legacy.port, tapped, side) for side in ("legacy", "new")}
    async with running_crossfade(tmp_path, at["legacy"]) as cf, browser_at(cf) as bea, browser_at(cf) as chen:
        await log_in(bea, "bea")
        assert await who(bea) == "bea"
        assert tap.asked == b""

        carry(legacy, new, TO_NEW)
        await moved(cf, at["new"])
        assert await who(bea) == "bea"
        assert f"Bearer {bea.cookies['sid']}".encode() in tap.asked
        assert b"\r\ncookie:" not in tap.asked.lower(), "new is asked with a token, never with the cookie"
        assert await who(chen) == "nobody, 401"
        await log_in(chen, "chen")
        assert await who(chen) == "chen"

        carry(new, legacy, TO_LEGACY)
        await moved(cf, at["legacy"])
        assert [await who(bea), await who(chen)] == ["bea", "chen"]

        await moved(cf, at["new"])
        assert (await chen.delete("/api/session")).status_code == 204
        assert "sid" not in chen.cookies
        assert await who(chen) == "nobody, 401"
        assert await who(bea) == "bea"
    server.close()
    await server.wait_closed()


async def test_code_that_cannot_be_used_changes_nothing(tmp_path: Path) -> None:
    code = tmp_path / "migration.py"
    code.write_text(TEXT)
    wanted = config(9, 9, "new", code)
    async with running_crossfade(tmp_path, wanted) as cf:
        pids = await cf.worker_pids()
        code.write_text("x = 1 / 0\n")
        finished = await cf.command("reload")
        assert finished.code != 0
        assert f"{code}:1: ZeroDivisionError: division by zero" in finished.err + finished.out
        assert await cf.worker_pids() == pids
        assert (await cf.get("/api/me")).status == 502, "it serves on, and the target is not there"
        os.kill(pids[0], signal.SIGKILL)
        await cf.until(lambda status: {w["pid"] for w in ready(status)} - {*pids})
        assert (await cf.get("/api/me")).status == 502, "who follows a dead worker runs the code in force"
        code.write_text(TEXT.replace('"session"', '"renamed"'))
        finished = await cf.command("reload")
        assert finished.code != 0
        assert "names the adapter session; there is renamed" in finished.err + finished.out
        code.write_text(TEXT)
        assert (await cf.command("reload")).code == 0


async def test_code_that_cannot_be_used_does_not_start(tmp_path: Path) -> None:
    code = tmp_path / "migration.py"
    code.write_text("project = 3\n")
    with pytest.raises(RuntimeError, match=r"expected project = crossfade.Project\(...\), found a int"):
        async with running_crossfade(tmp_path, config(9, 9, "new", code)):
            pass
