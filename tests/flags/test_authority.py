"""Which side may change data bounds every flag, whatever the flag, an override or a kill says."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flags.change import (
    Archive,
    DropAuthority,
    KillAll,
    KillFlag,
    Move,
    Refused,
    SetAuthority,
    Unkill,
    change,
    differences,
)
from flags.decide import decide as decide_by
from flags.document import InvalidFlagError, from_json, to_json
from flags.explain import explain
from flags.model import (
    Authority,
    Bucketing,
    Flag,
    FlagSet,
    Kill,
    Phase,
    Reason,
    Route,
    Side,
    Stage,
    Transition,
)
from flags.snapshot import compile_snapshot
from flags.stages import settled_at
from tests.flags.test_decide import decide, request
from tests.support.facts import KnownFacts

ROUTES = [
    Route("items", "/items/export", writes=True),
    Route("items", "/items/**"),
    Route("orders", "/orders/**", frozenset({"POST"})),
    Route("other", "/**"),
]
KILL = Kill("it burns", "ada", "now")
HERE = Authority("shop", ("items", "orders"), Side.LEGACY, 0)
THERE = replace(HERE, side=Side.NEW, generation=1)


def flags(authority: Authority | None, stage: Stage = Stage.LIVE, kill: Kill | None = None) -> FlagSet:
    known = tuple(
        Flag(key, 1, settled_at(stage), Bucketing((), key), kill=kill) for key in ("items", "orders", "other")
    )
    return FlagSet(9, flags=known, authorities=() if authority is None else (authority,))


STAGES = st.sampled_from(Stage)
KILLS = st.sampled_from([None, KILL])
AUTHORITIES = st.builds(
    Authority,
    st.just("shop"), st.just(("items", "orders")), st.sampled_from(Side), st.integers(0, 9),
    st.sampled_from(Phase),
)  # fmt: skip
WRITES = [b"POST /items", b"DELETE /items/1", b"GET /items/export", b"POST /orders", b"BREW /items"]
READS = [b"GET /items/1", b"HEAD /items", b"OPTIONS /items"]


@given(authority=AUTHORITIES, stage=STAGES, kill=KILLS, every=KILLS)
def test_what_changes_something_goes_to_the_authority_whatever_is_said(
    authority: Authority, stage: Stage, kill: Kill | None, every: Kill | None
) -> None:
    snapshot = compile_snapshot(ROUTES, 1, replace(flags(authority, stage, kill), kill=every))
    for line in WRITES:
        found = decide(snapshot, request(line))
        assert (found.side, found.reason, found.writes) == (authority.side, Reason.AUTHORITY, True)
        assert found.hold is (authority.phase is not Phase.OPEN)
        assert found.leased is (authority.phase is Phase.ARM)
        assert found.mirror is None
        assert found.fallback is None
    unbound = decide(snapshot, request(b"POST /elsewhere"))
    assert not unbound.writes
    assert not unbound.hold


@given(authority=AUTHORITIES, stage=STAGES, kill=KILLS)
def test_what_reads_never_goes_to_the_side_that_is_behind_by_hours(
    authority: Authority, stage: Stage, kill: Kill | None
) -> None:
    bound = compile_snapshot(ROUTES, 1, flags(authority, stage, kill))
    free = compile_snapshot(ROUTES, 1, flags(None, stage, kill))
    for line in READS:
        found = decide(bound, request(line))
        assert not found.hold
        if authority.read_from_new:
            assert (found.side, found.reason) == (Side.NEW, Reason.AUTHORITY)
        else:
            assert found == decide(free, request(line))


def test_the_turn_moves_what_reads_before_what_changes_something() -> None:
    order = [HERE, replace(HERE, phase=Phase.HOLD), replace(HERE, phase=Phase.TURN), THERE]
    assert [one.read_from_new for one in order] == [False, False, True, True]
    back = [THERE, replace(THERE, phase=Phase.HOLD), replace(THERE, phase=Phase.TURN), HERE]
    assert [one.read_from_new for one in back] == [True, True, False, False]


@given(authority=AUTHORITIES, stage=STAGES)
def test_it_is_the_same_when_it_has_been_written_and_read(authority: Authority, stage: Stage) -> None:
    known = flags(authority, stage)
    assert from_json(to_json(known)) == known


def test_a_flag_is_under_one_authority() -> None:
    twice = to_json(replace(flags(HERE), authorities=(HERE, replace(HERE, cutover="again"))))
    with pytest.raises(InvalidFlagError, match='"items" is under two of them'):
        from_json(twice)
    with pytest.raises(Refused, match="items belongs to the cutover shop already"):
        change(flags(HERE), SetAuthority(replace(HERE, cutover="again")), now=0)


@pytest.mark.parametrize("command", [Move("items", Stage.NEW), KillFlag("items", "burns", "ada")])
def test_nothing_is_promised_that_would_do_nothing(command: Move | KillFlag) -> None:
    assert change(flags(HERE), command, now=0) != flags(HERE)
    with pytest.raises(Refused, match="crossfade cutover back shop") as refused:
        change(flags(THERE), command, now=0)
    assert refused.value.kind == "under_authority"
    with pytest.raises(Refused, match="waits for the cutover shop"):
        change(flags(replace(HERE, phase=Phase.HOLD)), command, now=0)
    with pytest.raises(Refused, match="belongs to the cutover"):
        change(flags(HERE, Stage.LEGACY), Archive("items"), now=0)


def test_an_old_generation_is_refused_and_the_same_again_changes_nothing() -> None:
    before = flags(THERE)
    assert change(before, SetAuthority(THERE), now=0) is before
    with pytest.raises(Refused, match="is old"):
        change(before, SetAuthority(HERE), now=0)


def test_letting_the_flags_go_moves_nobody() -> None:
    done = change(flags(THERE, Stage.LEGACY), DropAuthority("shop"), now=0)
    snapshot = compile_snapshot(ROUTES, 1, done)
    for line in (*WRITES, *READS):
        assert decide(snapshot, request(line)).side is Side.NEW
    killed = flags(THERE, Stage.NEW, KILL)
    with pytest.raises(Refused, match="items is killed"):
        change(killed, DropAuthority("shop"), now=0)
    every = change(flags(THERE, Stage.NEW), KillAll("it burns", "ada"), now=0)
    with pytest.raises(Refused, match="everything is killed, which would count for shop too"):
        change(every, DropAuthority("shop"), now=0)
    freed = change(
        change(change(killed, Unkill("items"), now=0), Unkill("orders"), now=0), DropAuthority("shop"), now=0
    )
    assert freed.authorities == ()
    with pytest.raises(Refused, match="would send what changes data to new"):
        change(flags(HERE, Stage.LIVE), DropAuthority("shop"), now=0)
    assert change(flags(HERE, Stage.SHADOW), DropAuthority("shop"), now=0).authorities == ()


def test_a_kill_of_everything_says_what_it_leaves() -> None:
    every = KillAll("it burns", "ada")
    assert differences(flags(HERE), change(flags(HERE), every, now=0)) == ["everything goes to legacy"]
    (line,) = differences(flags(THERE), change(flags(THERE), every, now=0))
    assert line == "everything goes to legacy, but for the flags of shop: new has the authority there"


def test_it_is_explained() -> None:
    known = flags(replace(THERE, phase=Phase.HOLD), kill=KILL)
    head = request(b"POST /items")
    found = explain(compile_snapshot(ROUTES, 1, known), ROUTES, known, head, KnownFacts())
    assert (
        found.steps[-1].what == "it changes data over which new has the authority; it waits for the cutover"
    )


def test_decisions_stay_the_same_objects() -> None:
    snapshot = compile_snapshot(ROUTES, 1, flags(replace(HERE, phase=Phase.HOLD)))
    assert decide(snapshot, request(b"POST /items")) is decide(snapshot, request(b"PUT /items/3"))
    split = replace(
        flags(HERE),
        flags=(Flag("items", 1, Transition(Stage.SHADOW, Stage.LIVE, 5), Bucketing(("path",), "s")),),
    )
    assert compile_snapshot(ROUTES, 1, split).mirrored == {"items"}


def test_reads_go_to_legacy_while_new_is_too_far_behind() -> None:
    bounded = replace(HERE, max_lag_ms=5000)
    routes = [Route("items", "/items/**"), Route("orders", "/orders", frozenset({"GET"}))]
    snapshot = compile_snapshot(routes, 1, flags(bounded))
    near, far = KnownFacts(lag_ms=4999), KnownFacts(lag_ms=5001)
    for line in (b"GET /items/1", b"GET /orders"):
        assert decide_by(snapshot, request(line), near).side is Side.NEW
        held_back = decide_by(snapshot, request(line), far)
        assert (held_back.side, held_back.reason) == (Side.LEGACY, Reason.LAG)
    assert decide_by(snapshot, request(b"POST /items"), far).reason is Reason.AUTHORITY
    for authority in (HERE, replace(bounded, side=Side.NEW), replace(bounded, phase=Phase.TURN)):
        snapshot = compile_snapshot(routes, 1, flags(authority))
        assert decide_by(snapshot, request(b"GET /items/1"), far).side is Side.NEW


def test_a_session_that_has_written_reads_from_legacy_until_new_has_it() -> None:
    watched = replace(HERE, own_writes=True)
    routes = [Route("items", "/items/**"), Route("orders", "/orders", frozenset({"GET"}))]
    snapshot = compile_snapshot(routes, 1, flags(watched))
    fresh, behind = KnownFacts(), KnownFacts(behind=frozenset({"shop"}))
    for line in (b"GET /items/1", b"GET /orders"):
        assert decide_by(snapshot, request(line), fresh).side is Side.NEW
        held_back = decide_by(snapshot, request(line), behind)
        assert (held_back.side, held_back.reason) == (Side.LEGACY, Reason.OWN_WRITES)
        # What it reads there is newer than new: it goes on bringing a note.
        assert held_back.noted
    assert decide_by(snapshot, request(b"POST /items"), fresh).noted
    for authority in (HERE, replace(watched, side=Side.NEW), replace(watched, phase=Phase.TURN)):
        snapshot = compile_snapshot(routes, 1, flags(authority))
        assert decide_by(snapshot, request(b"GET /items/1"), behind).side is Side.NEW
