"""What the handlers of the admin API share: the store, who asks, and the form of an answer to a change."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from aiohttp import web
from pydantic import BaseModel

from crossfade.admin.asking import Supervisor
from crossfade.admin.auth import actor_of, needs
from crossfade.admin.errors import NoStoreError
from crossfade.admin.models import Body
from crossfade.feed import Feed
from crossfade.store.actors import Actor, Role
from crossfade.store.changes import Applied
from crossfade.store.store import Store
from flags.blast import blast_radius
from flags.change import Command
from flags.document import flag_to_json
from flags.model import Flag, FlagSet
from flags.stages import described

B = TypeVar("B", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Desk:
    supervisor: Supervisor
    feed: Feed
    token: str

    def store(self) -> Store:
        """Raises NoStoreError."""
        if self.feed.store is None:
            why = self.feed.trouble or "the store has not been asked yet"
            raise NoStoreError(f"{why}; traffic goes on by the flags that each worker has")
        return self.feed.store

    async def actor(self, request: web.Request, least: Role = Role.VIEWER) -> Actor:
        """Who asks, and that they may read as much. Raises UnauthorizedError or DeniedError."""
        actor = await actor_of(request, self.token, self.feed.store)
        needs(actor, least)
        return actor

    async def body(self, request: web.Request, model: type[B]) -> B:
        """The body as `model`. Raises pydantic's ValidationError."""
        text = await request.text()
        return model.model_validate_json(text or "{}")

    async def change(self, request: web.Request, command: Command, said: Body) -> web.Response:
        """The one way of every change of flags: to the store, and to everybody's workers if that is asked."""
        actor = await self.actor(request)
        applied = await self.store().change(
            actor,
            command,
            reason=said.reason,
            ticket=said.ticket,
            expected_version=said.expected_version,
            dry_run=said.dry_run,
        )
        answer: dict[str, Any] = {
            "version": applied.version,
            "changed": applied.after is not applied.before,
            "dry_run": said.dry_run,
            "differences": list(applied.differences),
            "audit_seq": applied.audit_seq,
        }
        if said.dry_run:
            answer["blast_radius"] = await self._blast(applied)
        elif said.wait:
            answer["converged"] = await self.converged(applied.version, said.wait)
        return web.json_response(answer)

    async def converged(self, version: int, within: float) -> dict[str, Any]:
        found = await self.feed.converged(version, within)
        return {**asdict(found), "complete": found.complete}

    async def _blast(self, applied: Applied) -> list[dict[str, Any]]:
        """For each flag that would change: what it would move, by the last minutes of this instance."""
        was = {flag.key: flag for flag in applied.before.flags}
        found = []
        for flag in applied.after.flags:
            before = was.get(flag.key)
            if before is None or before == flag:
                continue
            answer = await self.supervisor.ask({"do": "recent", "flag": flag.key})
            buckets = {int(at): count for at, count in answer["buckets"].items()}
            found.append({"flag": flag.key, **asdict(blast_radius(before, flag, buckets))})
        return found


def flag_shown(flag: Flag) -> dict[str, Any]:
    """A flag as the API shows it: as it is stored, and where it stands in words."""
    return {**flag_to_json(flag), "stands": "killed" if flag.kill else described(flag.transition)}


def set_shown(flag_set: FlagSet) -> dict[str, Any]:
    kill = flag_set.kill
    return {
        "version": flag_set.version,
        "kill": None if kill is None else {"reason": kill.reason, "by": kill.by, "at": kill.at},
        "flags": [flag_shown(flag) for flag in flag_set.flags],
    }
