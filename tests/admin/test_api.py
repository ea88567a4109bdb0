"""The admin API over HTTP: who is let in, what is answered, and that the description is the truth."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate
from sqlalchemy import make_url

from crossfade.admin.errors import STATUS
from crossfade.admin.next_steps import AFTER_REFUSAL
from crossfade.commands.api import CODES
from crossfade.embedded.postgres import EmbeddedPostgres
from crossfade.store.connection import StoreReason
from tests.support.crossfade_process import PATIENCE, RunningCrossfade

WHY = {"reason": "a test"}


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: Any


class Client:
    """Sends whatever it is told to, with or without a token."""

    def __init__(self, cf: RunningCrossfade) -> None:
        self._cf = cf
        self.token: str | None = (cf.data_dir / "run" / "admin.token").read_text().strip()

    async def __call__(
        self, method: str, path: str, said: Any = None, *, raw: bytes | None = None, **fields: str
    ) -> Answer:
        body = raw if raw is not None else b"" if said is None else json.dumps(said).encode()
        lines = [f"{method} {path} HTTP/1.1", "Host: test", f"Content-Length: {len(body)}"]
        if self.token is not None:
            lines.append(f"Authorization: Bearer {self.token}")
        lines += (f"{name.replace('_', '-')}: {value}" for name, value in fields.items())
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_connection("127.0.0.1", self._cf.admin_port)
            writer.write(("\r\n".join(lines) + "\r\n\r\n").encode() + body)
            head, _, content = (await reader.read()).partition(b"\r\n\r\n")
            writer.close()
        first, *rest = head.decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}
        return Answer(int(first.split()[1]), headers, json.loads(content))

    async def done(self, method: str, path: str, said: Any = None) -> Any:
        answer = await self(method, path, said)
        assert answer.status == 200, answer
        return answer.body


@pytest.fixture
def ask(cf: RunningCrossfade) -> Client:
    return Client(cf)


async def test_whatever_is_answered_is_as_it_is_described(ask: Client) -> None:
    document = await ask.done("GET", "/api/v1/openapi.json")
    validate(document)

    flag, ramp = "/api/v1/flags/items.read", "/api/v1/ramps/items.read"
    guardrail = "/api/v1/guardrails/items.read:errors"
    when = {"attribute": "header:x-qa", "exists": True}
    override = {"id": "qa", "when": when, "stage": "legacy", "expires_at": "2099-01-01T00:00:00+00:00"}
    rule = {"id": "qa", "when": when, "transition": {"from": "legacy", "to": "shadow", "weight_ppm": 7}}
    edit = {**WHY, "bucketing": {"by": ["cookie:sid"]}, "overrides": [override], "rules": [rule]}
    steps = [{"weight_ppm": 10_000, "hold": 600}, {"weight_ppm": 1_000_000, "hold": 0}]
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
        _conforms(answer.body, operation["responses"]["200"], document)
        assert isinstance(answer.body["next"], list)
        if said is not None:
            _conforms(said, operation["requestBody"], document)
    described = {
        (method.upper(), path)
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        if "security" in operation
    }
    assert told == described


async def test_every_refusal_says_what_to_do_next(ask: Client) -> None:
    document = await ask.done("GET", "/api/v1/openapi.json")
    move = "/api/v1/flags/items.read/move"
    flag = "/api/v1/flags/items.read"
    to_shadow = {**WHY, "to": "shadow"}
    for status, word, says, method, path, said in (
        (404, "not_found", "did you mean items.read?", "GET", "/api/v1/flags/items.rea", None),
        (404, "not_found", "there is no flag", "GET", "/api/v1/flags/nope/history", None),
        (409, "stage_jump", "possible: legacy, shadow", "POST", move, {**WHY, "to": "new"}),
        (409, "conflict", "is at version 1, not 7", "POST", move, {**to_shadow, "expected_version": 7}),
        (422, "invalid", "needs a reason", "POST", move, {"to": "shadow"}),
        (422, "invalid", "weight: expected a share such as 5%", "POST", move, {**to_shadow, "weight": "5"}),
        (422, "invalid", "parts per million", "POST", move, {**to_shadow, "weight": 1_000_001}),
        (422, "invalid", "colour: unknown here", "POST", move, {**to_shadow, "colour": "red"}),
        (422, "invalid", 'rules[0].when: "colour" is no attribute', "PATCH", flag,
         {**WHY, "rules": [_rule("colour", "red")]}),
        (422, "invalid", "limit", "GET", "/api/v1/audit?limit=0", None),
        (422, "invalid", "expected one of viewer", "POST", "/api/v1/people",
         {**WHY, "name": "bob", "role": "king"}),
        (404, "no_path", "there is nothing at", "GET", "/api/v1/nothing", None),
        (405, "no_path", "takes GET, HEAD, PATCH, not DELETE", "DELETE", flag, None),
    ):  # fmt: skip
        answer = await ask(method, path, said)
        assert (answer.status, answer.body["error"]) == (status, word), (path, answer)
        assert says in answer.body["message"], answer
        assert answer.body["next"]
        _conforms(answer.body, document["paths"][flag_path]["get"]["responses"]["default"], document)

    for raw in (b"{", b"[]", b'"x"', b"\xff\xfe", b"{}{}"):
        answer = await ask("POST", move, raw=raw)
        assert answer.status in (400, 422), (raw, answer)
        assert answer.body["next"]
    assert (await ask("POST", move, raw=b"{")).body["error"] == "malformed"
    assert (await ask("POST", move, raw=b" " * 2_000_000)).status == 413


flag_path = "/api/v1/flags/{key}"


def _rule(attribute: str, value: Any) -> dict[str, Any]:
    return {
        "id": "one",
        "when": {"attribute": attribute, "eq": value},
        "transition": {"from": "legacy", "to": "shadow", "weight_ppm": 0},
    }


async def test_who_asks_comes_before_what_is_asked(ask: Client) -> None:
    document = await ask.done("GET", "/api/v1/openapi.json")
    ask.token = None
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if "security" not in operation:
                continue
            answer = await ask(method.upper(), path.replace("{", "").replace("}", ""), raw=b"no JSON")
            assert (answer.status, answer.body["error"]) == (401, "unauthorized"), (method, path)
            assert answer.headers["www-authenticate"].startswith("Bearer")
            assert answer.body["next"]


async def test_each_role_may_do_its_part_and_no_more(ask: Client) -> None:
    async def as_(role: str) -> Client:
        made = await ask.done("POST", "/api/v1/people", {**WHY, "name": role, "role": role})
        found = Client(ask._cf)
        found.token = made["token"]
        return found

    viewer, reviewer, operator = [await as_(role) for role in ("viewer", "reviewer", "operator")]
    kill = ("POST", "/api/v1/flags/items.read/kill", WHY)
    add = ("POST", "/api/v1/people", {**WHY, "name": "eve", "role": "admin"})
    for person in (viewer, reviewer, operator):
        assert (await person("GET", "/api/v1/flags")).status == 200
        assert (await person(*add)).status == 403
        assert (await person("GET", "/api/v1/people")).status == 403
    for person in (viewer, reviewer):
        answer = await person(*kill)
        assert (answer.status, answer.body["error"]) == (403, "denied")
        assert "needs the role operator" in answer.body["message"]
    assert (await operator(*kill)).status == 200
    # A body that nobody may send is denied, and written down, whatever stands in it.
    rows = (await ask.done("GET", "/api/v1/audit?limit=100"))["rows"]
    denied = [(row["actor"]["name"], row["action"]) for row in rows if row["outcome"] == "denied"]
    assert denied.count(("viewer", "flag.kill")) == denied.count(("reviewer", "flag.kill")) == 1
    assert [name for name, action in denied if action == "person.add"] == ["viewer", "reviewer", "operator"]


async def test_the_audit_has_who_asked_and_their_request(ask: Client) -> None:
    said = {**WHY, "to": "shadow", "ticket": "OPS-7"}
    await ask("POST", "/api/v1/flags/items.read/move", said, X_Request_Id="abc", X_Crossfade_User="ada")
    (row,) = (await ask.done("GET", "/api/v1/audit?limit=1"))["rows"]
    assert row["actor"]["name"] == "ada"
    assert row["actor"]["type"] == "local"
    assert row["actor"]["via"] == "api"
    assert row["actor"]["address"] == "127.0.0.1"
    assert (row["request_id"], row["ticket"], row["reason"]) == ("abc", "OPS-7", "a test")


async def test_a_dry_run_is_never_taken_for_the_real_thing(ask: Client) -> None:
    """Where it cannot be dry, it is refused instead of done."""
    guardrail = {**WHY, "flag": "items.read", "definition": {"signal": "errors"}}
    await ask.done("PUT", "/api/v1/guardrails/g1", guardrail)
    before = await ask.done("GET", "/api/v1/audit?limit=1000")
    dry = {**WHY, "dry_run": True}
    for method, path, said, possible in (
        ("POST", "/api/v1/kill", dry, True),
        ("POST", "/api/v1/flags/items.read/move", {**dry, "to": "shadow"}, True),
        ("PUT", "/api/v1/guardrails/g2", {**guardrail, "dry_run": True}, True),
        ("POST", "/api/v1/guardrails/g1/rearm", dry, False),
        ("DELETE", "/api/v1/guardrails/g1", dry, False),
        ("POST", "/api/v1/people", {**dry, "name": "bob", "role": "admin"}, False),
    ):
        answer = await ask(method, path, said)
        assert answer.status == (200 if possible else 422), (path, answer)
        if not possible:
            assert "dry_run: unknown here" in answer.body["message"]
    assert (await ask.done("GET", "/api/v1/audit?limit=1000"))["rows"] == before["rows"]


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
            assert stands == {"items.read": "shadow", "items.write": "killed"}
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


def _conforms(value: Any, described: Any, document: Any) -> None:
    schema = described["content"]["application/json"]["schema"]
    Draft202012Validator({**schema, "components": document["components"]}).validate(value)
