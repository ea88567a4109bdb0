"""Guardrails: seldom wrong, quick when new is really worse, and careful where order is unknown."""

from __future__ import annotations

import itertools
import math
import random
import statistics
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flags.cohort import (
    Cohort,
    Cohorts,
    Seen,
    cohorts_from_json,
    cursor_from_json,
    cursor_to_json,
    growth,
    taken_in,
    together,
)
from flags.guardrail import (
    GATHERED,
    RATIOS,
    Action,
    Counted,
    Evidence,
    Guardrail,
    InvalidGuardrailError,
    Mode,
    Signal,
    State,
    counted,
    evidence_from_json,
    evidence_to_json,
    guardrail_from_json,
    guardrail_to_json,
    has_something_to_judge,
    observe,
    verdict,
    way_back,
)
from flags.model import Stage, Transition
from flags.stages import share_of_new
from tests.ramps.traffic import Canary, bad_answers_before_the_trip, binomial, bursts, rises

ERRORS = Guardrail("g", "items.read", Signal.ERRORS)
NOBODY = Counted()


def look(
    evidence: Evidence, guardrail: Guardrail, new: Counted, legacy: Counted, at_least_ppm: int = 0
) -> Evidence:
    """What one instance has counted since the last look."""
    return observe(evidence, guardrail, {"one": (new, legacy)}, at_least_ppm)


# How often it is wrong.


@pytest.mark.parametrize(("worse", "ramps"), [(1.0, 2000), (1.5, 2000)])
def test_what_is_no_worse_than_tolerated_is_seldom_taken_back(worse: float, ramps: int) -> None:
    """Equal backends, and new exactly at the tolerance; looked at after each bad answer, at many weights."""
    guardrail = replace(ERRORS, alpha=0.05)
    wrong = sum(
        rises(seed, guardrail, bad_answers=80, share_bad=0.02, worse=worse).value >= 20.0
        for seed in range(ramps)
    )
    assert wrong <= 0.05 * ramps


@pytest.mark.parametrize(("share_bad", "worse"), [(0.02, 1.0), (0.2, 1.0), (0.2, 1.5), (0.4, 1.5)])
def test_bursts_of_new_and_bad_hosts_do_not_speak_against_it(share_bad: float, worse: float) -> None:
    """By the share of the last hundreds of requests, a third to all of these would be taken back."""
    guardrail = replace(ERRORS, alpha=0.05)
    ramps = 300
    wrong = sum(
        bursts(seed, guardrail, looks=150, share_bad=share_bad, worse=worse).value >= 20.0
        for seed in range(ramps)
    )
    assert wrong <= 0.05 * ramps


def test_the_evidence_is_on_average_at_most_one() -> None:
    """The law behind the bound, where it is tightest: new at the tolerance, high shares, small batches."""
    chance = random.Random(7)
    guardrail = replace(ERRORS, tolerance=1.5)
    values = []
    for _ in range(2000):
        evidence = Evidence()
        for _ in range(6):
            weight_ppm = chance.choice((50_000, 300_000, 700_000))
            of_new = binomial(chance, 8, weight_ppm / 1e6)
            new = Counted(of_new, binomial(chance, of_new, 0.45))
            legacy = Counted(8 - of_new, binomial(chance, 8 - of_new, 0.3))
            evidence = observe(evidence, guardrail, {"one": (new, legacy)})
        evidence = observe(evidence, guardrail, {})  # the instance has ended: all of it is bet on
        values.append(evidence.value)
    error = statistics.stdev(values) / math.sqrt(len(values))
    assert statistics.mean(values) <= 1.0 + 3.0 * error


def test_given_where_each_request_went_the_law_is_exact() -> None:
    """All outcomes of a small batch, by their chances: the evidence after it is worth at most what it was."""
    guardrail = replace(ERRORS, tolerance=1.3)
    share_bad = 0.2
    share_new = 1.3 * (share_bad + 0.0001)
    for of_new, of_legacy in itertools.product(range(5), range(5)):

        def seen(a: int, b: int, of_new: int = of_new, of_legacy: int = of_legacy) -> Evidence:
            one = observe(Evidence(), guardrail, {"one": (Counted(of_new, a), Counted(of_legacy, b))})
            return observe(one, guardrail, {})

        worth = sum(
            math.comb(of_new, a) * share_new**a * (1 - share_new) ** (of_new - a)
            * math.comb(of_legacy, b) * share_bad**b * (1 - share_bad) ** (of_legacy - b)
            * seen(a, b).value
            for a in range(of_new + 1) for b in range(of_legacy + 1)
        )  # fmt: skip
        assert worth <= 1.0 + 1e-9


# How quick it is.


def test_a_canary_ten_times_worse_is_found_before_fifteen_bad_answers() -> None:
    found = [bad_answers_before_the_trip(seed, ERRORS, Canary()) for seed in range(60)]
    assert statistics.median(found) < 15


