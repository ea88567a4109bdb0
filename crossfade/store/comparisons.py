"""What comparing has found: counts by minute, paths, categories with their samples, and rules.

Everything here may be taken in twice and counts once: a minute is written whole by the one process that
counts it, and pairs are remembered for an hour.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

from sqlalchemy import Select, delete, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from core.metrics import LATENCY_BUCKETS
from crossfade.store.actors import Actor
from crossfade.store.audit import Deed, Head
from crossfade.store.changes import Done
from crossfade.store.store import Store
from crossfade.store.tables import (
    shadow_categories,
    shadow_counts,
    shadow_paths,
    shadow_reports,
    shadow_rules,
    shadow_samples,
    shadow_seen,
)
from flags.change import Refused
from shadow.compare import Difference
from shadow.exhibit import Exhibit
from shadow.judge import Drawn
from shadow.paths import template
from shadow.rules import InvalidRuleError, Rule, rule_from_json, rule_to_json
from shadow.verdict import Category, Mark, PathCounts, RouteFacts
from shadow.wire import to_bytes

SAMPLES: Final = 5
"""Samples of a category that are kept, the newest."""
SEEN_FOR: Final = "1 hour"
_NO_FEWER: Final = (
    "(SELECT coalesce(sum(value::bigint), 0) FROM jsonb_each_text(excluded.counts))"
    " >= (SELECT coalesce(sum(value::bigint), 0) FROM jsonb_each_text(shadow_counts.counts))"
)


@dataclass(frozen=True, slots=True)
class Tally:
    """What `source` has counted of a route in the minute that began at Unix time `minute`."""

    source: str
    flag: str
    route: str
    minute: float
    counts: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Found:
    """A pair that was judged: what is left of it, and what it says of paths."""

    exhibit: Exhibit
    differences: Sequence[Difference]
    drawn: Drawn | None


@dataclass(frozen=True, slots=True)
class CategoryRow:
    """A category with what people want to know of it. Times are Unix times."""

    id: str
    flag: str
    route: str
    category: Category
    first_seen: float
    last_seen: float
    mark_by: str | None
    mark_expires: str | None


async def new_ones(connection: AsyncConnection, names: Sequence[str]) -> set[str]:
    """Which of these pairs nobody has taken in yet; from now on somebody has."""
    if not names:
        return set()
    await connection.execute(
        delete(shadow_seen).where(shadow_seen.c.at < func.now() - text(f"interval '{SEEN_FOR}'"))
    )
    rows = insert(shadow_seen).values([{"id": name} for name in dict.fromkeys(names)])
    written = rows.on_conflict_do_nothing().returning(shadow_seen.c.id)
    return set((await connection.execute(written)).scalars())


async def write_tallies(connection: AsyncConnection, tallies: Sequence[Tally]) -> None:
    # In one order everywhere: two that write the same rows must not wait for each other.
    for tally in sorted(tallies, key=lambda one: (one.source, one.flag, one.route, one.minute)):
        row = {
            "source": tally.source,
            "flag": _storable(tally.flag),
            "route": _storable(tally.route),
            "minute": datetime.fromtimestamp(tally.minute, UTC),
            "counts": dict(tally.counts),
        }
        written = insert(shadow_counts).values(row)
        key = ["source", "flag", "route", "minute"]
        # A minute's counts only grow: fewer are of a message that comes late, or once more.
        await connection.execute(
            written.on_conflict_do_update(index_elements=key, set_=row, where=text(_NO_FEWER))
        )


async def write_found(connection: AsyncConnection, found: Sequence[Found]) -> None:
    paths: dict[tuple[str, str, str], Counter[str]] = {}
    categories: dict[str, dict[str, Any]] = {}
    samples: list[tuple[str, Exhibit]] = []
    for one in found:
        flag, route = one.exhibit.flag, one.exhibit.route
        if one.drawn is not None:
            drawn = one.drawn
            for name, seen in (
                ("new_only", drawn.new_only),
                ("legacy_only", drawn.legacy_only),
                ("together", drawn.both),
            ):
                for path in seen:
                    paths.setdefault((flag, route, _storable(path)), Counter())[name] += 1
        for path, kind in sorted({(template(each.place), each.kind) for each in one.differences}):
            row = categories.setdefault(
                category_id(flag, route, path, kind),
                {"flag": flag, "route": route, "path": _storable(path), "kind": kind, "count": 0},
            )
            row["count"] += 1
            samples.append((category_id(flag, route, path, kind), one.exhibit))
    for (flag, route, path), counts in sorted(paths.items()):
        hour = func.date_trunc("hour", func.clock_timestamp())
        row = {"flag": flag, "route": route, "path": path, "hour": hour, **counts}
        add = {name: getattr(shadow_paths.c, name) + number for name, number in counts.items()}
        written = insert(shadow_paths).values(row)
        await connection.execute(
            written.on_conflict_do_update(index_elements=["flag", "route", "path", "hour"], set_=add)
        )
    now = func.clock_timestamp()
    for name, row in sorted(categories.items()):
        written = insert(shadow_categories).values(id=name, first_seen=now, last_seen=now, **row)
        add = {"count": shadow_categories.c.count + row["count"], "last_seen": now}
        await connection.execute(written.on_conflict_do_update(index_elements=["id"], set_=add))
    for name, exhibit in samples[-SAMPLES * max(1, len(categories)) :]:
        row = {"id": exhibit.id, "category": name, "at": now, "exhibit": json.loads(to_bytes(exhibit))}
        await connection.execute(insert(shadow_samples).values(row).on_conflict_do_nothing())
    for name in sorted(categories):
        kept = (
            select(shadow_samples.c.id)
            .where(shadow_samples.c.category == name)
            .order_by(shadow_samples.c.at.desc(), shadow_samples.c.id)
            .limit(SAMPLES)
        )
        await connection.execute(
            delete(shadow_samples).where(shadow_samples.c.category == name, shadow_samples.c.id.not_in(kept))
        )


async def forget(store: Store, days: int) -> None:
    """Forget counts, and categories that nobody has marked, that are older than that."""
    limit = func.now() - text(f"interval '{int(days)} days'")
    async with store.transaction() as connection:
        await connection.execute(delete(shadow_counts).where(shadow_counts.c.minute < limit))
        await connection.execute(delete(shadow_paths).where(shadow_paths.c.hour < limit))
        old = (shadow_categories.c.last_seen < limit, shadow_categories.c.mark == Mark.OPEN.value)
        await connection.execute(delete(shadow_categories).where(*old))


# What was found.


async def facts(store: Store, flag: str | None, since: float) -> list[RouteFacts]:
    """What was counted from Unix time `since` on, by flag and route."""
    counts: dict[tuple[str, str], Counter[str]] = {}
    moment = datetime.fromtimestamp(since, UTC)
    async with store.transaction() as connection:
        wanted = select(shadow_counts).where(shadow_counts.c.minute >= moment)
        if flag is not None:
            wanted = wanted.where(shadow_counts.c.flag == flag)
        for row in await connection.execute(wanted):
            counts.setdefault((row.flag, row.route), Counter()).update(row.counts)
        paths: dict[tuple[str, str], dict[str, PathCounts]] = {}
        for row in await connection.execute(_paths_since(moment)):
            seen = PathCounts(int(row.new_only), int(row.legacy_only), int(row.together))
            paths.setdefault((row.flag, row.route), {})[row.path] = seen
        rows = await _categories(connection, flag)
    found: dict[tuple[str, str], list[Category]] = {}
    for one in rows:
        if one.last_seen >= since:
            found.setdefault((one.flag, one.route), []).append(one.category)
    keys = sorted(key for key in {*counts, *found} if key[1])
    return [_facts(key, counts.get(key, Counter()), paths.get(key, {}), found.get(key, [])) for key in keys]


async def skipped(store: Store, flag: str | None, since: float) -> dict[str, dict[str, int]]:
    """By flag and reason: what was not mirrored from Unix time `since` on."""
    wanted = select(shadow_counts.c.flag, shadow_counts.c.counts).where(
        shadow_counts.c.route == "", shadow_counts.c.minute >= datetime.fromtimestamp(since, UTC)
    )
    if flag is not None:
        wanted = wanted.where(shadow_counts.c.flag == flag)
    found: dict[str, Counter[str]] = {}
    async with store.transaction() as connection:
        for row in await connection.execute(wanted):
            counts = {name.removeprefix("skipped:"): n for name, n in row.counts.items()}
            found.setdefault(row.flag, Counter()).update(counts)
    return {name: dict(counts) for name, counts in sorted(found.items())}


def _paths_since(moment: datetime) -> Select[Any]:
    """Whole hours: what was seen before a mend would stand against it for ever."""
    known = (shadow_paths.c.flag, shadow_paths.c.route, shadow_paths.c.path)
    sums = (shadow_paths.c.new_only, shadow_paths.c.legacy_only, shadow_paths.c.together)
    wanted = select(*known, *(func.sum(one).label(one.name) for one in sums))
    return wanted.where(shadow_paths.c.hour > moment - timedelta(hours=1)).group_by(*known)


def _facts(
    key: tuple[str, str],
    counts: Mapping[str, int],
    paths: Mapping[str, PathCounts],
    categories: Sequence[Category],
) -> RouteFacts:
    def under(prefix: str) -> dict[str, int]:
        return {name.removeprefix(prefix): n for name, n in counts.items() if name.startswith(prefix)}

    verdicts = under("verdict:")
    return RouteFacts(
        *key,
        equal=counts.get("equal", 0),
        unequal=counts.get("unequal", 0),
        # What was lost on the way was not looked at.
        inspected=sum(verdicts.values()),
        verdicts=verdicts,
        drawn=counts.get("drawn", 0),
        paths=paths,
        categories=categories,
        latency={side: _histogram(under(f"{side}_le:")) for side in ("legacy", "new")},
        methods=under("method:"),
        statuses=under("status:"),
        operations=under("operation:"),
    )


def _histogram(counts: Mapping[str, int]) -> list[int]:
    return [counts.get(str(number), 0) for number in range(len(LATENCY_BUCKETS) + 1)]


async def categories(store: Store, flag: str | None = None) -> list[CategoryRow]:
    """All categories, the one seen last first."""
    async with store.transaction() as connection:
        return await _categories(connection, flag)


async def _categories(connection: AsyncConnection, flag: str | None) -> list[CategoryRow]:
    wanted = select(shadow_categories).order_by(shadow_categories.c.last_seen.desc(), shadow_categories.c.id)
    if flag is not None:
        wanted = wanted.where(shadow_categories.c.flag == flag)
    today = datetime.now(UTC).date()
    return [_category(row, today) for row in await connection.execute(wanted)]


def _category(row: Any, today: date) -> CategoryRow:
    # A mark that has expired is as if nobody had said anything.
    holds = row.mark_expires is None or row.mark_expires >= today
    mark = Mark(row.mark) if holds else Mark.OPEN
    return CategoryRow(
        row.id, row.flag, row.route,
        Category(row.path, row.kind, row.count, mark, (row.mark_reason or "") if holds else ""),
        row.first_seen.timestamp(), row.last_seen.timestamp(),
        row.mark_by, None if row.mark_expires is None else row.mark_expires.isoformat(),
    )  # fmt: skip


async def category(store: Store, name: str) -> tuple[CategoryRow, list[dict[str, Any]]]:
    """One category, and its samples as they are kept, the newest first. Raises Refused (not_found)."""
    async with store.transaction() as connection:
        row = await _needed(connection, name)
        wanted = select(shadow_samples.c.exhibit).where(shadow_samples.c.category == name)
        samples = (await connection.execute(wanted.order_by(shadow_samples.c.at.desc()))).scalars()
        return row, list(samples)


async def samples(store: Store, names: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """The samples of these categories as they are kept, the newest first."""
    found: dict[str, list[dict[str, Any]]] = {}
    wanted = select(shadow_samples.c.category, shadow_samples.c.exhibit)
    wanted = wanted.where(shadow_samples.c.category.in_(names)).order_by(shadow_samples.c.at.desc())
    async with store.transaction() as connection:
        for row in await connection.execute(wanted):
            found.setdefault(row.category, []).append(row.exhibit)
    return found


async def _needed(connection: AsyncConnection, name: str) -> CategoryRow:
    wanted = select(shadow_categories).where(shadow_categories.c.id == name)
    row = (await connection.execute(wanted)).first()
    if row is None:
        raise Refused("not_found", f"there is no category {name!r}; see: crossfade shadow diffs")
    return _category(row, datetime.now(UTC).date())


async def mark(
    store: Store,
    actor: Actor,
    name: str,
    how: Mark,
    *,
    reason: str,
    expires: date | None = None,
    ticket: str | None = None,
    request_id: str | None = None,
) -> CategoryRow:
    """Say what a category is. Until the end of `expires`, if there is one."""

    async def say(connection: AsyncConnection, _: Head) -> Done[CategoryRow]:
        before = await _needed(connection, name)
        values = {"mark": how.value, "mark_by": actor.name, "mark_reason": reason, "mark_expires": expires}
        await connection.execute(
            update(shadow_categories).where(shadow_categories.c.id == name).values(values)
        )
        after = await _needed(connection, name)
        was, becomes = ({"mark": one.category.mark.value} for one in (before, after))
        place = {"route": after.route, "path": after.category.path, "kind": after.category.kind}
        return Done(after, objects=(after.flag, name), before=was, after={**becomes, **place})

    deed = Deed("shadow.mark", "shadow", (name,), reason, {"mark": how.value}, ticket, None, request_id)
    return (await store.perform(actor, deed, say)).value


# Reports.


async def keep_report(
    store: Store,
    actor: Actor,
    digest: str,
    report: dict[str, Any],
    ready: Sequence[str],
    *,
    reason: str,
    ticket: str | None = None,
    request_id: str | None = None,
) -> None:
    """Keep a report under its digest. `ready` are the flags of which it says that every route is."""

    async def write(connection: AsyncConnection, _: Head) -> Done[None]:
        row = {"digest": digest, "kept_by": actor.name, "ready": list(ready), "report": report}
        await connection.execute(insert(shadow_reports).values(row).on_conflict_do_nothing())
        return Done(None, after={"digest": digest, "ready": list(ready)})

    deed = Deed("report.keep", "shadow", tuple(ready), reason, {"digest": digest}, ticket, None, request_id)
    await store.perform(actor, deed, write)


# Rules.


async def rules(store: Store) -> tuple[list[Rule], list[str]]:
    """The rules of the store, and what is wrong with those that cannot be understood."""
    found, wrong = [], []
    async with store.transaction() as connection:
        rows = (await connection.execute(select(shadow_rules).order_by(shadow_rules.c.id))).all()
    for row in rows:
        try:
            found.append(rule_from_json(row.definition))
        except InvalidRuleError as error:
            wrong.append(str(error))
    return found, wrong


async def set_rule(
    store: Store,
    actor: Actor,
    rule: Rule,
    *,
    reason: str,
    ticket: str | None = None,
    request_id: str | None = None,
) -> None:
    definition = rule_to_json(rule)

    async def put(connection: AsyncConnection, _: Head) -> Done[None]:
        row = {"id": rule.id, "definition": definition, "set_by": actor.name, "set_at": func.now()}
        written = insert(shadow_rules).values(row)
        await connection.execute(written.on_conflict_do_update(index_elements=["id"], set_=row))
        return Done(None, after=definition)

    deed = Deed("rule.set", "shadow", (rule.id,), reason, definition, ticket, None, request_id)
    await store.perform(actor, deed, put)


async def delete_rule(
    store: Store,
    actor: Actor,
    name: str,
    *,
    reason: str,
    ticket: str | None = None,
    request_id: str | None = None,
) -> None:
    async def remove(connection: AsyncConnection, _: Head) -> Done[None]:
        gone = delete(shadow_rules).where(shadow_rules.c.id == name).returning(shadow_rules.c.definition)
        before = (await connection.execute(gone)).scalar_one_or_none()
        if before is None:
            raise Refused("not_found", f"there is no rule {name!r} in the store; see: crossfade shadow rules")
        return Done(None, before=before)

    deed = Deed("rule.delete", "shadow", (name,), reason, {}, ticket, None, request_id)
    await store.perform(actor, deed, remove)


def category_id(flag: str, route: str, path: str, kind: str) -> str:
    """Short, and the same wherever it is asked for."""
    return hashlib.sha256("\0".join((flag, route, path, kind)).encode("utf-8", "replace")).hexdigest()[:10]


def _storable(text_of_peer: str) -> str:
    return text_of_peer[:1000].encode("utf-8", "replace").decode().replace("\0", "\ufffd")
