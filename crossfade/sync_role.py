"""`crossfade sync`: keep the other side's database alike, in a process of its own.

One process at a time works for a direction, the one that has the lease; any number of others stand by, here
or in `crossfade up` on whichever host. Any supervisor of processes may start it again; a stream that has
stopped for a reason that only a person can mend stops again at once, with the same words.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import structlog

from crossfade import logs, metrics_page
from crossfade.directions import NoDirectionError, direction
from crossfade.processes import look_for_few_circles
from crossfade.settings_form import Address
from crossfade.sync_telling import samples, talk
from dualwrite import sync
from dualwrite.runbooks import runbook
from dualwrite.sync import Direction, Duty, StoppedError, Told
from flags.model import Side

log = structlog.get_logger(__name__)

OK, ERROR, INVALID = 0, 1, 2


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
    look_for_few_circles()
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
