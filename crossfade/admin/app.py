"""The admin API as one table of operations, from which both the routes and the OpenAPI document are made.

/healthz     this process lives
/readyz      200 when all workers accept, else 503 with the reasons
/metrics     for Prometheus
/            the status as a page
/api/v1/…    everything else; needs a token, but for the status and the description
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

from aiohttp import web

from crossfade.admin.cutover_api import CutoverApi
from crossfade.admin.desk import Desk
from crossfade.admin.errors import in_words
from crossfade.admin.flags_api import FlagsApi
from crossfade.admin.openapi import document
from crossfade.admin.operation import Operation
from crossfade.admin.people_api import PeopleApi
from crossfade.admin.public import Public, Samples
from crossfade.admin.shadow_api import ShadowApi
from crossfade.admin.watch_api import WatchApi
from crossfade.channel import Message
from crossfade.store.actors import Role
from shadow.rules import Rule


class Admin:
    """The application, and what of it follows the configuration."""

    def __init__(
        self, desk: Desk, context: Message, own_samples: Samples, code_rules: Callable[[], Sequence[Rule]]
    ) -> None:
        self._desk = desk
        self._flags = FlagsApi(desk, context)
        self._watch = WatchApi(desk)
        self._shadow = ShadowApi(desk, context, code_rules)
        self._people = PeopleApi(desk)
        self._cutovers = CutoverApi(desk, context)
        self._public = Public(desk.supervisor, own_samples, self._cutovers.for_everybody)

    def update(self, context: Message) -> None:
        self._flags.update(context)
        self._shadow.update(context)
        self._cutovers.update(context)

    def operations(self) -> list[Operation]:
        """Those under `/api/v1` that need a token."""
        flags, watch, people, shadow = self._flags, self._watch, self._people, self._shadow
        flag = "/api/v1/flags/{key}"
        ramp = "/api/v1/ramps/{key}"
        guardrail = "/api/v1/guardrails/{id}"
        person = "/api/v1/people/{name}"
        category = "/api/v1/shadow/categories/{id}"
        cutovers, cutover = self._cutovers, "/api/v1/cutovers/{name}"
        return [
            Operation("GET", "/api/v1/flags", "All flags, as one version", flags.list_flags),
            Operation("POST", "/api/v1/flags", "Create a flag", flags.create),
            Operation("GET", flag, "One flag", flags.get),
            Operation("PATCH", flag, "Edit all but where it stands", flags.edit),
            Operation("POST", f"{flag}/move", "Move a share of its keys", flags.move),
            Operation("POST", f"{flag}/kill", "Send everybody to legacy", flags.kill),
            Operation("POST", f"{flag}/unkill", "Take a kill back", flags.unkill),
            Operation("POST", f"{flag}/archive", "End it for good", flags.archive),
            Operation("GET", f"{flag}/history", "What was done to it, the latest first", flags.history),
            Operation("POST", "/api/v1/explain", "Where a request would go, and why", flags.explain),
            Operation("POST", "/api/v1/kill", "Send everything to legacy", flags.kill_all),
            Operation("POST", "/api/v1/unkill", "Take that back", flags.unkill_all),
            Operation("POST", "/api/v1/shadow/off", "Mirror nothing any more", flags.shadow_off),
            Operation("POST", "/api/v1/shadow/on", "Take that back", flags.shadow_on),
            Operation("GET", "/api/v1/shadow/report", "What decides a release", shadow.report),
            Operation("POST", "/api/v1/shadow/reports", "Make a report and keep it", shadow.keep),
            Operation("GET", "/api/v1/shadow/categories", "What differs", shadow.categories),
            Operation("GET", category, "One of them, with samples", shadow.category),
            Operation("POST", f"{category}/mark", "Say what it is", shadow.mark),
            Operation("POST", f"{category}/replay", "Ask both sides again", shadow.replay, Role.REVIEWER),
            Operation("GET", "/api/v1/shadow/rules", "Differences that are expected", shadow.rules),
            Operation("POST", "/api/v1/shadow/rules", "Expect one", shadow.set_rule),
            Operation("DELETE", "/api/v1/shadow/rules/{id}", "Expect it no more", shadow.delete_rule),
            Operation("POST", "/api/v1/apply", "Make flags as a file has them, all or none", flags.apply),
            Operation("GET", "/api/v1/ramps", "Ramps under way", watch.ramps),
            Operation("GET", ramp, "The flag's ramp", watch.ramp),
            Operation("POST", ramp, "Start a ramp", watch.start),
            Operation("POST", f"{ramp}/pause", "Stop where it is", watch.pause),
            Operation("POST", f"{ramp}/resume", "Go on", watch.resume),
            Operation("POST", f"{ramp}/abort", "Take it back", watch.abort),
            Operation("GET", "/api/v1/guardrails", "Guardrails", watch.guardrails),
            Operation("PUT", guardrail, "Define a guardrail", watch.set_guardrail),
            Operation("POST", f"{guardrail}/rearm", "Arm one that has tripped", watch.rearm),
            Operation("DELETE", guardrail, "Remove a guardrail", watch.delete),
            Operation("GET", "/api/v1/cutovers", "Which side has the authority", cutovers.list_cutovers),
            Operation("GET", cutover, "How a cutover stands", cutovers.status),
            Operation("GET", f"{cutover}/plan", "What stands against it", cutovers.plan),
            Operation("POST", f"{cutover}/prepare", "Fences, and the way back", cutovers.prepare),
            Operation("POST", f"{cutover}/run", "Give new the authority", cutovers.run),
            Operation("POST", f"{cutover}/back", "Give it back to legacy", cutovers.back),
            Operation("GET", f"{cutover}/loss", "What going back without new would lose", cutovers.loss),
            Operation("POST", f"{cutover}/abort", "Cancel the walk under way", cutovers.abort),
            Operation("POST", f"{cutover}/finish", "End it for good", cutovers.finish),
            Operation("GET", "/api/v1/people", "People and their roles", people.list_people, Role.ADMIN),
            Operation("POST", "/api/v1/people", "Give somebody a token", people.add),
            Operation("DELETE", person, "Revoke a token", people.revoke),
            Operation("GET", "/api/v1/audit", "What was done and refused", people.audit),
            Operation("GET", "/api/v1/audit/verify", "Whether it is as it was written", people.verify),
            Operation("GET", "/api/v1/instances", "Who runs which version", people.instances),
            Operation("GET", "/api/v1/converged", "Wait until all workers run a version", people.converged),
            Operation("GET", "/api/v1/feed", "How this instance hears of changes", people.feed),
        ]

    def application(self) -> web.Application:
        operations = self.operations()
        # Made when somebody asks for it: it costs more than the rest of a start.
        described = cache(lambda: document(operations))

        async def openapi(_: web.Request) -> web.Response:
            return web.json_response(described())

        found = web.Application(middlewares=[in_words])
        found.on_response_prepare.append(_end_with_answer)
        found.add_routes([*self._public.routes(), web.get("/api/v1/openapi.json", openapi)])
        found.add_routes(operation.served_by(self._desk) for operation in operations)
        return found


async def _end_with_answer(_: web.Request, response: web.StreamResponse) -> None:
    """Nothing is kept alive, so no request can meet the end of the process on an idle connection."""
    response.force_close()
