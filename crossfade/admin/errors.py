"""What the API says when it does not do what it was asked: one form, one word, and what to do next."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import structlog
from aiohttp import web
from pydantic import ValidationError

from crossfade.admin.answers import Refusal
from crossfade.admin.next_steps import AFTER_REFUSAL
from crossfade.store.actors import DeniedError
from crossfade.store.connection import StoreError, StoreReason
from flags.change import Refused
from flags.document import InvalidFlagError

log = structlog.get_logger(__name__)

STATUS = {
    "not_found": 404,
    "stage_jump": 409,
    "conflict": 409,
    "exists": 409,
    "archived": 409,
    "guardrail_tripped": 409,
    "report_needed": 409,
    "under_authority": 409,
    "blocked": 409,
    "invalid": 422,
}
"""Of a refusal, by its kind."""


class NoStoreError(Exception):
    """The store cannot be asked; the message says why."""


class UnauthorizedError(Exception):
    """Nobody knows who asks."""


def refusal(status: int, kind: str, message: str, next_: Sequence[str] = ()) -> web.Response:
    """`next_` is for where more is known than the kind."""
    body = Refusal(error=kind, message=message, next=list(next_ or AFTER_REFUSAL[kind])).model_dump_json()
    return web.Response(status=status, body=body.encode() + b"\n", content_type="application/json")


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def in_words(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except Refused as error:
        of_a_cutover = error.kind == "not_found" and request.path.startswith("/api/v1/cutovers")
        look = AFTER_REFUSAL["under_authority"] if of_a_cutover else ()
        return refusal(STATUS[error.kind], error.kind, str(error), look)
    except DeniedError as error:
        return refusal(403, "denied", str(error))
    except UnauthorizedError as error:
        answer = refusal(401, "unauthorized", str(error))
        answer.headers["WWW-Authenticate"] = 'Bearer realm="crossfade"'
        return answer
    except InvalidFlagError as error:
        return refusal(422, "invalid", str(error))
    except ValidationError as error:
        return _not_the_form(error)
    except NoStoreError as error:
        return refusal(503, "no_store", str(error))
    except StoreError as error:
        status = 504 if error.reason is StoreReason.UNKNOWN_OUTCOME else 503
        return refusal(status, error.reason.value, str(error))
    except (TimeoutError, ConnectionResetError):
        return refusal(503, "silent", "the supervisor does not answer")
    except web.HTTPException as error:
        return _of_the_server(error, request)
    except Exception:
        log.exception("admin_fault", method=request.method, path=request.path)
        return refusal(500, "fault", "a fault of Crossfade; nothing else is known to have been done")


def _not_the_form(error: ValidationError) -> web.Response:
    found = error.errors(include_url=False, include_context=False, include_input=False)
    if any(each["type"] == "json_invalid" for each in found):
        return refusal(400, "malformed", f"the body is no JSON: {_lines(found)}")
    return refusal(422, "invalid", _lines(found))


def _lines(found: Iterable[Any]) -> str:
    return "; ".join(_line(each) for each in found)


def _line(wrong: Any) -> str:
    where = ".".join(str(part) for part in wrong["loc"])
    says = str(wrong["msg"]).removeprefix("Value error, ")
    if wrong["type"] == "extra_forbidden":
        says = "unknown here"
    return f"{where}: {says[0].lower()}{says[1:]}" if where else says


def _of_the_server(error: web.HTTPException, request: web.Request) -> web.Response:
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        answer = refusal(405, "no_path", f"{request.path} takes {allowed}, not {request.method}")
        answer.headers["Allow"] = allowed
        return answer
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return refusal(413, "too_large", "the body is too large")
    if error.status == 404:
        return refusal(404, "no_path", f"there is nothing at {request.path}")
    raise error
