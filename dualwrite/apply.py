"""Write what a source has said into the target: rows, position and epoch in one transaction.

The order within a target transaction:

1. the stream's row is locked by moving its position on, and its epoch checked: a process that was replaced
   while it slept ends here;
2. what the plan says, table by table, through temporary tables filled by COPY;
3. COMMIT. Only then may the source be told.

A large source transaction is written in several goes, each in a savepoint; its last one moves the position.

The session runs as `session_replication_role = replica`, as PostgreSQL's own apply does: triggers of the
target must not do again what the source's application has done, and rows of one transaction may come in any
order. It carries a replication origin, so that what is written here is never sent back, and so that no
second session can write under the same name.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, nullcontext, suppress
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final

import psycopg
from psycopg import errors

from dualwrite import quarantine
from dualwrite.change import Position, Row
from dualwrite.copy_text import copy_text, read_copy_text
from dualwrite.mapped import MappingFailedError, RowMapping, Touching, touched_rows
from dualwrite.pg_connect import connect, let_it_last
from dualwrite.pg_stream import lsn_text
from dualwrite.plan import Action, Op, Step, TargetTable, Work, named, shown, steps
from dualwrite.quarantine import Held, Kept
from dualwrite.rows import POISON, RowWriter, literal
from dualwrite.target import FencedError, StreamState, session_name, take_over

NOTHING: Final[Mapping[Touching, Sequence[Row]]] = MappingProxyType({})
ORIGIN: Final = "crossfade_"
"""What the origin of all that is written here begins with."""
TRIES: Final = 5
"""To get the origin from a session that has been fenced."""
LET_GO_WITHIN: Final = 5
"""Seconds that the one before has to finish its transaction, before it is ended."""


class PoisonError(Exception):
    """A row that the target does not take. Nothing of its transaction was written."""

    def __init__(self, op: Op, error: psycopg.Error) -> None:
        super().__init__(
            f"{op.table} does not take the row with key {shown(op.key or op.row)}: {_said(error)}"
        )
        self.op = op
        self.error = error


class ClashError(Exception):
    """What is unique of a row is still another row's. Nothing was written; it may pass (`Applier.apply`)."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """How far a table has been copied: all keys up to `upto`, of those up to `bound`."""

    upto: list[str] | None
    bound: list[str]
    done: bool


