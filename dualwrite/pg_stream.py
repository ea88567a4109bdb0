"""PostgreSQL's stream of changes, read through psycopg's replication connection.

psycopg has no replication API, but its `pq` layer carries the protocol (COPY BOTH): what is here is the talk
with the walsender. It is never left alone: the server ends a connection that does not answer within
`wal_sender_timeout`, so a task answers while the apply is busy.

Only what was applied is confirmed, and never what a keepalive mentions: at the next start the slot must not
stand behind the position that the target knows, or changes would be lost without a word. So an idle source
needs heartbeats (`heartbeat.py`) for its slot to move on.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import struct
import time
from collections import deque
from collections.abc import Callable
from typing import Final

import psycopg
from psycopg import pq

from dualwrite.capture import A_MOMENT, CaptureStopped
from dualwrite.change import Part, Position
from dualwrite.pg_connect import connect
from dualwrite.pgoutput import POSTGRES_EPOCH, Decoder, ProtocolError

SAY_SOMETHING_EVERY: Final = 5.0
"""Seconds; the server's patience is 60 by default."""
MESSAGES_A_TURN: Final = 400
"""Read in one turn of the event loop, so that the apply gets its turns, too; about twice what a local socket
holds. Whoever is slow to come back finds that the server has been waiting."""
ORIGIN_SINCE: Final = 160_000

_KEEPALIVE = struct.Struct("!QqB")
_STATUS = struct.Struct("!cQQQqB")

_REFUSALS: Final = {
    "55006": (
        "slot_in_use",
        "another process reads the slot; end it, or wait until the server has noticed",
        True,
    ),
    "42704": ("slot_missing", "the replication slot does not exist any more", False),
    "55000": ("slot_lost", "the replication slot cannot be read any more", False),
    "42501": ("missing_privilege", "the user may not read the stream; it needs REPLICATION", False),
    "57P01": ("source_ended", "the source has ended the stream", True),
    "57P02": ("source_ended", "the source has crashed and starts anew", True),
    "57P03": ("source_ended", "the source is starting or stopping", True),
    "53300": ("too_many_senders", "the source takes no more replication connections (max_wal_senders)", True),
}
"""By SQLSTATE: reason, what it means, and whether it may pass by itself."""


_FORBIDDEN: Final = re.compile(r"replication|wal ?sender", re.IGNORECASE)
_FULL: Final = re.compile(r"max_wal_senders|standby connections|starting up|shutting down")
"""What a server says when it refuses a connection has no SQLSTATE for us; such words are all there is."""


