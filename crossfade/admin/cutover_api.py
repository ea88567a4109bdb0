"""Cutovers over HTTP: look, prepare, and begin a walk, which `crossfade.cutover.conductor` then walks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Final

import psycopg
from sqlalchemy.ext.asyncio import AsyncConnection

from crossfade.admin.answers import (
    BlockerShown,
    CutoverAnswer,
    CutoverPlanAnswer,
    CutoversAnswer,
    LossAnswer,
    WalkShown,
)
from crossfade.admin.asked import Asked
from crossfade.admin.desk import Desk
from crossfade.admin.errors import NoStoreError
from crossfade.admin.models import CutoverBody, Nothing, Why
from crossfade.admin.next_steps import WHY
from crossfade.channel import Message
from crossfade.cutover import ground, loss
from crossfade.cutover.ground import Ground, Plot, UnreachedError
from crossfade.cutover.plan import Blocker, Facts, blockers, facts
from crossfade.flag_distribution import EVERYTHING
from crossfade.store import cutovers, guardrails, reports
from crossfade.store.actors import Actor, DeniedError, authorise
from crossfade.store.audit import Deed, Head
from crossfade.store.changes import Also, Done
from crossfade.store.connection import StoreError
from crossfade.store.cutovers import Walk
from dualwrite.capture import CaptureStopped
from dualwrite.fence import WritersError
from dualwrite.mapped import other
from flags.change import DropAuthority, Refused, SetAuthority
from flags.model import Authority, FlagSet, Phase, Side

AT_ONCE: Final = 1.0
"""Seconds that the status page waits for the store."""


class CutoverApi:
    """The handlers of `/api/v1/cutovers`."""

    def __init__(self, desk: Desk, context: Message) -> None:
        self._desk = desk
        self._context = context

    def update(self, context: Message) -> None:
        self._context = context

    async def list_cutovers(self, asked: Asked[Nothing]) -> CutoversAnswer:  # noqa: ARG002
        found = [await self._shown(name) for name in ground.plots(self._context)]
        next_ = [f"crossfade cutover plan {one.name}" for one in found]
        nothing = ["name one in crossfade.yaml: docs/cutover.md"]
        return CutoversAnswer(cutovers=found, next=next_ or nothing)

    async def for_everybody(self) -> list[CutoverAnswer]:
        """For the status page: what can be said at once, and nothing where the store cannot be asked."""
        try:
            async with asyncio.timeout(AT_ONCE):
                return [await self._shown(one["name"]) for one in self._context["cutovers"]]
        except (StoreError, NoStoreError, TimeoutError):
            return []

    async def status(self, asked: Asked[Nothing]) -> CutoverAnswer:
        return await self._shown(self._plot(asked).name)

    async def plan(self, asked: Asked[Nothing]) -> CutoverPlanAnswer:
        plot = self._plot(asked)
        flag_set = await self._desk.store().flag_set()
        authority = flag_set.authority(plot.name)
        finished = await cutovers.finished_at(self._desk.store(), flag_set, plot.name)
        side = (finished or Side.LEGACY) if authority is None else authority.side
        found, against = await self._looked(plot, authority, flag_set, other(side))
        walk = "run" if side is Side.LEGACY else "back"
        asks = [one for one, _ in await self._unapproved(asked.actor, None, plot, flag_set, other(side))]
        command = f"crossfade cutover {walk} {plot.name} {WHY}"
        if any(one.reason == "report" for one in asks):
            command += " --report DIGEST"
        return CutoverPlanAnswer(
            name=plot.name,
            towards=other(side).value,
            possible=not against,
            blockers=[BlockerShown(**asdict(one)) for one in against],
            asks=[BlockerShown(**asdict(one)) for one in asks],
            lag=found.lag,
            lag_back=found.back,
            tables=sorted(found.wanted[side]),
            flags=list(plot.flags),
            held_last=_held_last(await cutovers.walks(self._desk.store(), plot.name)),
            next=[one.remedy for one in against] or [command],
        )

    async def prepare(self, asked: Asked[Why]) -> CutoverAnswer:
        """Fences in both databases, the stream of the way back, and the flags bound to the authority."""
        plot = self._plot(asked)
        store = self._desk.store()
        known = (await store.flag_set()).authority(plot.name)
        if known is None:
            async with _in_words(plot):
                side, generation = await ground.by_the_journals(plot)
        else:
            side, generation = known.side, known.generation
        authority = Authority(
            plot.name, plot.flags, side, generation,
            own_writes=plot.own_writes, max_lag_ms=plot.max_lag_ms,
        )  # fmt: skip
        said = asked.said
        deed = Deed(
            "cutover.prepare", "cutover", (plot.name,), said.reason, {}, said.ticket, None, asked.request_id
        )

        async def work(connection: AsyncConnection, _: Head) -> Done[None]:
            await cutovers.must_not_be_under_way(connection, plot.name)
            return Done(None, after={"tables": {one.value: ground.shown(plot.fenced(one)) for one in Side}})

        # Who may, and why, stands before anything is done to a database.
        await store.perform(asked.actor, deed, work)
        async with _in_words(plot):
            await ground.prepare(plot, side)
        await store.change(
            asked.actor, SetAuthority(authority), reason=said.reason, ticket=said.ticket,
            request_id=asked.request_id, also=_nobody_walks(plot.name),
        )  # fmt: skip
        return await self._shown(plot.name)

    async def run(self, asked: Asked[CutoverBody]) -> CutoverAnswer:
        return await self._begin(asked, Side.NEW)

    async def back(self, asked: Asked[CutoverBody]) -> CutoverAnswer:
        if asked.said.accept_loss:
            return await self._accept_loss(asked)
        return await self._begin(asked, Side.LEGACY)

    async def loss(self, asked: Asked[Nothing]) -> LossAnswer:
        plot = self._plot(asked)
        await self._at_new(plot)
        async with _in_words(plot):
            found = await loss.measure(plot)
        next_ = [f"crossfade cutover back {plot.name} --accept-loss --confirm {plot.name} {WHY}"]
        return LossAnswer(name=plot.name, **asdict(found), in_words=found.in_words, next=next_)

    async def _accept_loss(self, asked: Asked[CutoverBody]) -> CutoverAnswer:
        plot, said = self._plot(asked), asked.said
        if said.confirm != plot.name:
            raise Refused("invalid", f"this loses data: confirm it with the cutover's name, {plot.name}")
        if said.rehearse:
            raise Refused("invalid", "what loses data cannot be rehearsed")
        authority = await self._at_new(plot)
        async with _in_words(plot):
            found = await loss.measure(plot)
        await cutovers.begin(
            self._desk.store(), asked.actor, authority, reason=said.reason, ticket=said.ticket,
            evidence={**asdict(found), "in_words": found.in_words}, request_id=asked.request_id,
            loss=asdict(found),
        )  # fmt: skip
        return await self._shown(plot.name)

    async def _at_new(self, plot: Plot) -> Authority:
        """Raises Refused where new has not got the authority, or a walk is under way."""
        authority = (await self._desk.store().flag_set()).authority(plot.name)
        if authority is None or authority.side is not Side.NEW:
            raise Refused(
                "blocked", f"new has not got the authority of {plot.name}: there is nothing to lose"
            )
        if authority.phase is not Phase.OPEN:
            raise Refused("conflict", f"a walk of {plot.name} is under way: crossfade cutover status")
        return authority

    async def _begin(self, asked: Asked[CutoverBody], towards: Side) -> CutoverAnswer:
        plot, said, store = self._plot(asked), asked.said, self._desk.store()
        flag_set = await store.flag_set()
        authority = flag_set.authority(plot.name)
        _, against = await self._looked(plot, authority, flag_set, towards)
        unapproved = (
            [] if said.rehearse else await self._unapproved(asked.actor, said.report, plot, flag_set, towards)
        )
        if against or authority is None:
            all_of_it = [*against, *(one for one, _ in unapproved)]
            lines = "; ".join(f"{one.reason}: {one.message} (then: {one.remedy})" for one in all_of_it)
            raise Refused("blocked", lines or f"nobody has prepared {plot.name}")
        for _, refusal in unapproved:
            if isinstance(refusal, Refused):
                raise refusal
        # Who may not is refused, and recorded, with the rest of what is begun.
        await cutovers.begin(
            store,
            asked.actor,
            authority,
            reason=said.reason,
            ticket=said.ticket,
            rehearsal=said.rehearse,
            evidence=None if said.report is None else {"report": said.report},
            request_id=asked.request_id,
        )
        return await self._shown(plot.name)

    async def abort(self, asked: Asked[Why]) -> CutoverAnswer:
        plot, said = self._plot(asked), asked.said
        found = await cutovers.walks(self._desk.store(), plot.name)
        if not found or found[0].ended_at is not None:
            raise Refused("not_found", f"no walk of {plot.name} is under way")
        await cutovers.ask_to_abort(
            self._desk.store(), asked.actor, found[0],
            reason=said.reason, ticket=said.ticket, request_id=asked.request_id,
        )  # fmt: skip
        return await self._shown(plot.name)

    async def finish(self, asked: Asked[Why]) -> CutoverAnswer:
        """Let the flags go, and take the fence away where everybody writes; the other side's stays."""
        plot, said, store = self._plot(asked), asked.said, self._desk.store()
        authority = (await store.flag_set()).authority(plot.name)
        if authority is None:
            # It may have been cut short between the flags and the fence.
            async with _in_words(plot):
                side, generation = await ground.by_the_journals(plot)
        else:
            side, generation = authority.side, authority.generation
        if side is Side.NEW:
            await self._must_not_be_killed_anywhere(plot)
        deed = Deed(
            "cutover.finish", "cutover", (plot.name,), said.reason, {}, said.ticket, None, asked.request_id
        )

        async def work(connection: AsyncConnection, _: Head) -> Done[None]:
            await cutovers.must_not_be_under_way(connection, plot.name)
            return Done(None, before={"side": side.value, "generation": generation})

        await store.perform(asked.actor, deed, work)
        await store.change(
            asked.actor, DropAuthority(plot.name), reason=said.reason, ticket=said.ticket,
            request_id=asked.request_id, also=_nobody_walks(plot.name),
        )  # fmt: skip
        async with _in_words(plot):
            stood = await ground.finish(plot, side)
        if authority is None and not stood:
            raise Refused("not_found", f"{plot.name} is not prepared")
        return await self._shown(plot.name)

    # Details.

    async def _must_not_be_killed_anywhere(self, plot: Plot) -> None:
        """A host's own kill says nothing while new has the authority, and would count again."""
        for one in await self._desk.store().instances():
            if killed := {EVERYTHING, *plot.flags}.intersection(one.report.kill_overlay.get("kills", ())):
                what = ", ".join(sorted(killed))
                raise Refused(
                    "blocked",
                    f"{one.report.id} has a kill of its own ({what}), which would send writes to legacy once"
                    f" {plot.name} is finished: crossfade unkill there first",
                )

    async def _unapproved(
        self, actor: Actor, report: str | None, plot: Plot, flag_set: FlagSet, towards: Side
    ) -> list[tuple[Blocker, Exception]]:
        """What people have to say first, each with the refusal that it is where nothing else is wrong."""
        found: list[tuple[Blocker, Exception]] = []
        asking = [
            key for key in plot.flags
            if towards is Side.NEW and (flag := flag_set.flag(key)) is not None and flag.needs_report
        ]  # fmt: skip
        try:
            if asking:
                async with self._desk.store().transaction() as connection:
                    await reports.check(connection, report, asking)
        except Refused as refusal:
            remedy = "crossfade shadow report --keep, and --report DIGEST"
            found.append((Blocker("report", str(refusal), remedy), refusal))
        try:
            authorise(actor, "cutover.run" if towards is Side.NEW else "cutover.back")
        except DeniedError as denied:
            found.append((Blocker("approval", str(denied), "have it approved"), denied))
        return found

    def _plot(self, asked: Asked[Nothing] | Asked[Why] | Asked[CutoverBody]) -> Plot:
        known = ground.plots(self._context)
        name = asked.path["name"]
        if name not in known:
            there = ", ".join(known) or "none; docs/cutover.md says how to name one in crossfade.yaml"
            raise Refused("not_found", f"there is no cutover {name}; there is {there}")
        return known[name]

    async def _looked(
        self, plot: Plot, authority: Authority | None, flag_set: FlagSet, towards: Side
    ) -> tuple[Facts, list[Blocker]]:
        async with _in_words(plot), Ground.of(plot, towards) as here:
            found = await facts(here)
        workers = await self._desk.feed.converged(flag_set.version, 1.0)
        store = self._desk.store()
        finished = await cutovers.finished_at(store, flag_set, plot.name)
        last = next(iter(await cutovers.walks(store, plot.name)), None)
        lost = last is not None and last.loses
        watches = [one for one in await guardrails.list_guardrails(store) if one.guardrail.flag in plot.flags]
        against = blockers(
            found, authority, flag_set, workers, finished, new_was_given_up=lost, guardrails=watches
        )
        return found, against

    async def _shown(self, name: str) -> CutoverAnswer:
        store = self._desk.store()
        flag_set = await store.flag_set()
        authority = flag_set.authority(name)
        found = await cutovers.walks(store, name)
        finished = await cutovers.finished_at(store, flag_set, name)
        next_ = [f"crossfade cutover plan {name}"]
        if finished is not None:
            next_ = ['docs/cutover.md, "Afterwards"']
        elif authority is None:
            next_ = [f"crossfade cutover prepare {name} {WHY}"]
        elif found and found[0].ended_at is None:
            next_ = [f"crossfade cutover status {name} -w", f"crossfade cutover abort {name} {WHY}"]
        elif authority.side is Side.NEW:
            next_ = [f"crossfade cutover back {name} {WHY}", f"crossfade cutover finish {name} {WHY}"]
        return CutoverAnswer(
            name=name,
            side=None if authority is None else authority.side.value,
            finished=None if finished is None else finished.value,
            generation=0 if authority is None else authority.generation,
            phase=None if authority is None else authority.phase.value,
            flags=[] if authority is None else list(authority.flags),
            walks=[walk_shown(walk) for walk in found],
            next=next_,
        )


