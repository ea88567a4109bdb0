"""The admin API over HTTP: what is answered is as it is described, whatever else is away."""

from __future__ import annotations

import os
import signal
from typing import Any

import psycopg
from openapi_spec_validator import validate
from sqlalchemy import make_url

from crossfade.admin.errors import STATUS
from crossfade.admin.next_steps import AFTER_REFUSAL
from crossfade.commands.api import CODES
from crossfade.embedded.postgres import EmbeddedPostgres
from crossfade.store.connection import StoreReason
from tests.admin.client import WHY, Client, conforms
from tests.support.crossfade_process import RunningCrossfade


async def test_whatever_is_answered_is_as_it_is_described(ask: Client, database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO crossfade_store.shadow_categories VALUES"
            " ('abc', 'items.read', '/items', '$.a', 'value', 1, now(), now())"
        )
    document = await ask.done("GET", "/api/v1/openapi.json")
    validate(document)

    flag, ramp = "/api/v1/flags/items.read", "/api/v1/ramps/items.read"
    guardrail = "/api/v1/guardrails/items.read:errors"
    when = {"attribute": "header:x-qa", "exists": True}
    override = {"id": "qa", "when": when, "stage": "legacy", "expires_at": "2099-01-01T00:00:00+00:00"}
    rule = {"id": "qa", "when": when, "transition": {"from": "legacy", "to": "shadow", "weight_ppm": 7}}
    edit = {**WHY, "bucketing": {"by": ["cookie:sid"]}, "overrides": [override], "rules": [rule]}
    steps = [{"weight_ppm": 10_000, "hold": 600}, {"weight_ppm": 1_000_000, "hold": 0}]
    expected = {"id": "times", "kind": "ignore", "path": "$..at"}
    third = {"key": "third", "transition": {"from": "legacy", "to": "shadow", "weight_ppm": 0}}
    story: list[tuple[str, str, str, Any]] = [
        ("GET", "/api/v1/flags", "", None),
        ("POST", "/api/v1/flags", "", {**WHY, "flag": {**third, "owner": "ada", "expires_on": "2020-01-01"}}),
        ("PATCH", flag, "", edit),
        ("GET", flag, "", None),
        ("POST", f"{flag}/move", "", {**WHY, "to": "shadow", "weight": "5%", "dry_run": True}),
        ("POST", f"{flag}/move", "", {**WHY, "to": "shadow", "weight": "5%", "wait": 20}),
        ("POST", f"{flag}/move", "", {**WHY, "to": "shadow"}),
        ("POST", f"{flag}/kill", "", WHY),
        ("GET", flag, "", None),
        ("POST", f"{flag}/unkill", "", WHY),
        ("POST", "/api/v1/kill", "", {**WHY, "ticket": "OPS-1"}),
        ("GET", "/api/v1/flags", "", None),
        ("POST", "/api/v1/explain", "", {"target": "/items/1"}),
        ("POST", "/api/v1/unkill", "", WHY),
        ("POST", "/api/v1/shadow/off", "", WHY),
        ("POST", "/api/v1/shadow/on", "", WHY),
        ("GET", "/api/v1/shadow/report", "?hours=1&flag=items.read", None),
        ("POST", "/api/v1/shadow/reports", "", {**WHY, "flag": "items.read"}),
        ("GET", "/api/v1/shadow/categories", "?flag=items.read", None),
        ("GET", "/api/v1/shadow/categories/abc", "", None),
        ("POST", "/api/v1/shadow/categories/abc/replay", "", {"headers": [["X-A", "1"]]}),
        ("POST", "/api/v1/shadow/categories/abc/mark", "", {**WHY, "mark": "bug", "expires": "2099-01-01"}),
        ("POST", "/api/v1/shadow/rules", "", {**WHY, "rule": expected}),
        ("GET", "/api/v1/shadow/rules", "", None),
        ("DELETE", "/api/v1/shadow/rules/times", "", WHY),
        ("POST", "/api/v1/explain", "", {"target": "/items/1", "headers": [["X-QA", "1"]]}),
        ("POST", "/api/v1/apply", "", {**WHY, "flags": [third]}),
        ("POST", "/api/v1/flags/third/archive", "", WHY),
        ("GET", f"{flag}/history", "?limit=3", None),
        ("GET", "/api/v1/ramps", "?ended=true", None),
        ("POST", ramp, "", {**WHY, "to": "live", "steps": steps, "dry_run": True}),
        ("POST", ramp, "", {**WHY, "to": "live", "steps": steps}),
        ("GET", "/api/v1/ramps", "", None),
        ("GET", ramp, "", None),
        ("POST", f"{ramp}/pause", "", WHY),
        ("POST", f"{ramp}/resume", "", WHY),
        ("POST", f"{ramp}/abort", "", {**WHY, "stay": True}),
        ("PUT", guardrail, "", {**WHY, "flag": "items.read", "definition": {"signal": "errors"}}),
        ("GET", "/api/v1/guardrails", "?flag=items.read", None),
        ("POST", f"{guardrail}/rearm", "", WHY),
        ("DELETE", guardrail, "", WHY),
        ("POST", "/api/v1/people", "", {**WHY, "name": "bob", "role": "viewer"}),
        ("GET", "/api/v1/people", "", None),
        ("DELETE", "/api/v1/people/bob", "", WHY),
        ("GET", "/api/v1/people", "", None),
        ("GET", "/api/v1/audit", "?after=2&limit=5", None),
        ("GET", "/api/v1/audit/verify", "", None),
        ("GET", "/api/v1/instances", "", None),
        ("GET", "/api/v1/converged", "?version=1&wait=1", None),
        ("GET", "/api/v1/feed", "", None),
    ]
    told = set()
    for method, path, query, said in story:
        answer = await ask(method, path + query, said)
        assert answer.status == 200, (method, path, answer)
        template = next(one for one in document["paths"] if _fits(path, one, method, document))
        operation = document["paths"][template][method.lower()]
        told.add((method, template))
        conforms(answer.body, operation["responses"]["200"], document)
        assert isinstance(answer.body["next"], list)
        if said is not None:
            conforms(said, operation["requestBody"], document)
    described = {
        (method.upper(), path)
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        # Cutovers need two databases: tests/cutover plays them.
        if "security" in operation and not path.startswith("/api/v1/cutovers")
    }
    assert told == described