def test_a_backend_that_goes_bad_after_a_long_good_time_is_found_as_well() -> None:
    found = [bad_answers_before_the_trip(seed, ERRORS, Canary(), good_requests=500_000) for seed in range(12)]
    assert statistics.median(found) < 30


def test_a_backend_that_only_fails_is_found_at_once_though_legacy_never_does() -> None:
    evidence, bad = Evidence(), 0
    while verdict(evidence, ERRORS).state is not State.TRIPPED:
        evidence = observe(evidence, ERRORS, {"one": (Counted(1, 1), Counted(19, 0))})
        bad += 1
    assert bad <= 8


def test_few_errors_among_very_many_requests_are_not_worse_than_none() -> None:
    evidence = Evidence()
    for _ in range(50):
        evidence = observe(evidence, ERRORS, {"one": (Counted(20_000, 1), Counted(380_000, 0))})
    assert verdict(evidence, ERRORS).state is State.OK


# Batches.

batches = st.lists(
    st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(0, 400), st.integers(0, 400)), max_size=30
)


@given(batches, st.integers(0, 1_000_000))
def test_a_share_that_is_taken_for_larger_never_adds_to_the_evidence_against_new(
    seen: list[tuple[int, int, int, int]], at_least: int
) -> None:
    """Requests that were fine still make it likelier that new is fine, so only bad batches are compared."""
    for bad_new, bad_legacy, _, legacy in seen:
        new, old = Counted(bad_new, bad_new), Counted(bad_legacy + legacy, bad_legacy)
        seen_share = look(Evidence(), ERRORS, new, old)
        larger = look(Evidence(), ERRORS, new, old, at_least)
        assert larger.value <= seen_share.value * (1.0 + 1e-6)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 30), st.integers(0, 30)), max_size=30))
