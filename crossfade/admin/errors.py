"""What the API says when it does not do what it was asked: one form, one word, and what to do next."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web
from pydantic import ValidationError

from crossfade.store.actors import DeniedError
from crossfade.store.connection import StoreError, StoreReason
from flags.change import Refused
from flags.document import InvalidFlagError

STATUS = {
    "not_found": 404,
    "stage_jump": 409,
    "conflict": 409,
    "exists": 409,
    "archived": 409,
    "invalid": 422,
}
"""Of a refusal, by its kind."""


class NoStoreError(Exception):
    """The store cannot be asked; the message says why."""


class UnauthorizedError(Exception):
    """Nobody knows who asks."""


def refusal(status: int, kind: str, message: str) -> web.Response:
    return web.json_response({"error": kind, "message": message}, status=status)


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def in_words(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except Refused as error:
        return refusal(STATUS.get(error.kind, 409), error.kind, str(error))
    except DeniedError as error:
        return refusal(403, "denied", str(error))
    except UnauthorizedError as error:
        answer = refusal(401, "unauthorized", str(error))
        answer.headers["WWW-Authenticate"] = 'Bearer realm="crossfade"'
        return answer
    except InvalidFlagError as error:
        return refusal(422, "invalid", str(error))
    except ValidationError as error:
        return refusal(422, "invalid", "; ".join(_line(each) for each in error.errors(include_url=False)))
    except NoStoreError as error:
        return refusal(503, "no_store", str(error))
    except StoreError as error:
        status = 504 if error.reason is StoreReason.UNKNOWN_OUTCOME else 503
        return refusal(status, error.reason.value, str(error))


def _line(wrong: object) -> str:
    assert isinstance(wrong, dict)
    where = ".".join(str(part) for part in wrong["loc"])
    return f"{where}: {wrong['msg']}" if where else str(wrong["msg"])