def _nobody_walks(name: str) -> Also:
    """What is written is refused where a walk has begun since: its phase is the walk's to say."""

    async def also(connection: AsyncConnection, _: FlagSet) -> None:
        await cutovers.must_not_be_under_way(connection, name)

    return also


def _held_last(found: list[Walk]) -> float | None:
    for walk in found:
        until = walk.released_at or walk.ended_at
        if walk.held_at is not None and until is not None:
            return round(until - walk.held_at, 3)
    return None


def walk_shown(walk: Walk) -> WalkShown:
    until = walk.released_at or walk.ended_at or walk.now
    return WalkShown(
        id=walk.id, towards=walk.towards.value, generation=walk.generation, state=walk.state.value,
        rehearsal=walk.rehearsal, message=walk.message, abort=walk.abort, started_by=walk.started_by,
        reason=walk.reason, started_at=walk.started_at,
        held_seconds=None if walk.held_at is None else round(until - walk.held_at, 3),
        ended_at=walk.ended_at, took=round((walk.ended_at or walk.now) - walk.started_at, 3),
        found={key: value for key, value in walk.document.items() if key != "version"},
    )  # fmt: skip


@asynccontextmanager
async def _in_words(plot: Plot) -> AsyncIterator[None]:
    """What a database refuses is no fault of Crossfade."""
    try:
        yield
    except (WritersError, CaptureStopped) as error:
        raise Refused("blocked", str(error)) from error
    except UnreachedError as error:
        raise Refused("blocked", f"{plot.name}: {error}") from error
    except (psycopg.Error, OSError) as error:
        said = getattr(getattr(error, "diag", None), "message_primary", None) or str(error)
        raise Refused("blocked", f"{plot.name}: a database does not do what it is asked: {said}") from error
