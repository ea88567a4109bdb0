"""One moment of both sides, while both are written to: a cut.

Who compares asks the process that holds the stream to stand still. Then it makes a temporary slot at the
source, which says a position and exports a snapshot of exactly what was committed before it. The stream
applies what was committed before that position, and nothing behind it, and stands again until a snapshot of
the target is open, too. The slot is gone as soon as its snapshot is open here.

The order is the point: what the stream has taken in before it stands was committed before the slot was made,
and so before the cut; it never has to go back. And nobody is trusted about the end of it: the target's
snapshot itself has to show the position and the epoch under which the stream says that it stands.

Whoever holds the stream goes on by itself after `STAND_AT_MOST`, whatever has become of who asked.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg import errors

from dualwrite import heartbeat, pg_source, target
from dualwrite.apply import Applier
from dualwrite.capture import CaptureStopped
from dualwrite.change import Position
from dualwrite.cut_states import CutState
from dualwrite.follow import Follower
from dualwrite.pg_connect import connect
from dualwrite.pg_stream import connect_for_replication, lsn, lsn_text
from dualwrite.stream_states import State

ASK_WITHIN: Final = 10.0
"""Seconds that whoever holds the stream has to stand."""
STAND_AT_MOST: Final = 10.0
"""Seconds. The target is behind by as much."""
SLOT_WITHIN: Final = 5.0
"""Seconds for making the slot, which waits for transactions that are open; less than the stream stands."""
LOOK_AGAIN: Final = 0.01
"""Seconds between two looks at what the other one says."""

Connection = psycopg.AsyncConnection[Any]

_ASK: Final = """
    INSERT INTO crossfade_sync.cuts AS known (stream, id, state, until)
    VALUES (%(stream)s, %(id)s, 'asked', clock_timestamp() + make_interval(secs => %(within)s))
    ON CONFLICT (stream) DO UPDATE SET
        id = excluded.id, state = excluded.state, until = excluded.until,
        epoch = NULL, upto = NULL, applied = NULL
     WHERE known.until < clock_timestamp()
"""
_STAND: Final = """
    UPDATE crossfade_sync.cuts SET state = 'standing', epoch = %s,
           until = clock_timestamp() + make_interval(secs => %s)
     WHERE stream = %s AND state = 'asked' AND until > clock_timestamp() RETURNING id
"""
_STANDS_THERE: Final = """
    SELECT s.applied::text FROM crossfade_sync.cuts c JOIN crossfade_sync.streams s ON s.name = c.stream
     WHERE c.id = %s AND c.state = 'reached' AND s.epoch = c.epoch AND s.applied = c.applied
"""
_OTHERS_SEE_IT_RUN: Final = """
    SELECT EXISTS (SELECT FROM pg_snapshot_xip(pg_current_snapshot()) x
                    WHERE pg_visible_in_snapshot(x, %s::pg_snapshot))
"""
"""Whether a transaction that the snapshot shows as committed has its commit in the log only, and not yet
where every reader looks."""


class NoCutError(Exception):
    """Both sides could not be had at one moment. The stream goes on."""


@dataclass(frozen=True, slots=True)
class CutAt:
    """Which moment it was."""

    stream: str
    position: str
    """In the log of the side that is written to: all that was committed before it is in the comparison."""
    applied: str
    """Up to where the target had applied the stream then."""
    stood: float
    """Seconds that the stream stood still for it."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Two connections, each in a transaction that sees the same moment until the cut is closed."""

    at: CutAt
    written: Connection
    """To the side that is written to."""
    fed: Connection


@asynccontextmanager
async def cut(stream: str, written_url: str, fed_url: str, within: float = SLOT_WITHIN) -> AsyncIterator[Cut]:
    """Both sides at one moment. `within`: seconds that making the slot may wait for others' transactions.

    Raises NoCutError, CaptureStopped and psycopg.Error; the stream goes on then, and no slot is left.
    """
    async with AsyncExitStack() as stack:
        written, beside = [await stack.enter_async_context(await connect(written_url)) for _ in "12"]
        fed, asking = [await stack.enter_async_context(await connect(fed_url)) for _ in "12"]
        try:
            replication = await connect_for_replication(written_url)
        except CaptureStopped as stopped:
            if stopped.reason != "no_replication":
                raise
            raise NoCutError(
                f"one moment of both sides needs a replication connection, also where changes are read with"
                f" capture: peek: {stopped}. Compare without --exact"
            ) from None
        stack.push_async_callback(replication.close)
        asked = _Asked(asking, stream)
        await asked.ask()
        stack.push_async_callback(asked.release)
        await asked.until(CutState.STANDING)
        began = time.monotonic()
        position, snapshot = await _slot(replication, beside, within)
        await stack.enter_async_context(written.transaction(force_rollback=True))
        await written.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        await written.execute(f"SET TRANSACTION SNAPSHOT '{snapshot}'")
        await replication.close()
        await _all_have_ended(written, beside)
        await asked.tell(position)
        # Something behind the cut, by which the stream sees that all before it has come.
        await heartbeat.mark(beside, stream)
        await asked.until(CutState.REACHED)
        await stack.enter_async_context(fed.transaction(force_rollback=True))
        await fed.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        there = await (await fed.execute(_STANDS_THERE, (asked.id,))).fetchone()
        stood = time.monotonic() - began
        await asked.release()
        if there is None:
            raise NoCutError(
                f"the stream {stream} has gone on before the target's snapshot was open; try again"
            )
        yield Cut(CutAt(stream, lsn_text(position), there[0], round(stood, 3)), written, fed)


