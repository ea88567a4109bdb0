"""The commands as people type them, against an instance that runs: what they print, and their exit codes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
from pathlib import Path
from typing import Any

import jwt
import psycopg
import pytest
import yaml
from openapi_spec_validator import validate

from tests.admin.client import obeyed
from tests.support.crossfade_process import PATIENCE, Finished, RunningCrossfade, crossfade_command

WHY = ("--reason", "a test")


async def ok(cf: RunningCrossfade, *arguments: str) -> str:
    done = await cf.command(*arguments)
    assert done.code == 0, (arguments, done)
    return done.out


async def found(cf: RunningCrossfade, *arguments: str) -> Any:
    return json.loads(await ok(cf, *arguments, "-o", "json"))


async def test_a_flag_goes_its_way(cf: RunningCrossfade) -> None:
    assert "items.read   legacy  1" in await ok(cf, "flag", "list")
    assert (await cf.get("/items/1")).body == b"legacy"

    moved = await ok(cf, "flag", "move", "items.read", "--to", "shadow", "--weight", "100%", *WHY, "--wait")
    assert moved.splitlines()[0] == "items.read: legacy → shadow"
    assert moved.splitlines()[1].startswith("1/1 workers on v2, slowest ")

    edited = await ok(cf, "flag", "edit", "items.read", "--bucket-by", "cookie:sid", "--owner", "ada", *WHY)
    assert "bucketing by nothing (salt items.read) → by cookie:sid" in edited
    await ok(cf, "flag", "move", "items.read", "--to", "live", "--weight", "0.01%", *WHY)
    await ok(cf, "flag", "move", "items.read", "--to", "live", *WHY, "--wait")
    assert (await cf.get("/items/1")).body == b"new"

    shown = await ok(cf, "flag", "get", "items.read")
    assert "stands      live" in shown
    assert "owner       ada" in shown
    assert (await found(cf, "flag", "get", "items.read"))["transition"] == {
        "from": "live",
        "to": "new",
        "weight_ppm": 0,
    }
    assert (await cf.status())["flags"]["version"] == 5


async def test_what_is_refused_says_what_to_do_and_is_in_the_audit(cf: RunningCrossfade) -> None:
    async def refused(code: int, *arguments: str) -> str:
        done = await cf.command(*arguments)
        assert (done.code, done.out) == (code, ""), (arguments, done)
        return done.err

    move = ("flag", "move", "items.read", "--to")
    assert "possible: legacy, shadow" in await refused(2, *move, "new", *WHY)
    assert '--reason "why' in await refused(2, *move, "shadow")
    assert "nothing to bucket by" in await refused(2, *move, "shadow", "--weight", "5%", *WHY)
    assert "a share such as 5%" in await refused(2, *move, "shadow", "--weight", "half", *WHY)
    assert "did you mean items.read" in await refused(3, "flag", "get", "items.rea")
    assert "there is no flag" in await refused(3, "flag", "move", "nope", "--to", "shadow", *WHY)
    conflict = await refused(9, *move, "shadow", *WHY, "--expect-version", "7")
    assert "version" in conflict
    assert "not known" in await refused(4, "flag", "list", "--token", "cf_" + "x" * 43)

    done = await cf.command("person", "add", "bob", "--role", "viewer", *WHY)
    token = done.out.strip()
    assert token.startswith("cf_")
    assert token not in done.err
    assert "items.read" in (await cf.command("flag", "list", "--token", token)).out
    denied = await refused(4, "flag", "kill", "items.read", *WHY, "--token", token)
    assert "needs the role operator, and bob is viewer" in denied
    await ok(cf, "person", "revoke", "bob", *WHY)
    await refused(4, "flag", "list", "--token", token)

    rows = (await found(cf, "audit", "tail", "-n", "100"))["rows"]
    assert {row["outcome"] for row in rows} == {"applied", "rejected", "denied"}
    [row] = [row for row in rows if row["outcome"] == "denied"]
    assert (row["actor"]["name"], row["action"], row["objects"]) == ("bob", "flag.kill", ["items.read"])
    assert "rows are as they were written" in await ok(cf, "audit", "verify")
    assert "flag.move items.read REJECTED" in await ok(cf, "flag", "history", "items.read")
    # The token stands nowhere but where it was shown.
    assert token not in json.dumps(rows)
    assert token not in cf.log()


async def test_a_dry_run_says_what_would_move_and_changes_nothing(cf: RunningCrossfade) -> None:
    await ok(cf, "flag", "move", "items.read", "--to", "shadow", *WHY)
    await ok(cf, "flag", "edit", "items.read", "--bucket-by", "query:user", *WHY, "--wait")
    for number in range(640):
        await cf.get(f"/items/1?user={number}")

    dry_run = ("flag", "move", "items.read", "--to", "live", "--weight", "50%", *WHY, "--dry-run")
    planned = await cf.command(*dry_run)

    assert planned.code == 0
    assert "items.read: shadow → shadow→live at 50%" in planned.out
    assert "dry run: nothing was changed" in planned.err

    async def radius() -> Any:
        [one] = (await found(cf, *dry_run))["blast_radius"]
        return one

    async with asyncio.timeout(PATIENCE):
        while (blast := await radius())["of_requests"] == 0:
            pass  # the worker was late for the question
    # One of sixteen is looked at, each stands for sixteen.
    assert blast["of_requests"] == 640
    assert blast["of_keys"] == 40
    assert 0 < blast["keys"] < 40
    assert (await found(cf, "flag", "get", "items.read"))["stands"] == "shadow"


async def test_a_file_is_applied_all_or_nothing(cf: RunningCrossfade, tmp_path: Path) -> None:
    file = tmp_path / "flags.yaml"
    file.write_text(
        """
