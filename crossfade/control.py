"""The control process: the admin API on its own port, `python -m crossfade.control LINE PARENT`.

It holds nothing of its own: it asks the supervisor, and shows the last answer when none comes in
time. No request of a client passes through it, so its end costs nobody an answer, and it is
replaced on the same listening socket.

    /healthz              this process lives
    /readyz               200 when all workers accept, else 503 with the reasons
    /metrics              for Prometheus
    /api/v1/proxy         the status as JSON
    /api/v1/openapi.json  what the API answers
    /                     the status as a page
"""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
import time
from dataclasses import dataclass
from html import escape
from typing import Any

from aiohttp import web
from pydantic import TypeAdapter

from core.metrics import Sample
from crossfade import exposition
from crossfade.channel import Channel, Message
from crossfade.processes import die_with_parent
from crossfade.status import ProxyStatus

ANSWER_WITHIN = 2.0
"""Seconds that the supervisor has, which is busy for a moment during a restart."""
STALE_AFTER = 10.0
"""Seconds after which the last known status proves nothing any more."""
END_WITHIN = 2.0
"""Seconds that accepted connections may take when this process is told to stop."""
LOOK_AGAIN_AFTER = 0.01
"""Seconds between two looks at whether they have ended."""
TURNS_TO_CONNECT = 5
"""Turns of asyncio's loop, at the most, from accept() to a connection that aiohttp knows."""

STATUS = TypeAdapter(ProxyStatus)


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether all workers accept new requests, and if not, why."""

    ready: bool
    reasons: list[str]


READINESS = TypeAdapter(Readiness)


def main() -> int:
    line, parent = int(sys.argv[1]), int(sys.argv[2])
    for signum in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(signum, signal.SIG_IGN)
    die_with_parent(parent)
    asyncio.run(_live(socket.socket(fileno=line)))
    return 0


async def _live(line: socket.socket) -> None:
    await _Process().live(line)


class _Process:
    """The life of the process: started, answering, told to stop or left alone."""

    def __init__(self) -> None:
        self._start: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._stop = asyncio.Event()

    async def live(self, line: socket.socket) -> None:
        channel = Channel(self._obey)
        await channel.open(line)
        channel.closed.add_done_callback(lambda _: self._stop.set())
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._stop.set)
        order = await self._start
        runner = web.AppRunner(application(Supervisor(channel)), access_log=None, shutdown_timeout=END_WITHIN)
        await runner.setup()
        listening = [socket.socket(fileno=descriptor) for descriptor in order["sockets"]]
        for sock in listening:
            await web.SockSite(runner, sock).start()
        channel.answer(order, {"ready": True})
        await self._stop.wait()
        await _answer_the_accepted(runner, listening)
        await runner.cleanup()
        channel.close()

    def _obey(self, message: Message) -> None:
        match message["do"]:
            case "start":
                self._start.set_result(message)
            case "stop":
                self._stop.set()


async def _answer_the_accepted(runner: web.AppRunner, listening: list[socket.socket]) -> None:
    """Accept no more, and answer what has been accepted, for at most END_WITHIN.

    The order matters: the next process accepts from the same sockets, so a connection that waits
    there loses nothing, while one that this process has taken has nobody else.
    """
    loop = asyncio.get_running_loop()
    for sock in listening:
        loop.remove_reader(sock)
    for _ in range(TURNS_TO_CONNECT):
        await asyncio.sleep(0)
    server = runner.server
    assert server is not None
    deadline = loop.time() + END_WITHIN
    while server.connections and loop.time() < deadline:  # noqa: ASYNC110  (aiohttp tells nobody)
        await asyncio.sleep(LOOK_AGAIN_AFTER)


class Supervisor:
    """What the supervisor says, or said last."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._status: ProxyStatus | None = None
        self._samples: list[Sample] = []
        self._heard = 0.0

    async def status(self) -> ProxyStatus | None:
        """None if the supervisor has been silent for so long that nothing is known."""
        try:
            answer = await self._channel.ask({"do": "status"}, ANSWER_WITHIN)
        except (TimeoutError, ConnectionResetError):
            return self._status if time.monotonic() - self._heard < STALE_AFTER else None
        self._heard = time.monotonic()
        self._status = STATUS.validate_python(answer["status"])
        return self._status

    async def samples(self) -> list[Sample]:
        try:
            answer = await self._channel.ask({"do": "samples"}, ANSWER_WITHIN)
        except (TimeoutError, ConnectionResetError):
            return self._samples
        self._samples = exposition.from_wire(answer["samples"])
        return self._samples


def application(supervisor: Supervisor) -> web.Application:
    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        found = readiness(await supervisor.status())
        return web.Response(
            status=200 if found.ready else 503,
            body=READINESS.dump_json(found) + b"\n",
            content_type="application/json",
        )

    async def metrics(request: web.Request) -> web.Response:
        accept = request.headers.get("Accept", "")
        body, content_type = exposition.exposition(await supervisor.samples(), accept)
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def proxy(_: web.Request) -> web.Response:
        status = await supervisor.status()
        if status is None:
            return _unavailable()
        return web.Response(body=STATUS.dump_json(status) + b"\n", content_type="application/json")

    async def openapi(_: web.Request) -> web.Response:
        return web.json_response(OPENAPI)

    async def page(_: web.Request) -> web.Response:
        return web.Response(text=status_page(await supervisor.status()), content_type="text/html")

    async def end_with_answer(_: web.Request, response: web.StreamResponse) -> None:
        """Nothing is kept alive, so no request can meet the end of the process on an idle connection."""
        response.force_close()

    found = web.Application()
    found.on_response_prepare.append(end_with_answer)
    found.add_routes(
        [
            web.get("/healthz", healthz),
            web.get("/readyz", readyz),
            web.get("/metrics", metrics),
            web.get("/api/v1/proxy", proxy),
            web.get("/api/v1/openapi.json", openapi),
            web.get("/", page),
        ]
    )
    return found


