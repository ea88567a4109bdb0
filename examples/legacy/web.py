"""What every route needs: the database, the body, who is asking, and an answer."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flask import Response, current_app, request

from examples.legacy.checks import Fields
from examples.legacy.refusals import Refusal

if TYPE_CHECKING:
    from examples.legacy.database import Connection, Database

MEMBER, MODERATOR, ADMIN = 0, 5, 9
ROLES = {MEMBER: "member", MODERATOR: "moderator", ADMIN: "admin"}
"""What the API calls a `users.level`."""


@dataclass(frozen=True, slots=True)
class User:
    """Who is asking."""

    id: int
    login: str
    level: int
    sid_hash: str

    def may_remove(self, author_id: int) -> bool:
        """Authors remove what they wrote, moderators and admins what anybody wrote."""
        return self.id == author_id or self.level >= MODERATOR


def database() -> Connection:
    """This thread's connection."""
    known: Database = current_app.extensions["database"]
    return known.connection()


def logged_in() -> User:
    """Who is asking, by `Authorization: Bearer` or else by the cookie `sid`. Refuses strangers with 401."""
    header = request.headers.get("Authorization")
    if header is None:
        sid = request.cookies.get("sid", "")
    else:
        scheme, _, sid = header.partition(" ")
        if scheme.lower() != "bearer":
            raise Refusal("not_authenticated")
    found = database().execute(
        """
        SELECT u.user_id, u.login, u.level, s.sid_hash
        FROM sessions s JOIN users u ON u.user_id = s.user_id
        WHERE s.sid_hash = %s AND s.expires > wall_clock() AND u.deleted = 'N'
        """,
        [hash_of(sid.strip())],
    )
    row = found.fetchone()
    if row is None:
        raise Refusal("not_authenticated")
    return User(row["user_id"], row["login"], row["level"], row["sid_hash"])


def hash_of(sid: str) -> str:
    """What the table keeps of a sid, so that a stolen table opens no session."""
    return hashlib.sha256(sid.encode(errors="backslashreplace")).hexdigest()


def body_fields() -> Fields:
    """The fields of the JSON body. Refuses other types (415), other bytes (400) and too many (413)."""
    if request.mimetype != "application/json":
        raise Refusal("not_json")
    try:
        return Fields(json.loads(request.get_data().decode(), parse_constant=_refuse_constant))
    except (ValueError, RecursionError):
        raise Refusal("malformed_json") from None


def answer(value: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return Response(text, status, headers, content_type="application/json; charset=utf-8")


def nothing(headers: dict[str, str] | None = None) -> Response:
    """204: done, and there is nothing to show."""
    response = Response(status=204, headers=headers)
    del response.headers["Content-Type"]
    return response


def sid_cookie(sid: str, seconds: int) -> dict[str, str]:
    """The header that sets the session's cookie, or with 0 seconds takes it away."""
    secure = "; Secure" if request.headers.get("X-Forwarded-Proto") == "https" else ""
    return {"Set-Cookie": f"sid={sid}; Max-Age={seconds}; Path=/; HttpOnly; SameSite=Lax{secure}"}


def one(row: dict[str, Any] | None) -> dict[str, Any]:
    """The row, or the refusal 404."""
    if row is None:
        raise Refusal("not_found")
    return row


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")
