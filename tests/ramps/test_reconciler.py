"""Ramps and guardrails with a real store: they go on, hold, take back and latch, once each."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
import pytest

from crossfade.exposition import exposition
from crossfade.reconciler import Reconciler
from crossfade.store import guardrails, ramps
from crossfade.store.actors import Actor, DeniedError
from crossfade.store.audit import Outcome, Verified
from crossfade.store.changes import Applied
from crossfade.store.comparisons import Tally, write_tallies
from crossfade.store.guardrails import WatchState
from crossfade.store.instances import FORGOTTEN_AFTER
from crossfade.store.store import Store
from flags.change import Archive, Command, Edit, KillAll, KillFlag, Move, Refused, Unkill, UnkillAll
from flags.guardrail import Counted
from flags.model import EVERYBODY, Phase, Stage
from flags.ramp import RampState, Step, Window
from tests.ramps.scene import ANNA, FLAG, STEPS, WALTER, Scene

# Ramps.


async def test_a_ramp_goes_up_step_by_step_and_each_is_recorded(scene: Scene) -> None:
    started = await scene.start()
    assert await scene.stands() == "shadow"
    await scene.look()
    assert await scene.stands() == "shadow→live at 5%"
    await scene.report(new=(99, 0), legacy=(1900, 0))
    scene.pass_time(61)
    await scene.look(2)
    held = await scene.ramp()
    assert (held.ramp.state, held.ramp.held_reason) == (RampState.HELD, "99 of 100 requests at this step")
    await scene.report(new=(1, 0))
    await scene.look(3)
    assert await scene.stands() == "shadow→live at 20%"
    await scene.report(new=(100, 0), legacy=(400, 0))
    scene.pass_time(61)
    await scene.look()
    assert await scene.stands() == "shadow→live at 50%"
    scene.pass_time(61)
    await scene.look(2)
    done = await scene.ramp()
    assert (done.id, done.ramp.state, done.ramp.step) == (started.id, RampState.DONE, 3)
    assert done.ended_at is not None
    assert await ramps.list_ramps(scene.store) == []
    assert [row.id for row in await ramps.list_ramps(scene.store, ended=True)] == [done.id]
    acts = await scene.acts("ramp")
    assert [(row.action, row.reason) for row in acts] == [
        ("flag.move", "step 1 of 3: 5% at live"),
        ("flag.move", "step 2 of 3: 20% at live"),
        ("flag.move", "step 3 of 3: 50% at live"),
        ("ramp.end", "the last step is over"),
    ]
    assert acts[1].evidence == {"ramp": done.id, "requests": 100, "step": 2}
    assert isinstance(await scene.store.audit_verify(), Verified)


async def test_a_ramp_that_was_begun_by_a_report_goes_on_without_another(scene: Scene) -> None:
    await scene.store.change(ANNA, Edit(FLAG, needs_report=True), reason="be careful")
    await refused(scene, scene.start, "report_needed", "asks for a report")
    with psycopg.connect(scene.url) as connection:
        connection.execute(
            "INSERT INTO crossfade_store.shadow_reports (digest, kept_by, ready, report)"
            " VALUES ('abc', 'walter', %s, '{}')",
            ([FLAG],),
        )
    await scene.start(report="abc")
    await scene.look()
    assert await scene.stands() == "shadow→live at 5%"
    await scene.report(new=(100, 0), legacy=(1000, 0))
    scene.pass_time(61)
    await scene.look()
    assert await scene.stands() == "shadow→live at 20%"
    await refused(scene, lambda: scene.canary(900_000), "report_needed", "asks for a report")


async def test_many_who_look_at_once_advance_a_step_exactly_once(scene: Scene) -> None:
    await scene.start((Step(10_000, 60.0), Step(20_000, 60.0), Step(30_000, 60.0)))
    other = await Store.open(scene.url)
    lookers = [Reconciler(scene.store), Reconciler(other), Reconciler(scene.store), Reconciler(other)]
    try:
        for number in (1, 2, 3):
            await asyncio.gather(*(looker.look() for looker in lookers))
            assert (await scene.ramp()).ramp.step == number
            scene.pass_time(61)
    finally:
        await other.close()
    assert len(await scene.acts("ramp", "flag.move")) == 3
    assert all(row.outcome is Outcome.APPLIED for row in await scene.acts("ramp"))


async def test_an_hour_away_skips_no_minimum_and_folds_what_has_none(scene: Scene) -> None:
    await scene.start((Step(10_000, 60.0), Step(20_000, 60.0), Step(30_000, 60.0, 50), Step(40_000, 60.0)))
    await scene.look()
    scene.pass_time(3600)
    await scene.look()
    assert await scene.stands() == "shadow→live at 3%"
    scene.pass_time(3600)
    await scene.look(2)
    assert await scene.stands() == "shadow→live at 3%"
    assert (await scene.ramp()).ramp.held_reason == "0 of 50 requests at this step"
    assert (await scene.acts("ramp"))[-1].reason == "step 3 of 4: 3% at live, 1 overdue in one"


async def test_pause_resume_and_abort(scene: Scene) -> None:
    await scene.start()
    await scene.look()
    await scene.report(new=(100, 0), legacy=(1900, 0))
    await scene.look()
    paused = await ramps.pause_ramp(scene.store, ANNA, FLAG, reason="lunch")
    assert (paused.ramp.state, paused.ramp.held_reason) == (RampState.PAUSED, "anna: lunch")
    scene.pass_time(3600)
    await scene.look(2)
    assert await scene.stands() == "shadow→live at 5%"
    resumed = await ramps.resume_ramp(scene.store, ANNA, FLAG, reason="back")
    assert (resumed.requests, resumed.ramp.step) == (0.0, 1)
    scene.pass_time(61)
    await scene.look()
    assert (await scene.ramp()).ramp.held_reason == "0 of 100 requests at this step"
    aborted = await ramps.abort_ramp(scene.store, ANNA, FLAG, reason="not today")
    assert aborted.ramp.state is RampState.ABORTED
    assert await scene.stands() == "shadow"
    await scene.look(2)
    assert (await scene.ramp()).ramp.held_reason == "anna: not today"
    assert await scene.stands() == "shadow"


async def test_abort_can_leave_the_weight_where_it_is(scene: Scene) -> None:
    await scene.start()
    await scene.look()
    await ramps.abort_ramp(scene.store, ANNA, FLAG, reason="good enough", stay=True)
    await scene.look()
    assert await scene.stands() == "shadow→live at 5%"
    again = await scene.start((Step(60_000, 60.0),))
    assert again.ramp.plan.origin is Stage.SHADOW


async def test_a_ramp_that_never_began_is_aborted_without_moving_anything(scene: Scene) -> None:
    await scene.start()
    before = await scene.store.version()
    await ramps.abort_ramp(scene.store, ANNA, FLAG, reason="changed my mind")
    assert await scene.store.version() == before
    assert (await scene.acts("human", "ramp.abort"))[-1].outcome is Outcome.APPLIED


async def test_a_person_who_moves_the_flag_ends_the_ramp(scene: Scene) -> None:
    await scene.start()
    await scene.look()
    await scene.canary(300_000)
    await scene.look(3)
    row = await scene.ramp()
    assert row.ramp.state is RampState.ABORTED
    assert row.ramp.held_reason == (
        "the flag was moved to shadow→live at 30%, and this ramp had it at shadow→live at 5%"
    )
    assert await scene.stands() == "shadow→live at 30%"


@pytest.mark.parametrize(
    ("kill", "unkill"),
    [(KillFlag(FLAG, "it burns", "anna"), Unkill(FLAG)), (KillAll("it burns", "anna"), UnkillAll())],
)
async def test_a_kill_pauses_the_ramp_until_a_person_resumes_it(
    scene: Scene, kill: KillFlag | KillAll, unkill: Unkill | UnkillAll
) -> None:
    await scene.start()
    await scene.look()
    await scene.store.change(ANNA, kill, reason="it burns")
    scene.pass_time(3600)
    await scene.look(2)
    assert (await scene.ramp()).ramp.state is RampState.PAUSED
    with pytest.raises(Refused, match="take the kill back first"):
        await ramps.resume_ramp(scene.store, ANNA, FLAG, reason="on")
    await scene.store.change(ANNA, unkill, reason="it is out")
    await scene.look(2)
    assert (await scene.ramp()).ramp.state is RampState.PAUSED
    await ramps.resume_ramp(scene.store, ANNA, FLAG, reason="on")
    await scene.look()
    assert (await scene.ramp()).ramp.state is RampState.RUNNING


async def test_a_ramp_outside_its_window_waits(scene: Scene) -> None:
    with psycopg.connect(scene.url) as connection:
        found = connection.execute("SELECT extract(isodow FROM now() AT TIME ZONE 'UTC')::int").fetchone()
    assert found is not None
    in_two_days = Window(frozenset({(found[0] + 1) % 7}), 0, 60, "UTC")
    await scene.start(windows=(in_two_days,))
    await scene.look(2)
    assert (await scene.ramp()).ramp.held_reason == "outside the allowed hours"
    assert await scene.stands() == "shadow"


async def test_a_move_that_is_refused_pauses_the_ramp_and_is_not_tried_at_each_look(scene: Scene) -> None:
    await scene.start()
    with psycopg.connect(scene.url) as connection:  # as if by a newer version: nothing here would allow it
        connection.execute(
            "UPDATE crossfade_store.flags SET document = jsonb_set(document, '{bucketing,by}', '[]')"
        )
    await scene.look(4)
    row = await scene.ramp()
    assert row.ramp.state is RampState.PAUSED
    assert "nothing to bucket by" in (row.ramp.held_reason or "")
    assert len(await scene.acts("ramp")) == 2  # the refusal, and the pause


async def test_a_step_that_falls_due_during_a_cutovers_walk_is_made_after_it(scene: Scene) -> None:
    """A rehearsal lasts a second, and nobody should have to resume every ramp after it."""
    await scene.start()
    await scene.look()
    await scene.report(new=(100, 0), legacy=(1900, 0))
    await scene.walks(Phase.HOLD)
    scene.pass_time(61)
    await scene.look(3)
    assert await scene.stands() == "shadow→live at 5%"
    assert (await scene.ramp()).ramp.state is not RampState.PAUSED
    await scene.walks(Phase.OPEN)
    await scene.look(2)
    assert await scene.stands() == "shadow→live at 20%"


async def test_no_step_is_made_behind_a_kill_of_everything(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes between a look and the step that was decided by it; unkilled, nobody is to be at new who was
    not before."""
    await scene.start()
    await scene.look()
    await scene.report(new=(100, 0), legacy=(1900, 0))
    scene.pass_time(61)
    change = scene.store.change

    async def killed_before(actor: Actor, command: Command, **more: Any) -> Applied:
        if isinstance(command, Move):
            await change(ANNA, KillAll("it burns", "anna"), reason="it burns")
        return await change(actor, command, **more)

    monkeypatch.setattr(scene.store, "change", killed_before)
    await scene.look()
    monkeypatch.undo()
    await scene.store.change(ANNA, UnkillAll(), reason="it was another")
    assert await scene.stands() == "shadow→live at 5%"


