"""What a process that syncs says of itself, in its log and in its metrics, wherever it runs."""

from __future__ import annotations

import asyncio

import structlog

from core.metrics import (
    SYNC_AGAIN,
    SYNC_COPIED,
    SYNC_HELD,
    SYNC_LAG,
    SYNC_LEFT,
    SYNC_PAUSES,
    SYNC_QUARANTINED,
    SYNC_SLOT_BYTES,
    SYNC_SLOT_SHARE,
    SYNC_SLOT_STATUS,
    SYNC_STATE,
    SYNC_STRANGERS,
    Sample,
)
from dualwrite.pace import Reason
from dualwrite.preflight import WAL_STATUSES, near_limit
from dualwrite.runbooks import runbook
from dualwrite.stream_states import State
from dualwrite.sync import Told

log = structlog.get_logger(__name__)

LOOK: float = 1.0
"""Seconds between two looks for what the log should say."""


async def talk(stream: str, told: Told) -> None:
    """What changes is said once."""
    state, trouble, epoch, waits = None, "", 0, ""
    alarmed, quarantined = False, 0
    known: set[tuple[str, str, str]] = set()
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
            if told.state is State.STOPPED:
                log.error("stream stopped", stream=stream, message=told.trouble)
            else:
                log.warning("trying again", stream=stream, message=told.trouble)
        trouble = told.trouble
        alarm = None if told.slot is None else near_limit(told.slot)
        if alarm is not None and not alarmed:
            log.warning(
                "slot near its limit", stream=stream, message=alarm, runbook=runbook("slot_near_limit")
            )
        alarmed = alarm is not None
        strangers = {(one.table, one.login, one.application): one for one in told.strangers or ()}
        for who in strangers.keys() - known:
            message = str(strangers[who])
            log.warning("foreign write", stream=stream, message=message, runbook=runbook("foreign_write"))
        known = set(strangers)
        if told.quarantined != quarantined:
            quarantined = told.quarantined
            log.warning("rows in quarantine", stream=stream, rows=quarantined)
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
        found.append(Sample(SYNC_QUARANTINED.name, (stream,), told.quarantined))
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
    if told.strangers is not None:
        found.append(Sample(SYNC_STRANGERS.name, (stream,), len(told.strangers)))
    return found
