"""One operation of the API. What it takes and answers stands in the types of its handler, nowhere else."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeAlias, get_args, get_type_hints

from aiohttp import web
from pydantic import BaseModel

from crossfade.admin.answers import Answer
from crossfade.admin.asked import Asked
from crossfade.admin.desk import Desk
from crossfade.store.actors import Role

LONGEST_REQUEST_ID = 128

Handler: TypeAlias = Callable[[Asked[Any]], Awaitable[Answer]]


@dataclass(frozen=True, slots=True)
class Operation:
    """`least` is for reading; what may be changed by whom is the store's table."""

    method: str
    path: str
    summary: str
    handler: Handler
    least: Role = Role.VIEWER

    @property
    def said(self) -> type[BaseModel]:
        """The form of its body, or of its query where it is a GET."""
        form: type[BaseModel] = get_args(get_type_hints(self.handler)["asked"])[0]
        return form

    @property
    def answer(self) -> type[Answer]:
        form: type[Answer] = get_type_hints(self.handler)["return"]
        return form

    def served_by(self, desk: Desk) -> web.RouteDef:
        form = self.said

        async def serve(request: web.Request) -> web.Response:
            # First who asks: nobody else learns what a body should look like.
            actor = await desk.actor(request, self.least)
            said = (
                form.model_validate(dict(request.query))
                if self.method == "GET"
                else form.model_validate_json(await request.read() or b"{}")
            )
            named = request.headers.get("X-Request-Id")
            request_id = None if named is None else named[:LONGEST_REQUEST_ID]
            answer = await self.handler(Asked(actor, said, request.match_info, request_id))
            return web.Response(
                body=answer.model_dump_json(by_alias=True).encode() + b"\n", content_type="application/json"
            )

        return web.route(self.method, self.path, serve)
