"""The one format in which a request is refused."""

from __future__ import annotations

from collections.abc import Mapping

REFUSALS = {
    "bad_request": (400, "This request cannot be understood."),
    "malformed_json": (400, "The body is not valid JSON."),
    "not_authenticated": (401, "Log in first."),
    "wrong_credentials": (401, "Wrong username or password."),
    "forbidden": (403, "You may not do this."),
    "not_found": (404, "There is nothing here."),
    "method_not_allowed": (405, "This method is not allowed here."),
    "username_taken": (409, "This username is taken."),
    "insufficient_funds": (409, "There is not enough money in the wallet."),
    "body_too_large": (413, "The body is too large."),
    "not_json": (415, "Send the body as application/json."),
    "invalid_input": (422, "Some of the input is not right."),
    "idempotency_key_reused": (422, "This Idempotency-Key was used for another transfer."),
    "internal_error": (500, "Something went wrong on our side."),
    "unavailable": (503, "The service cannot answer now. Try again soon."),
}
"""Status and message of each code."""


class Refusal(Exception):  # noqa: N818 - an answer, not an error
    """Ends a request with an error that the client may read."""

    def __init__(self, code: str, fields: Mapping[str, str] | None = None) -> None:
        self.code = code
        self.status, self.message = REFUSALS[code]
        self.fields = dict(fields or {})
        super().__init__(code)

    def json(self) -> dict[str, object]:
        fields = [{"field": field, "problem": problem} for field, problem in self.fields.items()]
        return {"error": {"code": self.code, "message": self.message, "fields": fields}}


def invalid(fields: Mapping[str, str]) -> Refusal:
    return Refusal("invalid_input", fields)
