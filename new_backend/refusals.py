"""The one format in which a request is refused."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from pydantic import BaseModel, ValidationError


class Reason(Enum):
    """Why a request is refused: status, and a sentence for people. The name in small letters is the code."""

    BAD_REQUEST = 400, "This request cannot be understood."
    MALFORMED_JSON = 400, "The body is not valid JSON."
    NOT_AUTHENTICATED = 401, "Log in first."
    WRONG_CREDENTIALS = 401, "Wrong username or password."
    FORBIDDEN = 403, "You may not do this."
    NOT_FOUND = 404, "There is nothing here."
    METHOD_NOT_ALLOWED = 405, "This method is not allowed here."
    USERNAME_TAKEN = 409, "This username is taken."
    INSUFFICIENT_FUNDS = 409, "There is not enough money in the wallet."
    BODY_TOO_LARGE = 413, "The body is too large."
    NOT_JSON = 415, "Send the body as application/json."
    INVALID_INPUT = 422, "Some of the input is not right."
    IDEMPOTENCY_KEY_REUSED = 422, "This Idempotency-Key was used for another transfer."
    INTERNAL_ERROR = 500, "Something went wrong on our side."
    UNAVAILABLE = 503, "The service cannot answer now. Try again soon."

    @property
    def status(self) -> int:
        return self.value[0]

    @property
    def code(self) -> str:
        return self.name.lower()


class Problem(BaseModel):
    field: str
    problem: str


class ErrorDetail(BaseModel):
    code: str
    message: str
    fields: list[Problem]


class Error(BaseModel):
    error: ErrorDetail


class Refusal(Exception):  # noqa: N818 - an answer, not an error
    """Ends a request with an error that the client may read."""

    def __init__(self, reason: Reason, fields: Mapping[str, str] | None = None) -> None:
        self.reason = reason
        self.fields = dict(fields or {})
        super().__init__(reason.code)

    def error(self) -> Error:
        fields = [Problem(field=field, problem=problem) for field, problem in self.fields.items()]
        detail = ErrorDetail(code=self.reason.code, message=self.reason.value[1], fields=fields)
        return Error(error=detail)


def invalid(fields: Mapping[str, str]) -> Refusal:
    return Refusal(Reason.INVALID_INPUT, fields)


PROBLEMS = {
    "missing": "missing",
    "extra_forbidden": "unknown",
    "string_type": "wrong_type",
    "int_type": "wrong_type",
    "list_type": "wrong_type",
    "model_type": "wrong_type",
    "string_too_short": "too_short",
    "string_too_long": "too_long",
    "greater_than_equal": "too_small",
    "less_than_equal": "too_large",
}
"""Pydantic's words in the API's words; whatever is not here is `invalid`."""


def invalid_model(error: ValidationError) -> Refusal:
    """The first problem of each top-level field."""
    fields: dict[str, str] = {}
    for problem in error.errors(include_url=False, include_context=False, include_input=False):
        field = str(problem["loc"][0]) if problem["loc"] else ""
        fields.setdefault(field, PROBLEMS.get(problem["type"], "invalid"))
    return invalid(fields)
