"""What the commands say and how they end where it hurts: each exit code, terminals, files with errors."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import make_url

from crossfade.embedded.postgres import EmbeddedPostgres
from tests.admin.client import Client, obeyed
from tests.supervisor.backend import backend
from tests.support.crossfade_process import PATIENCE, RunningCrossfade, crossfade_command, running_crossfade

WHY = ("--reason", "a test")
COLOUR = re.compile(r"\x1b\[[0-9]+m")


async def test_a_worker_that_does_not_obey_in_time_is_exit_code_7(cf: RunningCrossfade) -> None:
    (worker,) = await cf.worker_pids()
    os.kill(worker, signal.SIGSTOP)
    try:
        done = await cf.command("flag", "move", "items.read", "--to", "shadow", *WHY, "--wait", "0.5")
    finally:
        os.kill(worker, signal.SIGCONT)
    assert done.code == 7
    assert "0/1 workers on v2" in done.out
    assert "worker 0 of" in done.err
    assert "runs v1" in done.err
    assert "next: crossfade proxy status" in done.err
    # It obeys as soon as it can.
    await cf.until(lambda status: status["workers"][0]["flags_version"] == 2)
    async with asyncio.timeout(PATIENCE):
        while "1 on v2" not in (everybody := await cf.command("proxy", "status", "--all")).out:
            pass  # the store hears of it a moment later
    assert "the store is at v2" in everybody.err
    own = (await cf.command("proxy", "status")).out
    assert re.search(r"^flags v2 from \S+, confirmed [0-9.]+ s ago$", own, re.MULTILINE)
    assert re.search(r"^0 +[0-9]+ +ready +1 +v2 ", own, re.MULTILINE)


async def test_a_tripped_guardrail_is_exit_code_6(tmp_path: Path, config: dict[str, Any]) -> None:
    """A ramp to a backend that does not even listen: rolled back, said, and not begun again by accident."""
    async with backend("legacy") as legacy:
        config["targets"]["legacy"] = {"url": legacy.url}
        async with running_crossfade(tmp_path, config) as cf:
            await cf.until(lambda status: status["flags"]["version"] > 0)
            flag = ("items.read",)
            await _done(cf, "flag", "edit", *flag, "--bucket-by", "query:user", *WHY)
            await _done(cf, "flag", "move", *flag, "--to", "shadow", *WHY)
            limits = ("--min-requests", "20", "--ceiling", "0.5")
            await _done(cf, "guardrail", "set", *flag, "--signal", "errors", *limits, *WHY)
            start = ("ramp", "start", *flag, "--to", "live", "--steps", "50%:10m,100%", *WHY)
            await _done(cf, *start)
            waiting = asyncio.create_task(cf.command("ramp", "status", *flag, "--wait", str(PATIENCE)))
            await cf.until(lambda status: status["flags"]["version"] >= 4)
            number = 0
            while not waiting.done():
                await cf.get(f"/items/1?user={(number := number + 1)}")

            ended = await waiting
            assert ended.code == 6
            assert ended.out.startswith("items.read: tripped, step 1 of 2")
            assert "next: crossfade guardrail list items.read" in ended.err
            assert (await cf.command("ramp", "status", *flag)).code == 6
            again = await cf.command(*start)
            assert again.code == 6
            assert "has tripped" in again.err
            assert (await cf.get("/items/1?user=1")).body == b"legacy"
            shown = await cf.command("guardrail", "list")
            assert "tripped" in shown.out
            assert "next: crossfade guardrail rearm items.read:errors" in shown.err
            doctor = await cf.command("doctor")
            assert "tripped       items.read:errors" in doctor.out
            await _done(cf, "guardrail", "rearm", "items.read:errors", *WHY)
            await _done(cf, *start)


async def test_a_store_that_is_away_is_exit_code_1_and_a_kill_works_all_the_same(
    cf: RunningCrossfade, postgres: EmbeddedPostgres, database_url: str
) -> None:
    with _away(postgres, database_url):
        done = await cf.command("flag", "move", "items.read", "--to", "shadow", *WHY)
        assert done.code == 1
        assert "cannot reach the store" in done.err
        assert "next: crossfade doctor" in done.err
        shown = await cf.command("flag", "list")
        assert shown.code == 0
        assert "this is what the instance goes on by" in shown.err
        ill = await cf.command("doctor")
        assert ill.code == 1
        assert "problem  store" in ill.out

        killed = await obeyed(cf, "kill", "items.read")
        assert "killed items.read: " in killed.out + killed.err
        assert "this host tells the store" in killed.err
        mended = await obeyed(cf, "unkill", "items.read")
        assert "took back the kill of items.read" in mended.out + mended.err
        machines = json.loads((await obeyed(cf, "kill", "items.write", "-o", "json")).out)
        assert machines["here"]["lines"][0].startswith("killed items.write: ")
    # What was taken back here is not carried to the store; what was not, is.
    await cf.until(lambda status: not status["flags"]["kills"])
    stands = {key: flag["stands"] for key, flag in (await _flags(cf)).items()}
    assert stands == {"items.read": "legacy", "items.write": "killed (legacy)"}


@pytest.mark.asyncio(loop_scope="package")
async def test_a_kill_is_one_answer_for_machines(together: Client) -> None:
    cf = together.cf
    await _done(cf, "flag", "create", "machines.kill", *WHY, "--wait")
    done = await obeyed(cf, "kill", "machines.kill", "--wait", "-o", "json")
    answer = json.loads(done.out)
    assert answer["here"]["code"] == done.code
    assert answer["converged"]["complete"]
    wrong = await cf.command("kill", "machines.kil", *WHY, "-o", "json")
    assert wrong.code == 3
    assert json.loads(wrong.out)["here"]["lines"] == [
        'there is no flag "machines.kil"; did you mean machines.kill?'
    ]
    refused = await cf.command("flag", "move", "items.read", "--to", "live", *WHY, "-o", "json")
    assert refused.code == 2
    assert refused.out == ""
    said = json.loads(refused.err)
    assert (said["error"], bool(said["next"])) == ("stage_jump", True)


@pytest.mark.asyncio(loop_scope="package")
async def test_a_file_is_told_all_that_is_wrong_with_it_and_where(together: Client, tmp_path: Path) -> None:
    cf = together.cf
    file = tmp_path / "flags.yaml"
    file.write_text(
        """flags:
  - key: items.read
    transition: {from: legacy, to: shadow, weight: 500%}
  - key: items.write
    transition: {from: legacy, to: shadow, weight: 5}
  - key: third
    fallback: half
  - key: fourth
    rules:
      - id: qa
        when: {attribute: "header:x-qa", is: 1}
        transition: {from: legacy, to: shadow, weight: 5%}
  - key: Fifth
  - key: sixth
    expires_on: soon
  - key: seventh
    transition: {from: legacy, to: live, weight: 1%}
  - key: eighth
    owner: [ada]
  - key: ninth
    key: again
  - colour: red
