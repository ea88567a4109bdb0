"""`/metrics` of a process that serves nothing else."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

from core.metrics import Sample
from crossfade import exposition
from crossfade.settings_form import Address


async def serve(where: Address, samples: Callable[[], list[Sample]]) -> web.AppRunner:
    """Serve until the runner is cleaned up. Raises OSError where the address cannot be listened on."""

    async def metrics(request: web.Request) -> web.Response:
        body, kind = exposition.exposition(samples(), request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": kind})

    application = web.Application()
    application.add_routes([web.get("/metrics", metrics)])
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, where.host, where.port).start()
    return runner
