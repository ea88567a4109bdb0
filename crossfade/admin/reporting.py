"""The report that decides a release: what was counted, judged by today's rules, and its digest."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, date, datetime
from typing import Any

from crossfade.admin.answers import (
    CategoryShown,
    OperationShown,
    ReportAnswer,
    RouteReport,
    SampleShown,
)
from crossfade.admin.models import ReportQuery
from crossfade.channel import Message
from crossfade.store import comparisons
from crossfade.store.comparisons import CategoryRow
from crossfade.store.store import Store
from flags.match import Matcher
from flags.model import Route
from shadow import wire
from shadow.explain import explained
from shadow.judge import Judged, expected_by, judge
from shadow.openapi import example_path, name_of
from shadow.rules import Rule, RuleBook
from shadow.verdict import Category, Gate, Judgement, Readiness, RouteFacts, judgement

Samples = Mapping[str, Sequence[dict[str, Any]]]
"""By category, as they are kept, the newest first."""


class Reporting:
    """Makes reports of what the store has counted. `update` says what the configuration has."""

    def __init__(self, store: Callable[[], Store], code_rules: Callable[[], Sequence[Rule]]) -> None:
        self._store = store
        self._code_rules = code_rules
        self._routes: Sequence[Message] = ()
        self._operations: Sequence[tuple[str, str]] = ()

    def update(self, routes: Sequence[Message], operations: Sequence[tuple[str, str]]) -> None:
        """Which routes there are, and what can be asked."""
        self._routes = routes
        self._operations = operations

    async def book(self) -> RuleBook:
        """The rules of today, of the code and of the store."""
        stored, _ = await comparisons.rules(self._store())
        return RuleBook((*self._code_rules(), *stored), today())

    async def report(self, said: ReportQuery) -> ReportAnswer:
        store, since = self._store(), time.time() - said.hours * 3600
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
        book = await self.book()
        samples = await comparisons.samples(store, [row.id for row in rows.values()])
        routes = []
        for one in facts:
            ruled = await _by_todays_rules(one, rows, samples, book)
            routes.append(_route(ruled, judgement(ruled, gate), rows, samples, book))
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


async def _by_todays_rules(
    facts: RouteFacts,
    rows: Mapping[tuple[str, str, str, str], CategoryRow],
    samples: Samples,
    book: RuleBook,
) -> RouteFacts:
    """With each open category noted of which today's rules expect every sample.

    A rule that was made after the pairs would else leave the route not ready until they are forgotten. What
    comes later and is not expected is a sample that is not, and opens the category again.
    """
    categories = []
    for one in facts.categories:
        row = rows.get((facts.flag, facts.route, one.path, one.kind))
        categories.append(one if row is None else ruled(one, samples.get(row.id, ()), book))
        # Judging is work, and this process has other people to answer.
        await asyncio.sleep(0)
    return replace(facts, categories=categories)


def ruled(category: Category, samples: Sequence[dict[str, Any]], book: RuleBook) -> Category:
    """The category, with the rules of today that expect all of its samples, if they do."""
    if category.is_decided or not samples:
        return category
    by: set[str] = set()
    for written in samples:
        exhibit = wire.from_bytes(json.dumps(written).encode())
        names = expected_by(exhibit, book.of(exhibit.route), category.path)
        if names is None:
            return category
        by |= names
    said = ", ".join(sorted(by)) or "the rules of today"
    return replace(category, ruled=f"{said} expects all {len(samples)} samples that are kept")


def _route(
    facts: RouteFacts,
    found: Judgement,
    rows: Mapping[tuple[str, str, str, str], CategoryRow],
    samples: Samples,
    book: RuleBook,
) -> RouteReport:
    def shown(categories: Sequence[Category]) -> list[CategoryShown]:
        return [
            _shown(facts, one, rows.get((facts.flag, facts.route, one.path, one.kind))) for one in categories
        ]

    opened = shown(found.open)
    example = None
    known = next((one for one in opened if one.id), None)
    if known is not None:
        example = next((sample_shown(one, book) for one in samples.get(known.id, ())), None)
    return RouteReport(
        flag=facts.flag, route=facts.route, readiness=found.readiness.value, reasons=list(found.reasons),
        pairs=found.pairs, equal=facts.equal, unequal=facts.unequal, inspected=facts.inspected,
        drawn=facts.drawn, upper_bound=found.upper_bound, verdicts=dict(facts.verdicts),
        methods=dict(facts.methods), statuses=dict(facts.statuses),
        latency={side: list(counts) for side, counts in facts.latency.items()},
        open=opened, noise=shown(found.noise), accepted=shown(found.accepted), example=example,
    )  # fmt: skip


def digest(answer: ReportAnswer) -> str:
    """What tells two reports apart: SHA-256 over their canonical JSON."""
    content = answer.model_dump(mode="json", by_alias=True, exclude={"digest", "next"})
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def today() -> date:
    return datetime.now(UTC).date()


def sample_shown(written: dict[str, Any], book: RuleBook) -> SampleShown:
    exhibit = wire.from_bytes(json.dumps(written).encode())
    judged = judge(exhibit, book.of(exhibit.route))
    return SampleShown(
        exhibit=written,
        differences=differences_shown(judged),
        explanation=explained(exhibit.legacy.body, exhibit.new.body),
    )


def differences_shown(judged: Judged) -> list[dict[str, str]]:
    return [
        {"path": one.path, "kind": one.kind, "legacy": one.legacy, "new": one.new}
        for one in judged.differences
    ]


def row_shown(row: CategoryRow) -> CategoryShown:
    one = row.category
    return CategoryShown(
        id=row.id, flag=row.flag, route=row.route, path=one.path, kind=one.kind, count=one.count,
        mark=one.mark.value, mark_reason=one.mark_reason, ruled=one.ruled, mark_by=row.mark_by,
        mark_expires=row.mark_expires, first_seen=row.first_seen, last_seen=row.last_seen,
    )  # fmt: skip


def _shown(facts: RouteFacts, category: Category, row: CategoryRow | None) -> CategoryShown:
    if row is not None:
        return row_shown(replace(row, category=category))
    # What only the pairs drawn by lot show has no samples, and so no id.
    return CategoryShown(
        id="", flag=facts.flag, route=facts.route, **asdict(category), mark_by=None, mark_expires=None,
        first_seen=0.0, last_seen=0.0,
    )  # fmt: skip


def _after_report(routes: Sequence[RouteReport]) -> list[str]:
    opened = [one.id for route in routes for one in route.open if one.id]
    if opened:
        return [f"crossfade shadow show {name}" for name in opened[:3]]
    waiting = [route.flag for route in routes if route.readiness == Readiness.NOT_ENOUGH_EVIDENCE]
    return [f"crossfade flag get {flag}" for flag in dict.fromkeys(waiting[:3])]