extra: 1
"""
    )
    done = await cf.command("apply", "-f", str(file), *WHY)
    assert (done.code, done.out) == (2, "")
    for line in (
        "3: flags[0].transition.weight: found 500%; expected a share such as 5% or 0.01%",
        "5: flags[1].transition.weight: found 5; expected a share such as 5% or 0.01%",
        "7: flags[2].fallback: found half; expected a share such as 5% or 0.01%",
        "11: flags[3].rules[0].when.is: unknown",
        '13: flags[4].key: "Fifth" is no flag key',
        '15: flags[5].expires_on: "soon" is no date',
        "17: flags[6].transition: legacy and live are no neighbours",
        "19: flags[7].owner: expected text",
        "21: flags[8].key: found the key a second time (first on line 20)",
        "22: flags[9].colour: unknown",
        "23: extra: unknown; expected flags",
    ):
        assert f"{file}:{line}" in done.err, (line, done.err)
    assert "ninth" not in await _flags(cf)

    # A variable of a shell is text like any other here.
    file.write_text('flags: [{key: literal, description: "costs ${HOME} or file:/etc/passwd"}]')
    assert (await cf.command("apply", "-f", str(file), *WHY)).out.startswith("literal: new, at legacy\nv")
    assert (await _flags(cf))["literal"]["description"] == "costs ${HOME} or file:/etc/passwd"


@pytest.mark.asyncio(loop_scope="package")
async def test_a_plan_that_is_overtaken_is_exit_code_9(together: Client, tmp_path: Path) -> None:
    cf = together.cf
    file = tmp_path / "flags.yaml"
    file.write_text("flags: [{key: overtaken}]")
    planned = await cf.command("apply", "-f", str(file), *WHY, "--dry-run")
    assert planned.out == "overtaken: new, at legacy\n"
    expected = planned.err.strip().rpartition("--expect-version ")[2]
    await _done(cf, "flag", "create", "meanwhile", *WHY)
    done = await cf.command("apply", "-f", str(file), *WHY, "--expect-version", expected)
    assert done.code == 9
    assert f"the flag set is at version {int(expected) + 1}, not {expected}" in done.err
    assert "overtaken" not in await _flags(cf)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("flag", "move", "items.read", "--to", "shadow", "--weight", "5"), "a share such as 5%"),
        (("flag", "move", "items.read", "--to", "mars"), "invalid choice: 'mars'"),
        (("flag", "move", "items.read", "--to", "shadow", "--wait", "long"), "no number of seconds"),
        (("flag", "explain", "/", "--attribute", "plan"), "expected NAME=VALUE"),
        (("ramp", "start", "items.read", "--to", "live", "--steps", "5:10m"), "is no step"),
        (("ramp", "start", "items.read", "--to", "live", "--steps", "5%", "--window", "x"), "is no window"),
        (("ramp", "status", "--wait"), "name it"),
        (("guardrail", "set", "items.read"), "--signal"),
        (("person", "add", "bob", "--role", "king"), "invalid choice: 'king'"),
        (("apply", "-f", "nothing.yaml"), "no readable file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
async def test_wrong_usage_is_exit_code_2(config_file: Path, arguments: tuple[str, ...], says: str) -> None:
    done = await crossfade_command(*arguments, "-c", str(config_file))
    assert (done.code, done.out) == (2, "")
    assert says in done.err


@pytest.mark.parametrize(
    "arguments",
    [("--version",), ("proxy", "status"), ("flag", "list"), ("kill", "x"), ("flag", "get", "x")],
    ids=" ".join,
)
async def test_what_a_command_does_not_need_it_does_not_import(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    (tmp_path / "crossfade.yaml").write_text("")
    program = (
        "import sys; from crossfade.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print(*sorted(sys.modules))"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-c", program, *arguments, cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    out, _ = await process.communicate()
    modules = out.decode().split()
    assert "crossfade.cli" in modules
    for costly in ("sqlalchemy", "aiohttp", "pydantic", "psycopg", "redis", "structlog", "uvloop", "alembic"):
        assert costly not in modules


@pytest.mark.asyncio(loop_scope="package")
async def test_colours_are_for_terminals_whose_owner_wants_them(together: Client) -> None:
    cf = together.cf
    await obeyed(cf, "kill", "--all")
    arguments = ("flag", "list", "-c", str(cf.config_path))
    async with _terminal(*arguments) as shown:
        await shown.until(lambda text: "items.write" in text)
        assert COLOUR.search(shown.text)
    async with _terminal(*arguments, NO_COLOR="1") as shown:
        await shown.until(lambda text: "items.write" in text)
        assert not COLOUR.search(shown.text)
    assert not COLOUR.search((await cf.command("flag", "list")).out)
    await _done(cf, "unkill", "--all", *WHY)


@pytest.mark.asyncio(loop_scope="package")
async def test_from_elsewhere_an_address_and_a_token_are_enough(together: Client) -> None:
    api = ("--api", f"http://127.0.0.1:{together.cf.admin_port}")
    nobody = await crossfade_command("flag", "list", *api)
    assert nobody.code == 4
    assert "--token or CROSSFADE_TOKEN" in nobody.err
    made = await together.done("POST", "/api/v1/people", {"reason": "x", "name": "far", "role": "operator"})
    token = ("--token", made["token"])
    done = await crossfade_command("flag", "create", "far.away", *WHY, *api, *token)
    assert done.code == 0
    killed = await crossfade_command("kill", "far.away", *WHY, "--wait", *api, *token)
    assert (killed.code, killed.out.splitlines()[0]) == (0, "far.away: killed: everybody to legacy")
    (row,) = (await together.done("GET", "/api/v1/audit?limit=1"))["rows"]
    assert (row["actor"]["name"], row["actor"]["via"], row["action"]) == ("far", "cli", "flag.kill")
    for wrong in ("10.0.0.7", "ftp://10.0.0.7", "http://[x", "http://10.0.0.7/api"):
        assert (await crossfade_command("flag", "list", "--api", wrong, *token)).code == 2
    silent = await crossfade_command("flag", "list", "--api", "http://127.0.0.1:1", *token)
    assert silent.code == 1
    assert "does not answer" in silent.err


async def test_a_watch_on_a_terminal_redraws_and_outlives_the_control_process(cf: RunningCrossfade) -> None:
    async with _terminal("flag", "get", "items.read", "-w", "-c", str(cf.config_path)) as shown:
        await shown.until(lambda text: "stands      legacy" in text)
        os.kill((await cf.until(lambda status: status["control_pid"] != 0))["control_pid"], signal.SIGKILL)
        await cf.until(lambda status: status["control_pid"] != 0)
        await _until_ok(cf, "flag", "move", "items.read", "--to", "shadow", *WHY)
        await shown.until(lambda text: "stands      shadow" in text and "workers     v2" in text)
        # Each picture begins where the last one did.
        assert shown.text.count("\x1b[H\x1b[2J") == shown.text.count("flag        items.read")
        shown.process.send_signal(signal.SIGINT)
        assert await shown.process.wait() == 0


# What the scenes share.


class Shown:
    """What a terminal has received."""

    def __init__(self, process: asyncio.subprocess.Process, descriptor: int) -> None:
        self.process = process
        self.text = ""
        self._descriptor = descriptor

    async def until(self, fact: Callable[[str], bool]) -> None:
        """Wait until `fact` holds for the last picture."""
        async with asyncio.timeout(PATIENCE):
            while not fact(self.text.rpartition("\x1b[2J")[2]):
                with contextlib.suppress(BlockingIOError):
                    self.text += os.read(self._descriptor, 65536).decode()
                await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def _terminal(*arguments: str, **environment: str) -> AsyncIterator[Shown]:
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)
    environ = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "crossfade", *arguments,
        stdin=asyncio.subprocess.DEVNULL, stdout=theirs, stderr=theirs,
        env={**environ, "TERM": "xterm", **environment},
    )  # fmt: skip
    try:
        yield Shown(process, ours)
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        os.close(ours)
        os.close(theirs)


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    """A configuration that nothing runs with: wrong usage is found before anybody is asked."""
    path = tmp_path / "crossfade.yaml"
    path.write_text("")
    return path


async def _done(cf: RunningCrossfade, *arguments: str) -> None:
    done = await cf.command(*arguments)
    assert done.code == 0, (arguments, done)


async def _until_ok(cf: RunningCrossfade, *arguments: str) -> None:
    """While the next control process starts, nobody can be asked."""
    async with asyncio.timeout(PATIENCE):
        while (await cf.command(*arguments)).code != 0:
            pass


async def _flags(cf: RunningCrossfade) -> dict[str, Any]:
    listed = json.loads((await cf.command("flag", "list", "-o", "json")).out)["flags"]
    return {flag["key"]: flag for flag in listed}


@contextlib.contextmanager
def _away(postgres: EmbeddedPostgres, database_url: str) -> Any:
    name = make_url(database_url).database
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name]
        )
        try:
            yield
        finally:
            connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
