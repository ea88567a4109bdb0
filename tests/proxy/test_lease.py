"""While a cutover is armed, what changes something is sent only under a lease, and the walk outwaits any."""

from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st

from crossfade.cutover.leases import LEASE, WAITED_OUT, lease_from
from flags.model import Phase, Side
from proxy.config import HoldLimits
from proxy.lease import Lease
from tests.differential.wire import named
from tests.proxy.calm import in_a_calm_moment
from tests.proxy.test_holding import HELD, HOLDING, decide, shop, written
from tests.support.world import get, post


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_it_has_ended_until_it_is_given_and_ends_by_itself() -> None:
    clock = Clock()
    lease = Lease(clock)
    assert not lease.lasts()
    lease.renew(1001.0)
    assert lease.lasts()
    lease.renew(1000.5)  # an older answer that came later takes nothing away
    assert lease.lasts()
    clock.now = 1001.0
    assert not lease.lasts()
    lease.renew(1002.0)
    assert lease.lasts()


@given(
    questions=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 3), st.floats(0, 5)), max_size=12),
    held=st.floats(0, 6),
    rate=st.floats(0.95, 1.05),
    offset=st.floats(-1e6, 1e6),
    looks=st.floats(0, 20),
)
def test_nobody_sends_under_a_lease_once_the_walk_has_waited(
    questions: list[tuple[float, float, float]], held: float, rate: float, offset: float, looks: float
) -> None:
    """The worker's clock is another one, and a little faster or slower; answers take as long as they like.

    `held` is when the store has the version that holds: later it gives nothing for the one before.
    """

    def here(moment: float) -> float:
        return offset + moment * rate

    clock = Clock()
    lease = Lease(clock)
    asked = 0.0
    arrivals = []
    for pause, to_store, to_worker in questions:
        asked += pause
        if asked + to_store < held:
            arrivals.append((asked + to_store + to_worker, lease_from(here(asked))))
    released = held + WAITED_OUT
    moment = released + looks
    for arrival, until in sorted(arrivals):
        if arrival <= moment:
            clock.now = here(arrival)
            lease.renew(until)
    clock.now = here(moment)
    assert not lease.lasts()


def test_a_lease_is_shorter_than_anything_that_waits_for_it() -> None:
    assert lease_from(10.0) == 10.0 + LEASE
    assert LEASE < WAITED_OUT < HoldLimits().seconds / 3


async def test_with_a_lease_it_goes_on_and_without_one_it_waits() -> None:
    async with shop() as (world, legacy, new):
        world.worker.renew_lease(time.monotonic() + 60)
        decide(world, Side.LEGACY, Phase.ARM)
        assert (await world.ask(post(b"/first", b"x"), b"POST")).status == 200
        world.worker.lease = Lease()  # it has ended
        client = await world.client()
        client.send(post(b"/second", b"x"))
        await world.counted(HOLDING, 1)
        assert (await world.ask(get(b"/items"))).status == 200  # what reads needs none
        assert written(legacy) == [b"/first"]
        world.worker.renew_lease(time.monotonic() + 60)
        assert (await client.answer()).status == 200
        assert written(legacy) == [b"/first", b"/second"]
        assert written(new) == []
        assert world.count(HELD, outcome="went_on") == 1


@in_a_calm_moment
async def test_a_lease_ends_by_itself_and_who_hears_nothing_more_says_503() -> None:
    async with shop(holding=HoldLimits(seconds=1)) as (world, legacy, new):
        decide(world, Side.LEGACY, Phase.ARM)
        until = time.monotonic() + 1
        world.worker.renew_lease(until)
        sent = 0
        while (answer := await world.ask(post(b"/items", b"x"), b"POST")).status == 200:
            sent += 1
        assert time.monotonic() >= until
        assert (answer.status, named(answer.fields, b"retry-after")) == (503, [b"1"])
        assert b"hold_timeout" in answer.body.data
        assert len(written(legacy)) == sent > 0
        assert written(new) == []


async def test_what_waits_for_a_lease_goes_where_the_authority_has_gone_meanwhile() -> None:
    async with shop() as (world, legacy, new):
        decide(world, Side.LEGACY, Phase.ARM)
        client = await world.client()
        client.send(post(b"/items", b"x"))
        await world.counted(HOLDING, 1)
        decide(world, Side.NEW)
        assert (await client.answer()).status == 200
        assert (written(legacy), written(new)) == ([], [b"/items"])
