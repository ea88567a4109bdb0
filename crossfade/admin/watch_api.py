"""Ramps and guardrails over HTTP: what moves by itself, and what takes it back."""

from __future__ import annotations

from crossfade.admin.answers import (
    DeletedAnswer,
    GuardrailAnswer,
    GuardrailsAnswer,
    GuardrailShown,
    RampAnswer,
    RampsAnswer,
    RampShown,
    RampStepShown,
)
from crossfade.admin.asked import Asked
from crossfade.admin.desk import Desk
from crossfade.admin.models import (
    AbortBody,
    GuardrailBody,
    GuardrailsQuery,
    Nothing,
    RampBody,
    RampsQuery,
    Why,
)
from crossfade.admin.next_steps import WHY, after_guardrail, after_guardrails, after_ramp
from crossfade.store import guardrails, ramps
from flags.change import Refused
from flags.guardrail import evidence_to_json, guardrail_to_json
from flags.ramp import InvalidRampError, plan_to_json, steps_from_json, steps_to_json, windows_from_json


class WatchApi:
    """The handlers of `/api/v1/ramps` and `/api/v1/guardrails`."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def ramps(self, asked: Asked[RampsQuery]) -> RampsAnswer:
        found = await ramps.list_ramps(self._desk.store(), ended=asked.said.ended)
        next_ = [f"crossfade ramp status {row.flag}" for row in found[:5]]
        start = f"crossfade ramp start FLAG --to STAGE --steps STEPS {WHY}"
        return RampsAnswer(ramps=[ramp_shown(row) for row in found], next=next_ or [start])

    async def ramp(self, asked: Asked[Nothing]) -> RampAnswer:
        return _answer(await ramps.ramp_status(self._desk.store(), asked.path["key"]))

    async def start(self, asked: Asked[RampBody]) -> RampAnswer:
        said = asked.said
        try:
            steps, windows = steps_from_json(said.steps), windows_from_json(said.windows)
        except InvalidRampError as error:
            raise Refused("invalid", str(error)) from None
        row = await ramps.start_ramp(
            self._desk.store(),
            asked.actor,
            asked.path["key"],
            to=said.to,
            steps=steps,
            windows=windows,
            reason=said.reason,
            ticket=said.ticket,
            expected_version=said.expected_version,
            dry_run=said.dry_run,
            request_id=asked.request_id,
            report=said.report,
        )
        return _answer(row, dry_run=said.dry_run)

    async def pause(self, asked: Asked[Why]) -> RampAnswer:
        said = asked.said
        row = await ramps.pause_ramp(
            self._desk.store(), asked.actor, asked.path["key"],
            reason=said.reason, ticket=said.ticket, request_id=asked.request_id,
        )  # fmt: skip
        return _answer(row)

    async def resume(self, asked: Asked[Why]) -> RampAnswer:
        said = asked.said
        row = await ramps.resume_ramp(
            self._desk.store(), asked.actor, asked.path["key"],
            reason=said.reason, ticket=said.ticket, request_id=asked.request_id,
        )  # fmt: skip
        return _answer(row)

    async def abort(self, asked: Asked[AbortBody]) -> RampAnswer:
        said = asked.said
        row = await ramps.abort_ramp(
            self._desk.store(), asked.actor, asked.path["key"],
            reason=said.reason, stay=said.stay, ticket=said.ticket, request_id=asked.request_id,
        )  # fmt: skip
        return _answer(row)

    async def guardrails(self, asked: Asked[GuardrailsQuery]) -> GuardrailsAnswer:
        found = await guardrails.list_guardrails(self._desk.store(), asked.said.flag)
        return GuardrailsAnswer(
            guardrails=[watch_shown(watch) for watch in found], next=after_guardrails(found)
        )

    async def set_guardrail(self, asked: Asked[GuardrailBody]) -> GuardrailAnswer:
        said = asked.said
        watch = await guardrails.set_guardrail(
            self._desk.store(),
            asked.actor,
            said.flag,
            said.definition,
            guardrail_id=asked.path["id"],
            reason=said.reason,
            ticket=said.ticket,
            dry_run=said.dry_run,
            request_id=asked.request_id,
        )
        return _watch_answer(watch, dry_run=said.dry_run)

    async def rearm(self, asked: Asked[Why]) -> GuardrailAnswer:
        said = asked.said
        watch = await guardrails.rearm(
            self._desk.store(), asked.actor, asked.path["id"],
            reason=said.reason, ticket=said.ticket, request_id=asked.request_id,
        )  # fmt: skip
        return _watch_answer(watch)

    async def delete(self, asked: Asked[Why]) -> DeletedAnswer:
        said, name = asked.said, asked.path["id"]
        await guardrails.delete_guardrail(
            self._desk.store(), asked.actor, name,
            reason=said.reason, ticket=said.ticket, request_id=asked.request_id,
        )  # fmt: skip
        return DeletedAnswer(id=name, deleted=True, next=["crossfade guardrail list"])


def ramp_shown(row: ramps.RampRow) -> RampShown:
    ramp = row.ramp
    return RampShown(
        id=row.id, flag=row.flag, state=ramp.state.value, step=ramp.step,
        steps=[RampStepShown.model_validate(step) for step in steps_to_json(ramp.plan.steps)],
        plan=dict(plan_to_json(ramp.plan)), step_started_at=ramp.step_started_at, requests=row.requests,
        held_reason=ramp.held_reason, started_at=row.started_at, started_by=row.started_by,
        reason=row.reason, ended_at=row.ended_at,
    )  # fmt: skip


def _answer(row: ramps.RampRow, *, dry_run: bool = False) -> RampAnswer:
    next_ = ["the same without --dry-run"] if dry_run else after_ramp(row)
    return RampAnswer(**ramp_shown(row).model_dump(), dry_run=dry_run, next=next_)


def watch_shown(watch: guardrails.Watch) -> GuardrailShown:
    return GuardrailShown(
        id=watch.guardrail.id, flag=watch.guardrail.flag, state=watch.state.value,
        definition=dict(guardrail_to_json(watch.guardrail)), evidence=dict(evidence_to_json(watch.evidence)),
        trigger=watch.trigger, message=watch.message, armed_at=watch.armed_at, tripped_at=watch.tripped_at,
    )  # fmt: skip


def _watch_answer(watch: guardrails.Watch, *, dry_run: bool = False) -> GuardrailAnswer:
    next_ = ["the same without --dry-run"] if dry_run else after_guardrail(watch)
    return GuardrailAnswer(**watch_shown(watch).model_dump(), dry_run=dry_run, next=next_)
