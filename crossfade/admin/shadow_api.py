"""What comparing has found, over HTTP: the report that decides a release, categories, samples and rules."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from typing import Any

from crossfade.admin.answers import (
    CategoriesAnswer,
    CategoryAnswer,
    CategoryShown,
    ExpectedShown,
    OperationShown,
    ReplayAnswer,
    ReplayedShown,
    ReportAnswer,
    RouteReport,
    RuleAnswer,
    RulesAnswer,
    SampleShown,
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
from crossfade.channel import Message
from crossfade.store import comparisons
from crossfade.store.comparisons import CategoryRow
from flags.change import Refused
from flags.match import Matcher
from flags.model import Route
from shadow import wire
from shadow.again import CannotAskError, request_again
from shadow.exhibit import Fields
from shadow.explain import explained
from shadow.judge import Judged, judge
from shadow.openapi import example_path, name_of
from shadow.paths import template
from shadow.rules import InvalidRuleError, Rule, RuleBook, rule_from_json, rule_to_json
from shadow.verdict import Category, Gate, Judgement, Readiness, RouteFacts, judgement


class ShadowApi:
    """The handlers of `/api/v1/shadow`."""

    def __init__(self, desk: Desk, context: Message, code_rules: Callable[[], Sequence[Rule]]) -> None:
        self._desk = desk
        self._code_rules = code_rules
        self.update(context)

    def update(self, context: Message) -> None:
        """What the configuration says: which routes there are, and what can be asked."""
        self._routes: Sequence[Message] = context["routes"]
        self._operations = [(method, path) for method, path in context["operations"]]

    async def keep(self, asked: Asked[KeepBody]) -> ReportAnswer:
        """Make a report and keep it, so that a change can rest on it."""
        said = asked.said
        found = await self._report(said)
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
        return await self._report(asked.said)

    async def _report(self, said: ReportQuery) -> ReportAnswer:
        store, since = self._desk.store(), time.time() - said.hours * 3600
        gate = Gate(said.rate, said.pairs, said.alpha)
        facts = await comparisons.facts(store, said.flag, since)
        seen = {(one.flag, one.route) for one in facts}
        # What is configured and was never compared is no proof of anything, and must not be left out.
        for route in self._routes:
            key = (route["flag"], route["path"])
            if key not in seen and said.flag in (None, route["flag"]):
                facts.append(RouteFacts(*key))
                seen.add(key)
        rows = {
            (row.flag, row.route, row.category.path, row.category.kind): row
            for row in await comparisons.categories(store, said.flag)
        }
        book = await self._book()
        routes = [await self._route(one, judgement(one, gate), rows, book) for one in facts]
        answer = ReportAnswer(
            made_at=datetime.now(UTC).isoformat(timespec="seconds"),
            hours=said.hours,
            flag=said.flag,
            rate=said.rate,
            wanted_pairs=said.pairs,
            alpha=said.alpha,
            ready=bool(routes) and all(one.readiness == Readiness.READY for one in routes),
            routes=sorted(routes, key=lambda one: (one.flag, one.route)),
            coverage=self._coverage(facts, said.flag),
            not_in_document=sum(one.operations.get("none", 0) for one in facts),
            skipped=await comparisons.skipped(store, said.flag, since),
            expired_rules=[rule.id for rule in book.expired],
            digest="",
            next=_after_report(routes),
        )
        return answer.model_copy(update={"digest": digest(answer)})

    async def _route(
        self,
        facts: RouteFacts,
        found: Judgement,
        rows: dict[tuple[str, str, str, str], CategoryRow],
        book: RuleBook,
    ) -> RouteReport:
        def shown(categories: Sequence[Category]) -> list[CategoryShown]:
            return [
                _shown(facts, one, rows.get((facts.flag, facts.route, one.path, one.kind)))
                for one in categories
            ]

        opened = shown(found.open)
        example = None
        known = next((one for one in opened if one.id), None)
        if known is not None:
            _, samples = await comparisons.category(self._desk.store(), known.id)
            example = next((_sample(one, book) for one in samples), None)
        return RouteReport(
            flag=facts.flag, route=facts.route, readiness=found.readiness.value, reasons=list(found.reasons),
            pairs=found.pairs, equal=facts.equal, unequal=facts.unequal, inspected=facts.inspected,
            drawn=facts.drawn, upper_bound=found.upper_bound, verdicts=dict(facts.verdicts),
            methods=dict(facts.methods), statuses=dict(facts.statuses),
            latency={side: list(counts) for side, counts in facts.latency.items()},
            open=opened, noise=shown(found.noise), accepted=shown(found.accepted), example=example,
        )  # fmt: skip

    def _coverage(self, facts: Sequence[RouteFacts], flag: str | None) -> list[OperationShown]:
        """Each operation with its pairs, by whatever route they came; of a flag, those of its routes."""
        seen: Counter[str] = Counter()
        for one in facts:
            seen.update(one.operations)
        matcher = Matcher(
            [Route(one["flag"], one["path"], frozenset(one["methods"]), one["host"]) for one in self._routes]
        )
        found = []
        for operation in self._operations:
            method, path = operation
            at = matcher.match(method.encode(), b"", example_path(operation))
            route: Message = {"flag": "", "path": ""} if at is None else self._routes[at]
            if flag in (None, route["flag"]):
                found.append(
                    OperationShown(
                        method=method,
                        path=path,
                        flag=route["flag"],
                        route=route["path"],
                        pairs=seen[name_of(operation)],
                    )
                )
        return found

    async def categories(self, asked: Asked[CategoriesQuery]) -> CategoriesAnswer:
        rows = await comparisons.categories(self._desk.store(), asked.said.flag)
        next_ = [f"crossfade shadow show {row.id}" for row in rows[:3]]
        return CategoriesAnswer(
            categories=[_row_shown(row) for row in rows], next=next_ or ["crossfade shadow report"]
        )

    async def category(self, asked: Asked[Nothing]) -> CategoryAnswer:
        row, samples = await comparisons.category(self._desk.store(), asked.path["id"])
        book = await self._book()
        return CategoryAnswer(
            **_row_shown(row).model_dump(),
            samples=[_sample(one, book) for one in samples],
            next=[
                f"crossfade shadow mark {row.id} accepted {WHY}",
                f"crossfade shadow mark {row.id} bug {WHY}",
            ],
        )

    async def replay(self, asked: Asked[ReplayBody]) -> ReplayAnswer:
        """Ask both sides what the samples of a category have asked, and judge the answers of now."""
        row, samples = await comparisons.category(self._desk.store(), asked.path["id"])
        book = await self._book()
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
            differences=_differences(judged),
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
            **_row_shown(row).model_dump(), samples=[], next=[f"crossfade shadow report --flag {row.flag}"]
        )

    async def rules(self, asked: Asked[Nothing]) -> RulesAnswer:  # noqa: ARG002
        stored, wrong = await comparisons.rules(self._desk.store())
        of_code = list(self._code_rules())
        expired = {rule.id for rule in RuleBook((*of_code, *stored), _today()).expired}
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

    async def _book(self) -> RuleBook:
        stored, _ = await comparisons.rules(self._desk.store())
        return RuleBook((*self._code_rules(), *stored), _today())


def digest(answer: ReportAnswer) -> str:
    """What tells two reports apart: SHA-256 over their canonical JSON."""
    content = answer.model_dump(mode="json", by_alias=True, exclude={"digest", "next"})
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _today() -> Any:
    return datetime.now(UTC).date()


def _sample(written: dict[str, Any], book: RuleBook) -> SampleShown:
    exhibit = wire.from_bytes(json.dumps(written).encode())
    judged = judge(exhibit, book.of(exhibit.route))
    return SampleShown(
        exhibit=written,
        differences=_differences(judged),
        explanation=explained(exhibit.legacy.body, exhibit.new.body),
    )


def _differences(judged: Judged) -> list[dict[str, str]]:
    return [
        {"path": one.path, "kind": one.kind, "legacy": one.legacy, "new": one.new}
        for one in judged.differences
    ]


def _shown(facts: RouteFacts, category: Category, row: CategoryRow | None) -> CategoryShown:
    if row is not None:
        return _row_shown(row)
    # What only the pairs drawn by lot show has no samples, and so no id.
    return CategoryShown(
        id="", flag=facts.flag, route=facts.route, **asdict(category), mark_by=None, mark_expires=None,
        first_seen=0.0, last_seen=0.0,
    )  # fmt: skip


def _row_shown(row: CategoryRow) -> CategoryShown:
    one = row.category
    return CategoryShown(
        id=row.id, flag=row.flag, route=row.route, path=one.path, kind=one.kind, count=one.count,
        mark=one.mark.value, mark_reason=one.mark_reason, mark_by=row.mark_by, mark_expires=row.mark_expires,
        first_seen=row.first_seen, last_seen=row.last_seen,
    )  # fmt: skip


def _after_report(routes: Sequence[RouteReport]) -> list[str]:
    opened = [one.id for route in routes for one in route.open if one.id]
    if opened:
        return [f"crossfade shadow show {name}" for name in opened[:3]]
    waiting = [route.flag for route in routes if route.readiness == Readiness.NOT_ENOUGH_EVIDENCE]
    return [f"crossfade flag get {flag}" for flag in dict.fromkeys(waiting[:3])]