# Guardrails.


async def test_a_bad_canary_is_taken_back_by_the_guardrail_and_stays_back(scene: Scene) -> None:
    await scene.guard()
    await scene.start()
    await scene.look()
    for _ in range(20):
        await scene.report(new=(10, 1), legacy=(190, 2))
        await scene.look()
        if await scene.stands() == "shadow":
            break
    row, watch = await scene.ramp(), await scene.watch()
    assert await scene.stands() == "shadow"
    assert row.ramp.state is RampState.TRIPPED
    assert row.ramp.held_reason == f"guardrail {FLAG}:errors: {watch.message}"
    assert (watch.state, watch.trigger) == (WatchState.TRIPPED, "evidence")
    assert watch.tripped_at is not None
    assert 5 <= watch.evidence.new.bad <= 15
    (act,) = await scene.acts("guardrail")
    assert (act.action, act.reason) == ("flag.move", watch.message)
    assert act.actor["name"] == f"{FLAG}:errors"
    assert act.evidence is not None
    assert act.evidence["evidence"] >= 1000.0
    assert act.evidence["counts"]["new"] == [watch.evidence.new.requests, watch.evidence.new.bad]
    # It latches: nothing starts by itself or by a person, until one re-arms it.
    await scene.report(new=(1000, 0), legacy=(1000, 0))
    await scene.look(3)
    assert await scene.stands() == "shadow"
    with pytest.raises(Refused, match="crossfade guardrail rearm"):
        await scene.start()
    armed = await guardrails.rearm(scene.store, ANNA, f"{FLAG}:errors", reason="mended")
    assert (armed.state, armed.evidence.new.requests) == (WatchState.INSUFFICIENT_DATA, 0)
    await scene.start()
    await scene.look()
    assert await scene.stands() == "shadow→live at 5%"
    assert (await scene.watch()).evidence.new.requests == 0  # what was counted before does not count again