async def _slot(
    replication: psycopg.AsyncConnection, beside: Connection, within: float
) -> tuple[Position, str]:
    """The position that it begins at, and the snapshot's name. It lives as long as the connection."""
    name = f"crossfade_cut_{secrets.token_hex(6)}"
    try:
        # The server gives up by itself, too: who asked may have been killed.
        await replication.execute(f"SET lock_timeout = '{within * 1000:.0f}ms'")
        async with asyncio.timeout(within):
            cursor = await replication.execute(
                f'CREATE_REPLICATION_SLOT "{name}" TEMPORARY LOGICAL pgoutput EXPORT_SNAPSHOT'
            )
    except (TimeoutError, errors.LockNotAvailable):
        raise await pg_source.waits_for(beside) from None
    except errors.ConfigurationLimitExceeded as full:
        raise NoCutError(
            f"a temporary slot is needed for a moment: {full.diag.message_primary}; raise"
            " max_replication_slots, or drop a slot that nobody needs"
        ) from None
    row = await cursor.fetchone()
    assert row is not None
    return lsn(str(row[1])), str(row[2])


async def _all_have_ended(written: Connection, beside: Connection) -> None:
    """Until each transaction that the snapshot shows has ended for everybody, and not in the log only.

    A row is not looked at before: it would be taken for one of a transaction that has failed.
    """
    row = await (await written.execute("SELECT pg_current_snapshot()::text")).fetchone()
    assert row is not None
    until = time.monotonic() + SLOT_WITHIN
    while True:
        some = await (await beside.execute(_OTHERS_SEE_IT_RUN, (row[0],))).fetchone()
        if some == (False,):
            return
        if time.monotonic() > until:
            raise NoCutError("a transaction of the source hangs in its commit; is a standby waited for?")
        await asyncio.sleep(LOOK_AGAIN)


class _Asked:
    """The talk with whoever holds the stream, from the side of who compares."""

    def __init__(self, asking: Connection, stream: str) -> None:
        self._asking = asking
        self._stream = stream
        self.id = secrets.token_hex(8)

    async def ask(self) -> None:
        said = {"stream": self._stream, "id": self.id, "within": ASK_WITHIN}
        try:
            known = await target.state(self._asking, self._stream)
            if known is None or known.state is not State.FOLLOWING:
                stands = "is not known" if known is None else f"is {known.state}"
                raise NoCutError(
                    f"the stream {self._stream} {stands}; one moment of both sides is there once it follows"
                )
            cursor = await self._asking.execute(_ASK, said)
        except errors.UndefinedTable:
            raise NoCutError(
                f"the stream {self._stream} has not begun, or an older release holds it; start crossfade sync"
            ) from None
        if not cursor.rowcount:
            raise NoCutError(f"another comparison of {self._stream} is taking its moment; try again")

    async def until(self, wanted: CutState) -> None:
        while True:
            row = await (
                await self._asking.execute(
                    "SELECT state, until > clock_timestamp() FROM crossfade_sync.cuts WHERE id = %s",
                    (self.id,),
                )
            ).fetchone()
            if row is not None and row[0] == wanted:
                return
            if row is None or not row[1]:
                raise NoCutError(
                    f"nobody who holds {self._stream} stands still; is crossfade sync running? See:"
                    " crossfade data status"
                    if row is not None and row[0] == CutState.ASKED
                    else f"the stream {self._stream} has gone on: it stands {STAND_AT_MOST:g} s at most, and"
                    " not when another process takes it over; try again"
                )
            await asyncio.sleep(LOOK_AGAIN)

    async def tell(self, position: Position) -> None:
        cursor = await self._asking.execute(
            "UPDATE crossfade_sync.cuts SET state = 'told', upto = %s::pg_lsn"
            " WHERE id = %s AND state = 'standing'",
            (lsn_text(position), self.id),
        )
        if not cursor.rowcount:
            raise NoCutError(f"the stream {self._stream} has gone on before it was told where to; try again")

    async def release(self) -> None:
        """Safe to be done again."""
        with suppress(psycopg.Error):
            await self._asking.execute("DELETE FROM crossfade_sync.cuts WHERE id = %s", (self.id,))


async def stand(looking: Connection, stream: str, follower: Follower, applier: Applier, epoch: int) -> None:
    """For the process that holds the stream, between two of its transactions: stand still, if that is asked.

    Raises what `Follower.step` raises.
    """
    row = await (await looking.execute(_STAND, (epoch, STAND_AT_MOST, stream))).fetchone()
    if row is None:
        return
    until = time.monotonic() + STAND_AT_MOST
    while time.monotonic() < until:
        said = await (
            await looking.execute("SELECT state, upto::text FROM crossfade_sync.cuts WHERE id = %s", row)
        ).fetchone()
        if said is None:
            break
        if said[0] == CutState.TOLD:
            await _go_to(lsn(said[1]), follower, until)
            if follower.is_at_its_limit:
                await looking.execute(
                    "UPDATE crossfade_sync.cuts SET state = 'reached', applied = %s::pg_lsn"
                    " WHERE id = %s AND state = 'told'",
                    (lsn_text(applier.applied), *row),
                )
        await asyncio.sleep(LOOK_AGAIN)
    # First: as long as the row is there, it says that nothing more was applied.
    await looking.execute("DELETE FROM crossfade_sync.cuts WHERE id = %s", row)
    follower.limit(None)


async def _go_to(upto: Position, follower: Follower, until: float) -> None:
    follower.limit(upto)
    while not follower.is_at_its_limit and time.monotonic() < until:
        await follower.step()
