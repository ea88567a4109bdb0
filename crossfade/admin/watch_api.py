"""Ramps and guardrails over HTTP: what moves by itself, and what takes it back."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from crossfade.admin.desk import Desk
from crossfade.admin.models import AbortBody, Body, GuardrailBody, RampBody
from crossfade.store import guardrails, ramps
from flags.change import Refused
from flags.guardrail import evidence_to_json, guardrail_to_json
from flags.ramp import InvalidRampError, plan_to_json, steps_from_json, steps_to_json, windows_from_json


class WatchApi:
    """The handlers of `/api/v1/ramps` and `/api/v1/guardrails`."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def ramps(self, request: web.Request) -> web.Response:
        await self._desk.actor(request)
        found = await ramps.list_ramps(self._desk.store(), ended="ended" in request.query)
        return web.json_response({"ramps": [ramp_shown(row) for row in found]})

    async def ramp(self, request: web.Request) -> web.Response:
        await self._desk.actor(request)
        return web.json_response(ramp_shown(await ramps.ramp_status(self._desk.store(), _key(request))))

    async def start(self, request: web.Request) -> web.Response:
        said = await self._desk.body(request, RampBody)
        actor = await self._desk.actor(request)
        try:
            steps, windows = steps_from_json(said.steps), windows_from_json(said.windows)
        except InvalidRampError as error:
            raise Refused("invalid", str(error)) from None
        row = await ramps.start_ramp(
            self._desk.store(),
            actor,
            _key(request),
            to=said.to,
            steps=steps,
            windows=windows,
            reason=said.reason,
            ticket=said.ticket,
            expected_version=said.expected_version,
            dry_run=said.dry_run,
        )
        return web.json_response({**ramp_shown(row), "dry_run": said.dry_run})

    async def pause(self, request: web.Request) -> web.Response:
        said = await self._desk.body(request, Body)
        actor = await self._desk.actor(request)
        row = await ramps.pause_ramp(
            self._desk.store(), actor, _key(request), reason=said.reason, ticket=said.ticket
        )
        return web.json_response(ramp_shown(row))

    async def resume(self, request: web.Request) -> web.Response:
        said = await self._desk.body(request, Body)
        actor = await self._desk.actor(request)
        row = await ramps.resume_ramp(
            self._desk.store(), actor, _key(request), reason=said.reason, ticket=said.ticket
        )
        return web.json_response(ramp_shown(row))

    async def abort(self, request: web.Request) -> web.Response:
        said = await self._desk.body(request, AbortBody)
        actor = await self._desk.actor(request)
        row = await ramps.abort_ramp(
            self._desk.store(), actor, _key(request), reason=said.reason, ticket=said.ticket, stay=said.stay
        )
        return web.json_response(ramp_shown(row))

    async def guardrails(self, request: web.Request) -> web.Response:
        await self._desk.actor(request)
        found = await guardrails.list_guardrails(self._desk.store(), request.query.get("flag"))
        return web.json_response({"guardrails": [watch_shown(watch) for watch in found]})

    async def set_guardrail(self, request: web.Request) -> web.Response:
        said = await self._desk.body(request, GuardrailBody)
        actor = await self._desk.actor(request)
        watch = await guardrails.set_guardrail(
            self._desk.store(),
            actor,
            said.flag,
            said.definition,
            guardrail_id=request.match_info.get("id"),
            reason=said.reason,
            ticket=said.ticket,
            dry_run=said.dry_run,
        )
        return web.json_response({**watch_shown(watch), "dry_run": said.dry_run})

    async def rearm(self, request: web.Request) -> web.Response:
        said = await self._desk.body(request, Body)
        actor = await self._desk.actor(request)
        watch = await guardrails.rearm(
            self._desk.store(), actor, request.match_info["id"], reason=said.reason, ticket=said.ticket
        )
        return web.json_response(watch_shown(watch))

    async def delete(self, request: web.Request) -> web.Response:
        said = await self._desk.body(request, Body)
        actor = await self._desk.actor(request)
        name = request.match_info["id"]
        await guardrails.delete_guardrail(
            self._desk.store(), actor, name, reason=said.reason, ticket=said.ticket
        )
        return web.json_response({"id": name, "deleted": True})


def ramp_shown(row: ramps.RampRow) -> dict[str, Any]:
    ramp = row.ramp
    return {
        "id": row.id, "flag": row.flag, "state": ramp.state.value, "step": ramp.step,
        "steps": steps_to_json(ramp.plan.steps), "plan": plan_to_json(ramp.plan),
        "step_started_at": ramp.step_started_at, "requests": row.requests, "held_reason": ramp.held_reason,
        "started_at": row.started_at, "started_by": row.started_by, "reason": row.reason,
        "ended_at": row.ended_at,
    }  # fmt: skip


def watch_shown(watch: guardrails.Watch) -> dict[str, Any]:
    return {
        "id": watch.guardrail.id, "flag": watch.guardrail.flag, "state": watch.state.value,
        "definition": guardrail_to_json(watch.guardrail), "evidence": evidence_to_json(watch.evidence),
        "trigger": watch.trigger, "message": watch.message, "armed_at": watch.armed_at,
        "tripped_at": watch.tripped_at,
    }  # fmt: skip


def _key(request: web.Request) -> str:
    return request.match_info["key"]
