"""Faults on real servers, while people write: nothing is lost, nothing comes twice, nothing stops in silence.

One seed is one schedule: a fault while the stream begins or copies, then some while it follows. `make faults`
plays many more of them.
"""

from __future__ import annotations

import os

import pytest

from dualwrite import pg_source
from dualwrite.capture import CaptureStopped
from dualwrite.pg_connect import connect
from tests.dualwrite.faults.faults import FOR_GOOD, IN_COPY, IN_STREAM, Fault, disk_is_full, play, started
from tests.dualwrite.faults.ground import Ground

RUNS = int(os.environ.get("CROSSFADE_FAULT_RUNS", str(len(IN_COPY))))
FIRST = int(os.environ.get("CROSSFADE_FAULT_SEED", "0"))


def schedule(seed: int) -> list[Fault]:
    """As many seeds as there are faults in a copy play every fault once; later ones, other neighbours."""
    each = len(IN_COPY)
    place, turn = seed % each, seed // each
    in_stream = [fault for number, fault in enumerate(IN_STREAM) if (number + turn) % each == place]
    for_good = [fault for number, fault in enumerate(FOR_GOOD) if (number + turn) % each == place]
    return [IN_COPY[place], *in_stream, *for_good]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", range(FIRST, FIRST + RUNS))
async def test_whatever_goes_wrong_nothing_is_lost(own: Ground, seed: int) -> None:
    await play(own, seed, schedule(seed))


@pytest.mark.timeout(300)
async def test_a_disk_that_is_full_is_waited_for(own: Ground) -> None:
    try:
        await play(own, FIRST, [started, disk_is_full])
    except PermissionError as error:
        pytest.skip(f"only who may mount can play this: {error}")


async def test_what_a_slot_waits_for_is_named_though_it_is_in_no_session(own: Ground) -> None:
    await own.source.do("BEGIN; CREATE TABLE prepared (); PREPARE TRANSACTION 'forgotten'")
    try:
        async with await connect(own.source.url) as source:
            with pytest.raises(CaptureStopped, match="the prepared transaction 'forgotten'"):
                await pg_source.make_slot(source, "late", within=0.5)
    finally:
        await own.source.do("ROLLBACK PREPARED 'forgotten'")
