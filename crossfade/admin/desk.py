"""What the handlers of the admin API share: the store, who asks, and the form of an answer to a change."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from aiohttp import web

from crossfade.admin.answers import BlastShown, ChangeAnswer, ConvergedShown, FlagShown
from crossfade.admin.asked import Asked
from crossfade.admin.asking import Supervisor
from crossfade.admin.auth import actor_of, needs
from crossfade.admin.errors import NoStoreError
from crossfade.admin.models import Body
from crossfade.admin.next_steps import after_change
from crossfade.feed import Feed
from crossfade.held_flags import HeldFlags
from crossfade.store.actors import Actor, Role
from crossfade.store.changes import Applied
from crossfade.store.connection import StoreError
from crossfade.store.store import Store
from flags.blast import blast_radius
from flags.change import Command
from flags.document import flag_to_json
from flags.model import Authority, Flag, FlagSet, Kill, Side
from flags.stages import described


@dataclass(frozen=True, slots=True)
class SeenSet:
    """A flag set, and why it is what this instance goes on by and not the store's, if so."""

    flag_set: FlagSet
    trouble: str | None

    @property
    def source(self) -> str:
        return "store" if self.trouble is None else "instance"


@dataclass(frozen=True, slots=True)
class Desk:
    supervisor: Supervisor
    feed: Feed
    token: str
    data_dir: Path
    bus: str
    """Where the bus is, for people."""

    def store(self) -> Store:
        """Raises NoStoreError."""
        if self.feed.store is None:
            why = self.feed.trouble or "the store has not been asked yet"
            raise NoStoreError(f"{why}; traffic goes on by the flags that each worker has")
        return self.feed.store

    async def actor(self, request: web.Request, least: Role) -> Actor:
        """Who asks, and that they may read as much.

        Raises UnauthorizedError or DeniedError, and NoStoreError or StoreError where only the store could
        tell who it is.
        """
        actor = await actor_of(request, self.token, self.store)
        needs(actor, least)
        return actor

    async def seen(self) -> SeenSet:
        """The store's flags; while it cannot be asked, those that this instance goes on by."""
        try:
            return SeenSet(await self.store().flag_set(), None)
        except (NoStoreError, StoreError) as error:
            held = await self._held()
            return SeenSet(held.effective or FlagSet(0), str(error))

    async def decided_by(self) -> FlagSet | None:
        """The store's flags under the kills of this host: what workers decide by once they have heard."""
        held = await self._held()
        seen = await self.seen()
        return held.effective if seen.trouble is not None else held.kills.put_over(seen.flag_set)

    async def _held(self) -> HeldFlags:
        held = HeldFlags(self.data_dir)
        await asyncio.to_thread(held.load)
        return held

    async def change(self, asked: Asked[Body], command: Command) -> ChangeAnswer:
        """The one way of every change of flags: to the store, and to everybody's workers if that is asked."""
        said = asked.said
        applied = await self.store().change(
            asked.actor,
            command,
            reason=said.reason,
            ticket=said.ticket,
            expected_version=said.expected_version,
            dry_run=said.dry_run,
            request_id=asked.request_id,
            report=said.report,
        )
        blast = await self._blast(applied) if said.dry_run else None
        waits = said.wait > 0 and not said.dry_run
        obeyed = await self.converged(applied.version, said.wait) if waits else None
        return ChangeAnswer(
            version=applied.version,
            changed=applied.after is not applied.before,
            dry_run=said.dry_run,
            differences=list(applied.differences),
            audit_seq=applied.audit_seq,
            blast_radius=blast,
            converged=obeyed,
            next=after_change(
                command,
                applied,
                dry_run=said.dry_run,
                complete=None if obeyed is None else obeyed.complete,
            ),
        )

    async def converged(self, version: int, within: float) -> ConvergedShown:
        self.store()
        found = await self.feed.converged(version, within)
        return ConvergedShown(
            version=found.version,
            obeying=found.obeying,
            workers=found.workers,
            milliseconds=found.milliseconds,
            missing=list(found.missing),
            complete=found.complete,
        )

    async def _blast(self, applied: Applied) -> list[BlastShown]:
        """For each flag that would change: what it would move, by the last minutes of this instance."""
        was = {flag.key: flag for flag in applied.before.flags}
        found = []
        for flag in applied.after.flags:
            before = was.get(flag.key)
            if before is None or before == flag:
                continue
            answer = await self.supervisor.ask({"do": "recent", "flag": flag.key})
            buckets = {int(at): count for at, count in answer["buckets"].items()}
            found.append(BlastShown(flag=flag.key, **asdict(blast_radius(before, flag, buckets))))
        return found


def flag_shown(flag: Flag, every: Kill | None = None, authority: Authority | None = None) -> FlagShown:
    """A flag as the API shows it: as it is stored, where it stands in words, and whether it is overdue.

    `every` is the kill of everything, under which it has no say; nor has it once new has the `authority`.
    """
    today = time.strftime("%Y-%m-%d", time.gmtime())
    stands = described(flag.transition)
    if flag.archived:
        stands = "archived"
    elif authority is not None and authority.side is Side.NEW:
        stands = f"new, by the cutover {authority.cutover} (else {stands})"
    elif every is not None:
        stands = f"killed with everything ({stands})"
    elif flag.kill:
        stands = f"killed ({stands})"
    return FlagShown.model_validate(
        {
            **flag_to_json(flag),
            "stands": stands,
            "overdue": not flag.archived and flag.expires_on is not None and flag.expires_on < today,
        }
    )