def test_what_is_gathered_is_bet_on_once_and_at_the_latest_when_its_instance_ends(
    seen: list[tuple[str, int, int]],
) -> None:
    evidence = Evidence()
    for name, new, legacy in seen:
        # Each of them is at every look, and counts something or nothing.
        silent = dict.fromkeys("abc", (NOBODY, NOBODY))
        batch = Counted(new, new // 3), Counted(legacy, legacy // 5)
        evidence = observe(evidence, ERRORS, {**silent, name: batch})
        waiting = sum(one.bad + other.bad for one, other in evidence.gathering.values())
        assert evidence.bad_bet_on + waiting == evidence.new.bad + evidence.legacy.bad
        assert all(one.requests + other.requests < GATHERED for one, other in evidence.gathering.values())
    over = observe(evidence, ERRORS, {})
    assert over.gathering == {}
    assert over.bad_bet_on == over.new.bad + over.legacy.bad
    assert over.new == Counted(sum(new for _, new, _ in seen), sum(new // 3 for _, new, _ in seen))
    assert observe(over, ERRORS, {"a": (NOBODY, NOBODY)}) == over


def test_single_requests_that_are_looked_at_one_by_one_are_evidence_all_the_same() -> None:
    """One instance, two requests a second: each look sees one, which is new's or legacy's."""
    chance = random.Random(3)
    evidence, bad = Evidence(), 0
    while verdict(evidence, ERRORS).state is not State.TRIPPED:
        of_new = chance.random() < 0.05
        wrong = chance.random() < (0.3 if of_new else 0.01)
        one = Counted(1, int(wrong))
        evidence = look(evidence, ERRORS, *((one, NOBODY) if of_new else (NOBODY, one)))
        bad += of_new and wrong
    assert bad < 20


@given(batches)
def test_nothing_that_can_be_counted_breaks_it(seen: list[tuple[int, int, int, int]]) -> None:
    evidence = Evidence()
    for bad_new, bad_legacy, new, legacy in seen:
        of_new, of_legacy = Counted(bad_new + new, bad_new), Counted(bad_legacy + legacy, bad_legacy)
        evidence = look(evidence, ERRORS, of_new, of_legacy)
        assert 0.0 < evidence.value < math.inf
        assert len(evidence.stakes) == len(RATIOS)
        assert evidence_from_json(evidence_to_json(evidence)) == evidence
    assert evidence.highest >= evidence.value or not seen
    assert evidence.new == Counted(sum(b + n for b, _, n, _ in seen), sum(b for b, *_ in seen))


def test_an_enormous_batch_is_counted_and_not_overflowed() -> None:
    evidence = look(Evidence(), ERRORS, Counted(10**9, 10**9), Counted(10**9, 10**9))
    assert verdict(evidence, ERRORS).state is State.OK
    worse = look(Evidence(), ERRORS, Counted(10**6, 10**6), Counted(10**9, 0))
    assert verdict(worse, ERRORS).state is State.TRIPPED


def test_a_client_that_brings_most_of_the_requests_does_not_speak_against_new() -> None:
    """1 % of the clients, 90 % of the requests, and equal backends: most errors are new's, rightly so."""
    evidence = Evidence()
    for _ in range(40):
        evidence = look(evidence, ERRORS, Counted(90, 9), Counted(10, 1))
    assert evidence.recent_share == pytest.approx(0.9)
    assert verdict(evidence, ERRORS).state is State.OK


# Verdicts.


def test_too_little_neither_passes_nor_fails() -> None:
    nothing = verdict(Evidence(), ERRORS)
    assert nothing.state is State.INSUFFICIENT_DATA
    few = look(Evidence(), ERRORS, Counted(19), Counted(1000))
    assert verdict(few, ERRORS).state is State.INSUFFICIENT_DATA
    assert "19 of the 20 requests of new" in verdict(few, ERRORS).message
    alone = look(Evidence(), ERRORS, Counted(1000), Counted(19))
    assert verdict(alone, ERRORS).state is State.INSUFFICIENT_DATA
    enough = look(few, ERRORS, Counted(1), NOBODY)
    assert verdict(enough, ERRORS).state is State.OK


def test_the_ceiling_is_about_the_last_requests_whatever_legacy_does() -> None:
    ceiling = replace(ERRORS, ceiling=0.5)
    evidence = Evidence()
    for _ in range(100):
        evidence = look(evidence, ceiling, Counted(50, 20), Counted(950, 380))
        assert verdict(evidence, ceiling).state is State.OK
    for _ in range(6):  # both sides break down: not worse than legacy, and too much all the same
        evidence = look(evidence, ceiling, Counted(10, 9), Counted(190, 171))
    assert (verdict(evidence, ceiling).state, verdict(evidence, ceiling).trigger) == (
        State.TRIPPED,
        "ceiling",
    )
    assert "of new's last requests are bad, the ceiling is 50.0%" in verdict(evidence, ceiling).message
    few = look(Evidence(), ceiling, Counted(19, 19), Counted(400, 400))
    assert verdict(few, ceiling).state is State.INSUFFICIENT_DATA


def test_slow_is_what_took_longer_than_the_next_bound_that_is_counted() -> None:
    latency = replace(ERRORS, signal=Signal.LATENCY, latency_over=0.3)
    cohort = Cohort(100, 7, {0.25: 30, 0.5: 12, 1.0: 3})
    assert counted(latency, cohort) == Counted(100, 12)
    assert counted(replace(latency, latency_over=0.25), cohort) == Counted(100, 30)
    assert counted(replace(latency, latency_over=2.0), cohort) == NOBODY
    assert counted(ERRORS, cohort) == Counted(100, 7)
    mismatches = replace(ERRORS, signal=Signal.MISMATCHES)
    assert counted(mismatches, Cohort(100, 7, {}, 40, 2)) == Counted(40, 2)


def test_mismatches_are_measured_against_legacy_asked_twice() -> None:
    mismatches = replace(ERRORS, signal=Signal.MISMATCHES)
    noisy = worse = Evidence()
    for _ in range(100):
        noisy = look(noisy, mismatches, Counted(50, 5), Counted(5, 1))
        worse = look(worse, mismatches, Counted(50, 25), Counted(50, 2))
    assert verdict(noisy, mismatches).state is State.OK
    assert verdict(worse, mismatches).state is State.TRIPPED


@pytest.mark.parametrize(
    ("transition", "share", "errors", "mismatches", "back"),
    [
        (Transition(Stage.LEGACY, Stage.SHADOW, 0), 0, False, False, Stage.LEGACY),
        (Transition(Stage.LEGACY, Stage.SHADOW, 100), 0, False, True, Stage.LEGACY),
        (Transition(Stage.SHADOW, Stage.LIVE, 0), 0, False, False, Stage.SHADOW),
        (Transition(Stage.SHADOW, Stage.LIVE, 50_000), 50_000, True, True, Stage.SHADOW),
        (Transition(Stage.LIVE, Stage.NEW, 0), 1_000_000, False, False, Stage.SHADOW),
        (Transition(Stage.LIVE, Stage.NEW, 50_000), 1_000_000, True, True, None),
        (Transition(Stage.LIVE, Stage.NEW, 1_000_000), 1_000_000, False, False, None),
    ],
)
def test_what_there_is_to_judge_and_where_the_way_back_leads(
    transition: Transition, share: int, errors: bool, mismatches: bool, back: Stage | None
) -> None:
    assert share_of_new(transition) == share
    assert has_something_to_judge(Signal.ERRORS, transition) is errors
    assert has_something_to_judge(Signal.MISMATCHES, transition) is mismatches
    assert way_back(transition) is back


# Definitions.


def test_a_definition_keeps_its_form() -> None:
    said = {"signal": "latency", "latency_over": 0.5, "action": "pause", "mode": "dry_run", "alpha": 0.01}
    found = guardrail_from_json("g", "items.read", said)
    assert (found.action, found.mode, found.tolerance) == (Action.PAUSE, Mode.DRY_RUN, 1.5)
    assert guardrail_from_json("g", "items.read", guardrail_to_json(found)) == found
    assert guardrail_from_json("g", "items.read", {"signal": "errors"}).ceiling == 0.5
    assert guardrail_from_json("g", "items.read", {"signal": "errors", "ceiling": None}).ceiling is None


@pytest.mark.parametrize(
    ("definition", "named"),
    [
        ({}, "signal is missing: errors, latency, mismatches"),
        ({"signal": "speed"}, "signal cannot be 'speed'"),
        ({"signal": "latency"}, "latency_over (seconds) is missing"),
        ({"signal": "latency", "latency_over": 61.0}, "at most 60"),  # no bound above is counted
        ({"signal": "errors", "latency_over": 1}, "belongs to the signal latency"),
        ({"signal": "errors", "alpha": 0}, "alpha must be a number above"),
        ({"signal": "errors", "alpha": math.nan}, "alpha must be a number above"),
        ({"signal": "errors", "tolerance": 0.5}, "tolerance must be a number"),
        ({"signal": "errors", "min_requests": 1.5}, "whole number"),
        ({"signal": "errors", "min_requests": True}, "min_requests must be a number"),
        ({"signal": "errors", "ceiling": 2}, "ceiling must be a number"),
        ({"signal": "errors", "window": 5}, "there is no window"),
        ({"signal": ["errors"]}, "signal cannot be"),
    ],
)
def test_a_definition_that_cannot_be_says_why(definition: dict[str, object], named: str) -> None:
    with pytest.raises(InvalidGuardrailError) as refusal:
        guardrail_from_json("g", "items.read", definition)
    assert named in str(refusal.value)


# Counts.


def test_growth_is_taken_in_once_whatever_instances_do() -> None:
    def seen(started_at: float, requests: int, errors: int) -> Seen:
        return Seen(started_at, Cohorts(Cohort(requests, errors, {0.5: errors}), Cohort(requests * 10)))

    first = {"a": seen(1.0, 100, 1), "b": seen(2.0, 50, 0)}
    assert together(growth({}, first)) == Cohorts(Cohort(150, 1, {0.5: 1}), Cohort(1500))
    assert together(growth(first, first)) == Cohorts(Cohort(0, 0, {0.5: 0}), Cohort())
    # a grew, b began anew, c is new; a's row vanishing later gives nothing back.
    later = {"a": seen(1.0, 130, 2), "b": seen(9.0, 5, 1), "c": seen(8.0, 7, 0)}
    assert together(growth(first, later)).new == Cohort(42, 2, {0.5: 2})
    assert growth(later, {"b": later["b"]})["b"].new.requests == 0
    assert cursor_from_json(cursor_to_json(later)) == later
    # c was silent for so long that it is forgotten; who is new to everybody is not.
    del first["a"]
    assert together(growth(first, later, known_since=1.5)).new.requests == 5 + 7


def test_a_count_that_goes_back_is_nothing_new_on_its_way_up_again() -> None:
    def seen(new: int, legacy: int) -> dict[str, Seen]:
        return {"a": Seen(1.0, Cohorts(Cohort(new, new // 10, {0.5: new // 5}), Cohort(legacy)))}

    cursor = seen(100, 1000)
    for now, grown in ((seen(0, 0), 0), (seen(40, 1000), 0), (seen(110, 900), 10)):
        assert together(growth(cursor, now)) == Cohorts(
            Cohort(grown, grown // 10, {0.5: grown // 5}), Cohort()
        )
        cursor = taken_in(cursor, now)
    assert cursor == seen(110, 1000)


@pytest.mark.parametrize("said", [None, [], {}, {"new": 3}, {"new": {"requests": "x", "slow": [1]}}])
def test_counts_that_make_no_sense_count_nothing(said: object) -> None:
    assert cohorts_from_json(said) == Cohorts()


@settings(max_examples=50)
@given(st.lists(st.integers(0, 1000), min_size=1, max_size=20), st.sets(st.integers(1, 19)))
def test_every_request_is_counted_once_however_often_somebody_looks(
    steps: list[int], restarts: set[int]
) -> None:
    cursor: dict[str, Seen] = {}
    total, now, started = 0, 0, 0.0
    for number, requests in enumerate(steps):
        if number in restarts:
            now, started = 0, started + 1.0
        now += requests
        counts = {"a": Seen(started, Cohorts(Cohort(now)))}
        total += growth(cursor, counts)["a"].new.requests
        cursor = taken_in(cursor, counts)
    assert total == sum(steps)
