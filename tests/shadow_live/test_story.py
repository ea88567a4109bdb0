"""From a mirrored request to a report that decides: processes, bus and store are real."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeAlias

import psycopg
import pytest

from crossfade.embedded.valkey import EmbeddedValkey
from tests.shadow_live.backend import JsonBackend, json_backend
from tests.support.crossfade_process import RunningCrossfade, crossfade_command, running_crossfade

PATIENCE = 30.0
Wanted: TypeAlias = Callable[[dict[str, Any]], bool]
SECRET = "s3cr3t-cookie-value"
API = """
openapi: 3.1.0
paths:
  /items/{id}: {get: {}, put: {}}
  /orders: {get: {}}
  /elsewhere: {get: {}}
"""
_clock = itertools.count(1_795_500_000)


def item(target: str, fields: dict[str, str]) -> tuple[int, Any]:
    number = int(target.rpartition("/")[2])
    said = {"id": number, "price": f"{number}.50", "at": next(_clock), "owner": {"name": "Ada", "id": 7}}
    return 200, {**said, "echo": fields.get("cookie", "")}


def wrong_item(target: str, fields: dict[str, str]) -> tuple[int, Any]:
    status, said = item(target, fields)
    return status, {**said, "price": said["price"].replace(".50", ".05")} if said["id"] % 5 == 0 else said


@pytest.fixture
async def legacy() -> AsyncIterator[JsonBackend]:
    async with json_backend(item) as found:
        yield found


@pytest.fixture
async def new() -> AsyncIterator[JsonBackend]:
    async with json_backend(wrong_item) as found:
        yield found


@pytest.fixture
def elsewhere() -> bool:
    """Whether comparing is left to other processes."""
    return False


@pytest.fixture
async def cf(
    tmp_path: Path, store_url: str, legacy: JsonBackend, new: JsonBackend, elsewhere: bool
) -> AsyncIterator[RunningCrossfade]:
    with EmbeddedValkey(tmp_path / "valkey") as bus:
        config = {
            "workers": 2,
            "store": store_url,
            "bus": bus.url(),
            "targets": {"legacy": {"url": legacy.url}, "new": {"url": new.url}},
            "routes": [
                {"flag": "items.read", "match": {"path": "/items/{id}"}},
                {"flag": "orders.read", "match": {"path": "/orders"}},
            ],
            # Every pair is looked at, however busy this machine is.
            "shadow": {
                "inspect": 1000,
                "ask_again": 1.0,
                "ask_again_after": 0.02,
                "busy_after": 60,
                "busy_share": 1,
                "in_flight": 1000,
                "compare_here": not elsewhere,
                "openapi": "api.yaml",
            },
        }
        (tmp_path / "api.yaml").write_text(API)
        async with running_crossfade(tmp_path, config) as running:
            await running.until(lambda status: status["flags"]["version"] > 0)
            moved = await running.command(
                "flag", "move", "items.read", "--to", "shadow", "--reason", "look", "--wait"
            )
            assert moved.code == 0, moved
            yield running


async def asked(cf: RunningCrossfade, *arguments: str, code: int = 0) -> Any:
    done = await cf.command("shadow", *arguments, "-o", "json")
    assert done.code == code, done
    return json.loads(done.out)


async def reported(cf: RunningCrossfade, true: Wanted, *more: str) -> dict[str, Any]:
    """The report's row of the items, once it is as wanted."""
    async with asyncio.timeout(PATIENCE):
        while True:
            done = await cf.command("shadow", "report", *more, "-o", "json")
            if done.code == 0:  # else the process that answers is just being replaced
                routes = json.loads(done.out)["routes"]
                (route,) = [one for one in routes if one["route"] == "/items/{id}"]
                if true(route):
                    return route
            await asyncio.sleep(0.1)


async def browse(cf: RunningCrossfade, numbers: range) -> None:
    client = await cf.connect()
    for number in numbers:
        client._writer.write(
            f"GET /items/{number} HTTP/1.1\r\nHost: test\r\nCookie: sid={SECRET}\r\n\r\n".encode()
        )
        assert (await client.answer()).status == 200
    client.close()


