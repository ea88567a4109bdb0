"""The application: every operation of the table behind the same checks, in the same order."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from aiohttp import hdrs, web
from pydantic import BaseModel, ValidationError
from sqlalchemy import exc

from new_backend.accounts import actor_with
from new_backend.models import Nothing
from new_backend.operations import Answer, Call, Database, DryRun, Operation
from new_backend.paging import read_id
from new_backend.permissions import NOBODY, Actor, Role
from new_backend.refusals import Reason, Refusal, invalid_model
from new_backend.routes import OPERATIONS

MOST_BODY_BYTES = 64 * 1024
JSON = "application/json; charset=utf-8"
DRY_RUN = "X-Dry-Run"
"""`1`: answer as if, and leave nothing written."""
REASONS = {
    404: Reason.NOT_FOUND,
    405: Reason.METHOD_NOT_ALLOWED,
    413: Reason.BODY_TOO_LARGE,
}
"""The framework's own refusals in the API's words."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

log = logging.getLogger("new_backend")


def build_app(database: Database, operations: Sequence[Operation[Any, Any]] = OPERATIONS) -> web.Application:
    app = web.Application(client_max_size=MOST_BODY_BYTES, middlewares=[refusing])
    for operation in operations:
        handler = serve(operation, database)
        app.router.add_route(operation.method, operation.path, handler)
        if operation.method == hdrs.METH_GET:
            app.router.add_route(hdrs.METH_HEAD, operation.path, handler)
    app.on_response_prepare.append(sign)
    return app


def serve(operation: Operation[Any, Any], database: Database) -> Handler:
    """The operation's life: who asks, with what, for what, and what comes of it."""

    async def handle(request: web.Request) -> web.Response:
        actor = await identify(operation, database, request)
        call = Call(
            database=DryRun(database.engine) if request.headers.get(DRY_RUN) == "1" else database,
            actor=actor,
            body=await read_body(operation, request),
            query=read_query(operation, request.query),
            ids=read_ids(request.match_info),
            headers=request.headers,
        )
        return respond(operation, await operation.handler(call))

    return handle


async def identify(operation: Operation[Any, Any], database: Database, request: web.Request) -> Actor:
    """Who asks, by `Authorization: Bearer` or else by the cookie `sid`; only where it matters."""
    if operation.needs is Role.NOBODY:
        return NOBODY
    header = request.headers.get(hdrs.AUTHORIZATION)
    if header is None:
        token = request.cookies.get("sid", "")
    else:
        scheme, _, token = header.partition(" ")
        if scheme.lower() != "bearer":
            raise Refusal(Reason.NOT_AUTHENTICATED)
    async with database.reading() as db:
        actor = await actor_with(db, token.strip())
    if actor is NOBODY:
        raise Refusal(Reason.NOT_AUTHENTICATED)
    if actor.role < operation.needs:
        raise Refusal(Reason.FORBIDDEN)
    return actor


async def read_body(operation: Operation[Any, Any], request: web.Request) -> BaseModel:
    model: type[BaseModel] = operation.body
    if model is Nothing:
        return Nothing()
    if request.content_type != "application/json":
        raise Refusal(Reason.NOT_JSON)
    content = await request.read()
    try:
        value = json.loads(content.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise Refusal(Reason.MALFORMED_JSON) from None
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise invalid_model(error) from None


def read_query(operation: Operation[Any, Any], query: Mapping[str, str]) -> BaseModel:
    """The parameters that the operation knows; of a repeated one the first."""
    model: type[BaseModel] = operation.query
    try:
        return model.model_validate({name: query[name] for name in model.model_fields if name in query})
    except ValidationError as error:
        raise invalid_model(error) from None


def read_ids(path: Mapping[str, str]) -> dict[str, int]:
    """The ids in the path. What no id can be is simply not there."""
    ids = {}
    for name, text in path.items():
        number = read_id(text)
        if number is None:
            raise Refusal(Reason.NOT_FOUND)
        ids[name] = number
    return ids


def respond(operation: Operation[Any, Any], answer: Answer) -> web.Response:
    response = web.Response(status=operation.status, headers=answer.headers)
    match answer.content:
        case BaseModel() as model:
            response.headers[hdrs.CONTENT_TYPE] = JSON
            response.body = model.model_dump_json().encode()
        case bytes() as content:
            assert isinstance(operation.answer, str)  # the table says which type its bytes are
            response.headers[hdrs.CONTENT_TYPE] = operation.answer
            response.body = content
    return response


@web.middleware
async def refusing(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The one boundary where faults become answers. The log has a bug's trace, the client does not."""
    try:
        return await handler(request)
    except Refusal as refusal:
        return refuse(refusal)
    except web.HTTPException as error:
        response = refuse(Refusal(REASONS.get(error.status, Reason.BAD_REQUEST)))
        if isinstance(error, web.HTTPMethodNotAllowed):
            response.headers[hdrs.ALLOW] = ",".join(sorted(error.allowed_methods))
        return response
    except (exc.OperationalError, exc.InterfaceError, exc.TimeoutError) as error:
        # Lost connections, timeouts of statements, locks and the pool, deadlocks: worth another try.
        log.warning("database: %s", re.sub(r"\s+", " ", str(error.args[0])))
        return refuse(Refusal(Reason.UNAVAILABLE))
    except Exception:
        log.exception("unhandled, in %s %s", request.method, request.match_info.route.resource)
        return refuse(Refusal(Reason.INTERNAL_ERROR))


def refuse(refusal: Refusal) -> web.Response:
    response = web.Response(status=refusal.reason.status, body=refusal.error().model_dump_json().encode())
    response.headers[hdrs.CONTENT_TYPE] = JSON
    if response.status == 401:
        response.headers[hdrs.WWW_AUTHENTICATE] = "Bearer"
    if response.status == 503:
        response.headers[hdrs.RETRY_AFTER] = "1"
    return response


async def sign(_: web.Request, response: web.StreamResponse) -> None:
    response.headers[hdrs.SERVER] = "new"


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")
