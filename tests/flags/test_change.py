"""Changes: only neighbours mix, each refusal says what is possible, and nothing else moves."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flags.blast import blast_radius
from flags.change import (
    Apply,
    Archive,
    Create,
    Edit,
    KillAll,
    KillFlag,
    Move,
    Refused,
    ShadowOff,
    ShadowOn,
    Unkill,
    UnkillAll,
    asking_for_a_report,
    change,
    differences,
)
from flags.conditions import Operator, Test
from flags.model import EVERYBODY, Bucketing, Flag, FlagSet, Kill, Rule, Side, Stage, Transition
from flags.stages import ORDER, described, settled_at
from tests.flags.strategies import TRANSITIONS, WEIGHTS

NOW = 1_795_500_000.0
BY = Bucketing(("cookie:sid",), "items.read")


def at(transition: Transition, *, bucketing: Bucketing = BY, rules: tuple[Rule, ...] = ()) -> FlagSet:
    return FlagSet(5, None, (Flag("items.read", 3, transition, bucketing, rules=rules),))


def only(flag_set: FlagSet) -> Flag:
    [flag] = flag_set.flags
    return flag


def shares(transition: Transition) -> dict[Stage, int]:
    """How many keys of a million are at which stage."""
    found = {transition.target: transition.weight_ppm, transition.origin: EVERYBODY - transition.weight_ppm}
    return {stage: share for stage, share in found.items() if share}


@given(TRANSITIONS, st.sampled_from(Stage), WEIGHTS)
def test_a_move_puts_its_share_at_the_stage_and_leaves_the_rest_or_is_refused(
    transition: Transition, to: Stage, weight: int
) -> None:
    before = shares(transition)
    move = Move("items.read", to, weight)
    try:
        after = shares(only(change(at(transition), move, now=NOW)).transition)
    except Refused:
        assert refused(at(transition), move).kind == "stage_jump"
        occupied = [ORDER.index(stage) for stage in before]
        span = {*occupied, ORDER.index(to)}
        alone = set(before) == {to}
        # Refused only where two stages apart would mix, or nobody says where the others should go.
        assert max(span) - min(span) > 1 or (alone and weight < EVERYBODY)
        return
    assert after.get(to, 0) == weight
    # No key goes to a stage that nobody was at, but to the one that was named.
    assert set(after) <= {*before, to}


@given(st.lists(st.tuples(st.sampled_from(Stage), WEIGHTS), max_size=8))
def test_whatever_is_tried_only_neighbours_are_ever_occupied(moves: list[tuple[Stage, int]]) -> None:
    flag_set = at(settled_at(Stage.LEGACY))
    version = only(flag_set).version
    for to, weight in moves:
        try:
            flag_set = change(flag_set, Move("items.read", to, weight), now=NOW)
        except Refused:
            continue
        flag = only(flag_set)
        occupied = sorted(ORDER.index(stage) for stage in shares(flag.transition))
        assert occupied[-1] - occupied[0] <= 1
        assert flag.version in (version, version + 1)
        version = flag.version


@pytest.mark.parametrize(
    ("start", "to", "weight", "ends"),
    [
        (settled_at(Stage.LEGACY), Stage.SHADOW, 100_000, "legacy→shadow at 10%"),
        (settled_at(Stage.LEGACY), Stage.SHADOW, EVERYBODY, "shadow"),
        (settled_at(Stage.SHADOW), Stage.LIVE, 500, "shadow→live at 0.05%"),
        (Transition(Stage.SHADOW, Stage.LIVE, 500), Stage.SHADOW, EVERYBODY, "shadow"),
        (Transition(Stage.SHADOW, Stage.LIVE, 500), Stage.SHADOW, 400_000, "shadow→live at 60%"),
        (settled_at(Stage.NEW), Stage.LIVE, EVERYBODY, "live"),
        (settled_at(Stage.NEW), Stage.LIVE, 250_000, "live→new at 75%"),
        (settled_at(Stage.LIVE), Stage.LIVE, EVERYBODY, "live"),
    ],
)
def test_moves_in_words(start: Transition, to: Stage, weight: int, ends: str) -> None:
    assert described(only(change(at(start), Move("items.read", to, weight), now=NOW)).transition) == ends


def refused(flag_set: FlagSet, command: object) -> Refused:
    with pytest.raises(Refused) as caught:
        change(flag_set, command, now=NOW)  # type: ignore[arg-type]
    return caught.value


def test_refusals_say_what_is_possible() -> None:
    shadow = at(settled_at(Stage.SHADOW))
    assert "possible: legacy, shadow, live" in str(refused(shadow, Move("items.read", Stage.NEW)))
    assert "did you mean items.read?" in str(refused(shadow, Move("items", Stage.LIVE)))
    assert refused(shadow, Move("orders", Stage.LIVE)).kind == "not_found"
    assert "a weight is from 0 to 100%" in str(refused(shadow, Move("items.read", Stage.LIVE, EVERYBODY + 1)))
    assert "name the stage to which 95% shall go" in str(
        refused(shadow, Move("items.read", Stage.SHADOW, 50_000))
    )
    keyless = at(settled_at(Stage.SHADOW), bucketing=Bucketing((), "items.read"))
    assert "--bucket-by cookie:NAME" in str(refused(keyless, Move("items.read", Stage.LIVE, 1)))


def test_a_flag_in_between_keeps_its_salt_and_its_key() -> None:
    between = at(Transition(Stage.SHADOW, Stage.LIVE, 500))
    for other in (Bucketing(("cookie:sid",), "other"), Bucketing(("header:x",), "items.read")):
        assert "back and forth" in str(refused(between, Edit("items.read", bucketing=other)))
        assert (
            only(change(at(settled_at(Stage.LIVE)), Edit("items.read", bucketing=other), now=NOW)).bucketing
            == other
        )


def test_an_archived_key_is_never_used_again() -> None:
    gone = change(at(settled_at(Stage.NEW)), Archive("items.read"), now=NOW)
    flag = Flag("items.read", 0, settled_at(Stage.LEGACY), BY)
    for command in (Create(flag), Apply((flag,)), Move("items.read", Stage.LIVE), Unkill("items.read")):
        assert refused(gone, command).kind == "archived"
    assert refused(at(Transition(Stage.LIVE, Stage.NEW, 5)), Archive("items.read")).kind == "invalid"


def test_more_for_new_asks_for_a_report_and_less_never_does() -> None:
    def asking(before: FlagSet, command: object) -> list[str]:
        return asking_for_a_report(before, change(before, command, now=NOW))  # type: ignore[arg-type]

    flag_set = change(at(settled_at(Stage.SHADOW)), Edit("items.read", needs_report=True), now=NOW)
    assert "asks for a report" in differences(at(settled_at(Stage.SHADOW)), flag_set)[0]
    canary = change(flag_set, Move("items.read", Stage.LIVE, 50_000), now=NOW)
    rule = Rule("qa", Test("header:x-qa", Operator.EXISTS), settled_at(Stage.LIVE))
    for before, command in (
        (flag_set, Move("items.read", Stage.LIVE, 1)),
        (flag_set, Edit("items.read", rules=(rule,))),
        (canary, Move("items.read", Stage.LIVE, 60_000)),
        (canary, Apply((replace(only(canary), transition=settled_at(Stage.LIVE)),))),
    ):
        assert asking(before, command) == ["items.read"], command
    killed = change(canary, KillFlag("items.read", "it burns", "ada"), now=NOW)
    live = change(flag_set, Move("items.read", Stage.LIVE), now=NOW)
    part = Rule("half", Test("header:x-qa", Operator.EXISTS), Transition(Stage.SHADOW, Stage.LIVE, 5))
    ruled, partly = (change(flag_set, Edit("items.read", rules=(one,)), now=NOW) for one in (rule, part))
    # Without a rule for few of them, more may go where the flag itself sends them.
    assert asking(partly, Edit("items.read", rules=())) == ["items.read"]
    for before, command in (
        (flag_set, Move("items.read", Stage.LEGACY)),
        (ruled, Edit("items.read", rules=())),
        (live, Move("items.read", Stage.NEW)),
        (live, Archive("items.read")),
        (flag_set, Edit("items.read", owner="ada")),
        (flag_set, Edit("items.read", needs_report=False)),
        (canary, Move("items.read", Stage.LIVE, 10_000)),
        (canary, Move("items.read", Stage.SHADOW)),
        (canary, KillFlag("items.read", "it burns", "ada")),
        (killed, Unkill("items.read")),
        (at(settled_at(Stage.SHADOW)), Move("items.read", Stage.LIVE)),
    ):
        assert asking(before, command) == [], command


def test_archiving_moves_nobody() -> None:
    live = at(settled_at(Stage.LIVE))
    assert only(change(live, Archive("items.read", (Side.NEW,)), now=NOW)).archived
    assert "target: new" in str(refused(live, Archive("items.read", (Side.LEGACY, Side.NEW))))
    killed = change(live, KillFlag("items.read", "it burns", "ada"), now=NOW)
    assert "is killed" in str(refused(killed, Archive("items.read", (Side.NEW,))))
    rule = Rule("qa", Test("header:x-qa", Operator.EXISTS), settled_at(Stage.SHADOW))
    ruled = at(settled_at(Stage.LIVE), rules=(rule,))
    assert "rules or overrides" in str(refused(ruled, Archive("items.read")))


def test_a_file_archives_nothing_and_has_one_spelling() -> None:
    flag_set = at(settled_at(Stage.LIVE))
    gone = Flag("items.read", 0, settled_at(Stage.LIVE), BY, archived=True)
    for command in (Apply((gone,)), Create(replace(gone, key="other"))):
        assert "crossfade flag archive" in str(refused(flag_set, command))
    # Everybody at live can be said in two ways.
    other = Transition(Stage.SHADOW, Stage.LIVE, EVERYBODY)
    written = Flag("items.read", 0, other, BY)
    applied = change(at(settled_at(Stage.SHADOW)), Apply((written,)), now=NOW)
    assert only(applied).transition == settled_at(Stage.LIVE)
    assert change(flag_set, Apply((written,)), now=NOW) is flag_set


def test_kills_keep_their_first_reason_and_what_changes_nothing_is_the_same_object() -> None:
    flag_set = at(settled_at(Stage.LIVE))
    killed = change(flag_set, KillFlag("items.read", "it burns", "ada"), now=NOW)
    assert only(killed).kill == Kill("it burns", "ada", "2026-11-24T06:00:00.000+00:00")
    assert change(killed, KillFlag("items.read", "again", "bob"), now=NOW) is killed
    assert only(change(killed, Unkill("items.read"), now=NOW)).kill is None
    assert change(flag_set, Unkill("items.read"), now=NOW) is flag_set
    earlier = change(
        flag_set, KillFlag("items.read", "it burns", "ada", "2026-11-24T05:00:00+00:00"), now=NOW
    )
    assert only(earlier).kill == Kill("it burns", "ada", "2026-11-24T05:00:00+00:00")
    everything = change(flag_set, KillAll("it burns", "ada"), now=NOW)
    assert change(everything, KillAll("again", "bob"), now=NOW) is everything
    assert change(everything, UnkillAll(), now=NOW) == flag_set
    assert change(flag_set, Move("items.read", Stage.LIVE), now=NOW) is flag_set


def test_mirroring_is_stopped_for_all_and_keeps_who_has_stopped_it() -> None:
    flag_set = at(settled_at(Stage.SHADOW))
    off = change(flag_set, ShadowOff("new is down", "ada"), now=NOW)
    assert off.shadow_off == Kill("new is down", "ada", "2026-11-24T06:00:00.000+00:00")
    assert change(off, ShadowOff("again", "bob"), now=NOW) is off
    assert differences(flag_set, off) == ["nothing is mirrored any more"]
    assert asking_for_a_report(flag_set, off) == []
    assert change(off, ShadowOn(), now=NOW) == flag_set
    assert change(flag_set, ShadowOn(), now=NOW) is flag_set
    less = change(flag_set, Edit("items.read", mirror_ppm=50_000), now=NOW)
    assert differences(flag_set, less) == ["items.read: mirrored 100% → 5%"]


def test_apply_is_all_or_nothing_and_leaves_kills() -> None:
    killed = change(at(settled_at(Stage.SHADOW)), KillFlag("items.read", "it burns", "ada"), now=NOW)
    orders = Flag("orders", 0, settled_at(Stage.NEW), Bucketing((), "orders"))
    wanted = replace(only(killed), kill=None, owner="ada")
    after = change(killed, Apply((wanted, orders)), now=NOW)
    assert [(flag.key, flag.version) for flag in after.flags] == [("items.read", 5), ("orders", 1)]
    assert after.flags[0].kill == only(killed).kill
    assert differences(killed, after) == ["items.read: owner none → ada", "orders: new, at new"]
    jump = replace(wanted, transition=settled_at(Stage.NEW))
    assert refused(killed, Apply((orders, jump))).kind == "stage_jump"
    assert refused(killed, Apply((orders, orders))).kind == "invalid"


def test_the_blast_radius_counts_the_buckets_that_change_their_stage() -> None:
    before = only(at(settled_at(Stage.SHADOW)))
    after = replace(before, transition=Transition(Stage.SHADOW, Stage.LIVE, 50_000))
    found = blast_radius(before, after, {0: 3, 49_999: 4, 50_000: 5, 999_999: 6})
    assert (found.requests, found.of_requests, found.keys, found.of_keys) == (7, 18, 2, 4)
    killed = replace(after, kill=Kill("x", "y", "z"))
    assert blast_radius(after, killed, {0: 3, 50_000: 5}).requests == 8
