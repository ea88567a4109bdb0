"""Who works on a stream: one process has a lease on it, all others stand by.

The lease is a row beside the stream, and its end is told by the database's clock alone. Its holder renews it
each second, from a thread of its own: a large transaction may keep the rest of a process busy for longer than
a lease lasts. With each taking goes a lock of the holder's session that carries the lease's number. A
process that was killed loses its session at once, so its successor needs not wait for the clock; the clock
is for a host that went without a word, or a process that stands still.

A lease is for promptness, and for peace among those who stand by. That nobody writes who has lost it rests on
the epoch, which each transaction of the apply checks (`target.take_over`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg import pq, sql

from dualwrite.pg_connect import connect

SECONDS: Final = 5
"""That a lease lasts."""
RENEW_EVERY: Final = 1.0
ANSWER_WITHIN: Final = 2.0
"""Seconds that the end of a process waits for a renewal under way."""

_KEY: Final = "hashtext('crossfade_sync.lease.' || %s), %s"
_TAKE: Final = """
    UPDATE crossfade_sync.leases SET number = %s, holder = %s, since = clock_timestamp(),
           until = clock_timestamp() + make_interval(secs => %s), tried = greatest(tried, %s)
     WHERE stream = %s AND number = %s
"""
_RENEW: Final = """
    UPDATE crossfade_sync.leases SET until = clock_timestamp() + make_interval(secs => {seconds})
     WHERE stream = {stream} AND number = {number}
    RETURNING coalesce((SELECT run FROM crossfade_sync.desired WHERE stream = {stream}
                         ORDER BY number DESC LIMIT 1), true)
"""


class LostError(Exception):
    """The lease is another's, or nobody shall have it; this process stands by again."""


@dataclass(frozen=True, slots=True)
class Held:
    """What the row of a lease says."""

    number: int
    holder: str
    alive: bool
    """By the database's clock."""
    tried: int
    """The newest desire (`desired.py`) under which somebody has taken it."""


NOBODY: Final = Held(0, "", alive=False, tried=0)


def this_process() -> str:
    """How others get to know who works."""
    return f"{socket.gethostname()}, pid {os.getpid()}"


async def look(looking: psycopg.AsyncConnection[Any], stream: str) -> Held:
    """Who has the lease, or had it last."""
    cursor = await looking.execute(
        "SELECT number, coalesce(holder, ''), until > clock_timestamp(), tried"
        " FROM crossfade_sync.leases WHERE stream = %s",
        (stream,),
    )
    row = await cursor.fetchone()
    return NOBODY if row is None else Held(*row)


class Lease:
    """One that was taken. It is renewed until it is lost or released."""

    def __init__(self, connection: psycopg.AsyncConnection[Any], stream: str, number: int) -> None:
        self._connection = connection
        self._stream = stream
        self._number = number
        self._stop = threading.Event()
        self._abandoned = False
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Why, once it is."""
        # Made here: in the thread nothing of psycopg's is used but libpq, which waits without our loop.
        renew = sql.SQL(_RENEW).format(
            stream=sql.Literal(stream), number=sql.Literal(number), seconds=sql.Literal(SECONDS)
        )
        self._renewal = renew.as_string(connection).encode()
        self._thread = threading.Thread(
            target=self._renew, args=(asyncio.get_running_loop(),), name=f"lease {stream}", daemon=True
        )
        self._thread.start()

    @classmethod
    async def take(
        cls, url: str, stream: str, holder: str, *, desire: int = 0, take_over: bool = False
    ) -> Lease | None:
        """The lease, or None while another process has it. `take_over` takes it from a living one.

        Raises psycopg.Error.
        """
        connection = await connect(url, f"crossfade lease {stream}")
        try:
            number = await _taken(connection, stream, holder, desire, take_over)
        except BaseException:
            await connection.close()
            raise
        if number is None:
            await connection.close()
            return None
        return cls(connection, stream, number)

    async def release(self) -> None:
        """Let another one have it at once. A connection that is gone has said so already."""
        self._stop.set()
        await asyncio.to_thread(self._thread.join, ANSWER_WITHIN)
        if self._thread.is_alive():
            # The server has gone silent. Whoever waits for its answer closes the connection then.
            self._abandoned = True
            return
        try:
            await self._connection.execute(
                "UPDATE crossfade_sync.leases SET until = '-infinity' WHERE stream = %s AND number = %s",
                (self._stream, self._number),
            )
        except psycopg.Error:
            pass
        finally:
            await self._connection.close()

    def _renew(self, loop: asyncio.AbstractEventLoop) -> None:
        """In a thread of its own, until it is lost or shall be renewed no more."""
        why = ""
        while not why and not self._stop.wait(RENEW_EVERY):
            result = self._connection.pgconn.exec_(self._renewal)
            if result.status != pq.ExecStatus.TUPLES_OK:
                said = result.error_message.decode().strip()
                why = f"the lease on {self._stream} cannot be renewed: {said}"
            elif not result.ntuples:
                why = f"another process has taken {self._stream}"
            elif result.get_value(0, 0) != b"t":
                why = f"{self._stream} shall not run any more"
        if self._abandoned:
            self._connection.pgconn.finish()
            return
        with contextlib.suppress(RuntimeError):  # nobody is there any more to be told
            loop.call_soon_threadsafe(self._lose, why)

    def _lose(self, why: str) -> None:
        if why and not self.lost.done():
            self.lost.set_result(why)


async def _taken(
    connection: psycopg.AsyncConnection[Any], stream: str, holder: str, desire: int, take_over: bool
) -> int | None:
    """The number of the lease, if it was there to be taken."""
    await connection.execute(
        "INSERT INTO crossfade_sync.leases (stream) VALUES (%s) ON CONFLICT DO NOTHING", (stream,)
    )
    found = await look(connection, stream)
    if found.alive and not take_over and not await is_free(connection, stream, found.number):
        return None
    number = found.number + 1
    # Before the row says so: whoever reads the number finds the lock of a living session.
    if not await _locked(connection, stream, number):
        return None
    cursor = await connection.execute(_TAKE, (number, holder, SECONDS, desire, stream, found.number))
    return number if cursor.rowcount else None


async def is_free(connection: psycopg.AsyncConnection[Any], stream: str, number: int) -> bool:
    """Whether the session that has taken this number is gone."""
    if not await _locked(connection, stream, number):
        return False
    await connection.execute(f"SELECT pg_advisory_unlock({_KEY})", (stream, number))
    return True


async def _locked(connection: psycopg.AsyncConnection[Any], stream: str, number: int) -> bool:
    cursor = await connection.execute(f"SELECT pg_try_advisory_lock({_KEY})", (stream, number))
    row = await cursor.fetchone()
    return row is not None and bool(row[0])