class Applier:
    """The one session that writes a stream's changes to the target."""

    def __init__(self, connection: psycopg.AsyncConnection[Any], taken: StreamState, held: Held) -> None:
        self.held = held
        """What waits in quarantine."""
        self._holding: Held = held
        """The same, once the target transaction that is open is committed."""
        self._connection = connection
        self._name = taken.name
        self._epoch = taken.epoch
        self.applied: Position = taken.applied
        self.heartbeat = taken.heartbeat
        """Number of the last heartbeat that was applied."""
        self._held_open: AsyncExitStack | None = None
        """The target transaction of a source transaction that is written in several goes."""
        self._rows = RowWriter(connection)

    @classmethod
    async def open(cls, url: str, name: str, epoch: int) -> Applier:
        """Take the stream over. Raises FencedError, LookupError, and psycopg.Error."""
        connection = await connect(url, session_name(name))
        try:
            taken = await _taken_over(connection, name, epoch)
            await _mark_as_ours(connection, name)
            held = await quarantine.held(connection, name)
        except BaseException:
            await connection.close()
            raise
        return cls(connection, taken, held)

    async def close(self) -> None:
        """A transaction that is open is rolled back."""
        held, self._held_open = self._held_open, None
        if held is not None:
            ended = asyncio.CancelledError()
            with suppress(asyncio.CancelledError, psycopg.Error):
                await held.__aexit__(type(ended), ended, None)
        await self._connection.close()

    async def apply(
        self,
        ops: Sequence[Op],
        end: Position | None,
        touched: Mapping[Touching, Sequence[Row]] = NOTHING,
        *,
        planned: Sequence[Step] | None = None,
        heartbeat: int | None = None,
        whole: bool = True,
        clash_may_pass: bool = False,
    ) -> None:
        """Write `ops`, all of source transactions up to `end`, and commit. Nothing happens if that was done.

        `end` is None where more of the same source transaction follows: then the target transaction stays
        open, and only `apply` may be called next. `planned` is what follows from `ops`, where somebody has
        thought about it already. `touched` are the rows that follow-ups look at, once all is written.

        `whole` says that every row of these tables has been copied, so that an update without its row is a
        fault. What the target does not take, and what follows it, goes into quarantine where the table's
        policy says so. `clash_may_pass`: rows are being copied, which are newer than what the stream has
        brought, so a unique value of theirs may be another row's until the stream brings more; then
        ClashError is raised instead, and the same has to be asked for together with what comes next.

        Raises PoisonError, MissingRowError, FencedError, ContradictionError, and psycopg.Error where the
        target is at fault; after any of them nothing was written, unless the connection broke during the
        commit itself, which the position tells when it is read again.
        """
        if self._held_open is None and end is not None and end <= self.applied:
            return
        task = _Task(ops, planned or (), touched, end, heartbeat, whole, ops, clash_may_pass)
        if planned is None or self._holding:
            task, self._holding = _sifted(task, self._holding)
        try:
            if end is None and self._held_open is None:
                self._held_open = AsyncExitStack()
                await self._held_open.enter_async_context(self._rows.one_transaction())
            await self._written(task)
        except BaseException as error:
            held, self._held_open = self._held_open, None
            self._holding = self.held
            if held is not None:
                await held.__aexit__(type(error), error, error.__traceback__)
            raise
        if end is None:
            return
        held, self._held_open = self._held_open, None
        if held is not None:
            await held.aclose()
        self.held = self._holding
        self.applied = end
        if heartbeat is not None:
            self.heartbeat = heartbeat

    async def _written(self, task: _Task) -> None:
        while True:
            try:
                return await self._write(task)
            except POISON:
                try:
                    # Two rows may have swapped what is unique of each; then both have to go first.
                    return await self._write(task, clear=True)
                except POISON as error:
                    if task.clash_may_pass and isinstance(error, errors.UniqueViolation):
                        raise ClashError(_said(error)) from error
                    task = await self._without_poison(task, error)

    async def _without_poison(self, task: _Task, error: psycopg.Error) -> _Task:
        """What is left of it where the policy lets the rows wait that were refused. Raises PoisonError."""
        refused = await self._refused(task) if any(op.table.quarantine for op in task.ops) else []
        if not refused or any(op.table.quarantine is None for op, _ in refused):
            raise await self._poison(task.ops, task.whole) or error from None
        waits = {
            (op.table.quarantine or "", key): said for op, said in refused for key in quarantine.keys_of(op)
        }
        # All of a row's changes here wait, since nobody knows which of them it was. Of a large transaction
        # earlier parts are written already; what is written anew in the end is right all the same.
        rest, kept, self._holding = quarantine.sifted(task.ops, self._holding | waits.keys())
        if len(rest) == len(task.ops):
            raise error
        kept = [one._replace(error=waits.get((one.copy, one.key), one.error)) for one in kept]
        return replace(task, ops=rest, planned=steps(rest), kept=(*task.kept, *kept))

    async def _refused(self, task: _Task) -> list[tuple[Op, str]]:
        """Rows that the target does not take, looked for by halves. All is rolled back."""
        found: list[tuple[Op, str]] = []

        async def halves(
            write: Callable[[TargetTable, Sequence[Row]], Awaitable[None]],
            action: Action,
            table: TargetTable,
            rows: Sequence[Row],
        ) -> None:
            try:
                async with self._rows.one_transaction():
                    await write(table, rows)
            except POISON as error:
                if len(rows) == 1:
                    found.append((Op(action, table, table.key_of(rows[0]), rows[0]), _said(error)))
                    return
                half = len(rows) // 2
                await halves(write, action, table, rows[:half])
                await halves(write, action, table, rows[half:])

        async with self._rows.one_transaction(force_rollback=True):
            for step in task.planned:
                for work in step.works:
                    await self._rows.remove(work, clear=True)
                for work in step.works:
                    if (rows := (*work.adds, *work.puts)) and not work.table.partial:
                        await halves(self._rows.put, Action.PUT, work.table, rows)
                for work in step.works:
                    if work.patches:
                        await halves(self._rows.patch_all, Action.PATCH, work.table, work.patches)
                if step.last is not None:
                    try:
                        async with self._rows.one_transaction():
                            await self._rows.last(step.last)
                    except POISON as error:
                        found.append((step.last, _said(error)))
        return found

    async def chunk(self, copy: str) -> Chunk | None:
        """How far a copy has come; None where it has not begun."""
        cursor = await self._connection.execute(
            "SELECT upto, bound, done FROM crossfade_sync.copies WHERE stream = %s AND copy = %s",
            (self._name, copy),
        )
        row = await cursor.fetchone()
        return None if row is None else Chunk(row[0], row[1] or [], row[2])

    async def begin_copy(self, copy: str, bound: list[str] | None) -> Chunk:
        """Note that a copy begins, and where it will end. Without a bound there is nothing to copy."""
        async with self._rows.one_transaction():
            await self._lock()
            await self._connection.execute(
                "INSERT INTO crossfade_sync.copies (stream, copy, bound, done) VALUES (%s, %s, %s, %s)",
                (self._name, copy, bound, bound is None),
            )
        return Chunk(None, bound or [], bound is None)

    async def copy_chunk(
        self,
        copy: str,
        what: RowMapping | Touching,
        upto: list[str] | None,
        lines: Sequence[bytes],
        *,
        binary: bool = False,
        clash_may_pass: bool = False,
    ) -> int:
        """Write a chunk and how far it goes (None: to the end). Rows that the stream has brought stay.

        `lines` are what COPY says of the source's rows, in text or in binary. How many rows were written.
        `clash_may_pass`: raise UniqueViolation also where the policy lets rows wait, since the stream may yet
        bring that the value is free. Raises FencedError, MappingFailedError, FollowUpError and psycopg.Error;
        then nothing was.
        """
        written, kept = 0, list[Kept]()
        waits = not isinstance(what, Touching) and what.table.quarantine is not None
        made = [] if waits else [b"".join(what.lines(lines))]
        async with self._rows.one_transaction():
            await self._lock()
            if isinstance(what, Touching):
                await self._rows.follow_up(what, made)
            elif what.table.partial:
                pass
            elif waits:
                written = await self._copy_what_is_taken(what, lines, kept, clash_may_pass)
                await quarantine.keep(self._connection, self._name, self.applied, kept)
            else:
                written = await self._rows.copy(what.table, made, binary)
            await self._connection.execute(
                "UPDATE crossfade_sync.copies SET upto = coalesce(%s, bound), done = %s, rows = rows + %s"
                " WHERE stream = %s AND copy = %s",
                (upto, upto is None, written, self._name, copy),
            )
        self._hold(kept)
        return written

    def _hold(self, kept: Sequence[Kept]) -> None:
        self.held = self._holding = self.held | {(one.copy, one.key) for one in kept}

    async def _copy_what_is_taken(
        self, what: RowMapping, lines: Sequence[bytes], kept: list[Kept], clash_may_pass: bool
    ) -> int:
        """By halves, until what is refused is one row."""
        try:
            async with self._rows.one_transaction():
                return await self._rows.copy(what.table, [b"".join(what.lines(lines))], binary=False)
        except (*POISON, MappingFailedError) as error:
            if clash_may_pass and isinstance(error, errors.UniqueViolation):
                raise
            if len(lines) == 1:
                kept.append(_kept_line(what, lines[0], error))
                return 0
        half = len(lines) // 2
        written = 0
        for some in (lines[:half], lines[half:]):
            written += await self._copy_what_is_taken(what, some, kept, clash_may_pass)
        return written

    async def repairs(self, most: int) -> tuple[str, list[list[str]]] | None:
        """Rows of one copy that wait to be written anew, by their keys at the source."""
        cursor = await self._connection.execute(
            "SELECT copy, key FROM crossfade_sync.repairs WHERE stream = %s ORDER BY copy, key LIMIT %s",
            (self._name, most),
        )
        rows = await cursor.fetchall()
        return (rows[0][0], [key for copy, key in rows if copy == rows[0][0]]) if rows else None

    async def repair(
        self,
        copy: str,
        what: RowMapping | Touching | None,
        keys: Sequence[Sequence[str]],
        lines: Sequence[bytes],
    ) -> None:
        """Write these rows over what is there; those of which there is no line go. Raises as copy_chunk.

        What was in quarantine has left it then; what is refused again stays there.
        """
        if what is None or isinstance(what, Touching) or what.table.quarantine is None:
            await self._repair(copy, what, keys, lines)
            return
        try:
            try:
                await self._repair(copy, what, keys, lines)
            except errors.UniqueViolation:
                await self._repair(copy, what, keys, lines, clear=True)
        except (*POISON, MappingFailedError) as error:
            if len(keys) > 1:
                by_key = {_source_key(what, line): line for line in lines}
                for key in keys:
                    line = by_key.get(tuple(key))
                    await self.repair(copy, what, [key], [] if line is None else [line])
                return
            if not lines:
                raise
            kept = _kept_line(what, lines[0], error)
            async with self._rows.one_transaction():
                await self._lock()
                await quarantine.keep(self._connection, self._name, self.applied, [kept])
                await self._no_more_to_repair(copy, keys)
            self._hold([kept])

    async def _repair(
        self,
        copy: str,
        what: RowMapping | Touching | None,
        keys: Sequence[Sequence[str]],
        lines: Sequence[bytes],
        clear: bool = False,
    ) -> None:
        settled: list[Row] = []
        made = [] if what is None else what.lines(lines)
        async with self._rows.one_transaction():
            await self._lock()
            if isinstance(what, Touching):
                await self._rows.follow_up(what, made)
            elif what is not None:
                await self._write_over(what, keys, made, clear)
                if what.table.quarantine is not None:
                    settled = [what.key_of_source(tuple(part.encode() for part in key)) for key in keys]
                    await quarantine.settle(self._connection, self._name, copy, settled)
            await self._no_more_to_repair(copy, keys)
        self.held = self._holding = self.held - {(copy, key) for key in settled}

    async def _no_more_to_repair(self, copy: str, keys: Sequence[Sequence[str]]) -> None:
        async with self._connection.cursor() as cursor:
            await cursor.executemany(
                "DELETE FROM crossfade_sync.repairs WHERE stream = %s AND copy = %s AND key = %s",
                [(self._name, copy, list(key)) for key in keys],
            )

    async def _write_over(
        self, what: RowMapping, keys: Sequence[Sequence[str]], made: Sequence[bytes], clear: bool
    ) -> None:
        table = what.table
        there = [read_copy_text(line) for block in made for line in block.splitlines(keepends=True)]
        if table.partial:
            for row in there:
                await self._rows.patch(table, tuple(range(len(table.columns))), [row], whole=False)
            return
        present = {table.key_of(row) for row in there}
        wanted = (what.key_of_source(tuple(part.encode() for part in key)) for key in keys)
        gone = [op for key in wanted if key not in present for op in what.gone(key)]
        await self._rows.carry_out(steps(gone), whole=False, clear=False)
        await self._rows.carry_out([Step((Work(table, puts=list(there)),))], whole=False, clear=clear)

    async def _write(self, task: _Task, clear: bool = False) -> None:
        async with self._rows.one_transaction():
            watched = await self._lock() if task.end is None else await self._move(task.end, task.heartbeat)
            await self._rows.carry_out(task.planned, task.whole, clear)
            if watched and task.changed:
                await self._note_changed(task.changed)
            if task.kept:
                await quarantine.keep(self._connection, self._name, task.end or self.applied, task.kept)
            for touching, rows in sorted(task.touched.items(), key=lambda pair: pair[0].place):
                await self._rows.follow_up(touching, [copy_text(touched_rows(touching, rows))])

    async def _note_changed(self, ops: Sequence[Op]) -> None:
        """For a cutover that compares them once more (`rest.py`)."""
        keys = {(str(op.table), key) for op in ops for key in _keys_of(op)}
        said = json.dumps([[table, list(key)] for table, key in sorted(keys)])
        await self._connection.execute(
            "INSERT INTO crossfade_sync.changed (stream, tbl, key) SELECT %s, one->>0,"
            " ARRAY(SELECT jsonb_array_elements_text(one->1)) FROM jsonb_array_elements(%s::jsonb) one"
            " ON CONFLICT DO NOTHING",
            (self._name, said),
        )

    async def _lock(self) -> bool:
        """Make sure that the stream is ours; whether somebody wants to know which rows change."""
        cursor = await self._connection.execute(
            "SELECT epoch, watched FROM crossfade_sync.streams WHERE name = %s FOR UPDATE", (self._name,)
        )
        return await self._watched(cursor)

    async def _move(self, end: Position, heartbeat: int | None) -> bool:
        """As `_lock`, and note how far the stream is once this transaction has been committed."""
        cursor = await self._connection.execute(
            "UPDATE crossfade_sync.streams SET applied = %s::pg_lsn, at = now(),"
            " heartbeat = coalesce(%s, heartbeat) WHERE name = %s RETURNING epoch, watched",
            (lsn_text(end), heartbeat, self._name),
        )
        return await self._watched(cursor)

    async def _watched(self, cursor: psycopg.AsyncCursor[Any]) -> bool:
        row = await cursor.fetchone()
        if row is None or row[0] != self._epoch:
            held = "nobody" if row is None else f"epoch {row[0]}"
            raise FencedError(f"stream {self._name} is held by {held}, and not by {self._epoch} any more")
        return bool(row[1])

    async def _poison(self, ops: Sequence[Op], whole: bool) -> PoisonError | None:
        """The first row that is refused and may not wait, by one after the other. All is rolled back."""
        async with self._rows.one_transaction(force_rollback=True):
            for op in ops:
                waits = op.table.quarantine is not None
                try:
                    async with self._rows.one_transaction() if waits else nullcontext():
                        await self._rows.carry_out(steps((op,)), whole, clear=False)
                except POISON as error:
                    if not waits:
                        return PoisonError(op, error)
        return None