flags:
  - key: items.read
    owner: ada
    expires_on: 2027-03-31
    transition: {from: legacy, to: shadow, weight: 10%}
    bucketing: {by: ["cookie:sid"], assign_cookie: cf_id}
    fallback: 20%
    rules:
      - id: qa
        when: {attribute: "header:x-qa", exists: true}
        transition: {from: legacy, to: shadow, weight: 100%}
  - {key: orders.read, owner: bob}
"""
    )
    done = await ok(cf, "apply", "-f", str(file), *WHY, "--wait")
    lines = done.splitlines()
    assert "items.read: legacy → legacy→shadow at 10%" in lines
    assert "orders.read: new, at legacy" in lines
    assert lines[-1].startswith("1/1 workers on v2")
    assert await ok(cf, "apply", "-f", str(file), *WHY) == "nothing to change\n"
    # A dry run of what would change nothing is held to what was seen, too.
    later = ("--expect-version", "1")
    assert (await cf.command("apply", "-f", str(file), *WHY, *later)).code == 9

    for text, says in (
        (
            "flags: [{key: items.read, transition: {from: live, to: new, weight: 100%}}, {key: third.flag}]",
            "in one step",
        ),
        ("flags: [{key: items.read, colour: red}]", "flags[0].colour: unknown"),
        ("flags: [{key: items.read, transition: {from: legacy, to: shadow, weight: 5}}, 7]", "flags[1]"),
        ("flag: []", "expected one key, flags"),
        ("flags: [", "flags.yaml"),
    ):
        file.write_text(text)
        refused = await cf.command("apply", "-f", str(file), *WHY)
        assert refused.code == 2, refused
        assert says in refused.err
    assert [flag["key"] for flag in (await found(cf, "flag", "list"))["flags"]] == [
        "items.read",
        "items.write",
        "orders.read",
    ]


async def test_an_explanation_follows_the_decision(cf: RunningCrossfade, tmp_path: Path) -> None:
    file = tmp_path / "flags.yaml"
    file.write_text(
        """
flags:
  - key: items.read
    transition: {from: legacy, to: shadow, weight: 50%}
    bucketing: {by: ["cookie:sid"]}
    rules:
      - id: qa
        when: {attribute: "header:x-qa", exists: true}
        transition: {from: legacy, to: shadow, weight: 100%}
