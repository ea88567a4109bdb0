"""Faults in the middle of a walk: each ends in a state that is right, by itself, and nothing is lost.

`make faults` plays many more of them.
"""

from __future__ import annotations

import os

import pytest

from tests.cutover.faults import FAULTS, one_run
from tests.cutover.scene import Night

RUNS = int(os.environ.get("CROSSFADE_FAULT_RUNS", str(len(FAULTS))))
FIRST = int(os.environ.get("CROSSFADE_FAULT_SEED", "0"))


@pytest.mark.timeout(60 + 15 * RUNS)
async def test_whatever_goes_wrong_nothing_is_lost(eve: Night) -> None:
    await eve.prepare()
    async with eve.people(rest=0.02) as load:
        await load.grows_by(30)
        for seed in range(FIRST, FIRST + RUNS):
            print(await one_run(eve, load, seed), flush=True)
    await eve.nothing_is_lost(load)
    await eve.both_are_equal()
