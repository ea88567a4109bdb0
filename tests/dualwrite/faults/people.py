"""Those who write to the source, and somebody who looks at the target all the time."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Any, Final

import psycopg
from psycopg import errors

from tests.dualwrite.faults.ground import HOLDERS, LARGE, LOG, SEATS, SLOT, STREAM, VAULTS, Ground, Server
from tests.dualwrite.faults.history import Done, History, Seen

Connection = psycopg.AsyncConnection[Any]

PATIENT: Final = "-c synchronous_commit=on -c lock_timeout=20s -c statement_timeout=25s"
"""What takes longer is harm that was done to the application."""
_ITS_OWN: Final = (errors.DeadlockDetected, errors.UniqueViolation)
"""Between two writers."""
_REST: Final = 0.03
"""Seconds between two looks."""
_numbers = itertools.count()
_LOOK: Final = f"""
    SELECT (applied - '0/0')::bigint, epoch, whole,
           (SELECT sum(cents) FROM wallets) + (SELECT sum(cents) FROM vaults),
           (SELECT json_object_agg(id, items) FROM lists WHERE id LIKE %(run)s),
           (SELECT json_object_agg(list, said) FROM (SELECT list, array_agg(said ORDER BY id) said FROM log
             WHERE list LIKE %(run)s GROUP BY list) l)
      FROM crossfade_sync.streams WHERE name = '{STREAM}'
