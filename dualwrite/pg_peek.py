"""PostgreSQL's changes, asked for in SQL: for hosts that allow no replication connection.

The same slot, the same plugin and the same decoder as the stream (`pg_stream.py`), but each question has the
server decode anew from the slot's `restart_lsn` on. So a question is asked only when the log has grown, only
so often that the server spends at most half of its time with it, and for a bounded number of changes.

A question is answered in whole transactions. They are fetched through a cursor, some thousand messages at a
time: a large transaction is on the server's disk, and not in our memory. The slot moves on by
`pg_replication_slot_advance`, to what was applied and not further. After a crash of the source it may stand
where it stood before; then transactions come again, and those that were handed out already are left out here.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

import psycopg
from psycopg import errors, sql

from dualwrite.capture import A_MOMENT, CaptureStopped
from dualwrite.change import Part, Position
from dualwrite.pg_connect import connect
from dualwrite.pg_stream import ORIGIN_SINCE, lost, lsn, lsn_text, quoted, refusal
from dualwrite.pgoutput import Decoder, ProtocolError

POLL_EVERY: Final = 0.1
"""Seconds between two questions, at the least."""
AT_ONCE: Final = 20_000
"""Messages that a question asks for. With fewer, a backlog is decoded from its beginning more often."""
FETCH: Final = 2_000
"""Messages that are fetched at a time."""

_SESSION: Final = (
    "SELECT set_config('idle_in_transaction_session_timeout', '0', false),"
    " set_config('statement_timeout', '0', false)"
)
"""A large transaction may be applied for longer than a host lets sessions wait."""


class PgPeek:
    """One session that asks for the slot's changes from a position on."""

    def __init__(
        self, connection: psycopg.AsyncConnection[Any], slot: str, options: Sequence[str], start: Position,
        most: int, at_once: int,
    ) -> None:  # fmt: skip
        self._connection = connection
        self._slot = slot
        self._options = options
        self._most = most
        self._at_once = at_once
        self._decoder = Decoder(most)
        self._parts: deque[Part] = deque()
        self._is_open = False
        """Whether the answer to a question is being fetched."""
        self._fetched = 0
        self._found_new = False
        self._read: Position = start
        """The end of the last transaction that was handed out, or of what was applied before."""
        self._confirmed: Position = 0
        self._wanted: Position = start
        self._unconfirmed: deque[tuple[Position, int]] = deque()
        """What was handed out, and comes again until it is confirmed: its end, and how many messages."""
        self._messages = 0
        self._seen = ""
        """How far the log was written when the last question found nothing."""
        self._not_before = 0.0

    @classmethod
    async def open(
        cls,
        url: str,
        slot: str,
        publication: str,
        start: Position,
        *,
        most: int = 10_000,
        at_once: int = AT_ONCE,
        also_ours: bool = False,
    ) -> PgPeek:
        """Read `slot` from `start` on, or from where it was confirmed; as `PgStream.open`."""
        try:
            connection = await connect(url)
        except psycopg.Error as error:
            raise lost(error) from None
        options = ["proto_version", "1", "messages", "true", "publication_names", quoted(publication)]
        if connection.info.server_version >= ORIGIN_SINCE:
            options += ["origin", "any" if also_ours else "none"]
        found = cls(connection, slot, options, start, most, at_once)
        try:
            await connection.execute(_SESSION)
            await found._begin()
        except psycopg.Error as error:
            await connection.close()
            raise found._why(error) from None
        except BaseException:
            await connection.close()
            raise
        return found

    def on_arrival(self, hear: Callable[[], None]) -> None:
        """Nothing comes that nobody has asked for, so there is nothing to hear."""

    async def next(self, within: float = A_MOMENT) -> Part | None:
        if (part := self.ready()) is not None:
            return part
        try:
            if not self._is_open and not await self._ask():
                await asyncio.sleep(within)
                return None
            while not self._parts and self._is_open:
                await self._fetch()
        except psycopg.Error as error:
            raise self._why(error) from None
        except ProtocolError as error:
            raise CaptureStopped(
                "not_understood", f"the source's changes: {error}; this is a fault of ours"
            ) from None
        return self.ready()

    def ready(self) -> Part | None:
        return self._parts.popleft() if self._parts else None

    async def confirm(self, position: Position) -> None:
        """Have the source forget what is before `position`; while an answer is fetched, afterwards."""
        self._wanted = max(self._wanted, position)
        if self._is_open:
            return
        try:
            await self._advance()
        except psycopg.Error as error:
            raise self._why(error) from None

    async def close(self) -> None:
        if not self._is_open and self._wanted > self._confirmed:
            with contextlib.suppress(psycopg.Error):
                await self._advance()
        await self._connection.close()

    async def _begin(self) -> None:
        """Raises CaptureStopped where there is no such slot; what was applied already is confirmed."""
        row = await self._one(
            "SELECT coalesce(confirmed_flush_lsn, '0/0')::text, wal_status FROM pg_replication_slots"
            " WHERE slot_name = %s",
            (self._slot,),
        )
        if row is None:
            raise CaptureStopped("slot_missing", f"the replication slot {self._slot} does not exist any more")
        self._confirmed = lsn(row[0])
        await self._advance()

    async def _ask(self) -> bool:
        """Put a question, unless it is too early or nothing was written; whether one was put."""
        if time.monotonic() < self._not_before:
            return False
        if self._wanted > self._confirmed:
            await self._advance()
        row = await self._one("SELECT pg_current_wal_flush_lsn()::text")
        assert row is not None
        if row[0] == self._seen:
            self._not_before = time.monotonic() + POLL_EVERY
            return False
        began = time.monotonic()
        again = sum(messages for _, messages in self._unconfirmed)
        await self._connection.execute("BEGIN")
        await self._connection.execute(
            sql.SQL(
                "DECLARE peek NO SCROLL CURSOR FOR"
                " SELECT data FROM pg_logical_slot_peek_binary_changes({}, NULL, {}, {})"
            ).format(
                sql.Literal(self._slot),
                sql.Literal(again + self._at_once),
                sql.SQL(", ").join(map(sql.Literal, self._options)),
            )
        )
        # A relation is described once for each question.
        self._decoder = Decoder(self._most)
        self._is_open, self._fetched, self._found_new = True, 0, False
        await self._fetch()
        took = time.monotonic() - began
        self._not_before = time.monotonic() + max(POLL_EVERY, took)
        if not self._is_open and not self._found_new:
            self._seen = row[0]
        elif self._fetched >= self._at_once or self._is_open:
            self._not_before = 0.0
        return True

    async def _fetch(self) -> None:
        cursor = await self._connection.execute(f"FETCH {FETCH} FROM peek", binary=True)
        rows: Sequence[tuple[bytes]] = await cursor.fetchall()
        for (payload,) in rows:
            self._messages += 1
            part = self._decoder.take(payload)
            if part is None:
                continue
            if part.at >= self._read:
                self._parts.append(part)
                self._found_new = True
            if part.end is not None:
                if part.at >= self._read:
                    self._read = part.end
                    self._unconfirmed.append((part.end, self._messages))
                self._messages = 0
        self._fetched += len(rows)
        if len(rows) < FETCH:
            self._is_open = False
            await self._connection.execute("COMMIT")

    async def _advance(self) -> None:
        while self._unconfirmed and self._unconfirmed[0][0] <= self._wanted:
            self._unconfirmed.popleft()
        if self._wanted <= self._confirmed:
            return
        await self._connection.execute(
            "SELECT pg_replication_slot_advance(%s, %s::pg_lsn)", (self._slot, lsn_text(self._wanted))
        )
        self._confirmed = self._wanted

    async def _one(self, query: str, values: Sequence[Any] = ()) -> Any:
        return await (await self._connection.execute(query, values)).fetchone()

    def _why(self, error: psycopg.Error) -> CaptureStopped:
        if error.sqlstate is None or (isinstance(error, errors.OperationalError) and self._connection.closed):
            return lost(error)
        return refusal(error.sqlstate, error.diag.message_primary or str(error), f"slot {self._slot}")