"""
    )
    await ok(cf, "apply", "-f", str(file), *WHY)
    by_rule = await ok(cf, "flag", "explain", "/items/1", "-H", "X-QA: 1")
    assert by_rule.startswith("legacy answers, mirrored to new (flag items.read, reason rule)")
    assert "rule qa: applies" in by_rule
    by_weight = await ok(cf, "flag", "explain", "/items/1?x=1", "-H", "Cookie: sid=ada")
    assert "rule qa: does not apply" in by_weight
    assert "of cookie:sid" in by_weight
    assert "no key (cookie:sid): stays at legacy" in await ok(cf, "flag", "explain", "/items/1")
    assert "flag -, reason no_route" in await ok(cf, "flag", "explain", "/elsewhere")
    assert (await cf.command("flag", "explain", "/items/1", "-H", "nonsense")).code == 2
    assert (await cf.command("flag", "explain", "no path")).code == 2

    edit = ("flag", "edit", "items.write", "--bucket-by", "claim:sub", *WHY)
    await ok(cf, *edit)
    await ok(cf, "flag", "move", "items.write", "--to", "shadow", "--weight", "50%", *WHY)
    token = jwt.encode({"sub": "ada"}, "x" * 32)
    assert "of claim:sub" in await ok(cf, "flag", "explain", "/items/1/x", "-H", f"X-Token: {token}")
    bearer = f"Authorization: Bearer {token}"
    assert "no key" in await ok(cf, "flag", "explain", "/items/1/x", "-H", bearer)


async def test_archiving_asks_the_configuration(cf: RunningCrossfade) -> None:
    await ok(cf, "flag", "move", "items.read", "--to", "shadow", *WHY)
    await ok(cf, "flag", "move", "items.read", "--to", "live", *WHY)
    refused = await cf.command("flag", "archive", "items.read", *WHY)
    assert refused.code != 0
    assert "target: new" in refused.err
    config = yaml.safe_load(cf.config_path.read_text())
    for route in config["routes"]:
        route["target"] = "new"
    cf.config_path.write_text(yaml.safe_dump(config))
    await ok(cf, "reload")
    await ok(cf, "flag", "archive", "items.read", *WHY, "--wait")
    assert (await cf.get("/items/1")).body == b"new"


async def test_a_kill_needs_no_api(cf: RunningCrossfade) -> None:
    await ok(cf, "flag", "move", "items.read", "--to", "shadow", *WHY)
    await ok(cf, "flag", "move", "items.read", "--to", "live", *WHY, "--wait")
    assert (await cf.get("/items/1")).body == b"new"
    os.kill((await cf.status())["control_pid"], signal.SIGSTOP)
    try:
        killing = asyncio.create_task(obeyed(cf, "kill", "items.read"))
        await cf.until(lambda status: status["flags"]["kills"] == ["items.read"])
        async with asyncio.timeout(PATIENCE):
            while (await cf.get("/items/1")).body != b"legacy":
                pass  # the worker is just being told
    finally:
        os.kill((await cf.status())["control_pid"], signal.SIGCONT)
    done: Finished = await killing
    assert "killed items.read: " in done.out + done.err
    # The store knows by now, so this host needs to remember nothing of its own.
    await cf.until(lambda status: not status["flags"]["kills"])
    assert (await found(cf, "flag", "get", "items.read"))["kill"]["reason"] == "a test"
    await cf.measured("crossfade_kill_active", 1, flag="items.read")
    await ok(cf, "unkill", "items.read", *WHY, "--wait")
    assert (await cf.get("/items/1")).body == b"new"
    mistyped = await cf.command("kill", "items.raed", *WHY)
    assert (mistyped.code, "did you mean items.read?" in mistyped.err) == (3, True)
    assert (await cf.command("kill", "items.read")).code == 2
    await obeyed(cf, "kill", "--all")
    assert (await cf.get("/items/1")).body == b"legacy"
    assert "EVERYTHING IS KILLED" in await ok(cf, "flag", "list")


async def test_a_kill_for_another_host_kills_nothing_here(cf: RunningCrossfade) -> None:
    for order in ("kill", "unkill"):
        done = await cf.command(order, "items.read", *WHY, "--api", "http://127.0.0.1:1", "--token", "cf_x")
        assert (done.code, "does not answer" in done.err) == (1, True), done
        assert "on that host itself, without --api" in done.err
    assert (await cf.status())["flags"]["kills"] == []
    assert (await found(cf, "flag", "get", "items.read"))["kill"] is None


async def test_a_stale_token_in_the_environment_delays_no_kill(
    cf: RunningCrossfade, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CROSSFADE_TOKEN", "cf_stale")
    done = await obeyed(cf, "kill", "items.read")
    assert "killed items.read: " in done.out + done.err
    assert "not known, or was revoked" in done.err
    monkeypatch.delenv("CROSSFADE_TOKEN")
    await cf.until(lambda status: not status["flags"]["kills"])  # the store has it by now
    killed = await found(cf, "flag", "get", "items.read")
    assert killed["stands"] == "killed (legacy)"


async def test_a_file_that_says_nothing_of_where_a_flag_stands_moves_nobody(
    cf: RunningCrossfade, tmp_path: Path
) -> None:
    await ok(cf, "flag", "move", "items.read", "--to", "shadow", *WHY)
    await ok(cf, "flag", "edit", "items.read", "--needs-report", "yes", *WHY)
    file = tmp_path / "flags.yaml"
    file.write_text("flags: [{key: items.read, owner: eve}]")
    assert "items.read: owner none → eve" in await ok(cf, "apply", "-f", str(file), *WHY)
    flag = await found(cf, "flag", "get", "items.read")
    assert (flag["stands"], flag["needs_report"]) == ("shadow", True)
    # Two numbers are versions; the set's is not the flag's.
    await ok(cf, "flag", "edit", "items.write", "--owner", "ada", *WHY)
    flag = await found(cf, "flag", "get", "items.read")
    version = str(flag["set_version"])
    wrong = await cf.command(
        "flag", "move", "items.read", "--to", "legacy", *WHY, "--expect-version", version
    )
    assert (wrong.code, "the version of the whole set" in wrong.err) == (9, True)


async def test_ramps_and_guardrails_from_the_command_line(cf: RunningCrossfade) -> None:
    await ok(cf, "flag", "edit", "items.read", "--bucket-by", "cookie:sid", *WHY)
    steps = ("--steps", "10%:1s,100%")
    started = await ok(cf, "ramp", "start", "items.read", "--to", "shadow", *steps, *WHY)
    assert started.startswith("items.read: running")

    async def is_done() -> bool:
        return "100%" in await ok(cf, "ramp", "status", "items.read") and (
            (await found(cf, "ramp", "status", "items.read"))["state"] == "done"
        )

    async with asyncio.timeout(30):
        while not await is_done():  # noqa: ASYNC110  (it is another process)
            await asyncio.sleep(0.1)
    assert (await found(cf, "flag", "get", "items.read"))["stands"] == "shadow"

    put = ("guardrail", "set", "items.read", "--signal", "errors", "--tolerance", "1.5", *WHY)
    assert (await ok(cf, *put)).startswith("items.read:errors: ")
    assert "items.read:errors  items.read" in await ok(cf, "guardrail", "list")
    assert "deleted" in await ok(cf, "guardrail", "delete", "items.read:errors", *WHY)
    await ok(cf, "ramp", "start", "items.read", "--to", "live", "--steps", "10%:10m,100%", *WHY)
    assert "paused" in await ok(cf, "ramp", "pause", "items.read", *WHY)
    assert "aborted" in await ok(cf, "ramp", "abort", "items.read", *WHY)
    ended = await cf.command("ramp", "status", "items.read", "--wait", "5")
    assert (ended.code, "aborted" in ended.out) == (1, True)
    berlin = ("--steps", "10%:10m,100%", "--window", "Mon-Fri:09:00-16:00@Europe/Berlin")
    await ok(cf, "ramp", "start", "items.read", "--to", "live", *berlin, *WHY)
    (window,) = (await found(cf, "ramp", "status", "items.read"))["plan"]["windows"]
    assert window["zone"] == "Europe/Berlin"
    assert (await cf.command("ramp", "status", "items.read", "--wait", "0.2")).code == 7
    await ok(cf, "ramp", "abort", "items.read", *WHY)
    assert (
        await cf.command("ramp", "start", "items.read", "--to", "live", "--steps", "soon", *WHY)
    ).code == 2
    no_unit = await cf.command("ramp", "start", "items.read", "--to", "live", "--steps", "50%:10", *WHY)
    assert (no_unit.code, "HOLD has one of the units" in no_unit.err) == (2, True)
    assert (await cf.command("ramp", "pause", "items.read", *WHY)).code != 0


async def test_whoever_waits_for_a_ramp_hears_of_the_guardrail_that_stopped_it(
    cf: RunningCrossfade, database_url: str
) -> None:
    await ok(cf, "flag", "edit", "items.read", "--bucket-by", "cookie:sid", *WHY)
    await ok(cf, "guardrail", "set", "items.read", "--signal", "errors", "--action", "pause", *WHY)
    await ok(cf, "ramp", "start", "items.read", "--to", "shadow", "--steps", "10%:10m,100%", *WHY)
    await ok(cf, "ramp", "pause", "items.read", *WHY)
    waiting = asyncio.create_task(cf.command("ramp", "status", "items.read", "--wait", "30"))
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("UPDATE crossfade_store.guardrails SET state = 'tripped'")
    done = await waiting
    assert (done.code, "paused" in done.out) == (6, True)


async def test_the_doctor_finds_what_is_wrong(cf: RunningCrossfade) -> None:
    async with asyncio.timeout(PATIENCE):
        while "instances runs v1" not in (well := await cf.command("doctor")).out:
            pass  # the store hears of it a moment later
    assert well.code == 0, well
    for fact in (
        "is valid", "serving", "1 accept", "for its owner only", "flags on disk v1, whole", "answers at",
        "bus           none", "migrated, at v1 with 2 flags", "has confirmed the flags here",
        "every worker (1) of 1 instances runs v1",
    ):  # fmt: skip
        assert fact in well.out, (fact, well.out)
    assert all(line.startswith("ok ") for line in well.out.splitlines())
    await ok(cf, "flag", "edit", "items.read", "--expires-on", "2020-01-01", *WHY, "--wait")
    (cf.data_dir / "run" / "admin.token").chmod(0o644)
    ill = await cf.command("doctor")
    assert ill.code == 1
    assert "can be read by others (644)" in ill.out
    assert "items.read was due on 2020-01-01" in ill.out
    last = cf.data_dir / "flags" / "last.json"
    last.write_text(last.read_text().replace("2020-01-01", "2021-01-01"))
    assert "its checksum does not fit" in (await cf.command("doctor")).out


async def test_the_local_token_is_private_and_reads_need_one(cf: RunningCrossfade) -> None:
    token = cf.data_dir / "run" / "admin.token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    for path in ("/api/v1/flags", "/api/v1/audit", "/api/v1/people", "/api/v1/instances", "/api/v1/ramps"):
        answer = await cf.admin(path)
        assert answer.status == 401
        assert json.loads(answer.body)["error"] == "unauthorized"
    for path in ("/healthz", "/readyz", "/metrics", "/api/v1/proxy", "/"):
        assert (await cf.admin(path)).status == 200


async def test_the_description_is_true(cf: RunningCrossfade) -> None:
    document = json.loads((await cf.admin("/api/v1/openapi.json")).body)
    validate(document)
    assert {"/api/v1/flags/{key}/move", "/api/v1/ramps/{key}", "/api/v1/audit/verify"} <= set(
        document["paths"]
    )
    body = document["components"]["schemas"]["MoveBody"]
    assert set(body["required"]) == {"to"}


async def test_watching_prints_a_line_for_each_change(cf: RunningCrossfade) -> None:
    watching = await asyncio.create_subprocess_exec(
        *crossfade_argv("flag", "get", "items.read", "-w", "-c", str(cf.config_path)),
        stdout=asyncio.subprocess.PIPE,
    )
    assert watching.stdout is not None
    async with asyncio.timeout(30):
        assert (await watching.stdout.readline()).startswith(b"items.read v1 legacy")
        await ok(cf, "flag", "move", "items.read", "--to", "shadow", *WHY)
        while b"v2 shadow, workers v2" not in await watching.stdout.readline():
            pass
        watching.send_signal(signal.SIGINT)
        assert await watching.wait() == 0


def crossfade_argv(*arguments: str) -> list[str]:
    import sys  # noqa: PLC0415

    return [sys.executable, "-m", "crossfade", *arguments]


async def test_nothing_running_is_said(tmp_path: Path, config: dict[str, Any]) -> None:
    (tmp_path / "crossfade.yaml").write_text(json.dumps(config))
    done = await crossfade_command("flag", "list", "-c", str(tmp_path / "crossfade.yaml"))
    assert done.code == 3
    assert "nothing is running" in done.err
    assert f"next: crossfade up -c {tmp_path / 'crossfade.yaml'}" in done.err
    kill = await crossfade_command("kill", "--all", *WHY, "-c", str(tmp_path / "crossfade.yaml"))
    assert (kill.code, "next: crossfade up" in kill.err) == (3, True)
    ill = await crossfade_command("doctor", "-c", str(tmp_path / "crossfade.yaml"), "-o", "json")
    assert ill.code == 1
    (problem,) = [one for one in json.loads(ill.out) if one["level"] == "problem"]
    assert problem["about"] == "instance"
    assert "nothing is running" in problem["what"]


@pytest.mark.parametrize("arguments", [("flag",), ("ramp",), ("guardrail",), ("audit",), ("person",)])
async def test_a_group_alone_shows_what_it_has(arguments: tuple[str, ...]) -> None:
    done = await crossfade_command(*arguments)
    assert done.code == 2
    assert "usage: crossfade" in done.err