"""


class People:
    """`history` is of this run alone: its lists are new ones, and begin with `run`."""

    def __init__(self, ground: Ground, chance: random.Random) -> None:
        self._ground = ground
        self._chance = chance
        self.run = f"run {next(_numbers)} "
        self.history = History()
        self._values = itertools.count()
        self._over = False
        self._moved = asyncio.Event()
        self.away = False
        """The source is not there, by our own doing."""
        self.rest = 0.05
        self.wander = True
        """Whether unique values go from row to row, once all rows are there."""
        self._open: Done
        self._whole = False

    @contextlib.asynccontextmanager
    async def at_work(self, writers: int = 2) -> AsyncIterator[People]:
        await self._ground.source.do(
            f"INSERT INTO lists SELECT '{self.run}' || i, '', repeat('f', {LARGE}), 0"
            " FROM generate_series(1, 5) i"
        )
        tasks = [asyncio.create_task(self._writes(f"writer {number}")) for number in range(writers)]
        tasks.append(asyncio.create_task(self._looks()))
        try:
            yield self
        finally:
            self._over = True
            await asyncio.gather(*tasks)

    async def grow_by(self, number: int) -> None:
        """Until so many more transactions have been committed."""
        goal = len(self.history.done) + number
        async with asyncio.timeout(60):
            while len(self.history.done) < goal:
                self._moved.clear()
                await self._moved.wait()

    # Writing.

    async def _writes(self, writer: str) -> None:
        while not self._over:
            try:
                async with await psycopg.AsyncConnection.connect(
                    self._ground.source.url, options=PATIENT, application_name=writer
                ) as connection:
                    while not self._over:
                        await self.write(connection, writer)
                        await asyncio.sleep(self.rest)
            except psycopg.OperationalError as error:
                if not self.away:
                    self.history.harmed.append(f"{writer}: {error}")
                await asyncio.sleep(0.05)

    async def write(self, connection: Connection, writer: str) -> None:
        """One transaction; the history knows how it ended. Raises OperationalError where it does not."""
        one: Done | None = None
        try:
            async with connection.transaction():
                changes = _CHANGES if self._whole and self.wander else _WHILE_COPYING
                key = f"{self.run}{self._chance.randint(1, 4)}"
                one = await self._change(connection, writer, key, self._chance.choices(changes, k=2))
            await self._committed(connection, one)
        except _ITS_OWN:
            if one is not None:
                self.history.done.remove(one)
        except (errors.LockNotAvailable, errors.QueryCanceled) as error:
            self.history.harmed.append(f"{writer}: {error}")

    async def begin(self, connection: Connection, writer: str) -> None:
        """A transaction that stays open until `finish`; only one at a time, for its list is its own."""
        self._open = await self._change(connection, writer, f"{self.run}5", ())

    async def finish(self, connection: Connection) -> None:
        await connection.commit()
        await self._committed(connection, self._open)

    async def _change(self, connection: Connection, writer: str, key: str, changes: Sequence[Change]) -> Done:
        """What may have been committed from now on without our hearing of it."""
        value, told = f"{next(self._values)}", f"{next(self._values)}"
        for each in changes:
            await each(connection, self._chance)
        await connection.execute(
            "UPDATE lists SET items = items || %s || ' ', seen = seen + 1 WHERE id = %s", (value, key)
        )
        log = f"{self.run}log of {writer}"
        await connection.execute("INSERT INTO log (list, said, more) VALUES (%s, %s, %s)", (log, told, "x"))
        one = Done(writer, ((key, value), (log, told)), await _position(connection), None)
        self.history.done.append(one)
        return one

    async def _committed(self, connection: Connection, one: Done) -> None:
        after = await _position(connection)
        await connection.rollback()
        self.history.done[self.history.done.index(one)] = replace(one, after=after)
        self._moved.set()

    # Looking.

    async def _looks(self) -> None:
        while not self._over:
            with contextlib.suppress(psycopg.OperationalError):
                async with await self._connected(self._ground.target) as target:
                    while not self._over:
                        await self._look_from(target)
            await asyncio.sleep(_REST)

    async def _look_from(self, target: Connection) -> None:
        """As long as the source is there, and as long as it is not."""
        try:
            source = await self._connected(self._ground.source)
        except psycopg.OperationalError:
            await self.look(target, None)
            await asyncio.sleep(_REST)
            return
        async with source:
            while not self._over and not source.broken:
                await self.look(target, source)
                await asyncio.sleep(_REST)

    async def _connected(self, to: Server) -> Connection:
        return await psycopg.AsyncConnection.connect(to.url, autocommit=True)

    async def look(self, target: Connection, source: Connection | None) -> None:
        # First, because what is applied grows meanwhile.
        confirmed = None if source is None else await _confirmed(source)
        with contextlib.suppress(errors.UndefinedTable):
            row = await (await target.execute(_LOOK, {"run": f"{self.run}%"})).fetchone()
            if row is not None:
                applied, epoch, whole, total, lists, log = row
                self._whole = whole
                items = {**split(lists or {}), **(log or {})}
                self.history.seen.append(Seen(applied, confirmed, epoch, whole, total, items))


async def _confirmed(source: Connection) -> int | None:
    with contextlib.suppress(psycopg.OperationalError):
        query = "SELECT (confirmed_flush_lsn - '0/0')::bigint FROM pg_replication_slots WHERE slot_name = %s"
        row = await (await source.execute(query, (SLOT,))).fetchone()
        return None if row is None else row[0]
    return None


def split(lists: dict[str, str]) -> dict[str, list[str]]:
    return {key: items.split() for key, items in lists.items()}


async def _position(connection: Connection) -> int:
    cursor = await connection.execute("SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint")
    row = await cursor.fetchone()
    assert row is not None
    return int(row[0])


Change = Callable[[Connection, random.Random], Any]


async def transfer(connection: Connection, chance: random.Random) -> None:
    """Between two tables of the source, which are three at the target."""
    holder, vault, cents = chance.randint(1, HOLDERS), chance.randint(1, VAULTS), chance.randint(-9, 9)
    await connection.execute("UPDATE holders SET cents = cents - %s WHERE id = %s", (cents, holder))
    await connection.execute("UPDATE vaults SET cents = cents + %s WHERE id = %s", (cents, vault))


async def swap(connection: Connection, chance: random.Random) -> None:
    """Two rows exchange what is unique of each."""
    one, other = sorted(chance.sample(range(1, SEATS + 1), 2))
    cursor = await connection.execute(
        "SELECT id, place FROM seats WHERE id = ANY(%s) ORDER BY id FOR UPDATE", ([one, other],)
    )
    found = dict(await cursor.fetchall())
    if len(found) == 2:
        await connection.execute("UPDATE seats SET place = %s WHERE id = %s", (f"~{one}", one))
        await connection.execute("UPDATE seats SET place = %s WHERE id = %s", (found[one], other))
        await connection.execute("UPDATE seats SET place = %s WHERE id = %s", (found[other], one))


async def leave_and_return(connection: Connection, chance: random.Random) -> None:
    """A row goes, another one comes under the same key, or under a key of its own."""
    seat = chance.randint(1, SEATS)
    await connection.execute("DELETE FROM seats WHERE id = %s", (seat,))
    if chance.random() < 0.7:
        place = f"new {chance.getrandbits(60)}"
        body = chance.choice(["short", "c" * LARGE, None])
        await connection.execute(
            "INSERT INTO seats VALUES (%s, %s, %s) ON CONFLICT DO NOTHING", (seat, place, body)
        )


async def move(connection: Connection, chance: random.Random) -> None:
    """Another key for a row, its large value unchanged."""
    await connection.execute(
        "UPDATE seats SET id = %s WHERE id = %s AND NOT EXISTS (SELECT FROM seats WHERE id = %s)",
        (to := SEATS + chance.randint(1, SEATS), chance.randint(1, SEATS), to),
    )


async def touch(connection: Connection, chance: random.Random) -> None:
    """A row with large values of which this says nothing."""
    await connection.execute(
        "UPDATE lists SET seen = seen + 1 WHERE id = %s", (f"old {chance.randint(1, 60)}",)
    )


async def strike(connection: Connection, chance: random.Random) -> None:
    """One of the rows that were there before goes."""
    await connection.execute("DELETE FROM log WHERE id = %s AND list = 'before'", (chance.randint(1, LOG),))


async def rename(connection: Connection, chance: random.Random) -> None:
    name = f"name {chance.getrandbits(30)}"
    await connection.execute("UPDATE holders SET name = %s WHERE id = %s", (name, chance.randint(1, HOLDERS)))


_WHILE_COPYING: Final = (transfer, transfer, leave_and_return, touch, strike, rename)
_CHANGES: Final = (*_WHILE_COPYING, swap, move)
"""Unique values that wander from row to row can clash while rows of several moments are there."""