async def test_a_guardrail_watches_a_canary_that_was_moved_by_hand(scene: Scene) -> None:
    await scene.guard(ceiling=0.5)
    await scene.canary()
    await scene.report(new=(30, 30), legacy=(570, 0))
    await scene.look()
    assert await scene.stands() == "shadow"


async def test_the_ceiling_needs_no_legacy_to_compare_with(scene: Scene) -> None:
    await scene.guard(ceiling=0.5, action="kill")
    await scene.canary()
    await scene.report(new=(30, 20), legacy=(570, 380))
    await scene.look(2)
    assert await scene.stands() == "shadow→live at 5%, killed"
    assert (await scene.watch()).trigger == "ceiling"


async def test_fallbacks_where_everybody_is_on_new_are_no_cohort(scene: Scene) -> None:
    """They are counted, and nobody who succeeds is: that says nothing of new's share of failures."""
    await scene.guard(ceiling=0.5)
    await scene.store.change(ANNA, Move(FLAG, Stage.LIVE, EVERYBODY), reason="by hand")
    await scene.look()
    await scene.report(new=(100, 100))
    await scene.look()
    assert await scene.stands() == "live"
    assert (await scene.watch()).state is WatchState.INSUFFICIENT_DATA


async def test_a_rollback_to_where_new_answers_too_is_a_kill(scene: Scene) -> None:
    await scene.store.change(ANNA, Move(FLAG, Stage.LIVE, EVERYBODY), reason="by hand")
    await scene.store.change(ANNA, Move(FLAG, Stage.NEW, 50_000), reason="by hand")
    await scene.guard(ceiling=0.5)
    await scene.report(new=(100, 80))
    await scene.look(2)
    assert await scene.stands() == "live→new at 5%, killed"