async def test_from_the_mirror_to_the_gate(
    cf: RunningCrossfade, legacy: JsonBackend, new: JsonBackend, store_url: str, tmp_path: Path
) -> None:
    await browse(cf, range(1, 81))
    route = await reported(cf, lambda one: one["pairs"] == 80 and one["inspected"] == 80)

    # The planted bug is what is open; what legacy itself never says twice is not.
    assert route["readiness"] == "not_ready"
    assert [(one["path"], one["kind"], one["count"]) for one in route["open"]] == [("$.price", "value", 16)]
    assert route["verdicts"] == {"diff": 16, "noise": 64}
    assert route["drawn"] == 80
    assert (route["methods"], route["statuses"]) == ({"GET": 80}, {"200": 80})
    assert sum(route["latency"]["legacy"]) == sum(route["latency"]["new"]) == 80
    (difference,) = route["example"]["differences"]
    assert difference["path"] == "$.price"
    assert difference["legacy"].endswith(".50")
    assert difference["new"].endswith(".05")
    assert "price" in route["example"]["explanation"]

    # A route that nobody has asked for is no proof; the gate says so too.
    report = await asked(cf, "report", "--gate", code=6)
    rows = {one["route"]: one for one in report["routes"]}
    assert rows["/orders"]["readiness"] == "not_enough_evidence"
    assert rows["/orders"]["reasons"] == ["0 pairs were compared; 1,000 are wanted"]

    # Nor is a route ready by what nobody has asked of it.
    assert [(one["method"], one["path"], one["route"], one["pairs"]) for one in report["coverage"]] == [
        ("GET", "/items/{id}", "/items/{id}", 80),
        ("PUT", "/items/{id}", "/items/{id}", 0),
        ("GET", "/orders", "/orders", 0),
        ("GET", "/elsewhere", "", 0),
    ]

    # The same as a page and for a pull request.
    for form in ("html", "md"):
        page = tmp_path / f"report.{form}"
        written = await cf.command("shadow", "report", "--format", form, "--to", str(page))
        assert written.code == 0
        assert "$.price" in page.read_text()
        assert "1 of the 4 operations" in page.read_text()
        assert "1 of 2" in page.read_text() or "0 of 2" in page.read_text()

    # A rule that comes after the pairs holds for what is kept of them, and no longer than it stands.
    (category,) = (await asked(cf, "diffs"))["categories"]
    limits = ("--flag", "items.read", "--pairs", "10", "--rate", "50%")
    price = json.dumps({"id": "prices", "kind": "same_shape", "path": "$.price"})
    assert (await cf.command("shadow", "rule", "set", price, "--reason", "a new list")).code == 0
    ruled = await reported(cf, lambda one: one["readiness"] == "ready", *limits)
    assert [one["ruled"] for one in ruled["accepted"]] == ["prices expects all 5 samples that are kept"]
    assert "prices expects all 5" in (await cf.command("shadow", "show", category["id"])).out
    assert (await cf.command("shadow", "rule", "delete", "prices", "--reason", "no rule")).code == 0
    await reported(cf, lambda one: one["readiness"] == "not_ready", *limits)

    # A reviewer looks, and accepts.
    shown = await cf.command("shadow", "show", category["id"])
    assert "$.price" in shown.out
    marked = await asked(cf, "mark", category["id"], "accepted", "--reason", "a new price list")
    assert marked["mark"] == "accepted"
    ready = await reported(cf, lambda one: one["readiness"] == "ready", *limits)
    assert [one["mark_reason"] for one in ready["accepted"]] == ["a new price list"]
    assert (await cf.command("shadow", "report", "--gate", *limits)).code == 0

    # No secret is in the store, in what is shown, in the log or in the metrics.
    with psycopg.connect(store_url) as connection:
        rows = connection.execute(
            "SELECT exhibit::text FROM crossfade_store.shadow_samples"
            " UNION ALL SELECT path FROM crossfade_store.shadow_categories"
        ).fetchall()
    kept = "".join(text for (text,) in rows)
    assert "<secret:value:" in kept
    for place in (kept, json.dumps(report), shown.out, cf.log(), (await cf.metrics()).text):
        assert SECRET not in place

    # Nothing is mirrored once somebody says so.
    off = await cf.command("shadow", "off", "--reason", "enough", "--wait")
    assert off.code == 0, off
    seen = len(new.asked)
    await browse(cf, range(90, 100))
    assert len(new.asked) == seen
    measured = await cf.metrics()
    assert measured.total("crossfade_mirror_in_flight") == 0


