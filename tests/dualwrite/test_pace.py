"""A copy gives way: to the stream, to a source that has become slow, and to a ceiling."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualwrite.pace import ENOUGH, LOOK_AGAIN, MOST_LAG, REMEMBERED, REST, Pace, Pause, Reason


def test_a_stream_that_is_behind_comes_first() -> None:
    pace = Pace()
    assert pace.pause(0.0, None) is None, "nobody knows yet how far it is behind"
    assert pace.pause(0.0, MOST_LAG) is None
    for moment in range(3):
        assert pace.pause(moment, MOST_LAG + 0.1) == Pause(Reason.LAG, LOOK_AGAIN)
    assert pace.pause(4.0, 0.1) is None
    assert pace.pause(5.0, 60.0) is not None
    assert pace.pauses == {Reason.LAG: 2}, "what goes on is one pause"
    assert pace.waited[Reason.LAG] == 4 * LOOK_AGAIN * 1000


def test_a_source_whose_commits_have_become_slow_is_left_alone_until_they_are_not() -> None:
    pace = Pace()
    for _ in range(ENOUGH):
        pace.committed(0.01)
    pace.committed(0.3)
    assert pace.pause(0.0, 0.1) is None, "that may have been our own work"
    pace.committed(2.0)
    assert pace.pause(1.0, 0.1) == Pause(Reason.SOURCE_SLOW, REST)
    assert pace.pause(2.0, 0.1) == Pause(Reason.SOURCE_SLOW, REST), "until a commit says otherwise"
    pace.committed(0.01)
    assert pace.pause(3.0, 0.1) is None


def test_what_is_slow_for_good_is_what_is_usual() -> None:
    pace = Pace()
    for _ in range(REMEMBERED):
        pace.committed(0.01)
    rested = 0
    for moment in range(100):
        pace.committed(3.0)
        rested += pace.pause(moment, 0.1) is not None
    assert 0 < rested <= REMEMBERED / 2 + 1


@pytest.mark.parametrize(
    ("rows", "took", "rests"), [(1000, 0.9, True), (1000, 0.3, False), (10, 0.09, False)]
)
def test_a_source_that_reads_slowly_rests_once_after_each_such_chunk(
    rows: int, took: float, rests: bool
) -> None:
    pace = Pace()
    for moment in range(ENOUGH):
        pace.copied(1000, 0.1, moment)
    pace.copied(rows, took, 10.0)
    assert (pace.pause(10.0, 0.1) is not None) is rests
    assert pace.pause(11.0, 0.1) is None, "only another chunk can tell"


@given(st.integers(1, 100_000), st.lists(st.integers(1, 50_000), min_size=1, max_size=50))
def test_no_more_than_the_ceiling(ceiling: int, chunks: list[int]) -> None:
    """However large the chunks: at any moment at most one of them more than the ceiling allows."""
    pace, now, copied = Pace(ceiling), 0.0, 0
    for rows in chunks:
        while (pause := pace.pause(now, 0.1)) is not None:
            assert pause.reason is Reason.CEILING
            now += pause.seconds
        assert copied <= ceiling * now + 1
        pace.copied(rows, 0.0, now)
        copied += rows


def test_the_rate_is_that_of_the_last_seconds_with_its_pauses() -> None:
    pace = Pace()
    assert pace.rate(0.0) is None
    for second in range(60):
        pace.copied(100 if second < 30 else 500, 0.1, second)
    assert pace.rate(59.0) == pytest.approx(500)
    assert pace.rate(69.0) == pytest.approx(250)
