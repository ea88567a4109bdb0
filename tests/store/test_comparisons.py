"""What comparing has found, in the store: counted once, bounded, and marked by people."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from crossfade.store import comparisons
from crossfade.store.actors import Actor, ActorType, DeniedError, Role, Via
from crossfade.store.comparisons import SAMPLES, Found, Tally, category_id
from crossfade.store.store import Store
from flags.change import Refused
from shadow.compare import Difference
from shadow.exhibit import Answer, Asked, Body, Exhibit, Kind
from shadow.judge import Drawn
from shadow.rules import Rule, RuleKind
from shadow.verdict import Mark, PathCounts

RITA = Actor(ActorType.HUMAN, "rita", Role.REVIEWER, None, Via.API)
VERA = Actor(ActorType.HUMAN, "vera", Role.VIEWER, None, Via.API)
NOTHING: frozenset[str] = frozenset()
PRICE = Difference(("$", "items", 3, "price"), "value", "1", "2")
OF_PRICE = category_id("items", "/items", "$.items[*].price", "value")


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[Store]:
    found = await Store.open(store_url)
    yield found
    await found.close()


def found(name: str, *differences: Difference, drawn: Drawn | None = None) -> Found:
    def answer(side: str) -> Answer:
        return Answer(side, 200, (("x-odd", "\0\ud800"),), Body(Kind.JSON, '"\\u0000"'), 0.0, 0.0)

    asked = Asked("GET", "/items", (), Body(Kind.NONE))
    exhibit = Exhibit(name, "items", "/items", "shadow", 1, asked, answer("legacy"), answer("new"))
    return Found(exhibit, differences, drawn)


async def take_in(store: Store, *ones: Found) -> int:
    async with store.transaction() as connection:
        new = await comparisons.new_ones(connection, [one.exhibit.id for one in ones])
        await comparisons.write_found(connection, [one for one in ones if one.exhibit.id in new])
        return len(new)


@pytest.fixture
def minute() -> float:
    """One minute for all of a scene: the next one would be another row."""
    return time.time() // 60 * 60


async def tally(store: Store, minute: float, /, **counts: int) -> None:
    async with store.transaction() as connection:
        await comparisons.write_tallies(connection, [Tally("worker", "items", "/items", minute, counts)])


async def facts(store: Store) -> Any:
    (only,) = await comparisons.facts(store, "items", time.time() - 3600)
    return only


async def test_what_a_process_has_counted_never_gets_less(store: Store, minute: float) -> None:
    """A message that nobody acknowledged comes once more, behind a later one of the same minute."""
    await tally(store, minute, equal=3, unequal=1)
    await tally(store, minute, equal=5, unequal=1)
    await tally(store, minute, equal=3, unequal=1)
    assert (await facts(store)).pairs == 6


async def test_a_pair_that_comes_twice_counts_once(store: Store) -> None:
    assert await take_in(store, found("1", PRICE), found("2", PRICE)) == 2
    assert await take_in(store, found("2", PRICE), found("3", PRICE)) == 1
    both = await asyncio.gather(take_in(store, found("4", PRICE)), take_in(store, found("4", PRICE)))
    assert sorted(both) == [0, 1]
    (row,) = await comparisons.categories(store)
    assert (row.id, row.category.path, row.category.count) == (OF_PRICE, "$.items[*].price", 4)


async def test_a_minute_is_written_whole_however_often(store: Store, minute: float) -> None:
    await tally(store, minute, equal=5)
    more = {"verdict:diff": 1, "verdict:noise": 1, "new_le:3": 4}
    await tally(store, minute, equal=7, unequal=2, drawn=1, **more)
    only = await facts(store)
    assert (only.pairs, only.equal, only.unequal, only.inspected, only.drawn) == (9, 7, 2, 2, 1)
    assert only.verdicts == {"diff": 1, "noise": 1}
    assert only.latency["new"][3] == 4


async def test_the_newest_samples_are_kept_and_no_more(store: Store) -> None:
    for number in range(SAMPLES + 3):
        await take_in(store, found(f"pair-{number}", PRICE))
    row, samples = await comparisons.category(store, OF_PRICE)
    assert row.category.count == SAMPLES + 3
    assert [one["id"] for one in samples] == [f"pair-{n}" for n in range(SAMPLES + 2, 2, -1)]
    with pytest.raises(Refused, match="there is no category"):
        await comparisons.category(store, "nothing")


async def test_what_is_drawn_by_lot_adds_up_by_path(store: Store, minute: float) -> None:
    one = Drawn(frozenset({"$.a"}), frozenset({"$.b"}), frozenset({"$.c", "$.\0"}))
    await take_in(store, found("1", drawn=one))
    await take_in(store, found("2", drawn=Drawn(frozenset({"$.a"}), frozenset({"$.a"}), NOTHING)))
    await tally(store, minute, equal=1)
    paths = (await facts(store)).paths
    assert paths["$.a"] == PathCounts(2, 1, 0)
    assert paths["$.b"] == PathCounts(0, 1, 0)
    assert paths["$.c"] == paths["$.\ufffd"] == PathCounts(0, 0, 1)


async def test_a_reviewer_marks_and_the_audit_knows(store: Store, minute: float) -> None:
    await take_in(store, found("1", PRICE))
    await tally(store, minute, unequal=1)
    with pytest.raises(DeniedError, match=r"shadow\.mark needs the role reviewer"):
        await comparisons.mark(store, VERA, OF_PRICE, Mark.ACCEPTED, reason="I like it")
    row = await comparisons.mark(store, RITA, OF_PRICE, Mark.ACCEPTED, reason="a new price list")
    assert (row.category.mark, row.mark_by) == (Mark.ACCEPTED, "rita")
    assert (await facts(store)).categories[0].mark is Mark.ACCEPTED
    (kept,) = [one for one in await store.audit_tail() if one.outcome.value == "applied"]
    assert (kept.action, kept.objects) == ("shadow.mark", ("items", OF_PRICE))

    yesterday = datetime.now(UTC).date() - timedelta(days=1)
    await comparisons.mark(store, RITA, OF_PRICE, Mark.ACCEPTED, reason="until then", expires=yesterday)
    assert (await facts(store)).categories[0].mark is Mark.OPEN


async def test_rules_are_kept_with_who_has_set_them(store: Store) -> None:
    rule = Rule("times", RuleKind.IGNORE, "$..at", "its own clock", expires_on=date(2099, 1, 1).isoformat())
    await comparisons.set_rule(store, RITA, rule, reason="noise")
    await comparisons.set_rule(store, RITA, rule, reason="again")
    assert await comparisons.rules(store) == ([rule], [])
    await comparisons.delete_rule(store, RITA, "times", reason="over")
    assert await comparisons.rules(store) == ([], [])
    with pytest.raises(Refused, match="there is no rule"):
        await comparisons.delete_rule(store, RITA, "times", reason="over")


async def test_old_counts_and_unmarked_categories_are_forgotten(store: Store, minute: float) -> None:
    await take_in(store, found("1", PRICE))
    await tally(store, minute, equal=1)
    await comparisons.forget(store, 1)
    assert len(await comparisons.categories(store)) == 1
    await comparisons.forget(store, 0)
    assert await comparisons.categories(store) == []