async def test_too_little_data_holds_a_ramp_and_neither_passes_nor_fails(scene: Scene) -> None:
    await scene.guard(min_requests=200)
    await scene.start()
    await scene.look()
    await scene.report(new=(199, 0), legacy=(3800, 0))
    scene.pass_time(61)
    await scene.look(2)
    held = await scene.ramp()
    assert held.ramp.state is RampState.HELD
    assert "199 of the 200 requests of new" in (held.ramp.held_reason or "")
    assert (await scene.watch()).state is WatchState.INSUFFICIENT_DATA
    await scene.report(new=(1, 0))
    await scene.look(2)
    assert (await scene.watch()).state is WatchState.OK
    assert await scene.stands() == "shadow→live at 20%"


async def test_a_dry_run_says_what_it_would_have_done(scene: Scene) -> None:
    await scene.guard(mode="dry_run", ceiling=0.5)
    await scene.start((Step(50_000, 60.0),))
    await scene.look()
    await scene.report(new=(40, 40), legacy=(760, 0))
    await scene.look(3)
    assert await scene.stands() == "shadow→live at 5%"
    assert (await scene.ramp()).ramp.state is RampState.RUNNING
    assert (await scene.watch()).state is WatchState.DRY_RUN_TRIPPED
    (act,) = await scene.acts("guardrail")
    assert act.action == "guardrail.trip"
    assert act.reason.startswith("would have acted (dry run): errors: new 40 bad of 40")


@pytest.mark.parametrize(
    ("action", "state", "message"),
    [("alert", RampState.RUNNING, None), ("pause", RampState.PAUSED, "guardrail items.read:errors: ")],
)
async def test_a_guardrail_that_alerts_or_pauses_moves_nobody(
    scene: Scene, action: str, state: RampState, message: str | None
) -> None:
    await scene.guard(action=action)
    await scene.start((Step(50_000, 600.0),))
    await scene.look()
    await scene.report(new=(40, 40), legacy=(760, 0))
    await scene.look(2)
    row = await scene.ramp()
    assert row.ramp.state is state
    assert (row.ramp.held_reason or "").startswith(message or "")
    assert await scene.stands() == "shadow→live at 5%"
    assert [act.action for act in await scene.acts("guardrail")] == ["guardrail.trip"]
    if action == "pause":
        with pytest.raises(Refused, match="has tripped"):
            await ramps.resume_ramp(scene.store, ANNA, FLAG, reason="on")