class PgStream:
    """One connection that streams the slot's changes from a position on.

    It reads ahead while the apply waits for the target, up to `read_ahead` changes.
    """

    def __init__(
        self, connection: psycopg.AsyncConnection, start: Position, most: int, read_ahead: int
    ) -> None:
        self._connection = connection
        self._pg = connection.pgconn
        self._socket = connection.pgconn.socket
        self._decoder = Decoder(most)
        self._read_ahead = read_ahead
        self._parts: deque[Part] = deque()
        self._changes = 0
        """How many are in `_parts`."""
        self._reading = False
        self._fault: CaptureStopped | None = None
        self._confirmed = start
        self._some = asyncio.Event()
        self._hear: Callable[[], None] = _nobody
        self._loop = asyncio.get_running_loop()
        self._talking: asyncio.Task[None] | None = None
        self.server_at: Position = start
        """How far the source has written, by its last word."""

    @classmethod
    async def open(
        cls,
        url: str,
        slot: str,
        publication: str,
        start: Position,
        *,
        most: int = 10_000,
        read_ahead: int = 20_000,
        also_ours: bool = False,
    ) -> PgStream:
        """Read `slot` from `start` on, or from where it was confirmed, if that is later.

        Our own apply marks its transactions with an origin, and such ones are left out at the source unless
        `also_ours` (a source older than PostgreSQL 16 sends them in any case, with the origin). Raises
        CaptureStopped.
        """
        connection = await connect_for_replication(url)
        try:
            version = connection.info.server_version
            options = ["proto_version '1'", "messages 'true'"]
            options.append(f"publication_names {_in_quotes(quoted(publication))}")
            if version >= ORIGIN_SINCE:
                options.append("origin 'any'" if also_ours else "origin 'none'")
            command = f'START_REPLICATION SLOT "{slot}" LOGICAL {lsn_text(start)} ({", ".join(options)})'
            await _start(connection.pgconn, command, slot)
        except psycopg.Error as error:
            await connection.close()
            raise lost(error) from None
        except BaseException:
            await connection.close()
            raise
        stream = cls(connection, start, most, read_ahead)
        connection.pgconn.nonblocking = 1
        stream._talking = asyncio.create_task(stream._talk())
        stream._read_on()
        return stream

    async def next(self, within: float = A_MOMENT) -> Part | None:
        if (part := self.ready()) is not None:
            return part
        self._some.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within):
                await self._some.wait()
        return self.ready()

    def ready(self) -> Part | None:
        if not self._parts:
            if self._fault is not None:
                raise self._fault
            return None
        part = self._parts.popleft()
        self._changes -= len(part.changes)
        if not self._reading and self._fault is None and self._changes < self._read_ahead // 2:
            self._read_on()
        return part

    def on_arrival(self, hear: Callable[[], None]) -> None:
        self._hear = hear

    async def confirm(self, position: Position) -> None:
        """Tell the source that it may forget what is before `position`; at once, since it is cheap."""
        self._confirmed = max(self._confirmed, position)
        self._say_where()

    async def close(self) -> None:
        if self._talking is not None:
            self._talking.cancel()
            await asyncio.gather(self._talking, return_exceptions=True)
        self._stop_reading()
        await self._connection.close()

    # Reading.

    def _read_on(self) -> None:
        self._reading = True
        self._loop.add_reader(self._socket, self._read)
        # What libpq has already read makes no socket readable.
        self._loop.call_soon(self._read)

    def _stop_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._socket)

    def _read(self) -> None:
        if not self._reading:
            return
        try:
            if not self._take_in():
                self._loop.call_soon(self._read)
            if self._parts:
                self._some.set()
                self._hear()
        except psycopg.Error as error:
            self._fail(lost(error))
        except ProtocolError as error:
            self._fail(
                CaptureStopped("not_understood", f"the source's stream: {error}; this is a fault of ours")
            )
        except CaptureStopped as fault:
            self._fail(fault)

    def _fail(self, fault: CaptureStopped) -> None:
        self._stop_reading()
        self._fault = fault
        self._some.set()

    def _take_in(self) -> bool:
        """Whether all that was here has been read. False: it was too much for one turn of the loop."""
        take, get, bytes_ = self._decoder.take, self._pg.get_copy_data, bytes
        # Once a turn: if more has come, the loop knows, and looking again in vain is a call to the kernel.
        self._pg.consume_input()
        for _ in range(MESSAGES_A_TURN):
            length, seen = get(1)
            if length == 0:
                return True
            if length < 0:
                raise self._ended()
            data = bytes_(seen)
            kind = data[0]
            if kind == 0x77:  # w: of the plugin, behind 24 bytes of positions and time
                part = take(data, 25)
                if part is not None:
                    self._keep(part)
                    if self._changes >= self._read_ahead:
                        self._stop_reading()
                        return True
            elif kind == 0x6B:  # k: the server lives, and may ask whether we do
                self._keepalive(data)
            else:
                raise ProtocolError(f"an unknown message {data[:1]!r}")
        return False

    def _keep(self, part: Part) -> None:
        if part.end is not None and part.end > self.server_at:
            self.server_at = part.end
        self._parts.append(part)
        self._changes += len(part.changes)

    def _keepalive(self, data: bytes) -> None:
        end, _, wants_answer = _KEEPALIVE.unpack_from(data, 1)
        self.server_at = max(self.server_at, end)
        if wants_answer:
            self._say_where()

    def _ended(self) -> CaptureStopped:
        result = self._pg.get_result()
        if result is None or result.status == pq.ExecStatus.COMMAND_OK:
            return CaptureStopped(
                "source_ended", "the source has ended the stream; it may be stopping", passing=True
            )
        return _refusal(result, "the stream")

    # Talking.

    async def _talk(self) -> None:
        while True:
            await asyncio.sleep(SAY_SOMETHING_EVERY)
            self._say_where()

    def _say_where(self) -> None:
        at = self._confirmed
        now = int((time.time() - POSTGRES_EPOCH) * 1_000_000)
        try:
            self._pg.put_copy_data(_STATUS.pack(b"r", at, at, at, now, 0))
            self._pg.flush()
        except psycopg.Error as error:
            self._fail(lost(error))


async def connect_for_replication(url: str) -> psycopg.AsyncConnection:
    """A connection on which replication commands can be said. Raises CaptureStopped."""
    try:
        return await connect(url, replication="database")
    except psycopg.Error as error:
        said = " ".join(str(error).split())
        if _FORBIDDEN.search(said) and not _FULL.search(said):
            raise CaptureStopped(
                "no_replication",
                f"the source lets nobody open a replication connection ({said}): let it (REPLICATION,"
                " pg_hba.conf, the pooler between), or say capture: peek at that side of data:",
            ) from None
        raise lost(error) from None


def lsn_text(position: Position) -> str:
    """As PostgreSQL writes it: 16/B374D848."""
    return f"{position >> 32:X}/{position & 0xFFFFFFFF:X}"


def lsn(text: str) -> Position:
    high, _, low = text.partition("/")
    return (int(high, 16) << 32) | int(low, 16)


async def _start(pg: pq.abc.PGconn, command: str, slot: str) -> None:
    pg.send_query(command.encode())
    while pg.is_busy():
        await _readable(pg.socket)
        pg.consume_input()
    result = pg.get_result()
    assert result is not None
    if result.status != pq.ExecStatus.COPY_BOTH:
        raise _refusal(result, f"slot {slot}")


async def _readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    here = asyncio.Event()
    loop.add_reader(descriptor, here.set)
    try:
        await here.wait()
    finally:
        loop.remove_reader(descriptor)


def _refusal(result: pq.abc.PGresult, what: str) -> CaptureStopped:
    state = (result.error_field(pq.DiagnosticField.SQLSTATE) or b"").decode()
    said = (result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or b"").decode()
    return refusal(state, said, what)


def refusal(state: str, said: str, what: str) -> CaptureStopped:
    """By the SQLSTATE of what the server has said."""
    reason, meaning, passing = _REFUSALS.get(state, ("stream_refused", "the source refuses to stream", False))
    return CaptureStopped(reason, f"{meaning} ({what}: {said})", passing=passing)


def lost(error: psycopg.Error) -> CaptureStopped:
    said = " ".join(str(error).split()) or type(error).__name__
    return CaptureStopped("source_unreachable", f"the connection to the source: {said}", passing=True)


def _nobody() -> None: ...


def quoted(name: str) -> str:
    """As an identifier."""
    return '"{}"'.format(name.replace('"', '""'))


def _in_quotes(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