def readiness(status: ProxyStatus | None) -> Readiness:
    if status is None:
        return Readiness(False, ["the supervisor does not answer"])
    return Readiness(status.ready, status.not_ready)


def status_page(status: ProxyStatus | None) -> str:
    """A page without scripts or anything from elsewhere; it reloads itself."""
    if status is None:
        return _page("crossfade", "<p class=bad>The supervisor does not answer.</p>")
    verdict = (
        "<b class=good>ready</b>"
        if status.ready
        else f"<b class=bad>{escape(', '.join(status.not_ready))}</b>"
    )
    facts = {
        "state": escape(status.state),
        "ready": verdict,
        "listening on": escape(", ".join(status.listen)),
        "configuration": f"{escape(status.config)}, generation {status.generation}",
        "version": escape(status.version),
        "up": f"{status.uptime_seconds:.0f} s, {status.restarts} restarts, "
        f"last start took {status.start_seconds:.2f} s",
        "ended workers": escape(
            ", ".join(f"{n} {reason}" for reason, n in status.worker_exits.items()) or "none"
        ),
    }
    rows = [
        (w.worker, w.pid, escape(w.state), w.generation, f"{w.age_seconds:.0f} s", w.connections, w.in_flight,
         f"{w.memory_bytes / 2**20:.1f} MiB")
        for w in status.workers
    ]  # fmt: skip
    head = ("worker", "pid", "state", "generation", "age", "connections", "in flight", "memory")
    return _page(
        f"crossfade on {escape(', '.join(status.listen))}",
        "<dl>" + "".join(f"<dt>{name}<dd>{value}" for name, value in facts.items()) + "</dl>"
        "<table><tr>" + "".join(f"<th>{name}" for name in head)
        + "".join("<tr>" + "".join(f"<td>{value}" for value in row) for row in rows) + "</table>"
        "<p><a href=/metrics>metrics</a> <a href=/api/v1/proxy>JSON</a> "
        "<a href=/api/v1/openapi.json>OpenAPI</a> <a href=/readyz>readiness</a></p>",
    )  # fmt: skip


def _page(title: str, body: str) -> str:
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta http-equiv=refresh content=2>"
        "<meta name=viewport content='width=device-width'>"
        f"<title>{title}</title><style>{STYLE}</style><h1>{title}</h1>{body}</html>"
    )


STYLE = (
    ":root{color-scheme:light dark}"
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "h1{font-size:1.3rem}dl{display:grid;grid-template-columns:max-content 1fr;gap:.2rem 1.5rem}"
    "dd{margin:0}dt{opacity:.7}table{border-collapse:collapse;font-variant-numeric:tabular-nums}"
    "td,th{text-align:left;padding:.25rem 1rem .25rem 0;border-bottom:1px solid #8884}"
    ".good{color:#188038}.bad{color:#d93025}a{margin-right:1rem}"
)


def _unavailable() -> web.Response:
    return web.json_response({"reasons": ["the supervisor does not answer"]}, status=503)


def _openapi() -> dict[str, Any]:
    """Derived from the values that the answers are made of."""
    schemas: dict[str, Any] = {}
    for name, adapter in (("ProxyStatus", STATUS), ("Readiness", READINESS)):
        schema = adapter.json_schema(ref_template="#/components/schemas/{model}")
        schemas |= schema.pop("$defs", {})
        schemas[name] = schema

    def get(summary: str, answers: dict[str, tuple[str, dict[str, Any]]]) -> dict[str, Any]:
        responses = {
            code: {"description": description, "content": content}
            for code, (description, content) in answers.items()
        }
        return {"get": {"summary": summary, "responses": responses}}

    def body(name: str) -> dict[str, Any]:
        return {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}

    text = {"text/plain": {"schema": {"type": "string"}}}
    anything = {"application/json": {"schema": {"type": "object"}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Crossfade admin API", "version": "1"},
        "paths": {
            "/healthz": get("Whether this process lives", {"200": ("It does", text)}),
            "/readyz": get(
                "Whether all workers accept",
                {"200": ("They do", body("Readiness")), "503": ("They do not, and why", body("Readiness"))},
            ),
            "/metrics": get(
                "Metrics in Prometheus' or OpenMetrics' text format", {"200": ("All metrics", text)}
            ),
            "/api/v1/proxy": get(
                "Status of the instance and its workers",
                {
                    "200": ("The status", body("ProxyStatus")),
                    "503": ("The supervisor does not answer", anything),
                },
            ),
            "/api/v1/openapi.json": get("This document", {"200": ("OpenAPI", anything)}),
        },
        "components": {"schemas": schemas},
    }


OPENAPI = _openapi()


if __name__ == "__main__":
    sys.exit(main())
