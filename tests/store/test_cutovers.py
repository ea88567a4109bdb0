"""Walks as rows: the table of states, and that no step is done by two or on what is no longer so."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from sqlalchemy import text

from crossfade.cutover.walk import ENDED, HELD, NEXT, State, StepError
from crossfade.store import cutovers
from crossfade.store.actors import Actor, ActorType, DeniedError, Role, Via
from crossfade.store.cutovers import OvertakenError, Walk
from crossfade.store.store import Store
from flags.change import Create, DropAuthority, Refused, SetAuthority
from flags.model import Authority, Bucketing, Flag, Phase, Side, Stage
from flags.stages import settled_at

ROOT = Actor(ActorType.HUMAN, "root", Role.ADMIN, None, Via.API)
SHOP = Authority("shop", ("items",), Side.LEGACY, 4)


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[Store]:
    opened = await Store.open(store_url)
    yield opened
    await opened.close()


async def begun(store: Store) -> Walk:
    await store.change(
        ROOT, Create(Flag("items", 0, settled_at(Stage.LEGACY), Bucketing((), "i"))), reason="x"
    )
    await store.change(ROOT, SetAuthority(SHOP), reason="x")
    return await cutovers.begin(store, ROOT, SHOP, reason="tonight")


async def taken(store: Store, walk: Walk) -> Walk:
    found = await cutovers.take(store, walk)
    assert found is not None
    return found


async def over(store: Store, walk: Walk) -> Walk:
    """Cancelled, with nothing done."""
    walk = await cutovers.step(store, walk, State.CANCELLING)
    return await cutovers.step_with(store, walk, State.CANCELLED, SHOP)


def test_every_way_ends_and_nothing_is_cancelled_after_it_was_decided() -> None:
    assert set(NEXT) == set(State)
    for state, after in NEXT.items():
        assert bool(after) is (state not in ENDED)
        assert (State.CANCELLING in after) is (state in {State.PREPARING, State.DECIDING, *HELD})
    reached = {State.PREPARING}
    for _ in State:
        reached |= {after for state in reached for after in NEXT[state]}
    assert reached == set(State)


async def test_the_store_takes_the_states_that_there_are(store: Store) -> None:
    query = "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = 'cutovers_state_check'"
    async with store.transaction() as connection:
        words = (await connection.execute(text(query))).scalar_one()
    assert set(re.findall(r"'([a-z_]+)'", words)) == {state.value for state in State}


async def test_from_the_beginning_to_the_end(store: Store) -> None:
    walk = await begun(store)
    assert (walk.state, walk.towards, walk.generation) == (State.PREPARING, Side.NEW, 5)
    assert (walk.held_at, walk.ended_at) == (None, None)
    assert [one.id for one in await cutovers.under_way(store)] == [walk.id]
    walk = await taken(store, walk)
    walk = cutovers.also_noted(walk, compared=3)
    before = await store.version()
    walk = await cutovers.step_with(store, walk, State.HOLDING, replace(SHOP, phase=Phase.HOLD))
    flag_set = await store.flag_set()
    assert flag_set.authorities == (replace(SHOP, phase=Phase.HOLD),)
    assert walk.document == {"compared": 3, "version": before + 1}
    assert walk.held_at is not None
    for state in (State.FENCING, State.CATCHING_UP, State.TURNING, State.DECIDING):
        walk = await cutovers.step(store, walk, state)
    moved = Authority("shop", ("items",), Side.NEW, 5)
    walk = await cutovers.step_with(store, walk, State.RELEASING, moved)
    assert walk.released_at is not None
    walk = await cutovers.step(store, walk, State.DONE, times={"fencing": 0.1})
    assert walk.ended_at is not None
    assert await cutovers.under_way(store) == []
    assert [one.state for one in await cutovers.walks(store, "shop")] == [State.DONE]


async def test_who_was_overtaken_does_no_step(store: Store) -> None:
    walk = await taken(store, await begun(store))
    later = await taken(store, walk)
    assert later.turn > walk.turn
    assert later.token == walk.token
    version = await store.version()
    for late in (
        cutovers.step(store, walk, State.CANCELLING),
        cutovers.step_with(store, walk, State.HOLDING, replace(SHOP, phase=Phase.HOLD)),
    ):
        with pytest.raises(OvertakenError):
            await late
    # The flags have not been told what the walk has not done.
    assert await store.version() == version
    with pytest.raises(StepError):
        await cutovers.step(store, later, State.DONE)
    again = await cutovers.step(store, later, State.CANCELLING)
    with pytest.raises(OvertakenError):
        await cutovers.step(store, later, State.CANCELLING)
    assert (await cutovers.read(store, again.id)).state is State.CANCELLING


async def test_one_that_somebody_wants_to_end_goes_no_further(store: Store) -> None:
    walk = await taken(store, await begun(store))
    await cutovers.ask_to_abort(store, ROOT, walk, reason="not tonight", ticket=None, request_id=None)
    with pytest.raises(OvertakenError):
        await cutovers.step_with(store, walk, State.HOLDING, replace(SHOP, phase=Phase.HOLD))
    walk = await cutovers.step(
        store, await cutovers.read(store, walk.id), State.CANCELLING, message="aborted"
    )
    assert walk.abort == "not tonight"
    walk = await cutovers.step_with(store, walk, State.CANCELLED, SHOP)
    assert (walk.message, walk.state) == ("aborted", State.CANCELLED)


async def test_one_at_a_time_and_only_by_who_may(store: Store) -> None:
    walk = await begun(store)
    with pytest.raises(Refused, match="a walk of shop is under way"):
        await cutovers.begin(store, ROOT, SHOP, reason="again")
    operator = replace(ROOT, name="ada", role=Role.OPERATOR)
    for other in ("other", "third"):
        await store.change(
            ROOT, Create(Flag(other, 0, settled_at(Stage.LEGACY), Bucketing((), "i"))), reason="x"
        )
    other = Authority("other", ("other",), Side.LEGACY, 0)
    with pytest.raises(DeniedError, match=r"cutover\.run needs the role approver"):
        await cutovers.begin(store, operator, other, reason="tonight")
    back = Authority("third", ("third",), Side.NEW, 1)
    await store.change(ROOT, SetAuthority(back), reason="x")
    assert (await cutovers.begin(store, operator, back, reason="back")).towards is Side.LEGACY
    with pytest.raises(Refused, match="needs a reason"):
        await cutovers.begin(store, ROOT, other, reason=" ")
    actions = [row.action for row in await store.audit_tail(0, 100, kinds=["cutover"])]
    assert actions == ["cutover.run", "cutover.run", "cutover.run", "cutover.back", "cutover.run"]
    assert walk.started_by == "root"


async def test_who_has_looked_before_the_authority_moved_begins_nothing(store: Store) -> None:
    """Looking at both databases takes seconds; another's walk may come and go in them."""
    await over(store, await begun(store))
    moved = replace(SHOP, side=Side.NEW, generation=5)
    await store.change(ROOT, SetAuthority(moved), reason="x")
    with pytest.raises(Refused, match="shop has moved meanwhile"):
        await cutovers.begin(store, ROOT, SHOP, reason="tonight")
    await store.change(ROOT, DropAuthority("shop"), reason="x")
    with pytest.raises(Refused, match="shop has moved meanwhile"):
        await cutovers.begin(store, ROOT, moved, reason="back")


async def test_one_that_has_ended_is_walked_by_nobody(store: Store) -> None:
    walk = await over(store, await begun(store))
    assert await cutovers.take(store, walk) is None
    assert (await cutovers.read(store, walk.id)).epoch == walk.epoch


async def test_fences_know_a_later_walk_though_the_clock_was_set_back(store: Store) -> None:
    first = await over(store, await begun(store))
    async with store.transaction() as connection:
        await connection.execute(
            text("UPDATE crossfade_store.cutovers SET started_at = started_at + interval '1 hour'")
        )
    first = await cutovers.read(store, first.id)
    assert (await cutovers.begin(store, ROOT, SHOP, reason="again")).turn > first.turn
