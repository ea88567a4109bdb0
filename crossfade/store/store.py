"""The store, as everybody else sees it: one object, one method per question or change.

    store = await Store.open("postgresql://…")
    await store.migrate()
    applied = await store.change(actor, Move("items.read", Stage.LIVE, 50_000), reason="…")

Every method may raise `StoreError`, and nothing here waits longer than `connection.ANSWER_WITHIN`
(`migrate` longer). Changes raise `DeniedError` and `flags.change.Refused` besides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Self, TypeVar

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from crossfade.store import audit, changes, flag_rows, instances, people, schema
from crossfade.store.actors import Actor, Role, Via
from crossfade.store.audit import AuditRow, Broken, Deed, Json, Outcome, Verified
from crossfade.store.changes import Also, Applied, Recorded, Work
from crossfade.store.connection import ANSWER_WITHIN, Database
from crossfade.store.instances import Instance, InstanceReport
from crossfade.store.people import Person
from flags.change import Command
from flags.model import Flag, FlagSet

T = TypeVar("T")
log = structlog.get_logger(__name__)


class Store:
    """Crossfade's state in one PostgreSQL database. Several processes may have it open at once."""

    def __init__(self, url: str) -> None:
        self._database = Database(url)
        self.on_change: Callable[[int], None] | None = None
        """Called with each version that this process has committed: the bell. It must not wait."""

    @classmethod
    async def open(cls, url: str) -> Self:
        """The store at `url`. Not connected yet: the first question finds out whether it is there."""
        return cls(url)

    async def close(self) -> None:
        await self._database.close()

    @property
    def place(self) -> str:
        """Where it is, for people: host, port and database, no password."""
        return self._database.place

    async def migrate(self) -> None:
        """Bring the tables to what this program needs. Several processes may do it at once."""
        await schema.upgrade(self._database)

    def transaction(self, within: float = ANSWER_WITHIN) -> AbstractAsyncContextManager[AsyncConnection]:
        """A transaction on the store's tables, for reading and for what needs no audit."""
        return self._database.transaction(within)

    # Flags.

    async def version(self) -> int:
        async with self.transaction() as connection:
            return await flag_rows.version(connection)

    async def flag_set(self) -> FlagSet:
        """The whole set as it was at one moment."""
        async with self.transaction() as connection:
            return (await flag_rows.read(connection))[0]

    async def flag_document(self) -> tuple[dict[str, Any], float]:
        """The whole set as JSON that nobody has checked, and how many seconds ago it was changed last."""
        async with self.transaction() as connection:
            document, now, changed_at = await flag_rows.read_as_written(connection)
            return document, now - changed_at

    async def change(
        self,
        actor: Actor,
        command: Command,
        *,
        reason: str,
        ticket: str | None = None,
        expected_version: int | None = None,
        dry_run: bool = False,
        evidence: Json | None = None,
        request_id: str | None = None,
        also: Also | None = None,
        report: str | None = None,
    ) -> Applied:
        """Change the flag set, or say why not. `changes.change` tells what the arguments mean."""
        applied = await changes.change(
            self._database, actor, command, reason=reason, ticket=ticket, expected_version=expected_version,
            dry_run=dry_run, evidence=evidence, request_id=request_id, also=also, report=report,
        )  # fmt: skip
        self._ring(applied)
        return applied

    async def register(self, flags: Iterable[Flag]) -> Applied:
        """Create those flags that the store does not know, for the configuration that names them."""
        applied = await changes.register(self._database, tuple(flags))
        self._ring(applied)
        return applied

    async def perform(self, actor: Actor, deed: Deed, work: Work[T], *, dry_run: bool = False) -> Recorded[T]:
        """A change of something else than flags, by the same path: see `changes.perform`."""
        return await changes.perform(self._database, actor, deed, work, dry_run=dry_run)

    def _ring(self, applied: Applied) -> None:
        if applied.audit_seq is None or self.on_change is None:
            return
        try:
            self.on_change(applied.version)
        except Exception:
            # The change stands, and whoever did not hear the bell polls.
            log.exception("bell_failed", version=applied.version)

    # What was done.

    async def history(self, key: str, limit: int = 50) -> list[AuditRow]:
        """The last acts on a flag, its ramps and guardrails, the latest first."""
        kinds = ("flag", "ramp", "guardrail")
        return (await audit.tail(self._database, None, limit, kinds=kinds, object_key=key))[::-1]

    async def audit_tail(
        self,
        after_seq: int | None = None,
        limit: int = 50,
        *,
        kinds: Sequence[str] = (),
        object_key: str | None = None,
        outcome: Outcome | None = None,
    ) -> list[AuditRow]:
        """Rows in their order: the next `limit` behind `after_seq`, or the last ones there are."""
        return await audit.tail(
            self._database, after_seq, limit, kinds=kinds, object_key=object_key, outcome=outcome
        )

    async def audit_of(self, request_id: str) -> AuditRow | None:
        """What was done by that request, if anything was."""
        return await audit.of_request(self._database, request_id)

    async def audit_verify(self) -> Verified | Broken:
        return await audit.verify(self._database)

    # People.

    async def issue_token(self, actor: Actor, name: str, role: Role, *, reason: str) -> str:
        return await people.issue_token(self._database, actor, name, role, reason=reason)

    async def revoke_token(self, actor: Actor, name: str, *, reason: str) -> None:
        await people.revoke_token(self._database, actor, name, reason=reason)

    async def authenticate(
        self, token: str, *, via: Via = Via.API, address: str | None = None
    ) -> Actor | None:
        return await people.authenticate(self._database, token, via=via, address=address)

    async def people(self) -> list[Person]:
        return await people.list_people(self._database)

    # Instances.

    async def report(self, said: InstanceReport) -> None:
        await instances.report(self._database, said)

    async def leave(self, instance: str, seconds: float) -> None:
        """An instance has ended in order: it counts as silent for so long."""
        await instances.leave(self._database, instance, seconds)

    async def instances(self) -> list[Instance]:
        return await instances.everybody(self._database)
