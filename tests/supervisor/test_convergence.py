"""Who runs a version: living instances count, silent ones do not, and nobody at all is not everybody."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import pytest

from crossfade.convergence import ALIVE_WITHIN, Patience, converged
from crossfade.store.instances import Instance, InstanceReport
from crossfade.store.store import Store


class Known:
    """What a store at version 9 has heard of instances."""

    def __init__(self, *instances: Instance) -> None:
        self._instances = list(instances)

    async def instances(self) -> list[Instance]:
        return self._instances

    async def version(self) -> int:
        return 9


def instance(name: str, *versions: int, age: float = 0.0) -> Instance:
    workers = [{"worker": place, "version": version} for place, version in enumerate(versions)]
    return Instance(InstanceReport(name, "host", "here", max(versions, default=0), 0.0, {}, workers, {}), age)


async def who_runs(*instances: Instance) -> tuple[int, tuple[str, ...]]:
    """How many workers run at least version 5, and a line for each that does not."""
    found = await converged(Known(*instances), 5, 0.0)
    return found.obeying, found.missing


async def test_everybody_runs_it_or_a_later_one() -> None:
    assert await who_runs(instance("a", 5, 6), instance("b", 5)) == (3, ())


async def test_who_does_not_is_named() -> None:
    assert await who_runs(instance("a", 5, 4)) == (1, ("worker 1 of a runs v4",))
    assert await who_runs(instance("a", 5), instance("b")) == (1, ("b has no worker",))


async def test_who_has_fallen_silent_is_not_waited_for() -> None:
    assert await who_runs(instance("a", 5), instance("b", 1, age=ALIVE_WITHIN + 1)) == (1, ())


async def test_nobody_is_not_everybody() -> None:
    assert (await who_runs())[1]
    assert (await who_runs(instance("b", 5, age=ALIVE_WITHIN + 1)))[1]


async def test_a_version_that_the_store_has_never_given_says_nothing() -> None:
    """The store was restored from a copy, and its instances hold on to what they had."""
    obeying, missing = await who_runs(instance("a", 5, 150))
    assert obeying == 1
    assert missing[0].startswith("worker 1 of a runs v150, which this store (at v9) has never given")


# Whoever was armed at version 4 and does not take version 5.


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[Store]:
    opened = Store(store_url)
    yield opened
    await opened.close()


def worker(place: int, version: int, taken: int) -> dict[str, int]:
    return {"worker": place, "pid": 100 + place, "version": version, "taken": taken}


async def waited(
    store: Store,
    *workers: dict[str, int],
    lease: float = 0.3,
    within: float = 1.0,
    outlasted: frozenset[str] = frozenset(),
) -> tuple[bool, float]:
    """Whether the walk may go on, and after how many seconds."""
    await store.report(InstanceReport("a", "host", "here", 5, 0.0, {}, workers, {}))
    began = time.monotonic()
    found = await converged(store, 5, within, patience=Patience(4, lease, outlasted))
    return found.safe, time.monotonic() - began


async def test_who_vanishes_is_waited_for_as_long_as_its_lease_may_last(store: Store) -> None:
    safe, seconds = await waited(store, worker(0, 5, 5), worker(1, 4, 4), lease=1.0, within=30.0)
    assert safe
    assert 1.0 <= seconds < 25.0


async def test_who_answers_and_is_not_quiet_yet_is_waited_for(store: Store) -> None:
    safe, seconds = await waited(store, worker(0, 5, 5), worker(1, 4, 5))
    assert not safe
    assert seconds >= 1.0


async def test_who_was_never_armed_has_no_lease_that_could_end(store: Store) -> None:
    safe, _ = await waited(store, worker(0, 5, 5), worker(1, 3, 3))
    assert not safe


async def test_who_runs_what_the_store_has_never_given_has_no_lease_that_could_end(store: Store) -> None:
    safe, _ = await waited(store, worker(0, 5, 5), worker(1, 150, 150))
    assert not safe


async def test_whose_lease_has_ended_is_not_waited_for_again_and_its_successor_is(store: Store) -> None:
    ended = frozenset({"a/1/101", "a/2/99"})
    safe, seconds = await waited(store, worker(1, 4, 4), lease=8.0, within=30.0, outlasted=ended)
    assert safe
    assert seconds < 6.0
    safe, seconds = await waited(store, worker(2, 4, 4), lease=1.0, within=30.0, outlasted=ended)
    assert safe
    assert seconds >= 1.0