async def test_of_several_that_trip_the_strongest_acts_and_all_latch(scene: Scene) -> None:
    await guardrails.set_guardrail(
        scene.store, ANNA, FLAG, {"signal": "errors", "action": "kill"}, reason="both", guardrail_id="hard"
    )
    await scene.guard()
    await scene.canary()
    await scene.report(new=(40, 40), legacy=(760, 0))
    await scene.look()
    assert await scene.stands() == "shadow→live at 5%, killed"
    assert {watch.state for watch in await guardrails.list_guardrails(scene.store)} == {WatchState.TRIPPED}
    assert [(act.action, act.actor["name"]) for act in await scene.acts("guardrail")] == [
        ("flag.kill", "hard"),
        ("guardrail.trip", f"{FLAG}:errors"),
    ]


async def test_each_request_is_evidence_once_whoever_looks_and_whatever_restarts(scene: Scene) -> None:
    await scene.report(new=(500, 500), legacy=(500, 0))  # before anybody watches
    await scene.guard(action="alert")
    await scene.canary()
    other = await Store.open(scene.url)
    lookers = [Reconciler(scene.store), Reconciler(other), Reconciler(other)]
    try:
        await scene.report(new=(10, 1), legacy=(100, 1))
        await scene.report(new=(20, 1), legacy=(200, 1), instance="two")
        await asyncio.gather(*(looker.look() for looker in lookers))
        await scene.report(new=(5, 0), legacy=(50, 1), anew=True)
        await scene.report(new=(1, 0), legacy=(1, 0), instance="two")
        await asyncio.gather(*(looker.look() for looker in lookers))
        await Reconciler(other).look()
    finally:
        await other.close()
    evidence = (await scene.watch()).evidence
    assert (evidence.new.requests, evidence.new.bad) == (36, 2)
    assert (evidence.legacy.requests, evidence.legacy.bad) == (351, 3)


async def test_a_process_that_does_not_know_its_counts_yet_makes_no_request_count_twice(scene: Scene) -> None:
    await scene.guard(action="alert")
    await scene.canary()
    await scene.report(new=(400, 4), legacy=(8000, 100))
    await scene.look()
    seen = (await scene.watch()).evidence

    counted = scene.counted.copy()
    scene.counted = {"one": {"new": Counter(), "legacy": Counter()}}
    await scene.report()  # none of its workers has told it anything
    await scene.look()
    scene.counted = counted
    await scene.report(new=(1, 0), legacy=(20, 0))
    await scene.look(2)

    evidence = (await scene.watch()).evidence
    assert (evidence.new.requests, evidence.legacy.requests) == (
        seen.new.requests + 1,
        seen.legacy.requests + 20,
    )
    assert (evidence.new.bad, evidence.legacy.bad) == (seen.new.bad, seen.legacy.bad)


async def test_an_instance_that_was_forgotten_counts_from_where_it_comes_back(scene: Scene) -> None:
    await scene.guard(action="alert")
    await scene.canary()
    scene.started["old"] = time.time() - 2 * FORGOTTEN_AFTER
    await scene.report(new=(10_000, 10_000), legacy=(100_000, 0), instance="old")
    await scene.look()
    await scene.report(new=(3, 0), legacy=(60, 0), instance="old")
    await scene.look()
    evidence = (await scene.watch()).evidence
    assert (evidence.new.requests, evidence.new.bad) == (3, 0)


async def test_requests_that_are_reported_late_count_by_the_weight_they_had(scene: Scene) -> None:
    await scene.guard(action="alert")
    await scene.canary(500_000)
    await scene.look()
    await scene.store.change(ANNA, Move(FLAG, Stage.LIVE, 10_000), reason="down")
    await scene.report(new=(40, 12), legacy=(360, 12))
    await scene.look()
    watch = await scene.watch()
    assert watch.state is WatchState.OK
    assert watch.evidence.value < 2.0  # at 1 %, or at the tenth that was seen, they would be overwhelming


async def test_a_look_that_comes_late_does_not_undo_a_trip_or_a_rearming(scene: Scene) -> None:
    await scene.guard()
    await scene.canary()
    late = await scene.watch()
    await scene.report(new=(40, 40), legacy=(760, 0))
    await scene.look()
    async with scene.store.transaction() as connection:
        assert not await guardrails.write_look(connection, late)
    tripped = await scene.watch()
    assert tripped.state is WatchState.TRIPPED
    await guardrails.rearm(scene.store, ANNA, f"{FLAG}:errors", reason="mended")
    async with scene.store.transaction() as connection:
        assert not await guardrails.write_look(connection, tripped)
    assert (await scene.watch()).state is WatchState.INSUFFICIENT_DATA


