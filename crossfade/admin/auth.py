"""Who asks: a person by their token, or whoever can read this instance's own token on this host."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable
from pathlib import Path

from aiohttp import web

from crossfade.admin.errors import UnauthorizedError
from crossfade.private_file import read_or_make
from crossfade.store.actors import Actor, ActorType, DeniedError, Role, Via
from crossfade.store.store import Store

TOKEN_FILE = "run/admin.token"  # noqa: S105  (its place in the data folder)
USER = "X-Crossfade-User"
"""With the local token: the name of the system's user, for the audit."""
VIA = "X-Crossfade-Via"


def local_token(data_dir: Path) -> str:
    """This instance's token, made if there is none. Only its user can read it. Raises OSError."""
    return read_or_make(data_dir / TOKEN_FILE, f"cf_{secrets.token_urlsafe(32)}")


async def actor_of(request: web.Request, local: str, store: Callable[[], Store]) -> Actor:
    """Who `request` comes from. Raises UnauthorizedError, or what `store` raises where only it could tell."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    via = Via.CLI if request.headers.get(VIA) == Via.CLI else Via.API
    token = token.strip()
    if scheme.lower() != "bearer" or not token:
        raise UnauthorizedError("this needs a token: Authorization: Bearer cf_…")
    if not token.isascii():
        raise UnauthorizedError("this token is not known: tokens are plain ASCII")
    if hmac.compare_digest(token.encode(), local.encode()):
        name = "".join(c for c in request.headers.get(USER, "") if c.isprintable())[:64] or "local"
        return Actor(ActorType.LOCAL, name, Role.ADMIN, request.remote, via)
    actor = await store().authenticate(token, via=via, address=request.remote)
    if actor is None:
        raise UnauthorizedError("this token is not known, or was revoked")
    return actor


def needs(actor: Actor, least: Role) -> None:
    """Raise DeniedError unless `actor` has at least that role. For reading; changes have their own table."""
    if actor.role is None or actor.role < least:
        raise DeniedError(f"this needs the role {least.value}")
