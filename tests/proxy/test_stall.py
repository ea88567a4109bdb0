"""A stall lasts when a whole window has passed with too little movement, and not before."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.stall import Stall


def test_nothing_moves() -> None:
    stall = Stall(10.0, 5)
    assert not stall.lasts(10.9, 5, 1.0)
    assert stall.lasts(11.0, 5, 1.0)


def test_any_byte_opens_the_next_window() -> None:
    stall = Stall(0.0, 0)
    assert not stall.lasts(1.0, 1, 1.0)
    assert not stall.lasts(1.9, 1, 1.0)
    assert stall.lasts(2.0, 1, 1.0)


def test_a_drip_below_the_rate_is_a_stall() -> None:
    stall = Stall(0.0, 0)
    assert not stall.lasts(2.0, 200, 2.0, 100)
    assert stall.lasts(4.0, 399, 2.0, 100)


@given(st.lists(st.tuples(st.floats(0.01, 0.5), st.integers(0, 100)), max_size=50))
def test_a_steady_flow_is_never_a_stall_and_silence_always_becomes_one(
    steps: list[tuple[float, int]],
) -> None:
    now, moved = 0.0, 0
    stall = Stall(now, moved)
    for pause, more in steps:
        now, moved = now + pause, moved + more + 100  # 200 bytes a second at least
        assert not stall.lasts(now, moved, 1.0, 100)
    assert stall.lasts(now + 1.1, moved, 1.0, 100) or stall.lasts(now + 2.2, moved, 1.0, 100)
