"""The judge is judged: where all is well nothing is wrong, and what is planted is found by its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.dualwrite.faults.history import Done, End, History, Seen, judge

TOTAL = 100


def well() -> tuple[History, End]:
    """Two writers, three transactions, one of which nobody knows whether it was committed; it was."""
    history = History(
        done=[
            Done("anna", (("a", "1"), ("log", "2")), 10, 20),
            Done("bert", (("a", "3"), ("log", "4")), 15, 30),
            Done("anna", (("a", "5"), ("log", "6")), 35, None),
        ],
        seen=[
            Seen(12, None, 1, False, 7, {}),
            Seen(20, 20, 1, True, TOTAL, {"a": ["1"], "log": ["2"]}),
            Seen(30, 20, 1, True, TOTAL, {"a": ["1", "3"], "log": ["2", "4"]}),
            Seen(50, 50, 2, True, TOTAL, {"a": ["1", "3", "5"], "log": ["2", "4", "6"]}),
        ],
    )
    items = {"a": ["1", "3", "5"], "log": ["2", "4", "6"]}
    rows = {"vaults": [(1, 60), (2, 40)]}
    return history, End(rows, {"vaults": [(2, 40), (1, 60)]}, items, {k: list(v) for k, v in items.items()})


def test_all_is_well() -> None:
    assert judge(*well(), TOTAL) == []


def test_what_nobody_knows_may_not_have_happened_but_not_by_half() -> None:
    history, end = well()
    history.seen.pop()
    fewer = {"a": ["1", "3"], "log": ["2", "4"]}
    assert judge(history, replace(end, source_items=fewer, target_items=fewer), TOTAL) == []
    half = {"a": ["1", "3", "5"], "log": ["2", "4"]}
    found = judge(history, replace(end, source_items=half, target_items=half), TOTAL)
    assert [one.invariant for one in found] == ["I5"]


def items(**changed: list[str]) -> Callable[[History, End], End]:
    return lambda _, end: replace(end, target_items={**end.target_items, **changed})


def look(at: int, **changed: Any) -> Callable[[History, End], End]:
    def plant(history: History, end: End) -> End:
        history.seen[at] = replace(history.seen[at], **changed)
        return end

    return plant


def harmed(history: History, end: End) -> End:
    history.harmed.append("writer 1: lock timeout")
    return end


@pytest.mark.parametrize(("plant", "invariant"), [
    (items(a=["3", "5"]), "I1"),
    (items(a=["1", "3", "3", "5"]), "I2"),
    (items(a=["1", "3", "5", "99"]), "I3"),
    (items(a=["3", "1", "5"]), "I6"),
    (items(a=["5", "1", "3"]), "I6"),
    (lambda _, end: replace(end, found={"vaults": [(1, 60)]}), "I4"),
    (lambda _, end: replace(end, found={"vaults": [(1, 60), (2, 40), (2, 40)]}), "I4"),
    (lambda _, end: replace(end, found={"vaults": [(1, 40), (2, 60)]}), "I4"),
    (look(1, total=TOTAL - 1), "I5"),
    (look(1, items={"a": ["1"]}), "I5"),
    (look(2, items={"a": ["3"], "log": ["4"]}), "I6"),
    (look(2, items={"a": ["1"], "log": ["2"]}), "I10"),
    (look(1, items={"a": ["1", "3", "5"], "log": ["2", "4", "6"]}), "I10"),
    (look(2, confirmed=31), "I10"),
    (look(3, applied=29), "I10"),
    (look(3, epoch=0), "I10"),
    (harmed, "I12"),
    (lambda _, end: replace(end, retained=1 << 30), "I12"),
])  # fmt: skip
def test_what_is_planted_is_found(plant: Callable[[History, End], End], invariant: str) -> None:
    history, end = well()
    end = plant(history, end)
    assert invariant in {one.invariant for one in judge(history, end, TOTAL)}
