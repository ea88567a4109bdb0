"""How much of its time a thread wants, whether or not it gets it."""

from __future__ import annotations

import select
import time

from proxy.demand import Demand


def busy(seconds: float) -> None:
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


def busy_until_allowed_less_than(share: float, demand: Demand, most: float) -> None:
    """Fifty looks at most: one during which the machine stood still seems to see rest, not all of them."""
    for _ in range(50):
        busy(0.02)
        demand.look(most)
        if demand.allowed < share:
            return
    raise AssertionError(f"who computes all the time is allowed {demand.allowed}")


def test_who_computes_all_the_time_is_allowed_less_and_who_rests_more() -> None:
    demand = Demand()
    busy_until_allowed_less_than(0.5, demand, 0.5)
    while demand.allowed < 1.0:
        select.select([], [], [], 0.02)  # nothing to do
        demand.look(0.5)
    demand.close()


def test_it_is_never_nothing_and_never_more_than_all() -> None:
    demand = Demand()
    for _ in range(30):
        busy(0.002)
        demand.look(0.0)
    assert 0.0 < demand.allowed <= 0.01
    for _ in range(60):
        select.select([], [], [], 0.001)
        demand.look(2.0)
    assert demand.allowed == 1.0
    demand.close()


def test_without_what_the_kernel_tells_it_goes_by_its_own_time() -> None:
    demand = Demand()
    demand.close()
    busy_until_allowed_less_than(1.0, demand, 0.05)  # others may have most of the processors
