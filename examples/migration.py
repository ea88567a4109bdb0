"""The users' code of the sample product: who is logged in stays logged in, whoever answers.

Legacy knows a client by the cookie `sid`, and so do the browsers out there. The new backend is to know
clients by a token only. It is the same secret on both sides (see docs/sample-product.md), so an adapter on
the new side is all that it takes; `crossfade.yaml` names it on the routes that move:

    code: migration.py
    routes:
      - {flag: me, match: {path: "/api/me"}, adapter: {new: session}}
"""

from __future__ import annotations

import re

from crossfade import Answer, Project, Request

COOKIE = "sid"
_TOKEN = re.compile(r"[A-Za-z0-9_-]{16,128}")
_SESSIONS = "/api/session"


class SessionAdapter:
    """Clients bring a cookie; the new backend is asked with a token and never sees the cookie."""

    def request(self, request: Request) -> Request:
        token = request.cookie(COOKIE)
        asked = request.without_cookie(COOKIE)
        if token is None or not _TOKEN.fullmatch(token) or asked.header("Authorization") is not None:
            return asked
        return asked.adding_header("Authorization", f"Bearer {token}")

    def answer(self, answer: Answer, request: Request) -> Answer:
        """A session that begins or ends is told to the browser in the way that it knows."""
        if request.path != _SESSIONS or answer.set_cookie(COOKIE) is not None:
            return answer
        if request.method == "POST" and answer.status == 201:
            return answer.adding_header("Set-Cookie", _cookie(answer.json()["token"]))
        if request.method == "DELETE" and answer.status == 204:
            return answer.adding_header("Set-Cookie", _cookie("") + "; Max-Age=0")
        return answer


def attributes(request: Request) -> dict[str, str]:
    """For rules such as: visitors first, and those who are logged in later."""
    known = request.cookie(COOKIE) is not None or request.header("Authorization") is not None
    return {"visitor": "known" if known else "unknown"}


def _cookie(token: str) -> str:
    return f"{COOKIE}={token}; Path=/; HttpOnly; SameSite=Lax"


project = Project(adapters={"session": SessionAdapter()}, attributes=attributes)
