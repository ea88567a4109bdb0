"""The admin API as one table of operations, from which both the routes and the OpenAPI document are made.

/healthz              this process lives
/readyz               200 when all workers accept, else 503 with the reasons
/metrics              for Prometheus
/                     the status as a page
/api/v1/…             everything else; needs a token, but for the status and this document
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from pydantic import BaseModel, TypeAdapter

from core.metrics import Sample
from crossfade import exposition
from crossfade.admin import models
from crossfade.admin.asking import STATUS, Supervisor
from crossfade.admin.desk import Desk
from crossfade.admin.errors import in_words, refusal
from crossfade.admin.flags_api import FlagsApi
from crossfade.admin.page import READINESS, readiness, status_page
from crossfade.admin.people_api import PeopleApi
from crossfade.admin.watch_api import WatchApi
from crossfade.channel import Message

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Samples = Callable[[], Sequence[Sample]]


@dataclass(frozen=True, slots=True)
class Operation:
    method: str
    path: str
    summary: str
    handler: Handler
    body: type[BaseModel] | None = None
    query: tuple[str, ...] = ()


class Admin:
    """The application, and what of it follows the configuration."""

    def __init__(self, desk: Desk, context: Message, own_samples: Samples) -> None:
        self._flags = FlagsApi(desk, context["routes"])
        self._watch = WatchApi(desk)
        self._people = PeopleApi(desk)
        self._open = OpenApi(desk.supervisor, own_samples, self.operations)

    def update(self, context: Message) -> None:
        self._flags.routes = context["routes"]

    def operations(self) -> list[Operation]:
        """Those under `/api/v1` that need a token."""
        flags, watch, people = self._flags, self._watch, self._people
        flag = "/api/v1/flags/{key}"
        ramp = "/api/v1/ramps/{key}"
        guardrail = "/api/v1/guardrails/{id}"
        return [
            Operation("GET", "/api/v1/flags", "All flags, as one version", flags.list),
            Operation("POST", "/api/v1/flags", "Create a flag", flags.create, models.CreateBody),
            Operation("GET", flag, "One flag", flags.get),
            Operation("PATCH", flag, "Edit all but where it stands", flags.edit, models.EditBody),
            Operation("POST", f"{flag}/move", "Move a share of its keys", flags.move, models.MoveBody),
            Operation("POST", f"{flag}/kill", "Send everybody to legacy", flags.kill, models.Body),
            Operation("POST", f"{flag}/unkill", "Take a kill back", flags.unkill, models.Body),
            Operation("POST", f"{flag}/archive", "End it for good", flags.archive, models.Body),
            Operation("GET", f"{flag}/history", "What was done to it, the latest first", flags.history),
            Operation("POST", "/api/v1/explain", "Where a request would go, and why", flags.explain,
                      models.ExplainBody),
            Operation("POST", "/api/v1/kill", "Send everything to legacy", flags.kill_all, models.Body),
            Operation("POST", "/api/v1/unkill", "Take that back", flags.unkill_all, models.Body),
            Operation("POST", "/api/v1/apply", "Make flags as a file has them, all or none", flags.apply,
                      models.ApplyBody),
            Operation("GET", "/api/v1/ramps", "Ramps under way", watch.ramps, None, ("ended",)),
            Operation("GET", ramp, "The flag's ramp", watch.ramp),
            Operation("POST", ramp, "Start a ramp", watch.start, models.RampBody),
            Operation("POST", f"{ramp}/pause", "Stop where it is", watch.pause, models.Body),
            Operation("POST", f"{ramp}/resume", "Go on", watch.resume, models.Body),
            Operation("POST", f"{ramp}/abort", "Take it back", watch.abort, models.AbortBody),
            Operation("GET", "/api/v1/guardrails", "Guardrails", watch.guardrails, None, ("flag",)),
            Operation("PUT", guardrail, "Define a guardrail", watch.set_guardrail, models.GuardrailBody),
            Operation("POST", f"{guardrail}/rearm", "Arm one that has tripped", watch.rearm, models.Body),
            Operation("DELETE", guardrail, "Remove a guardrail", watch.delete, models.Body),
            Operation("GET", "/api/v1/people", "People and their roles", people.list),
            Operation("POST", "/api/v1/people", "Give somebody a token", people.add, models.PersonBody),
            Operation("DELETE", "/api/v1/people/{name}", "Revoke a token", people.revoke, models.Body),
            Operation("GET", "/api/v1/audit", "What was done and refused", people.audit, None,
                      ("after", "limit")),
            Operation("GET", "/api/v1/audit/verify", "Whether it is as it was written", people.verify),
            Operation("GET", "/api/v1/instances", "Who runs which version", people.instances),
            Operation("GET", "/api/v1/converged", "Wait until all workers run a version", people.converged,
                      None, ("version", "wait")),
        ]  # fmt: skip

    def application(self) -> web.Application:
        found = web.Application(middlewares=[in_words])
        found.on_response_prepare.append(_end_with_answer)
        found.add_routes(self._open.routes())
        found.add_routes(web.route(each.method, each.path, each.handler) for each in self.operations())
        return found


async def _end_with_answer(_: web.Request, response: web.StreamResponse) -> None:
    """Nothing is kept alive, so no request can meet the end of the process on an idle connection."""
    response.force_close()


class OpenApi:
    """What is answered to everybody: health, readiness, metrics, the status, and the description of all."""

    def __init__(
        self, supervisor: Supervisor, own_samples: Samples, operations: Callable[[], Iterable[Operation]]
    ) -> None:
        self._supervisor = supervisor
        self._own_samples = own_samples
        self._operations = operations

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/healthz", self._healthz),
            web.get("/readyz", self._readyz),
            web.get("/metrics", self._metrics),
            web.get("/api/v1/proxy", self._proxy),
            web.get("/api/v1/openapi.json", self._openapi),
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

    async def _openapi(self, _: web.Request) -> web.Response:
        return web.json_response(document(self._operations()))

    async def _page(self, _: web.Request) -> web.Response:
        return web.Response(text=status_page(await self._supervisor.status()), content_type="text/html")


def document(operations: Iterable[Operation]) -> dict[str, Any]:
    """The API's description, derived from what its bodies and answers are made of."""
    schemas: dict[str, Any] = {
        "Error": {
            "type": "object",
            "properties": {"error": {"type": "string"}, "message": {"type": "string"}},
            "required": ["error", "message"],
        }
    }
    for name, adapter in (("ProxyStatus", STATUS), ("Readiness", READINESS)):
        _add_schema(schemas, name, adapter)
    paths: dict[str, dict[str, Any]] = _open_paths()
    for each in operations:
        described: dict[str, Any] = {
            "summary": each.summary,
            "operationId": each.handler.__qualname__.replace(".", "_"),
            "security": [{"token": []}],
            "parameters": [*_path_parameters(each.path), *_query_parameters(each.query)],
            "responses": {
                "200": {"description": "Done", "content": _content({"type": "object"})},
                "default": {"description": "Not done, and why", "content": _content(_ref("Error"))},
            },
        }
        if each.body is not None:
            _add_schema(schemas, each.body.__name__, TypeAdapter(each.body))
            described["requestBody"] = {"required": True, "content": _content(_ref(each.body.__name__))}
        paths.setdefault(each.path, {})[each.method.lower()] = described
    return {
        "openapi": "3.1.0",
        "info": {"title": "Crossfade admin API", "version": "1"},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _open_paths() -> dict[str, dict[str, Any]]:
    text = {"text/plain": {"schema": {"type": "string"}}}

    def get(summary: str, answers: Mapping[str, tuple[str, dict[str, Any]]]) -> dict[str, Any]:
        responses = {
            code: {"description": description, "content": content}
            for code, (description, content) in answers.items()
        }
        return {"get": {"summary": summary, "responses": responses}}

    ready = _content(_ref("Readiness"))
    return {
        "/healthz": get("Whether this process lives", {"200": ("It does", text)}),
        "/readyz": get(
            "Whether all workers accept",
            {"200": ("They do", ready), "503": ("They do not, and why", ready)},
        ),
        "/metrics": get("Metrics in Prometheus' or OpenMetrics' text format", {"200": ("All metrics", text)}),
        "/api/v1/proxy": get(
            "Status of the instance and its workers",
            {
                "200": ("The status", _content(_ref("ProxyStatus"))),
                "503": ("The supervisor does not answer", _content(_ref("Error"))),
            },
        ),
        "/api/v1/openapi.json": get("This document", {"200": ("OpenAPI", _content({"type": "object"}))}),
    }


def _add_schema(schemas: dict[str, Any], name: str, adapter: TypeAdapter[Any]) -> None:
    schema = adapter.json_schema(ref_template="#/components/schemas/{model}")
    schemas |= schema.pop("$defs", {})
    schemas[name] = schema


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _content(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _path_parameters(path: str) -> list[dict[str, Any]]:
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    return [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]


def _query_parameters(names: Iterable[str]) -> list[dict[str, Any]]:
    return [{"name": name, "in": "query", "required": False, "schema": {"type": "string"}} for name in names]
