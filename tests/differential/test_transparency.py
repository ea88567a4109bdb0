"""Every case of requests.py and answers.py through Crossfade, and beside nginx and HAProxy.

All cases are played once, before the first test; the tests read what came of it. The comparison needs
nginx and HAProxy in the versions that docs/http.md speaks of; everything else needs only Crossfade.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

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
)
from tests.differential.play import CASES, DRIP_LIMIT, Played, played, sent_bytes
from tests.differential.proxies import CROSSFADE_KIND, HAPROXY_KIND, NGINX_KIND, Kind, version_of
from tests.differential.verdict import faults

OTHERS = (NGINX_KIND, HAPROXY_KIND)


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
    present = [kind for kind in OTHERS if comparable(kind)]

    async def play() -> list[Played]:
        return await asyncio.gather(
            played(CROSSFADE_KIND), played(CROSSFADE_KIND, drip=True), *(played(kind) for kind in present)
        )

    whole, drip, *others = asyncio.run(play())
    return Stage(whole, drip, {kind.name: each for kind, each in zip(present, others, strict=True)})


@pytest.fixture(scope="session")
def rows(stage: Stage) -> list[Row]:
    missing = [kind.name for kind in OTHERS if kind.name not in stage.others]
    if missing:
        pytest.skip(f"needs nginx {COMPARED_WITH['nginx']} and HAProxy {COMPARED_WITH['HAProxy']}")
    return differences(stage.whole, stage.others["nginx"], stage.others["HAProxy"])


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
    shown = PAGE.read_text().partition(BEGIN)[2].partition(END)[0]
    versions = {name: each.version for name, each in stage.others.items()}
    assert shown == table(rows, versions), "run python -m tests.differential.differences"