@dataclass(frozen=True, slots=True)
class _Task:
    """What one target transaction has to do."""

    ops: Sequence[Op]
    planned: Sequence[Step]
    touched: Mapping[Touching, Sequence[Row]]
    end: Position | None
    heartbeat: int | None
    whole: bool
    changed: Sequence[Op]
    """All that has come, also what is not written."""
    clash_may_pass: bool = False
    kept: Sequence[Kept] = ()
    """Changes that go into quarantine instead."""


def _sifted(task: _Task, held: Held) -> tuple[_Task, Held]:
    """What is left of it when changes wait that follow what waits; all that waits then."""
    rest, kept, now = quarantine.sifted(task.ops, held)
    return replace(task, ops=rest, planned=steps(rest), kept=kept), now


def _said(error: Exception) -> str:
    return (error.diag.message_primary if isinstance(error, psycopg.Error) else None) or str(error)


async def _taken_over(connection: psycopg.AsyncConnection[Any], name: str, epoch: int) -> StreamState:
    """As `take_over`. One before that holds on to its transaction is ended: its process may be asleep."""
    await connection.execute("SELECT set_config('lock_timeout', %s, false)", (f"{LET_GO_WITHIN}s",))
    try:
        return await take_over(connection, name, epoch)
    except errors.LockNotAvailable:
        await _end_the_one_before(connection, name)
    finally:
        await connection.execute("RESET lock_timeout")
    return await take_over(connection, name, epoch)


