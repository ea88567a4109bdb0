"""Who may do what, what was done, and who runs which version: over HTTP."""

from __future__ import annotations

from dataclasses import asdict

from aiohttp import web

from crossfade.admin.desk import Desk
from crossfade.admin.flags_api import row_shown
from crossfade.admin.models import Body, PersonBody
from crossfade.store.actors import Role
from crossfade.store.audit import Broken
from flags.change import Refused

MOST_ROWS = 1000


class PeopleApi:
    """The handlers of `/api/v1/people`, `/audit` and `/instances`."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def list(self, request: web.Request) -> web.Response:
        await self._desk.actor(request, Role.ADMIN)
        return web.json_response(
            {
                "people": [
                    {
                        "name": person.name,
                        "role": person.role.value,
                        "created_at": person.created_at.isoformat(),
                        "revoked_at": person.revoked_at and person.revoked_at.isoformat(),
                        "last_used": person.last_used and person.last_used.isoformat(),
                    }
                    for person in await self._desk.store().people()
                ]
            }
        )

    async def add(self, request: web.Request) -> web.Response:
        said = await self._desk.body(request, PersonBody)
        actor = await self._desk.actor(request)
        try:
            role = Role(said.role)
        except ValueError:
            roles = ", ".join(role.value for role in Role)
            raise Refused("invalid", f'there is no role "{said.role}"; expected one of {roles}') from None
        token = await self._desk.store().issue_token(actor, said.name, role, reason=said.reason)
        return web.json_response({"name": said.name, "role": role.value, "token": token})

    async def revoke(self, request: web.Request) -> web.Response:
        said = await self._desk.body(request, Body)
        actor = await self._desk.actor(request)
        name = request.match_info["name"]
        await self._desk.store().revoke_token(actor, name, reason=said.reason)
        return web.json_response({"name": name, "revoked": True})

    async def audit(self, request: web.Request) -> web.Response:
        """`after` is a row's number; without it the last rows come."""
        await self._desk.actor(request)
        try:
            after = int(request.query["after"]) if "after" in request.query else None
            limit = int(request.query.get("limit", "50"))
        except ValueError:
            raise Refused("invalid", "after and limit are whole numbers") from None
        if not 1 <= limit <= MOST_ROWS:
            raise Refused("invalid", f"limit is from 1 to {MOST_ROWS}")
        rows = await self._desk.store().audit_tail(after, limit)
        return web.json_response({"rows": [row_shown(row) for row in rows]})

    async def verify(self, request: web.Request) -> web.Response:
        await self._desk.actor(request)
        found = await self._desk.store().audit_verify()
        return web.json_response({"intact": not isinstance(found, Broken), **asdict(found)})

    async def instances(self, request: web.Request) -> web.Response:
        await self._desk.actor(request)
        return web.json_response(
            {
                "instances": [
                    {
                        "id": one.report.id,
                        "host": one.report.host,
                        "address": one.report.address,
                        "flags_version": one.report.flags_version,
                        "kills": one.report.kill_overlay,
                        "workers": list(one.report.workers),
                        "age_seconds": round(one.age, 3),
                    }
                    for one in await self._desk.store().instances()
                ]
            }
        )

    async def converged(self, request: web.Request) -> web.Response:
        """Wait until all workers run `version`, for at most `wait` seconds."""
        await self._desk.actor(request)
        try:
            version, wait = int(request.query["version"]), float(request.query.get("wait", "0"))
        except (KeyError, ValueError):
            raise Refused("invalid", "version is a whole number, wait a number of seconds") from None
        self._desk.store()
        return web.json_response(await self._desk.converged(version, min(max(wait, 0.0), 60.0)))
