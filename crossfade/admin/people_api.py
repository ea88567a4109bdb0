"""Who may do what, what was done, and who runs which version: over HTTP."""

from __future__ import annotations

from dataclasses import asdict

from crossfade.admin.answers import (
    AuditAnswer,
    ConvergedAnswer,
    FeedAnswer,
    InstancesAnswer,
    InstanceShown,
    PeopleAnswer,
    PersonShown,
    RevokedAnswer,
    TokenAnswer,
    VerifyAnswer,
    WorkerShown,
)
from crossfade.admin.asked import Asked
from crossfade.admin.desk import Desk
from crossfade.admin.flags_api import row_shown
from crossfade.admin.models import AuditQuery, ConvergedQuery, Nothing, PersonBody, RevokeBody
from crossfade.admin.next_steps import LOOK, WHY
from crossfade.store.actors import Role
from crossfade.store.audit import Broken
from flags.change import Refused


class PeopleApi:
    """The handlers of `/api/v1/people`, `/audit`, `/instances`, `/converged` and `/feed`."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def list_people(self, asked: Asked[Nothing]) -> PeopleAnswer:  # noqa: ARG002
        people = [
            PersonShown(
                name=person.name,
                role=person.role.value,
                created_at=person.created_at.isoformat(),
                revoked_at=None if person.revoked_at is None else person.revoked_at.isoformat(),
                last_used=None if person.last_used is None else person.last_used.isoformat(),
            )
            for person in await self._desk.store().people()
        ]
        next_ = [f"crossfade person add NAME --role ROLE {WHY}", f"crossfade person revoke NAME {WHY}"]
        return PeopleAnswer(people=people, next=next_)

    async def add(self, asked: Asked[PersonBody]) -> TokenAnswer:
        said = asked.said
        try:
            role = Role(said.role)
        except ValueError:
            roles = ", ".join(role.value for role in Role)
            raise Refused("invalid", f'there is no role "{said.role}"; expected one of {roles}') from None
        token = await self._desk.store().issue_token(asked.actor, said.name, role, reason=said.reason)
        return TokenAnswer(
            name=said.name,
            role=role.value,
            token=token,
            next=["give it to them now: CROSSFADE_TOKEN=… crossfade flag list; it is not shown again"],
        )

    async def revoke(self, asked: Asked[RevokeBody]) -> RevokedAnswer:
        name = asked.path["name"]
        await self._desk.store().revoke_token(asked.actor, name, reason=asked.said.reason)
        return RevokedAnswer(name=name, revoked=True, next=["crossfade person list"])

    async def audit(self, asked: Asked[AuditQuery]) -> AuditAnswer:
        rows = await self._desk.store().audit_tail(asked.said.after, asked.said.limit)
        onward = [f"newer ones: GET /api/v1/audit?after={rows[-1].seq}"] if rows else []
        return AuditAnswer(rows=[row_shown(row) for row in rows], next=[*onward, "crossfade audit verify"])

    async def verify(self, asked: Asked[Nothing]) -> VerifyAnswer:  # noqa: ARG002
        found = await self._desk.store().audit_verify()
        if isinstance(found, Broken):
            todo = f"look at row {found.seq} in the database and in its backups: somebody has written there"
            return VerifyAnswer(intact=False, **asdict(found), next=[todo])
        todo = "keep the hash where the owner of the database cannot write"
        return VerifyAnswer(intact=True, **asdict(found), next=[todo])

    async def instances(self, asked: Asked[Nothing]) -> InstancesAnswer:  # noqa: ARG002
        found = [
            InstanceShown(
                id=one.report.id,
                host=one.report.host,
                address=one.report.address,
                flags_version=one.report.flags_version,
                kills=list(one.report.kill_overlay.get("kills", ())),
                workers=[WorkerShown.model_validate(dict(worker)) for worker in one.report.workers],
                age_seconds=round(one.age, 3),
            )
            for one in await self._desk.store().instances()
        ]
        return InstancesAnswer(instances=found, next=[LOOK])

    async def converged(self, asked: Asked[ConvergedQuery]) -> ConvergedAnswer:
        """Wait until all workers run `version`, for at most `wait` seconds."""
        found = await self._desk.converged(asked.said.version, asked.said.wait)
        return ConvergedAnswer(
            **found.model_dump(), next=[] if found.complete else ["crossfade proxy status --all", LOOK]
        )

    async def feed(self, asked: Asked[Nothing]) -> FeedAnswer:  # noqa: ARG002
        feed = self._desk.feed
        return FeedAnswer(
            instance=feed.instance,
            store=None if feed.store is None else feed.store.place,
            store_trouble=feed.trouble,
            bus=self._desk.bus,
            bus_trouble=feed.bus_trouble,
            next=[LOOK],
        )
