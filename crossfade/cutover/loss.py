"""What is lost if legacy takes the authority back without what new still has. Looking changes nothing."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Final

import psycopg

from crossfade.cutover.ground import NAME, Connection, Plot, brought
from crossfade.cutover.plan import PROBE_WITHIN
from dualwrite import target
from dualwrite.pg_connect import connect
from dualwrite.pg_stream import lsn_text
from dualwrite.stream_states import State
from flags.change import Refused
from flags.model import Side

REACHED_WITHIN: Final = 2.0
"""Seconds in which new has to answer; else it counts as gone."""


@dataclass(frozen=True, slots=True)
class Loss:
    """New's changes that have come to legacy, and so which have not."""

    why: str
    """Why there is no way back that loses nothing."""
    upto: float | None
    """Unix time by legacy's clock at which the last of them came; None: none ever did."""
    seconds: float | None
    """Since then. What new has written in them, and what was on its way before, is not in legacy."""
    position: str | None
    """Up to which new's log has come."""
    bytes_behind: int | None
    """Of new's log that has not; None where new cannot be asked."""

    @property
    def in_words(self) -> str:
        if self.seconds is None or self.upto is None:
            return "legacy has nothing of what was written to new"
        when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self.upto))
        more = "" if self.bytes_behind is None else f", {self.bytes_behind} bytes of its log"
        return (
            f"legacy has what came from new until {when} (position {self.position});"
            f" what new has written in the {self.seconds:.0f} s since then{more}, is lost"
        )


async def measure(plot: Plot) -> Loss:
    """Raises Refused where nothing has to be lost, and psycopg.Error where legacy cannot be asked."""
    stream = plot.streams[Side.LEGACY].name
    async with await connect(plot.urls[Side.LEGACY], NAME) as legacy:
        await target.prepare(legacy)
        known = await target.state(legacy, stream)
        looked, behind = time.monotonic(), None
        try:
            async with asyncio.timeout(REACHED_WITHIN + PROBE_WITHIN):
                async with await connect(plot.urls[Side.NEW], NAME) as new:
                    if known is not None:
                        behind = await _behind(new, lsn_text(known.applied))
                    why = await _why_no_way_back(plot, new, legacy, known)
        except (psycopg.Error, OSError, TimeoutError) as error:
            why = f"new cannot be reached: {str(error).splitlines()[0] if str(error) else 'it is silent'}"
    if known is None:
        return Loss(why, None, None, None, behind)
    since = known.age + time.monotonic() - looked
    return Loss(why, known.at, round(since, 3), lsn_text(known.applied), behind)


async def _why_no_way_back(
    plot: Plot, new: Connection, legacy: Connection, known: target.StreamState | None
) -> str:
    what = "the stream towards legacy"
    if known is None:
        return f"{what} was never begun"
    if known.state is State.STOPPED:
        return f"{what} has stopped ({known.reason}): {known.message}"
    if not await target.is_held(legacy, known.name):
        raise Refused(
            "blocked", f"no process works on {what}, so nothing is lost yet: crossfade sync --towards legacy"
        )
    if await brought(new, legacy, known.name, PROBE_WITHIN) is not None:
        raise Refused("blocked", f"nothing has to be lost: crossfade cutover back {plot.name} --reason WHY")
    return f"{what} has not brought a mark within {PROBE_WITHIN:g} s"


async def _behind(new: Connection, position: str) -> int:
    query = "SELECT greatest(0, pg_wal_lsn_diff(pg_current_wal_insert_lsn(), %s::pg_lsn))::bigint"
    row = await (await new.execute(query, (position,))).fetchone()
    assert row is not None
    return int(row[0])