async def test_without_the_store_flags_are_shown_as_this_instance_has_them(
    ask: Client, cf: RunningCrossfade, postgres: EmbeddedPostgres, database_url: str
) -> None:
    await ask.done("POST", "/api/v1/flags/items.read/move", {**WHY, "to": "shadow", "wait": 20})
    name = make_url(database_url).database
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name]
        )
        try:
            await cf.tell({"do": "kill", "flag": "items.write", "reason": "burns", "by": "ada"})
            shown = await ask.done("GET", "/api/v1/flags")
            assert shown["source"] == "instance"
            assert "cannot reach the store" in shown["trouble"]
            stands = {flag["key"]: flag["stands"] for flag in shown["flags"]}
            assert stands == {"items.read": "shadow", "items.write": "killed (legacy)"}
            explained = await ask.done("POST", "/api/v1/explain", {"method": "PUT", "target": "/items/1"})
            assert explained["reason"] == "flag_kill"
            assert "burns" in explained["steps"][-1]["what"]

            answer = await ask("POST", "/api/v1/flags/items.read/move", {**WHY, "to": "legacy"})
            assert (answer.status, answer.body["error"]) == (503, "unreachable")
            assert any("crossfade kill" in step for step in answer.body["next"])
            # Only the store could tell whose token this is.
            ask.token = "cf_" + "x" * 43
            assert (await ask("GET", "/api/v1/flags")).status == 503
        finally:
            connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")


async def test_a_supervisor_that_is_silent_is_said(ask: Client, cf: RunningCrossfade) -> None:
    os.kill(cf.pid, signal.SIGSTOP)
    try:
        said = {**WHY, "to": "shadow", "dry_run": True}
        answer = await ask("POST", "/api/v1/flags/items.read/move", said)
    finally:
        os.kill(cf.pid, signal.SIGCONT)
    assert (answer.status, answer.body["error"]) == (503, "silent")


def test_every_word_of_refusal_has_its_step_and_its_exit_code() -> None:
    assert set(STATUS) | {reason.value for reason in StoreReason} <= set(AFTER_REFUSAL)
    assert set(CODES) <= set(AFTER_REFUSAL)
    assert set(STATUS) <= set(CODES)


def _fits(path: str, template: str, method: str, document: Any) -> bool:
    parts, wanted = path.split("/"), template.split("/")
    same = len(parts) == len(wanted) and all(
        there.startswith("{") or here == there for here, there in zip(parts, wanted, strict=True)
    )
    return same and method.lower() in document["paths"][template]
