"""Ramps: when a step ends, what holds it, and what is never skipped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flags.cohort import Cohort, Cohorts
from flags.model import EVERYBODY, Stage, Transition
from flags.ramp import (
    ENDED,
    TABLE,
    Act,
    Event,
    Facts,
    InvalidRampError,
    Plan,
    Ramp,
    RampState,
    Step,
    after,
    expected_transition,
    next_action,
    opened_at,
    plan_for,
    plan_from_json,
    plan_to_json,
    requests_moved,
    steps_from_json,
    steps_to_json,
    windows_from_json,
)

SHADOW = Transition(Stage.SHADOW, Stage.LIVE, 0)
STEPS = (Step(10_000, 600.0, 100), Step(100_000, 600.0, 1000), Step(500_000, 600.0), Step(EVERYBODY, 60.0))
PLAN = plan_for("items.read", SHADOW, STEPS, to=Stage.LIVE)
BEGAN = 1_000_000.0


def at(step: int, state: RampState = RampState.RUNNING, plan: Plan = PLAN, held: str | None = None) -> Ramp:
    return Ramp(plan, state, step, BEGAN, held)


def facts(ramp: Ramp, requests: int = 10_000, **other: object) -> Facts:
    return replace(Facts(expected_transition(ramp), requests), **other)  # type: ignore[arg-type]


def does(ramp: Ramp, passed: float, requests: int = 10_000, **other: object) -> Act | None:
    return next_action(ramp, facts(ramp, requests, **other), BEGAN + passed)


def event(act: Act | None) -> Event | None:
    return None if act is None else act.event


# The walk.


def test_a_ramp_goes_through_its_steps_and_ends() -> None:
    begin = does(at(0), 0.0, 0)
    assert begin == Act(Event.ADVANCE, "step 1 of 4: 1% at live", 1)
    assert does(at(1), 599.9) is None
    assert does(at(1), 600.0) == Act(Event.ADVANCE, "step 2 of 4: 10% at live", 2)
    assert does(at(2), 600.0) == Act(Event.ADVANCE, "step 3 of 4: 50% at live", 3)
    assert does(at(3), 600.0) == Act(Event.ADVANCE, "step 4 of 4: 100% at live", 4)
    assert does(at(4), 59.9) is None
    assert event(does(at(4), 60.0)) is Event.FINISH


def test_too_few_requests_hold_the_step_and_say_how_many() -> None:
    held = does(at(1), 700.0, 99)
    assert held == Act(Event.HOLD, "99 of 100 requests at this step")
    assert does(at(1, RampState.HELD, held="99 of 100 requests at this step"), 701.0, 99) is None
    assert event(does(at(1, RampState.HELD), 702.0, 100)) is Event.ADVANCE


def test_a_guardrail_that_is_not_sure_holds_and_one_that_has_tripped_stops() -> None:
    assert does(at(1), 700.0, unsure="errors needs more") == Act(Event.HOLD, "errors needs more")
    assert does(at(1), 100.0, unsure="errors needs more") is None
    assert does(at(1), 100.0, tripped="errors has tripped") == Act(Event.PAUSE, "errors has tripped")


def test_a_killed_flag_pauses_the_ramp_and_only_a_person_resumes_it() -> None:
    assert event(does(at(2), 1.0, killed=True)) is Event.PAUSE
    assert does(at(2, RampState.PAUSED), 10_000.0) is None
    assert does(at(2, RampState.PAUSED), 10_000.0, killed=True) is None


def test_a_flag_moved_by_hand_ends_the_ramp_instead_of_being_moved_back() -> None:
    for state in (RampState.RUNNING, RampState.HELD, RampState.PAUSED):
        act = next_action(at(2, state), replace(facts(at(2)), transition=SHADOW), BEGAN + 1.0)
        assert act is not None
        assert act.event is Event.ABORT
        assert act.reason == "the flag was moved to shadow, and this ramp had it at shadow→live at 10%"
    moved_before_the_first_step = replace(facts(at(0)), transition=Transition(Stage.SHADOW, Stage.LIVE, 5))
    assert event(next_action(at(0), moved_before_the_first_step, BEGAN)) is Event.ABORT
    assert event(does(at(2), 1.0, archived=True)) is Event.ABORT


# Nobody looked for a while.

NO_MINIMA = plan_for("f", SHADOW, [Step(n * 100_000, 600.0) for n in range(1, 10)], to=Stage.LIVE)


def test_overdue_steps_fold_into_one_advance() -> None:
    act = does(at(1, plan=NO_MINIMA), 600.0 + 1250.0)
    assert act == Act(Event.ADVANCE, "step 4 of 9: 40% at live, 2 overdue in one", 4)
    assert does(at(1, plan=NO_MINIMA), 86_400.0) == Act(
        Event.ADVANCE, "step 9 of 9: 90% at live, 7 overdue in one", 9
    )


def test_what_asks_for_requests_or_is_watched_or_was_held_is_never_skipped() -> None:
    # An hour away: step 2 asks for requests that it cannot have had.
    assert does(at(1), 3600.0) == Act(Event.ADVANCE, "step 2 of 4: 10% at live", 2)
    watched = does(at(1, plan=NO_MINIMA), 86_400.0, watched=True)
    assert watched is not None
    assert watched.step == 2
    held = does(at(1, RampState.HELD, plan=NO_MINIMA), 86_400.0)
    assert held is not None
    assert held.step == 2
    begins = does(at(0, plan=NO_MINIMA), 86_400.0)
    assert begins is not None
    assert begins.step == 1


steps = st.lists(
    st.tuples(st.integers(1, 10**6), st.sampled_from([0.0, 10.0, 100.0]), st.integers(0, 2)),
    min_size=1, max_size=12, unique_by=lambda step: step[0],
)  # fmt: skip


@given(steps, st.integers(1, 12), st.floats(0.0, 2000.0), st.integers(0, 3), st.sampled_from(RampState))
def test_no_advance_ever_breaks_a_minimum(
    wanted: list[tuple[int, float, int]], number: int, passed: float, requests: int, state: RampState
) -> None:
    found = [Step(ppm, hold, 0 if ppm == EVERYBODY else least) for ppm, hold, least in sorted(wanted)]
    plan = plan_for("f", SHADOW, found, to=Stage.LIVE)
    ramp = at(min(number, len(found)), state, plan)
    act = does(ramp, passed, requests)
    if act is None:
        return
    assert after(state, act.event) is not None
    assert ramp.current is not None
    if act.event in {Event.ADVANCE, Event.FINISH}:
        assert passed >= ramp.current.hold
        assert requests >= ramp.current.min_requests
    if act.event is Event.ADVANCE:
        assert ramp.step < act.step <= len(found)
        skipped = found[ramp.step : act.step - 1]
        assert not any(step.min_requests for step in skipped)
        assert sum(step.hold for step in skipped) <= passed - ramp.current.hold
        assert not skipped or state is RampState.RUNNING


def test_a_clock_that_was_set_back_only_waits() -> None:
    assert does(at(1), -3600.0) is None


# States.


def test_what_has_ended_does_nothing_any_more() -> None:
    assert {RampState.DONE, RampState.ABORTED, RampState.TRIPPED} == ENDED
    for state in ENDED:
        assert does(at(2, state), 1e6, killed=True) is None
    assert not any(after(state, event) for state in ENDED for event in Event)


def test_a_paused_ramp_leaves_only_by_a_person_or_a_guardrail() -> None:
    assert set(TABLE[RampState.PAUSED]) == {Event.RESUME, Event.ABORT, Event.TRIP}
    assert after(RampState.PAUSED, Event.ADVANCE) is None
    assert set(TABLE) == set(RampState)


# Windows.


def moment(text: str, zone: str = "Europe/Berlin") -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


WORK = windows_from_json([{"days": ["mon", "tue"], "from": "09:00", "to": "17:00", "zone": "Europe/Berlin"}])
NIGHT = windows_from_json([{"days": ["fri"], "from": "22:00", "to": "06:00", "zone": "Europe/Berlin"}])
ALWAYS = windows_from_json([{"from": "00:00", "to": "00:00"}])


@pytest.mark.parametrize(
    ("window", "when", "begin"),
    [
        (WORK, "2026-11-23T09:00", "2026-11-23T09:00"),  # a Monday
        (WORK, "2026-11-23T16:59:59", "2026-11-23T09:00"),
        (WORK, "2026-11-23T17:00", None),
        (WORK, "2026-11-25T10:00", None),
        (NIGHT, "2026-11-27T23:00", "2026-11-27T22:00"),
        (NIGHT, "2026-11-28T05:59", "2026-11-27T22:00"),
        (NIGHT, "2026-11-28T23:00", None),
        # The clocks go back in the night of 25 October 2026: 02:30 is there twice.
        (windows_from_json([{"from": "02:00", "to": "04:00", "zone": "Europe/Berlin"}]), "2026-10-25T03:30",
         "2026-10-25T02:00"),
    ],
)  # fmt: skip
def test_windows_are_hours_of_the_wall_clock(window: Sequence, when: str, begin: str | None) -> None:  # type: ignore[type-arg]
    assert opened_at(window, moment(when)) == (None if begin is None else moment(begin))


def test_a_ramp_waits_for_its_window_and_then_goes_one_step() -> None:
    plan = replace(NO_MINIMA, windows=WORK)
    ramp = Ramp(plan, RampState.RUNNING, 1, moment("2026-11-23T16:55"))
    evening = next_action(ramp, facts(ramp), moment("2026-11-23T17:30"))
    assert evening == Act(Event.HOLD, "outside the allowed hours")
    held = replace(ramp, state=RampState.HELD, held_reason="outside the allowed hours")
    morning = next_action(held, facts(held), moment("2026-11-24T09:00"))
    assert morning is not None
    assert (morning.event, morning.step) == (Event.ADVANCE, 2)
    # Nobody looked in the evening: the night was outside, so it does not count as overdue.
    alone = next_action(ramp, facts(ramp), moment("2026-11-24T09:01"))
    assert alone is not None
    assert (alone.event, alone.step) == (Event.ADVANCE, 2)
    assert opened_at((), 0.0) == 0.0
    assert opened_at(ALWAYS, moment("2026-11-24T00:00", "UTC")) == moment("2026-11-24T00:00", "UTC")


# Plans.


def test_a_plan_keeps_its_form() -> None:
    plan = replace(PLAN, windows=WORK)
    assert plan_from_json("items.read", plan_to_json(plan), steps_to_json(plan.steps)) == plan
    between = plan_for("f", Transition(Stage.LIVE, Stage.NEW, 5), [Step(6, 1.0)], to=Stage.NEW)
    assert (between.origin, between.start.weight_ppm) == (Stage.LIVE, 5)


@pytest.mark.parametrize(
    ("transition", "to", "planned", "named"),
    [
        (SHADOW, Stage.LIVE, [], "at least one step"),
        (SHADOW, Stage.LIVE, [Step(10, 1.0), Step(10, 1.0)], "must be above step 1"),
        (SHADOW, Stage.LIVE, [Step(0, 1.0)], "above 0"),
        (SHADOW, Stage.LIVE, [Step(10, -1.0)], "time to hold"),
        (SHADOW, Stage.LIVE, [Step(EVERYBODY, 1.0, 5)], "no two cohorts left"),
        (SHADOW, Stage.LIVE, [Step(10, 1.0, -5)], "cannot be below 0"),
        (SHADOW, Stage.NEW, [Step(10, 1.0)], "cannot ramp to new"),
        (SHADOW, Stage.LEGACY, [Step(10, 1.0)], "flag move items.read --to legacy"),
        (Transition(Stage.SHADOW, Stage.LIVE, 50_000), Stage.LIVE, [Step(50_000, 1.0)], "stands now (5%)"),
        (Transition(Stage.SHADOW, Stage.LIVE, 50_000), Stage.SHADOW, [Step(950_001, 1.0)], "a ramp goes up"),
    ],
)
def test_a_plan_that_cannot_be_says_why(
    transition: Transition, to: Stage, planned: list[Step], named: str
) -> None:
    with pytest.raises(InvalidRampError) as refusal:
        plan_for("items.read", transition, planned, to=to)
    assert named in str(refusal.value)


@pytest.mark.parametrize(
    "said",
    ["5%:10m", [3], [{"weight_ppm": 1.5, "hold": 1}], [{"weight_ppm": True, "hold": 1}], [{"weight_ppm": 5}],
     [{"weight_ppm": 5, "hold": 1, "min_requests": "x"}], [{"weight_ppm": 5, "hold": 1, "bake": 1}]],
)  # fmt: skip
def test_steps_that_are_no_steps(said: object) -> None:
    with pytest.raises(InvalidRampError):
        steps_from_json(said)


HOURS = {"from": "09:00", "to": "17:00"}


@pytest.mark.parametrize(
    "said",
    [
        "always",
        [5],
        [{"from": "09:00"}],
        [{**HOURS, "from": "9:00"}],
        [{**HOURS, "to": "24:00"}],
        [{**HOURS, "zone": "Mars/Olympus"}],
        [{**HOURS, "zone": "../../etc/passwd"}],
        [{**HOURS, "zone": 5}],
        [{**HOURS, "days": []}],
        [{**HOURS, "days": ["monday"]}],
        [{**HOURS, "every": "day"}],
        [HOURS] * 51,
    ],
)
def test_windows_that_are_no_windows(said: object) -> None:
    with pytest.raises(InvalidRampError):
        windows_from_json(said)


def test_what_a_step_has_moved() -> None:
    grown = Cohorts(Cohort(30), Cohort(970))
    assert requests_moved(at(1), grown) == 30
    assert requests_moved(at(0), grown) == 0
    mirrored = plan_for("f", Transition(Stage.LEGACY, Stage.SHADOW, 0), [Step(100_000, 1.0)], to=Stage.SHADOW)
    assert requests_moved(at(1, plan=mirrored), Cohorts(Cohort(), Cohort(1000))) == pytest.approx(100)
