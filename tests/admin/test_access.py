"""Who may ask for what, and what those hear who may not, or who ask for what cannot be.

The scenes share one instance; each has a flag of its own.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.admin.client import WHY, Client, conforms


async def a_flag(together: Client, key: str) -> str:
    """The path of a new flag."""
    legacy = {"from": "legacy", "to": "shadow", "weight_ppm": 0}
    await together.done("POST", "/api/v1/flags", {**WHY, "flag": {"key": key, "transition": legacy}})
    return f"/api/v1/flags/{key}"


@pytest.mark.asyncio(loop_scope="package")
async def test_every_refusal_says_what_to_do_next(together: Client) -> None:
    document = await together.done("GET", "/api/v1/openapi.json")
    refusal = document["paths"]["/api/v1/flags/{key}"]["get"]["responses"]["default"]
    flag = await a_flag(together, "refused.one")
    move = f"{flag}/move"
    to_shadow = {**WHY, "to": "shadow"}
    for status, word, says, method, path, said in (
        (404, "not_found", "did you mean refused.one?", "GET", "/api/v1/flags/refused.on", None),
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
        answer = await together(method, path, said)
        assert (answer.status, answer.body["error"]) == (status, word), (path, answer)
        assert says in answer.body["message"], answer
        assert answer.body["next"]
        conforms(answer.body, refusal, document)

    for raw in (b"{", b"[]", b'"x"', b"\xff\xfe", b"{}{}"):
        answer = await together("POST", move, raw=raw)
        assert answer.status in (400, 422), (raw, answer)
        assert answer.body["next"]
    assert (await together("POST", move, raw=b"{")).body["error"] == "malformed"
    assert (await together("POST", move, raw=b" " * 2_000_000)).status == 413


@pytest.mark.asyncio(loop_scope="package")
async def test_who_asks_comes_before_what_is_asked(together: Client) -> None:
    document = await together.done("GET", "/api/v1/openapi.json")
    nobody = Client(together.cf)
    nobody.token = None
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if "security" not in operation:
                continue
            answer = await nobody(method.upper(), path.replace("{", "").replace("}", ""), raw=b"no JSON")
            assert (answer.status, answer.body["error"]) == (401, "unauthorized"), (method, path)
            assert answer.headers["www-authenticate"].startswith("Bearer")
            assert answer.body["next"]


@pytest.mark.asyncio(loop_scope="package")
@pytest.mark.parametrize("token", ["cf_caf\udce9", "cf_café", "cf_nobody's"])
async def test_a_token_that_nobody_gave_is_told_so_whatever_its_bytes(together: Client, token: str) -> None:
    stranger = Client(together.cf)
    stranger.token = token
    answer = await stranger("GET", "/api/v1/flags")
    assert (answer.status, answer.body["error"]) == (401, "unauthorized")


@pytest.mark.asyncio(loop_scope="package")
async def test_each_role_may_do_its_part_and_no_more(together: Client) -> None:
    async def as_(role: str) -> Client:
        made = await together.done("POST", "/api/v1/people", {**WHY, "name": role, "role": role})
        found = Client(together.cf)
        found.token = made["token"]
        return found

    viewer, reviewer, operator = [await as_(role) for role in ("viewer", "reviewer", "operator")]
    kill = ("POST", f"{await a_flag(together, 'roles')}/kill", WHY)
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
    rows = (await together.done("GET", "/api/v1/audit?limit=100"))["rows"]
    denied = [(row["actor"]["name"], row["action"]) for row in rows if row["outcome"] == "denied"]
    assert denied.count(("viewer", "flag.kill")) == denied.count(("reviewer", "flag.kill")) == 1
    assert [name for name, action in denied if action == "person.add"] == ["viewer", "reviewer", "operator"]


@pytest.mark.asyncio(loop_scope="package")
async def test_the_audit_has_who_asked_and_their_request(together: Client) -> None:
    said = {**WHY, "to": "shadow", "ticket": "OPS-7"}
    await together(
        "POST", f"{await a_flag(together, 'audited')}/move", said, X_Request_Id="abc", X_Crossfade_User="ada"
    )
    (row,) = (await together.done("GET", "/api/v1/audit?limit=1"))["rows"]
    assert row["actor"]["name"] == "ada"
    assert row["actor"]["type"] == "local"
    assert row["actor"]["via"] == "api"
    assert row["actor"]["address"] == "127.0.0.1"
    assert (row["request_id"], row["ticket"], row["reason"]) == ("abc", "OPS-7", "a test")


@pytest.mark.asyncio(loop_scope="package")
async def test_a_dry_run_is_never_taken_for_the_real_thing(together: Client) -> None:
    """Where it cannot be dry, it is refused instead of done."""
    flag = await a_flag(together, "dry")
    guardrail = {**WHY, "flag": "dry", "definition": {"signal": "errors"}}
    await together.done("PUT", "/api/v1/guardrails/g1", guardrail)
    before = await together.done("GET", "/api/v1/audit?limit=1000")
    dry = {**WHY, "dry_run": True}
    for method, path, said, possible in (
        ("POST", "/api/v1/kill", dry, True),
        ("POST", f"{flag}/move", {**dry, "to": "shadow"}, True),
        ("PUT", "/api/v1/guardrails/g2", {**guardrail, "dry_run": True}, True),
        ("POST", "/api/v1/guardrails/g1/rearm", dry, False),
        ("DELETE", "/api/v1/guardrails/g1", dry, False),
        ("POST", "/api/v1/people", {**dry, "name": "bob", "role": "admin"}, False),
    ):
        answer = await together(method, path, said)
        assert answer.status == (200 if possible else 422), (path, answer)
        if not possible:
            assert "dry_run: unknown here" in answer.body["message"]
    assert (await together.done("GET", "/api/v1/audit?limit=1000"))["rows"] == before["rows"]


def _rule(attribute: str, value: Any) -> dict[str, Any]:
    return {
        "id": "one",
        "when": {"attribute": attribute, "eq": value},
        "transition": {"from": "legacy", "to": "shadow", "weight_ppm": 0},
    }