async def test_a_look_at_the_guardrail_before_is_none_at_the_one_defined_anew(scene: Scene) -> None:
    await scene.guard()
    late = await scene.watch()
    await scene.guard(tolerance=3.0)
    async with scene.store.transaction() as connection:
        assert not await guardrails.write_look(connection, late)
    await guardrails.delete_guardrail(scene.store, ANNA, f"{FLAG}:errors", reason="again")
    await scene.guard(tolerance=2.0)
    async with scene.store.transaction() as connection:
        assert not await guardrails.write_look(connection, late)
    assert (await scene.watch()).guardrail.tolerance == 2.0


# Who may, and what is refused.


async def refused(scene: Scene, attempt: Callable[[], Awaitable[object]], kind: str, named: str) -> None:
    before = len(await scene.store.audit_tail(0, 500))
    with pytest.raises(Refused) as refusal:
        await attempt()
    assert refusal.value.kind == kind
    assert named in str(refusal.value)
    rows = await scene.store.audit_tail(0, 500)
    assert len(rows) == before + 1
    assert (rows[-1].outcome, rows[-1].refusal) == (Outcome.REJECTED, str(refusal.value))


async def test_what_cannot_be_is_refused_with_a_word_what_to_do(scene: Scene) -> None:
    store = scene.store
    await refused(
        scene, lambda: scene.start((Step(50_000, 1.0), Step(20_000, 1.0))), "invalid", "must be above step 1"
    )
    await refused(scene, lambda: scene.start(expected_version=7), "conflict", "is at version 1, not 7")
    await refused(
        scene,
        lambda: ramps.start_ramp(store, ANNA, "nix", to=Stage.LIVE, steps=STEPS, reason="x"),
        "not_found",
        "there is no flag",
    )
    await refused(
        scene, lambda: ramps.pause_ramp(store, ANNA, FLAG, reason="x"), "not_found", "no ramp under way"
    )
    await scene.start()
    await refused(scene, scene.start, "conflict", "has a ramp already (running)")
    await refused(
        scene, lambda: ramps.resume_ramp(store, ANNA, FLAG, reason="x"), "conflict", "nothing to resume"
    )
    await refused(scene, lambda: ramps.pause_ramp(store, ANNA, FLAG, reason=" "), "invalid", "needs a reason")
    await refused(scene, lambda: scene.guard("speed"), "invalid", "signal cannot be 'speed'")
    await refused(
        scene, lambda: guardrails.rearm(store, ANNA, "nix", reason="x"), "not_found", "no guardrail 'nix'"
    )
    with pytest.raises(Refused, match="has no ramp"):
        await ramps.ramp_status(store, "nix")


async def test_who_may_not_is_denied_and_recorded(scene: Scene) -> None:
    with pytest.raises(DeniedError, match="needs the role operator"):
        await ramps.start_ramp(scene.store, WALTER, FLAG, to=Stage.LIVE, steps=STEPS, reason="x")
    with pytest.raises(DeniedError):
        await guardrails.set_guardrail(scene.store, WALTER, FLAG, {"signal": "errors"}, reason="x")
    assert [row.outcome for row in await scene.store.audit_tail(1, 10)] == [Outcome.DENIED] * 2


async def test_a_dry_run_leaves_nothing(scene: Scene) -> None:
    planned = await scene.start(dry_run=True)
    assert planned.ramp.plan.steps == STEPS
    await guardrails.set_guardrail(scene.store, ANNA, FLAG, {"signal": "errors"}, reason="x", dry_run=True)
    assert await ramps.list_ramps(scene.store, ended=True) == []
    assert await guardrails.list_guardrails(scene.store) == []
    assert len(await scene.store.audit_tail(0, 10)) == 1


