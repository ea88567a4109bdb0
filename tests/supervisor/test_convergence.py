"""Who runs a version: living instances count, silent ones do not, and nobody at all is not everybody."""

from __future__ import annotations

from crossfade.convergence import ALIVE_WITHIN, who_runs
from crossfade.store.instances import Instance, InstanceReport


def instance(name: str, *versions: int, age: float = 0.0) -> Instance:
    workers = [{"worker": place, "version": version} for place, version in enumerate(versions)]
    return Instance(InstanceReport(name, "host", "here", max(versions, default=0), 0.0, {}, workers, {}), age)


def test_everybody_runs_it_or_a_later_one() -> None:
    assert who_runs(5, [instance("a", 5, 6), instance("b", 5)]) == (3, ())


def test_who_does_not_is_named() -> None:
    assert who_runs(5, [instance("a", 5, 4)]) == (1, ("worker 1 of a runs v4",))
    assert who_runs(5, [instance("a", 5), instance("b")]) == (1, ("b has no worker",))


def test_who_has_fallen_silent_is_not_waited_for() -> None:
    assert who_runs(5, [instance("a", 5), instance("b", 1, age=ALIVE_WITHIN + 1)]) == (1, ())


def test_nobody_is_not_everybody() -> None:
    assert who_runs(5, [])[1]
    assert who_runs(5, [instance("b", 5, age=ALIVE_WITHIN + 1)])[1]
