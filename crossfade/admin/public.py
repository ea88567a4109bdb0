"""What is answered to everybody: health, readiness, metrics and the status."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

from aiohttp import web

from core.metrics import Sample
from crossfade import exposition
from crossfade.admin.answers import CutoverShown
from crossfade.admin.asking import STATUS, Supervisor
from crossfade.admin.errors import refusal
from crossfade.admin.page import READINESS, readiness, status_page

Samples: TypeAlias = Callable[[], Sequence[Sample]]
Cutovers: TypeAlias = Callable[[], Awaitable[Sequence[CutoverShown]]]


class Public:
    """The handlers of what needs no token."""

    def __init__(self, supervisor: Supervisor, own_samples: Samples, cutovers: Cutovers) -> None:
        self._supervisor = supervisor
        self._own_samples = own_samples
        self._cutovers = cutovers

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/healthz", self._healthz),
            web.get("/readyz", self._readyz),
            web.get("/metrics", self._metrics),
            web.get("/api/v1/proxy", self._proxy),
            web.get("/", self._page),
        ]

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        found = readiness(await self._supervisor.status())
        return web.Response(
            status=200 if found.ready else 503,
            body=READINESS.dump_json(found) + b"\n",
            content_type="application/json",
        )

    async def _metrics(self, request: web.Request) -> web.Response:
        accept = request.headers.get("Accept", "")
        samples = exposition.summed(await self._supervisor.samples(), self._own_samples())
        body, content_type = exposition.exposition(samples, accept)
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _proxy(self, _: web.Request) -> web.Response:
        status = await self._supervisor.status()
        if status is None:
            return refusal(503, "silent", "the supervisor does not answer")
        return web.Response(body=STATUS.dump_json(status) + b"\n", content_type="application/json")

    async def _page(self, _: web.Request) -> web.Response:
        status, cutovers = await self._supervisor.status(), await self._cutovers()
        return web.Response(text=status_page(status, cutovers), content_type="text/html")
