"""What comparing has found, over HTTP: the report that decides a release, categories, samples and rules."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from crossfade.admin.answers import (
    CategoriesAnswer,
    CategoryAnswer,
    ExpectedShown,
    ReplayAnswer,
    ReplayedShown,
    ReportAnswer,
    RuleAnswer,
    RulesAnswer,
)
from crossfade.admin.asked import Asked
from crossfade.admin.asking import REPLAYED_WITHIN
from crossfade.admin.desk import Desk
from crossfade.admin.models import (
    CategoriesQuery,
    KeepBody,
    MarkBody,
    Nothing,
    ReplayBody,
    ReportQuery,
    RuleBody,
    Why,
)
from crossfade.admin.next_steps import WHY
from crossfade.admin.reporting import (
    Reporting,
    differences_shown,
    row_shown,
    ruled,
    sample_shown,
    today,
)
from crossfade.channel import Message
from crossfade.store import comparisons
from crossfade.store.comparisons import CategoryRow
from flags.change import Refused
from shadow import wire
from shadow.again import CannotAskError, request_again
from shadow.exhibit import Fields
from shadow.judge import judge
from shadow.paths import template
from shadow.rules import InvalidRuleError, Rule, RuleBook, rule_from_json, rule_to_json
from shadow.verdict import Readiness


class ShadowApi:
    """The handlers of `/api/v1/shadow`."""

    def __init__(self, desk: Desk, context: Message, code_rules: Callable[[], Sequence[Rule]]) -> None:
        self._desk = desk
        self._code_rules = code_rules
        self._reporting = Reporting(desk.store, code_rules)
        self.update(context)

    def update(self, context: Message) -> None:
        """What the configuration says: which routes there are, and what can be asked."""
        self._reporting.update(context["routes"], [(method, path) for method, path in context["operations"]])

    async def keep(self, asked: Asked[KeepBody]) -> ReportAnswer:
        """Make a report and keep it, so that a change can rest on it."""
        said = asked.said
        found = await self._reporting.report(said)
        flags = dict.fromkeys(route.flag for route in found.routes)
        ready = [
            flag for flag in flags
            if all(one.readiness == Readiness.READY for one in found.routes if one.flag == flag)
        ]  # fmt: skip
        await comparisons.keep_report(
            self._desk.store(), asked.actor, found.digest, found.model_dump(mode="json", by_alias=True),
            ready, reason=said.reason, ticket=said.ticket, request_id=asked.request_id,
        )  # fmt: skip
        move = f"--report {found.digest} {WHY}"
        return found.model_copy(
            update={"next": [f"crossfade flag move {flag} … {move}" for flag in ready[:3]] or found.next}
        )

    async def report(self, asked: Asked[ReportQuery]) -> ReportAnswer:
        return await self._reporting.report(asked.said)

    async def categories(self, asked: Asked[CategoriesQuery]) -> CategoriesAnswer:
        rows = await comparisons.categories(self._desk.store(), asked.said.flag)
        next_ = [f"crossfade shadow show {row.id}" for row in rows[:3]]
        return CategoriesAnswer(
            categories=[row_shown(row) for row in rows], next=next_ or ["crossfade shadow report"]
        )

    async def category(self, asked: Asked[Nothing]) -> CategoryAnswer:
        row, samples = await comparisons.category(self._desk.store(), asked.path["id"])
        book = await self._reporting.book()
        row = replace(row, category=ruled(row.category, samples, book))
        return CategoryAnswer(
            **row_shown(row).model_dump(),
            samples=[sample_shown(one, book) for one in samples],
            next=[
                f"crossfade shadow mark {row.id} accepted {WHY}",
                f"crossfade shadow mark {row.id} bug {WHY}",
            ],
        )

    async def replay(self, asked: Asked[ReplayBody]) -> ReplayAnswer:
        """Ask both sides what the samples of a category have asked, and judge the answers of now."""
        row, samples = await comparisons.category(self._desk.store(), asked.path["id"])
        book = await self._reporting.book()
        headers = tuple(asked.said.headers)
        found = await asyncio.gather(*(self._replayed(one, row, book, headers) for one in samples))
        again = [one for one in found if not one.trouble]
        gone = sum(not one.still for one in again)
        left_out = sorted({name for one in found for name in one.left_out})
        next_ = [f"crossfade shadow replay {row.id} -H '{name}: …'" for name in left_out[:1]]
        if again and gone == len(again):
            next_.append(f"crossfade shadow mark {row.id} accepted {WHY}")
        return ReplayAnswer(
            id=row.id, asked=len(again), gone=gone, replayed=list(found),
            next=next_ or [f"crossfade shadow show {row.id}"],
        )  # fmt: skip

    async def _replayed(
        self, written: dict[str, Any], row: CategoryRow, book: RuleBook, headers: Fields
    ) -> ReplayedShown:
        kept = wire.from_bytes(json.dumps(written).encode())
        shown = partial(ReplayedShown, method=kept.asked.method, target=kept.asked.target)
        nothing = partial(shown, verdict="", still=True, differences=[])
        try:
            request, left_out = request_again(kept.asked, headers)
        except CannotAskError as error:
            return nothing(left_out=[], trouble=str(error))
        try:
            answer = await self._desk.supervisor.ask({"do": "replay", "request": request}, REPLAYED_WITHIN)
        except (TimeoutError, ConnectionResetError):
            answer = {"error": "this instance does not answer"}
        if "error" in answer:
            return nothing(left_out=list(left_out), trouble=answer["error"])
        now = wire.from_bytes(answer["exhibit"].encode())
        judged = judge(now, book.of(now.route))
        place = (row.category.path, row.category.kind)
        lost = next((one.trouble for one in (now.legacy, now.new) if one.trouble), "")
        return shown(
            verdict=judged.verdict.value + (f": {judged.reason}" if judged.reason else ""),
            # Without both answers nothing is known to be gone.
            still=bool(lost) or any((template(one.place), one.kind) == place for one in judged.differences),
            differences=differences_shown(judged),
            left_out=list(left_out),
            trouble="",
        )

    async def mark(self, asked: Asked[MarkBody]) -> CategoryAnswer:
        said = asked.said
        row = await comparisons.mark(
            self._desk.store(), asked.actor, asked.path["id"], said.mark,
            reason=said.reason, expires=said.expires, ticket=said.ticket, request_id=asked.request_id,
        )  # fmt: skip
        return CategoryAnswer(
            **row_shown(row).model_dump(), samples=[], next=[f"crossfade shadow report --flag {row.flag}"]
        )

    async def rules(self, asked: Asked[Nothing]) -> RulesAnswer:  # noqa: ARG002
        stored, wrong = await comparisons.rules(self._desk.store())
        of_code = list(self._code_rules())
        expired = {rule.id for rule in RuleBook((*of_code, *stored), today()).expired}
        shown = [
            ExpectedShown(definition=rule_to_json(rule), source=source, holds=rule.id not in expired)
            for source, rules in (("code", of_code), ("store", stored))
            for rule in rules
        ]
        return RulesAnswer(rules=shown, trouble=wrong, next=["crossfade shadow report"])

    async def set_rule(self, asked: Asked[RuleBody]) -> RuleAnswer:
        said = asked.said
        try:
            rule = rule_from_json({**said.rule, "reason": said.rule.get("reason", said.reason)})
        except (InvalidRuleError, TypeError) as error:
            raise Refused("invalid", str(error)) from None
        await comparisons.set_rule(
            self._desk.store(), asked.actor, rule,
            reason=said.reason, ticket=said.ticket, request_id=asked.request_id,
        )  # fmt: skip
        return RuleAnswer(id=rule.id, next=["crossfade shadow rules", "crossfade shadow report"])

    async def delete_rule(self, asked: Asked[Why]) -> RuleAnswer:
        said, name = asked.said, asked.path["id"]
        await comparisons.delete_rule(
            self._desk.store(), asked.actor, name,
            reason=said.reason, ticket=said.ticket, request_id=asked.request_id,
        )  # fmt: skip
        return RuleAnswer(id=name, next=["crossfade shadow rules"])
