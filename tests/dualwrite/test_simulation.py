"""Nothing is lost and nothing twice, in twenty thousand schedules; and a fault in any rule is found."""

from __future__ import annotations

import inspect
import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from dualwrite import backfill, follow, heartbeat, plan
from dualwrite.change import ABSENT
from dualwrite.rows import MissingRowError
from dualwrite.snapshot import Snapshot, View
from tests.dualwrite import simulation
from tests.dualwrite.simulation import Broken, WrongError, play

SCHEDULES = 20_000
ENOUGH_FOR_A_FAULT = 4_000
LONG = 180
"""Events of a schedule that looks for a fault: some show only once all was copied, and processes end then."""


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No clock: chunks stay as small as they are, what is written in one go is less, and nobody waits."""
    monkeypatch.setattr(backfill, "LOOK_AGAIN", 0)
    monkeypatch.setattr(backfill, "_next_size", lambda rows, _: rows)
    # Some transactions are larger than what is written in one go.
    monkeypatch.setattr(follow, "GATHER", 2)


@pytest.mark.parametrize("part", range(4))
def test_every_schedule_ends_alike_or_stops_where_something_was_lost(part: int) -> None:
    ends = Counter(play(seed) for seed in range(part, SCHEDULES, 4))
    assert ends["alike"] > SCHEDULES / 4 * 0.9
    assert ends["stopped"] > SCHEDULES / 4 * 0.01


def with_text(function: Callable[..., Any], old: str, new: str) -> Any:
    """The function, with a piece of its text replaced."""
    text = textwrap.dedent(inspect.getsource(function))
    assert text.count(old) == 1, text
    space = dict(function.__globals__)
    exec("from __future__ import annotations\n" + text.replace(old, new), space)
    return space[function.__name__]


def _nothing_is_hidden(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Snapshot, "hides", lambda *_: [])


def _nothing_has_to_settle(patch: pytest.MonkeyPatch) -> None:
    broken = with_text(View.is_too_old, "snapshot.xmin < self._settled or ", "")
    patch.setattr(View, "is_too_old", broken)


def _what_came_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    broken = with_text(follow.Follower.step, "self.recent += xids", "self.recent = []")
    patch.setattr(follow.Follower, "step", broken)


def _absent_is_null(patch: pytest.MonkeyPatch) -> None:
    picking = plan.picking

    def careless(places: Sequence[int]) -> plan.Pick:
        pick = picking(places)
        return lambda row: tuple(None if value is ABSENT else value for value in pick(row))

    patch.setattr(plan, "picking", careless)


def _rows_are_merged_whole(patch: pytest.MonkeyPatch) -> None:
    broken = with_text(plan._note, "earlier if value is ABSENT else value", "value")
    patch.setattr(plan, "_note", broken)


def _what_was_applied_is_taken_in_again(patch: pytest.MonkeyPatch) -> None:
    broken = with_text(follow.Follower._take, "at >= self._upto", "True")
    patch.setattr(follow.Follower, "_take", broken)


def _half_a_transaction_is_applied(patch: pytest.MonkeyPatch) -> None:
    broken = with_text(follow.Follower._take, "ahead.open = bool(xid)", "ahead.open = False")
    patch.setattr(follow.Follower, "_take", broken)


def _beats_are_not_counted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(heartbeat, "next_after", max)


def _deletes_are_dropped(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(plan, "_note", with_text(plan._note, "table.removed.add(key)", "rows.pop(key)"))


def _confirmed_before_it_is_applied(patch: pytest.MonkeyPatch) -> None:
    applied = "await self._applier.apply("
    first = f"await self._capture.confirm(self._upto)\n            {applied}"
    patch.setattr(follow.Follower, "step", with_text(follow.Follower.step, applied, first))


def _the_slot_is_not_looked_at(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(simulation, "must_be_resumable", lambda *_: None)


def _play_all(broken: Broken) -> None:
    for seed in range(ENOUGH_FOR_A_FAULT):
        play(seed, broken, LONG)


@pytest.mark.parametrize("fault", [
    _nothing_is_hidden, _nothing_has_to_settle, _what_came_is_forgotten, _absent_is_null,
    _rows_are_merged_whole, _half_a_transaction_is_applied,
    _beats_are_not_counted, _deletes_are_dropped, _confirmed_before_it_is_applied, _the_slot_is_not_looked_at,
], ids=lambda fault: fault.__name__.strip("_"))  # fmt: skip
def test_a_rule_that_is_broken_is_found(
    fault: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    fault(monkeypatch)
    with pytest.raises((WrongError, MissingRowError, plan.ContradictionError)):
        _play_all(Broken())


@pytest.mark.parametrize("broken", [
    Broken(epoch_unchecked=True), Broken(position_apart=True), Broken(applies_again=True),
    Broken(confirms_first=True), Broken(shows_parts=True),
], ids=repr)  # fmt: skip
def test_a_target_that_does_not_keep_its_word_is_found(
    broken: Broken, monkeypatch: pytest.MonkeyPatch
) -> None:
    if broken.applies_again:
        # Either of two looks is enough: what comes again comes with all that follows it.
        _what_was_applied_is_taken_in_again(monkeypatch)
    with pytest.raises((WrongError, MissingRowError)):
        _play_all(broken)