async def test_a_guardrail_is_defined_anew_and_taken_away(scene: Scene) -> None:
    first = await scene.guard()
    assert await scene.guard() == first  # the same again is nothing
    await scene.guard(alpha=0.01)
    assert (await scene.watch()).guardrail.alpha == 0.01
    await scene.canary()
    await scene.report(new=(40, 40), legacy=(760, 0))
    await scene.look()
    with pytest.raises(Refused, match="rearm"):
        await scene.guard(alpha=0.02)
    await guardrails.delete_guardrail(scene.store, ANNA, f"{FLAG}:errors", reason="another way")
    assert await guardrails.list_guardrails(scene.store, FLAG) == []
    actions = [row.action for row in await scene.store.history(FLAG)]
    assert actions[:2] == ["guardrail.delete", "guardrail.set"]  # the latest first; the second was refused


async def test_an_archived_flag_ends_its_ramp(scene: Scene) -> None:
    await scene.start()
    await scene.store.change(ANNA, Archive(FLAG), reason="over")
    await scene.look(2)
    assert (await scene.ramp()).ramp.held_reason == "the flag was archived"


# Metrics.


async def test_what_the_metrics_say(scene: Scene) -> None:
    await scene.guard()
    await scene.start()
    await scene.look(2)
    page = exposition(scene.reconciler.samples(), "")[0].decode()
    assert f'crossfade_ramp_step{{flag="{FLAG}"}} 1.0' in page
    assert f'crossfade_ramp_state{{flag="{FLAG}",state="running"}} 1.0' in page
    assert f'crossfade_rollbacks_total{{flag="{FLAG}",trigger="errors"}} 0.0' in page
    await scene.report(new=(40, 40), legacy=(760, 0))
    await scene.look(2)
    page = exposition(scene.reconciler.samples(), "")[0].decode()
    tripped = f'crossfade_guardrail_state{{flag="{FLAG}",guardrail="{FLAG}:errors",state="tripped"}} 1.0'
    assert tripped in page
    assert f'crossfade_rollbacks_total{{flag="{FLAG}",trigger="errors"}} 1.0' in page
    assert "crossfade_ramp_step{" not in page
    (evidence,) = (
        float(line.split()[-1]) for line in page.splitlines()
        if line.startswith("crossfade_guardrail_evidence_log10{")
    )  # fmt: skip
    assert evidence == pytest.approx(math.log10((await scene.watch()).evidence.value))


async def test_pairs_are_counted_once_however_the_minutes_grow_old(scene: Scene) -> None:
    await scene.canary(500_000)
    await scene.guard("mismatches", action="alert")
    hour = time.time() // 3600 * 3600
    counts = {"drawn_equal": 5, "drawn_judged": 5, "drawn_new": 4, "drawn_legacy": 0}
    tallies = [
        Tally("worker", FLAG, "/items", hour - 7200 + 60 * minute, counts) for minute in range(0, 180, 3)
    ]
    async with scene.store.transaction() as connection:
        await write_tallies(connection, tallies)
        pairs = (await guardrails.counts_now(connection)).of(FLAG)
    # Whole hours, whatever the minute is in which this is looked at.
    whole = {seen.cohorts.new.compared for name, seen in pairs.items() if name.startswith("pairs of")}
    assert whole == {200}
    await scene.look(2)
    new = (await scene.watch(f"{FLAG}:mismatches")).evidence.new
    assert new in (Counted(600, 240), Counted(400, 160))  # an hour may just have ended


async def test_answers_that_mean_something_else_take_a_canary_back(scene: Scene) -> None:
    """By the pairs that the shadow has drawn by lot: legacy's own second answers are the measure."""

    minute = time.time() // 60 * 60

    async def drawn(pairs: int, new: int, legacy: int) -> None:
        counts = {"drawn_equal": pairs // 2, "drawn_judged": pairs - pairs // 2,
                  "drawn_new": new, "drawn_legacy": legacy}  # fmt: skip
        async with scene.store.transaction() as connection:
            await write_tallies(connection, [Tally("worker", FLAG, "/items", minute, counts)])

    await scene.canary(500_000)
    await drawn(100, 40, 0)  # from before the guardrail was armed
    await scene.guard("mismatches", action="rollback")
    await scene.look()
    await drawn(500, 60, 20)
    await scene.look(2)
    quiet = await scene.watch(f"{FLAG}:mismatches")
    assert quiet.state is not WatchState.TRIPPED, quiet.message

    await drawn(900, 260, 25)
    await scene.look(2)

    tripped = await scene.watch(f"{FLAG}:mismatches")
    assert tripped.state is WatchState.TRIPPED
    assert await scene.stands() == "shadow"
