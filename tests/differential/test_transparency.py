"""Every case of requests.py and answers.py through Crossfade, and beside nginx and HAProxy.

All cases are played before the first test, and what looks wrong is played again: the proxies' timeouts are
short, and a machine that stands still for a second lets them end. The tests read what came of it. The
comparison needs nginx and HAProxy in the versions that docs/http.md speaks of; everything else needs only
Crossfade.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

import pytest

from tests.differential.differences import (
    ACCEPTED,
    BEGIN,
    COMPARED_WITH,
    END,
    OPEN,
    PAGE,
    REASONS,
    UNSTEADY,
    Row,
    differences,
    table,
    table_line,
)
from tests.differential.play import CASES, DRIP_LIMIT, Played, played, sent_bytes
from tests.differential.proxies import CROSSFADE_KIND, HAPROXY_KIND, NGINX_KIND, Kind, version_of
from tests.differential.verdict import faults

OTHERS = (NGINX_KIND, HAPROXY_KIND)
REPLAYS = 2
"""How often what looks wrong is played again: a fault of ours comes back each time, a stall does not."""
MANY = 80
"""More cases than stalls spoil; so many are wrong, and not played again."""


@dataclass(frozen=True, slots=True)
class Stage:
    """What came of all cases."""

    whole: Played
    drip: Played
    others: dict[str, Played]


def comparable(kind: Kind) -> bool:
    return (version_of(kind) or "").startswith(COMPARED_WITH[kind.name] + ".")


@pytest.fixture(scope="session")
def stage() -> Stage:
    return asyncio.run(play([kind for kind in OTHERS if comparable(kind)]))


async def play(others: list[Kind]) -> Stage:
    whole, drip, *rest = await asyncio.gather(
        played(CROSSFADE_KIND), played(CROSSFADE_KIND, drip=True), *map(played, others)
    )
    for _ in range(REPLAYS):
        stage = Stage(whole, drip, {kind.name: each for kind, each in zip(others, rest, strict=True)})
        odd = odd_rows(stage)
        whole, drip, *rest = await asyncio.gather(
            again(whole, CROSSFADE_KIND, wrong(whole) | odd),
            again(drip, CROSSFADE_KIND, wrong(drip), drip=True),
            *(again(each, kind, odd) for kind, each in zip(others, rest, strict=True)),
        )
    return Stage(whole, drip, {kind.name: each for kind, each in zip(others, rest, strict=True)})


def wrong(what: Played) -> set[str]:
    return {name for name, outcome in what.outcomes.items() if faults(CASE[name], outcome)}


def odd_rows(stage: Stage) -> set[str]:
    """The cases whose row stands otherwise on the page, or on only one of the two sides."""
    if len(stage.others) < len(OTHERS):
        return set()
    rows, shown = all_rows(stage), shown_table()
    found = {row[0] for row in rows if table_line(row) in shown}
    return ({row[0] for row in rows} | ACCEPTED.keys()) - found


async def again(before: Played, kind: Kind, names: set[str], *, drip: bool = False) -> Played:
    """`before`, with these cases as they come out now."""
    if not 0 < len(names) <= MANY:
        return before
    now = await played(kind, [CASE[name] for name in names], drip=drip)
    return replace(before, outcomes=before.outcomes | now.outcomes, log=before.log + now.log)


@pytest.fixture(scope="session")
def rows(stage: Stage) -> list[Row]:
    missing = [kind.name for kind in OTHERS if kind.name not in stage.others]
    if missing:
        pytest.skip(f"needs nginx {COMPARED_WITH['nginx']} and HAProxy {COMPARED_WITH['HAProxy']}")
    return all_rows(stage)


def all_rows(stage: Stage) -> list[Row]:
    return differences(stage.whole, stage.others["nginx"], stage.others["HAProxy"])


def shown_table() -> str:
    return PAGE.read_text().partition(BEGIN)[2].partition(END)[0]


def named_cases(names: list[str]) -> list[object]:
    """The names as parameters; what is known to be wrong yet must fail."""
    return [
        pytest.param(
            name, marks=pytest.mark.xfail(reason=OPEN[name], strict=name != "chunk extension of 100 kB")
        )
        if name in OPEN
        else name
        for name in names
    ]


CASE = {case.name: case for case in CASES}


@pytest.mark.parametrize("name", named_cases(list(CASE)))
def test_does_as_the_case_demands(stage: Stage, name: str) -> None:
    assert faults(CASE[name], stage.whole.outcomes[name]) == []


@pytest.mark.parametrize("name", named_cases([name for name in CASE if sent_bytes(CASE[name]) <= DRIP_LIMIT]))
def test_does_the_same_when_each_byte_comes_alone(stage: Stage, name: str) -> None:
    assert faults(CASE[name], stage.drip.outcomes[name]) == []


def test_nothing_went_wrong_inside(stage: Stage) -> None:
    assert stage.whole.log == ""
    assert stage.drip.log == ""


def test_names_are_unique_and_known() -> None:
    assert len(CASE) == len(CASES)
    assert sum(map(len, REASONS.values())) == len(ACCEPTED)
    assert {*ACCEPTED, *OPEN, *UNSTEADY} <= CASE.keys()


def test_every_difference_from_both_has_a_reason(rows: list[Row]) -> None:
    assert [row for row in rows if row[0] not in ACCEPTED] == []


def test_every_reason_still_has_its_difference(rows: list[Row]) -> None:
    assert ACCEPTED.keys() - {row[0] for row in rows} == set()


def test_the_page_shows_the_table(rows: list[Row], stage: Stage) -> None:
    versions = {name: each.version for name, each in stage.others.items()}
    assert shown_table() == table(rows, versions), "run python -m tests.differential.differences"
