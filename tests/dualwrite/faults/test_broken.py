"""The suite is checked: the product, with a rule broken on purpose, has to be found out, and for that reason.

Most rules are also broken in the simulation (`tests/dualwrite/test_simulation.py`), a hundred times as fast.
These here are those that it cannot know, because what it has in their place is its own.
"""

from __future__ import annotations

import os
import re

import pytest

from tests.dualwrite.faults.faults import (
    Fault,
    a_copied_row_is_refused,
    commits_are_seen_late,
    killed_while_it_writes,
    log_has_a_hole,
    play,
    slot_is_made_again,
    started,
)  # fmt: skip
from tests.dualwrite.faults.ground import Ground
from tests.dualwrite.faults.scene import WrongError

BROKEN: list[tuple[str, list[Fault], str]] = [
    ("the position comes first", [started, killed_while_it_writes], "I1: |I4: |I10: .* was not there at"),
    ("the origin is not marked", [started], "I2: .* sent back"),
    ("a chunk that fails is passed over", [a_copied_row_is_refused], "I11: it goes on"),
]
IN_THE_SIMULATION_TOO: list[tuple[str, list[Fault], str]] = [
    ("chunks are read at any moment", [commits_are_seen_late], "I4: (lists|log)"),
    ("absent is null", [started], "I13: it has ended for nothing.*null value|I4: lists"),
    (
        "confirmed before it is applied",
        [started, killed_while_it_writes],
        "I13: .*gap|I10: the source",
    ),
    ("deletes are dropped", [started], "I4: log|I13: it has ended for nothing"),
    ("beats are not counted", [started, log_has_a_hole], "I11: it goes on"),
    ("the slot is not looked at", [started, slot_is_made_again], "I11: it goes on"),
]
PLAYED = BROKEN + (IN_THE_SIMULATION_TOO if "CROSSFADE_FAULT_RUNS" in os.environ else [])


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("broken", "faults", "found"), PLAYED, ids=[one[0] for one in PLAYED])
async def test_a_rule_that_is_broken_is_found_out(
    own: Ground, broken: str, faults: list[Fault], found: str
) -> None:
    with pytest.raises(WrongError, match=re.compile(found, re.DOTALL)):
        await play(own, 0, faults, broken)