async def test_a_flag_may_ask_for_a_report_before_new_answers_more(
    cf: RunningCrossfade, new: JsonBackend, store_url: str
) -> None:
    why = ("--reason", "release 12")
    new.says = item
    await cf.command("flag", "edit", "items.read", "--needs-report", "yes", "--bucket-by", "cookie:sid", *why)
    move = ("flag", "move", "items.read", "--to", "live", "--weight", "5%", *why)
    refused = await cf.command(*move)
    assert refused.code == 5
    assert "items.read asks for a report" in refused.err
    assert "crossfade shadow report --flag FLAG --keep" in refused.err
    assert (await cf.command(*move, "--report", "0" * 64)).code == 5
    ramp = ("ramp", "start", "items.read", "--to", "live", "--steps", "5%:10m,100%", *why)
    assert (await cf.command(*ramp)).code == 5

    limits = ("--flag", "items.read", "--pairs", "10", "--rate", "50%")
    early = await asked(cf, "report", "--keep", *limits, *why)
    assert (
        "does not say that items.read is ready" in (await cf.command(*move, "--report", early["digest"])).err
    )
    await browse(cf, range(1, 81))
    await reported(cf, lambda one: one["readiness"] == "ready", *limits)
    kept = await asked(cf, "report", "--keep", *limits, *why)
    moved = await cf.command(*move, "--report", kept["digest"])
    assert moved.code == 0, moved
    (row, *_) = json.loads((await cf.command("flag", "history", "items.read", "-o", "json")).out)["rows"]
    assert row["evidence"] == {"report": kept["digest"]}
    ramp = tuple("20%:10m,100%" if each.startswith("5%") else each for each in ramp)
    assert (await cf.command(*ramp, "--report", kept["digest"])).code == 0

    # The ramp goes on by itself; back is never asked for one; an old report holds no more.
    assert (await cf.command("ramp", "abort", "items.read", *why)).code == 0
    with psycopg.connect(store_url) as connection:
        connection.execute(
            "UPDATE crossfade_store.shadow_reports SET kept_at = kept_at - interval '25 hours'"
        )
    late = await cf.command(*move, "--report", kept["digest"])
    assert (late.code, "25 hours old" in late.err) == (5, True)


async def test_what_was_mended_is_asked_again(cf: RunningCrossfade, new: JsonBackend) -> None:
    await browse(cf, range(5, 26, 5))
    await reported(cf, lambda one: one["verdicts"].get("diff") == 5)
    (category,) = (await asked(cf, "diffs"))["categories"]

    still = await cf.command("shadow", "replay", category["id"])
    assert still.code == 6
    assert "0 of 5 do not differ any more as they did" in still.out
    assert "GET /items/25: diff, as before" in still.out
    assert "sent without cookie" in still.err

    new.says = item
    mended = await asked(cf, "replay", category["id"], "-H", f"Cookie: sid={SECRET}")
    assert (mended["asked"], mended["gone"]) == (5, 5)
    assert {one["verdict"] for one in mended["replayed"]} == {"noise"}
    assert {fields["cookie"] for _, fields in new.asked[-5:]} == {f"sid={SECRET}"}
    assert {fields["x-crossfade-mirror"] for _, fields in new.asked[-5:]} == {"new"}
    assert mended["next"] == [f"crossfade shadow mark {category['id']} accepted --reason WHY"]

    # Nobody has asked these: they count nowhere.
    route = await reported(cf, lambda one: True)
    assert (route["pairs"], route["inspected"]) == (5, 5)

    # A side that does not answer has mended nothing.
    def hangs_up(target: str, fields: dict[str, str]) -> tuple[int, Any]:
        raise OSError(f"{target} of {len(fields)} fields")

    new.says = hangs_up
    silent = await asked(cf, "replay", category["id"], code=6)
    assert (silent["asked"], silent["gone"]) == (5, 0)
    assert (await cf.command("shadow", "replay", "nothing")).code == 3
    assert (await cf.command("shadow", "replay", category["id"], "-H", "nonsense")).code == 2