async def _end_the_one_before(connection: psycopg.AsyncConnection[Any], name: str) -> None:
    await connection.execute(
        "SELECT pg_terminate_backend(pid, 1000) FROM pg_stat_activity"
        " WHERE application_name = %s AND pid <> pg_backend_pid()",
        (session_name(name),),
    )


async def _mark_as_ours(connection: psycopg.AsyncConnection[Any], name: str) -> None:
    """Let each transaction of this session carry our origin, and let no trigger of the application fire."""
    origin = f"{ORIGIN}{name}"
    await connection.execute(
        "SELECT pg_replication_origin_create(%s) WHERE pg_replication_origin_oid(%s) IS NULL",
        (origin, origin),
    )
    for attempt in range(TRIES):
        try:
            await connection.execute("SELECT pg_replication_origin_session_setup(%s)", (origin,))
            break
        except errors.ObjectInUse:
            # The one before, which is fenced by now, still holds the origin. It can commit nothing.
            if attempt == TRIES - 1:
                raise
            await _end_the_one_before(connection, name)
    await connection.execute("SET session_replication_role = replica")
    # What is told to the source as applied is forgotten there.
    await let_it_last(connection)


def _source_key(what: RowMapping, line: bytes) -> tuple[str, ...]:
    row = read_copy_text(line)
    return tuple((row[at] or b"").decode() for at in what.table.key)


def _kept_line(what: RowMapping, line: bytes, error: Exception) -> Kept:
    """Raises MappingFailedError where not even the key can be told."""
    key = what.key_of_source(tuple(part.encode() for part in _source_key(what, line)))
    row = json.dumps(named(what.inputs, read_copy_text(line)))
    return Kept(what.table.quarantine or "", key, Action.KEEP.value, row, _said(error))


def _keys_of(op: Op) -> list[tuple[str, ...]]:
    """Of the rows that it may change; an empty one is the whole table."""
    if op.action is Action.EMPTY:
        return [()]
    return [tuple(literal(part) or "" for part in key) for key in quarantine.keys_of(op)]
