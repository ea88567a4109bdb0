"""`crossfade sync`: keep the other side's database alike, in a process of its own.

One process at a time works for a direction, the one that has the lease; any number of others stand by, here
or in `crossfade up` on whichever host. Any supervisor of processes may start it again; a stream that has
stopped for a reason that only a person can mend stops again at once, with the same words.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import structlog

from core.metrics import (
    SYNC_AGAIN,
    SYNC_COPIED,
    SYNC_HELD,
    SYNC_LAG,
    SYNC_LEFT,
    SYNC_PAUSES,
    SYNC_SLOT_BYTES,
    SYNC_SLOT_SHARE,
    SYNC_SLOT_STATUS,
    SYNC_STATE,
    Sample,
)
from crossfade import logs, metrics_page
from crossfade.directions import NoDirectionError, direction
from crossfade.settings_form import Address
from dualwrite import sync
from dualwrite.pace import Reason
from dualwrite.preflight import WAL_STATUSES, near_limit
from dualwrite.runbooks import runbook
from dualwrite.stream_states import State
from dualwrite.sync import Direction, Duty, StoppedError, Told
from flags.model import Side

log = structlog.get_logger(__name__)

OK, ERROR, INVALID = 0, 1, 2
LOOK: float = 1.0
"""Seconds between two looks for what the log should say."""


def run(
    config: Path,
    side: Side,
    metrics: Address | None,
    *,
    over_missing_rows: bool = False,
    take_over: bool = False,
) -> int:
    """Sync towards `side` until SIGTERM or SIGINT; the exit code."""
    try:
        found = replace(direction(config, side), over_missing_rows=over_missing_rows)
    except NoDirectionError as error:
        sys.stderr.write(f"{error}\n")
        return INVALID
    logs.configure("sync")
    # Rows come and go by the ten thousand and none points in a circle: looking for circles among them took a
    # third of the time that a large transaction needs.
    gc.freeze()
    gc.set_threshold(200_000, 20, 20)
    try:
        return asyncio.run(_live(found, metrics, Duty(take_over=take_over)))
    except OSError as error:
        sys.stderr.write(f"cannot serve /metrics on {metrics}: {error.strerror}\n")
        return ERROR


async def _live(found: Direction, metrics: Address | None, duty: Duty) -> int:
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    told = Told()
    runner = None
    if metrics is not None:
        runner = await metrics_page.serve(metrics, lambda: samples(found.name, told))
    served = None if runner is None else "{}:{}".format(*runner.addresses[0][:2])
    log.info("syncing", stream=found.name, tables=len(found.sources), pid=os.getpid(), metrics=served)
    working = asyncio.create_task(sync.run(found, told, duty))
    others = [asyncio.create_task(stop.wait()), asyncio.create_task(talk(found.name, told))]
    await asyncio.wait((working, others[0]), return_when=asyncio.FIRST_COMPLETED)
    for task in (working, *others):
        task.cancel()
    await asyncio.gather(working, *others, return_exceptions=True)
    if runner is not None:
        await runner.cleanup()
    return _end(found.name, None if working.cancelled() else working.exception())


def _end(stream: str, ended: BaseException | None) -> int:
    if ended is None:
        log.info("syncing ended", stream=stream)
        return OK
    if isinstance(ended, StoppedError):
        log.error("stream stopped", stream=stream, reason=ended.reason, message=str(ended))
        sys.stderr.write(f"crossfade sync: {stream} stopped ({ended.reason}): {ended}\n")
        if (page := runbook(ended.reason)) is not None:
            sys.stderr.write(f"  runbook: {page}\n")
        sys.stderr.write("  next: crossfade data status\n")
    else:
        log.error("syncing failed", stream=stream, exc_info=ended)
    return ERROR


async def talk(stream: str, told: Told) -> None:
    """What changes is said once."""
    state, trouble, epoch, waits = None, "", 0, ""
    alarmed = False
    while True:
        if told.waits and told.waits != waits:
            log.info("standing by", stream=stream, message=told.waits)
        waits = told.waits
        if told.epoch != epoch and told.epoch:
            log.info("stream taken", stream=stream, epoch=told.epoch)
        if told.state is not state and told.epoch:
            log.info("stream state", stream=stream, state=told.state.value)
            state = told.state
        epoch = told.epoch
        if told.trouble and told.trouble != trouble:
            log.warning("trying again", stream=stream, message=told.trouble)
        trouble = told.trouble
        alarm = None if told.slot is None else near_limit(told.slot)
        if alarm is not None and not alarmed:
            log.warning(
                "slot near its limit", stream=stream, message=alarm, runbook=runbook("slot_near_limit")
            )
        alarmed = alarm is not None
        await asyncio.sleep(LOOK)


def samples(stream: str, told: Told) -> list[Sample]:
    """Of a stream that another process works on, only that this one does not."""
    found = [
        Sample(SYNC_HELD.name, (stream,), float(bool(told.epoch))),
        Sample(SYNC_AGAIN.name, (stream,), told.again),
    ]
    if told.epoch or told.state is State.STOPPED:
        found += [
            Sample(SYNC_STATE.name, (stream, state.value), float(told.state is state)) for state in State
        ]
    found += [Sample(SYNC_COPIED.name, (stream, name), one.copied) for name, one in told.copies.items()]
    found += [Sample(SYNC_PAUSES.name, (stream, one.value), told.pauses[one]) for one in Reason]
    if told.left is not None:
        found.append(Sample(SYNC_LEFT.name, (stream,), told.left))
    if (lag := told.lag()) is not None:
        found.append(Sample(SYNC_LAG.name, (stream,), lag))
    if (slot := told.slot) is not None:
        found.append(Sample(SYNC_SLOT_BYTES.name, (stream,), slot.retained))
        found += [
            Sample(SYNC_SLOT_STATUS.name, (stream, status), float(slot.wal_status == status))
            for status in WAL_STATUSES
        ]
        if slot.share is not None:
            found.append(Sample(SYNC_SLOT_SHARE.name, (stream,), slot.share))
    return found