async def test_a_rule_expects_a_difference_from_its_next_look_on(cf: RunningCrossfade) -> None:
    rule = {"id": "prices", "kind": "ignore", "path": "$.price", "owner": "shop"}
    set_ = await asked(cf, "rule", "set", json.dumps(rule), "--reason", "another price list")
    assert set_["id"] == "prices"
    listed = await asked(cf, "rules")
    assert [(one["definition"]["id"], one["source"], one["holds"]) for one in listed["rules"]] == [
        ("prices", "store", True)
    ]
    async with asyncio.timeout(PATIENCE):
        while True:
            # The processes that compare read the rules every few seconds.
            await browse(cf, range(5, 6))
            route = await reported(cf, lambda one: one["inspected"] == one["unequal"])
            if route["verdicts"].get("noise", 0) + route["verdicts"].get("ignored", 0):
                break
    wrong = await cf.command(
        "shadow", "rule", "set", '{"id": "x", "kind": "ignore", "path": "price"}', "--reason", "y"
    )
    assert wrong.code == 2
    assert "expected one such as $.items" in wrong.err
    assert (await cf.command("shadow", "rule", "delete", "prices", "--reason", "over")).code == 0
    assert (await cf.command("shadow", "rule", "delete", "prices", "--reason", "over")).code == 3
    assert (await cf.command("shadow", "show", "nothing")).code == 3


async def test_the_control_process_dies_and_nothing_counts_twice(cf: RunningCrossfade) -> None:
    await browse(cf, range(1, 11))
    pid = (await cf.until(lambda status: status["control_pid"] != 0))["control_pid"]
    os.kill(pid, signal.SIGKILL)
    await browse(cf, range(11, 21))
    route = await reported(cf, lambda one: one["pairs"] == 20 and one["inspected"] >= 20)
    assert route["inspected"] == 20
    assert sum(route["verdicts"].values()) == 20


@contextlib.asynccontextmanager
async def comparing(cf: RunningCrossfade) -> AsyncIterator[asyncio.subprocess.Process]:
    """`crossfade compare`, as any supervisor of processes would run it."""
    arguments = ("compare", "-c", str(cf.config_path), "--metrics", "127.0.0.1:0")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "crossfade", *arguments, stderr=asyncio.subprocess.PIPE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


@pytest.mark.parametrize("elsewhere", [True])
async def test_comparing_may_be_left_to_processes_of_their_own(cf: RunningCrossfade) -> None:
    await browse(cf, range(1, 41))
    async with comparing(cf) as one, comparing(cf) as other:
        assert one.stderr is not None
        begun = json.loads(await one.stderr.readline())
        assert begun["event"] == "comparing"
        await reported(cf, lambda route: route["pairs"] >= 40 and route["inspected"] == 40)
        one.kill()
        await one.wait()
        await browse(cf, range(41, 81))
        route = await reported(cf, lambda route: route["pairs"] == 80 and route["inspected"] == 80)
        assert route["verdicts"] == {"diff": 16, "noise": 64}
        other.terminate()
        assert await other.wait() == 0
    assert (await cf.metrics()).total("crossfade_compared_total") == 0, "this host compares nothing"


@pytest.mark.parametrize("elsewhere", [True])
async def test_a_process_that_compares_shows_its_metrics(cf: RunningCrossfade) -> None:
    async with comparing(cf) as process:
        assert process.stderr is not None
        address = json.loads(await process.stderr.readline())["metrics"]
        await browse(cf, range(1, 6))
        await reported(cf, lambda route: route["inspected"] == 5)
        reader, writer = await asyncio.open_connection(*address.rsplit(":", 1))
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        page = (await reader.read()).decode()
        writer.close()
        assert 'crossfade_compared_total{flag="items.read",verdict="noise"} 4.0' in page


@pytest.mark.parametrize(("config", "more", "says"), [
    ("store: none\n", (), "a store and a bus"),
    ("", ("--metrics", "nowhere"), "expected an IP address and a port"),
    ("store: 7\n", (), "store"),
    ("code: broken.py\n", (), "broken.py:1: SyntaxError"),
])  # fmt: skip
async def test_a_process_that_cannot_compare_says_why(
    tmp_path: Path, config: str, more: tuple[str, ...], says: str
) -> None:
    (tmp_path / "broken.py").write_text("project = (")
    file = tmp_path / "crossfade.yaml"
    targets = "targets: {legacy: {url: 'http://127.0.0.1:1'}, new: {url: 'http://127.0.0.1:2'}}\n"
    file.write_text(config + targets + "routes: []\n")
    done = await crossfade_command("compare", "-c", str(file), *more)
    assert (done.code, says in done.err) == (2, True), done
