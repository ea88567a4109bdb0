"""`crossfade sync`: keep the other side's database alike, in a process of its own.

One process at a time works for a direction: one that starts takes over from the one before, which can commit
nothing any more and ends. Any supervisor of processes may start it again; a stream that has stopped for a
reason that only a person can mend stops again at once, with the same words.
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

from core.metrics import SYNC_AGAIN, SYNC_COPIED, SYNC_LAG, SYNC_QUARANTINED, SYNC_STATE, Sample
from crossfade import logs, metrics_page
from crossfade.directions import NoDirectionError, direction
from crossfade.settings_form import Address
from dualwrite import sync
from dualwrite.sync import Direction, StoppedError, Told
from dualwrite.target import FencedError, State
from flags.model import Side

log = structlog.get_logger(__name__)

OK, ERROR, INVALID = 0, 1, 2
LOOK: float = 1.0
"""Seconds between two looks for what the log should say."""


def run(config: Path, side: Side, metrics: Address | None, *, over_missing_rows: bool = False) -> int:
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
        return asyncio.run(_live(found, metrics))
    except OSError as error:
        sys.stderr.write(f"cannot serve /metrics on {metrics}: {error.strerror}\n")
        return ERROR


async def _live(found: Direction, metrics: Address | None) -> int:
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    told = Told()
    runner = None
    if metrics is not None:
        runner = await metrics_page.serve(metrics, lambda: samples(found.name, told))
    served = None if runner is None else "{}:{}".format(*runner.addresses[0][:2])
    log.info("syncing", stream=found.name, tables=len(found.sources), pid=os.getpid(), metrics=served)
    working = asyncio.create_task(sync.run(found, told))
    others = [asyncio.create_task(stop.wait()), asyncio.create_task(_talk(found.name, told))]
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
        sys.stderr.write("  next: crossfade data status\n")
    elif isinstance(ended, FencedError):
        log.warning("taken over", stream=stream, message=str(ended))
        sys.stderr.write(f"crossfade sync: {ended}\n")
    else:
        log.error("syncing failed", stream=stream, exc_info=ended)
    return ERROR


async def _talk(stream: str, told: Told) -> None:
    """What changes is said once."""
    state, trouble, epoch, quarantined = None, "", 0, 0
    while True:
        if told.epoch != epoch:
            epoch = told.epoch
            log.info("stream taken", stream=stream, epoch=epoch)
        if told.state is not state and epoch:
            state = told.state
            log.info("stream state", stream=stream, state=state.value)
        if told.trouble and told.trouble != trouble:
            log.warning("trying again", stream=stream, message=told.trouble)
        trouble = told.trouble
        if told.quarantined != quarantined:
            quarantined = told.quarantined
            log.warning("rows in quarantine", stream=stream, rows=quarantined)
        await asyncio.sleep(LOOK)


def samples(stream: str, told: Told) -> list[Sample]:
    found = [Sample(SYNC_STATE.name, (stream, state.value), float(told.state is state)) for state in State]
    found.append(Sample(SYNC_AGAIN.name, (stream,), told.again))
    found.append(Sample(SYNC_QUARANTINED.name, (stream,), told.quarantined))
    found += [Sample(SYNC_COPIED.name, (stream, name), one.copied) for name, one in told.copies.items()]
    if (lag := told.lag()) is not None:
        found.append(Sample(SYNC_LAG.name, (stream,), lag))
    return found
