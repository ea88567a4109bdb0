"""Flags over HTTP: read, change, explain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from time import time
from typing import Any

from aiohttp import web

from core.http import Refusal
from crossfade.admin.desk import Desk, flag_shown, set_shown
from crossfade.admin.models import ApplyBody, Body, CreateBody, EditBody, ExplainBody, MoveBody
from crossfade.store.actors import Actor
from crossfade.store.audit import AuditRow
from flags.change import (
    Apply,
    Archive,
    Create,
    Edit,
    KillAll,
    KillFlag,
    Move,
    Refused,
    Unkill,
    UnkillAll,
)
from flags.document import bucketing_from_json, flag_from_json, overrides_from_json, rules_from_json
from flags.explain import explain
from flags.model import Flag, Route, Side
from flags.snapshot import compile_snapshot
from proxy.claims import TokenReader
from proxy.config import Tokens
from proxy.head import parse_request


class FlagsApi:
    """The handlers of `/api/v1/flags`, `/kill`, `/unkill` and `/apply`."""

    def __init__(self, desk: Desk, routes: list[dict[str, Any]]) -> None:
        self._desk = desk
        self.routes = routes

    async def list(self, request: web.Request) -> web.Response:
        await self._desk.actor(request)
        return web.json_response(set_shown(await self._desk.store().flag_set()))

    async def get(self, request: web.Request) -> web.Response:
        await self._desk.actor(request)
        flag_set = await self._desk.store().flag_set()
        flag = flag_set.flag(request.match_info["key"])
        if flag is None:
            raise _unknown(request.match_info["key"], flag_set.flags)
        return web.json_response({"set_version": flag_set.version, **flag_shown(flag)})

    async def history(self, request: web.Request) -> web.Response:
        await self._desk.actor(request)
        rows = await self._desk.store().history(request.match_info["key"], 100)
        return web.json_response({"rows": [row_shown(row) for row in rows]})

    async def create(self, request: web.Request) -> web.Response:
        said = await self._desk.body(request, CreateBody)
        return await self._desk.change(request, Create(flag_from_json(said.flag)), said)

    async def edit(self, request: web.Request) -> web.Response:
        said = await self._desk.body(request, EditBody)
        key = request.match_info["key"]
        command = Edit(
            key,
            bucketing=None if said.bucketing is None else bucketing_from_json(said.bucketing, key),
            overrides=None if said.overrides is None else overrides_from_json(said.overrides),
            rules=None if said.rules is None else rules_from_json(said.rules),
            fallback_ppm=said.fallback,
            no_fallback=said.no_fallback,
            owner=said.owner,
            ticket=said.flag_ticket,
            expires_on=said.expires_on,
            description=said.description,
        )
        return await self._desk.change(request, command, said)

    async def move(self, request: web.Request) -> web.Response:
        said = await self._desk.body(request, MoveBody)
        return await self._desk.change(request, Move(request.match_info["key"], said.to, said.weight), said)

    async def kill(self, request: web.Request) -> web.Response:
        said = await self._desk.body(request, Body)
        actor = await self._desk.actor(request)
        key = request.match_info["key"]
        return await self._desk.change(request, KillFlag(key, said.reason, _name(actor)), said)

    async def unkill(self, request: web.Request) -> web.Response:
        said = await self._desk.body(request, Body)
        return await self._desk.change(request, Unkill(request.match_info["key"]), said)

    async def archive(self, request: web.Request) -> web.Response:
        said = await self._desk.body(request, Body)
        return await self._desk.change(request, Archive(request.match_info["key"]), said)

    async def kill_all(self, request: web.Request) -> web.Response:
        said = await self._desk.body(request, Body)
        actor = await self._desk.actor(request)
        return await self._desk.change(request, KillAll(said.reason, _name(actor)), said)

    async def unkill_all(self, request: web.Request) -> web.Response:
        said = await self._desk.body(request, Body)
        return await self._desk.change(request, UnkillAll(), said)

    async def apply(self, request: web.Request) -> web.Response:
        said = await self._desk.body(request, ApplyBody)
        flags = tuple(flag_from_json(flag, f"flags[{n}]") for n, flag in enumerate(said.flags))
        return await self._desk.change(request, Apply(flags), said)

    async def explain(self, request: web.Request) -> web.Response:
        """What would become of a request, by the routes of this instance and the flags of the store."""
        await self._desk.actor(request)
        said = await self._desk.body(request, ExplainBody)
        flag_set = await self._desk.store().flag_set()
        routes = [
            Route(
                route["flag"], route["path"], frozenset(route["methods"]), route["host"], Side(route["side"])
            )
            for route in self.routes
        ]
        fields = {name.lower() for name, _ in said.headers}
        headers = [*([] if "host" in fields else [("Host", "localhost")]), *said.headers]
        text = f"{said.method} {said.target} HTTP/1.1\r\n"
        text += "".join(f"{name}: {value}\r\n" for name, value in headers) + "\r\n"
        head = parse_request(text.encode(), max_head=65536, max_target=16384, max_fields=200)
        if isinstance(head, Refusal) or head is None:
            why = head.reason if head is not None else "it is not complete"
            raise Refused("invalid", f"this is no request that Crossfade would take: {why}")
        # Not verified: whoever asks what would be may claim what they like.
        facts = _SaidFacts(said.client, TokenReader(Tokens()).claims(head, time()), said.attributes)
        found = explain(compile_snapshot(routes, 0, flag_set), routes, flag_set, head, facts)
        decision = found.decision
        return web.json_response(
            {
                "flag": decision.flag,
                "side": decision.side,
                "stage": decision.stage,
                "reason": decision.reason,
                "mirror": decision.mirror,
                "set_version": flag_set.version,
                "steps": [{"what": step.what, "decided": step.decided} for step in found.steps],
            }
        )


@dataclass(frozen=True, slots=True)
class _SaidFacts:
    """The facts of a request that somebody only describes."""

    client: str
    known_claims: Mapping[str, object]
    known_attributes: Mapping[str, str]

    def client_address(self) -> str:
        return self.client

    def now(self) -> float:
        return time()

    def claims(self) -> Mapping[str, object]:
        return self.known_claims

    def attributes(self) -> Mapping[str, str]:
        return self.known_attributes

    def assigned_identity(self, cookie: str) -> str:  # noqa: ARG002  (nobody is given one by asking)
        return "(a new identity)"


def row_shown(row: AuditRow) -> dict[str, Any]:
    """An audit row as the API shows it."""
    return {
        "seq": row.seq, "at": row.at.isoformat(), "actor": row.actor, "action": row.action,
        "kind": row.kind, "objects": list(row.objects), "outcome": row.outcome, "refusal": row.refusal,
        "from_version": row.from_version, "to_version": row.to_version, "before": row.before,
        "after": row.after, "reason": row.reason, "ticket": row.ticket, "evidence": row.evidence,
        "hash": row.hash,
    }  # fmt: skip


def _name(actor: Actor) -> str:
    return actor.name


def _unknown(key: str, flags: tuple[Flag, ...]) -> Refused:
    near = [flag.key for flag in flags if key in flag.key or flag.key in key][:3]
    hint = f"did you mean {' or '.join(near)}?" if near else "crossfade flag list shows what there is"
    return Refused("not_found", f'there is no flag "{key}"; {hint}')
