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
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import psycopg
from psycopg import errors, sql
from psycopg.pq import TransactionStatus

from dualwrite import quarantine
from dualwrite.change import ABSENT, Position, Row
from dualwrite.copy_text import copy_text, read_copy_text
from dualwrite.mapped import MappingFailedError, RowMapping, Touching, touched_rows
from dualwrite.pg_connect import connect, let_it_last
from dualwrite.pg_stream import lsn_text
from dualwrite.plan import Action, Op, Step, TargetTable, Work, named, shown, steps
from dualwrite.quarantine import Held, Kept
from dualwrite.staging import expected_to_be_small
from dualwrite.target import FencedError, StreamState, qualified, session_name, take_over

NOTHING: Final[Mapping[Touching, Sequence[Row]]] = MappingProxyType({})
STAGED_AFTER_A_CLASH: Final = 8
Aside: TypeAlias = dict[str, sql.Identifier]
"""By schema.table: a temporary table with rows that were taken out for a while."""
ORIGIN: Final = "crossfade_"
"""What the origin of all that is written here begins with."""
_WRITTEN_COLUMNS: Final = """
    SELECT attname FROM pg_attribute
     WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = ''
     ORDER BY attnum
"""
TRIES: Final = 5
"""To get the origin from a session that has been fenced."""
LET_GO_WITHIN: Final = 5
"""Seconds that the one before has to finish its transaction, before it is ended."""

_POISON: Final = (errors.DataError, errors.IntegrityError)
"""What one row can do wrong: a value that the target's type or constraint does not take."""


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


class FollowUpError(Exception):
    """Users' SQL that follows the rows has failed. Nothing of its transaction was written."""


class MissingRowError(Exception):
    """An update of a row that is not there: something was lost, or somebody else has deleted it."""


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
        self._stages: dict[object, str] = {}
        """Temporary tables of this session, by what they are for."""
        self._filled: set[str] = set()
        self._not_straight: dict[TargetTable, int] = {}
        """How often rows of a table go by way of a temporary one before the straight way is tried again."""

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
                await self._held_open.enter_async_context(self._one_transaction())
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
            except _POISON:
                try:
                    # Two rows may have swapped what is unique of each; then both have to go first.
                    return await self._write(task, clear=True)
                except _POISON as error:
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

        async def put(table: TargetTable, rows: Sequence[Row]) -> None:
            stage = await self._stage(table, [copy_text(rows)])
            await self._connection.execute(_put(table, stage))

        async def patch(table: TargetTable, rows: Sequence[Row]) -> None:
            for columns, some in _by_columns(table, rows).items():
                await self._patch(table, columns, some, whole=False)

        async def halves(
            write: Callable[[TargetTable, Sequence[Row]], Awaitable[None]],
            action: Action,
            table: TargetTable,
            rows: Sequence[Row],
        ) -> None:
            try:
                async with self._one_transaction():
                    await write(table, rows)
            except _POISON as error:
                if len(rows) == 1:
                    found.append((Op(action, table, table.key_of(rows[0]), rows[0]), _said(error)))
                    return
                half = len(rows) // 2
                await halves(write, action, table, rows[:half])
                await halves(write, action, table, rows[half:])

        async with self._one_transaction(force_rollback=True):
            for step in task.planned:
                for work in step.works:
                    await self._remove(work, clear=True)
                for work in step.works:
                    if (rows := (*work.adds, *work.puts)) and not work.table.partial:
                        await halves(put, Action.PUT, work.table, rows)
                for work in step.works:
                    if work.patches:
                        await halves(patch, Action.PATCH, work.table, work.patches)
                if step.last is not None:
                    try:
                        async with self._one_transaction():
                            await self._last(step.last)
                    except _POISON as error:
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
        async with self._one_transaction():
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
        async with self._one_transaction():
            await self._lock()
            if isinstance(what, Touching):
                await self._follow_up(what, made)
            elif what.table.partial:
                pass
            elif waits:
                written = await self._copy_what_is_taken(what, lines, kept, clash_may_pass)
                await quarantine.keep(self._connection, self._name, self.applied, kept)
            else:
                written = await self._copy_rows(what.table, made, binary)
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
            async with self._one_transaction():
                return await self._copy_rows(what.table, [b"".join(what.lines(lines))], binary=False)
        except (*_POISON, MappingFailedError) as error:
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

    async def _copy_rows(self, table: TargetTable, made: Sequence[bytes], binary: bool) -> int:
        """Those that are not there yet."""
        written = await self._copied_straight(table, made, binary)
        if written is None:
            stage = await self._stage(table, made, binary=binary)
            cursor = await self._connection.execute(_put(table, stage, instead=sql.SQL("NOTHING")))
            written = cursor.rowcount
        return written

    async def _copied_straight(self, table: TargetTable, made: Sequence[bytes], binary: bool) -> int | None:
        """Without a temporary table: how many rows; None where one is there already, and nothing was done."""
        if table.computed or self._not_straight.get(table, 0) > 0:
            self._not_straight[table] = self._not_straight.get(table, 0) - 1
            return None
        try:
            async with self._connection.transaction():
                columns = _list("{0}", table, range(len(table.columns)))
                return await self._copy_in(sql.SQL("{} ({})").format(_place(table), columns), made, binary)
        except errors.UniqueViolation:
            # Where one was, the next ones will be, too: the stream and a copy of the same rows.
            self._not_straight[table] = STAGED_AFTER_A_CLASH
            return None

    async def _copy_in(self, into: sql.Composable, lines: Sequence[bytes], binary: bool) -> int:
        form = sql.SQL("binary" if binary else "text")
        async with self._connection.cursor() as cursor:
            async with cursor.copy(sql.SQL("COPY {} FROM STDIN (FORMAT {})").format(into, form)) as copy:
                for line in lines:
                    await copy.write(line)
            return cursor.rowcount

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
        except (*_POISON, MappingFailedError) as error:
            if len(keys) > 1:
                by_key = {_source_key(what, line): line for line in lines}
                for key in keys:
                    line = by_key.get(tuple(key))
                    await self.repair(copy, what, [key], [] if line is None else [line])
                return
            if not lines:
                raise
            kept = _kept_line(what, lines[0], error)
            async with self._one_transaction():
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
        async with self._one_transaction():
            await self._lock()
            if isinstance(what, Touching):
                await self._follow_up(what, made)
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
                await self._patch(table, tuple(range(len(table.columns))), [row], whole=False)
            return
        present = {table.key_of(row) for row in there}
        wanted = (what.key_of_source(tuple(part.encode() for part in key)) for key in keys)
        gone = [op for key in wanted if key not in present for op in what.gone(key)]
        await self._carry_out(steps(gone), whole=False, clear=False)
        await self._carry_out([Step((Work(table, puts=list(there)),))], whole=False, clear=clear)

    async def _write(self, task: _Task, clear: bool = False) -> None:
        async with self._one_transaction():
            watched = await self._lock() if task.end is None else await self._move(task.end, task.heartbeat)
            await self._carry_out(task.planned, task.whole, clear)
            if watched and task.changed:
                await self._note_changed(task.changed)
            if task.kept:
                await quarantine.keep(self._connection, self._name, task.end or self.applied, task.kept)
            for touching, rows in sorted(task.touched.items(), key=lambda pair: pair[0].place):
                await self._follow_up(touching, [copy_text(touched_rows(touching, rows))])

    async def _follow_up(self, touching: Touching, lines: Sequence[bytes]) -> None:
        """What users have said of rows that were touched. Raises FollowUpError."""
        columns = ", ".join(f"{_quoted(name)} text" for name in touching.inputs)
        form = sql.SQL(f"({columns}, gone boolean) ON COMMIT DELETE ROWS")
        stage = await self._filled_stage(("touched", touching.place), form, lines)
        name = stage.as_string(self._connection)
        for statement in touching.follow_up.statements:
            try:
                await self._connection.execute(statement.replace("{touched}", name).encode())
            except (errors.ProgrammingError, *_POISON) as error:
                table, said = touching.follow_up.table, error.diag.message_primary or str(error)
                raise FollowUpError(f"the follow-up of {table} failed: {said}; in: {statement}") from error

    @asynccontextmanager
    async def _one_transaction(self, force_rollback: bool = False) -> AsyncIterator[None]:
        if self._connection.info.transaction_status is TransactionStatus.IDLE:
            self._filled.clear()
        known, stays = dict(self._stages), False
        try:
            async with self._connection.transaction(force_rollback=force_rollback):
                yield
            stays = not force_rollback
        finally:
            if not stays:
                # A temporary table goes with the transaction that made it.
                self._stages = known

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
        async with self._one_transaction(force_rollback=True):
            for op in ops:
                waits = op.table.quarantine is not None
                try:
                    async with self._one_transaction() if waits else nullcontext():
                        await self._carry_out(steps((op,)), whole, clear=False)
                except _POISON as error:
                    if not waits:
                        return PoisonError(op, error)
        return None

    async def _carry_out(self, planned: Sequence[Step], whole: bool, clear: bool) -> None:
        """With `clear` no row that is written keeps one of the others from what it is about to be."""
        for step in planned:
            for work in step.works:
                await self._remove(work, clear)
            aside: Aside = {}
            if clear:
                for work in step.works:
                    await self._set_aside(work, aside)
            for work in step.works:
                await self._put_rows(work, clear, aside.get(str(work.table)))
            # A row may be made by one mapping, and have columns filled by another.
            for work in step.works:
                there = aside.get(str(work.table))
                for columns, rows in _by_columns(work.table, work.patches).items():
                    await self._patch(work.table, columns, rows, whole and not work.table.partial, there)
            for table in {
                str(work.table): work.table for work in step.works if str(work.table) in aside
            }.values():
                await self._put_back(table, aside[str(table)])
            if step.last is not None:
                await self._last(step.last)

    async def _put_rows(self, work: Work, clear: bool, aside: sql.Identifier | None) -> None:
        table, puts = work.table, work.puts
        if table.partial:
            return
        if work.adds:
            made = copy_text(work.adds)
            if clear or await self._copied_straight(table, [made], binary=False) is None:
                await self._put_staged(table, made, aside)
        if puts:
            await self._put_staged(table, copy_text(puts), aside)

    async def _put_staged(self, table: TargetTable, made: bytes, aside: sql.Identifier | None) -> None:
        stage = await self._stage(table, [made])
        if aside is not None:
            # What is there keeps the columns that are the target's own.
            everything = tuple(range(len(table.columns)))
            await self._connection.execute(_update(table, aside, stage, everything))
            await self._compute(table, aside, stage)
            await self._connection.execute(
                sql.SQL("DELETE FROM {} t USING {} s WHERE {}").format(stage, aside, _same_key(table))
            )
        await self._connection.execute(_put(table, stage))

    async def _remove(self, work: Work, clear: bool) -> None:
        table = work.table
        written = (*work.puts, *work.adds) if clear and not table.others else ()
        if gone := [*work.removes, *map(table.key_of, written)]:
            stage = await self._stage(table, [copy_text(gone)], table.key)
            await self._connection.execute(
                sql.SQL("DELETE FROM {} t USING {} s WHERE {}").format(_place(table), stage, _same_key(table))
            )

    async def _set_aside(self, work: Work, aside: Aside) -> None:
        """Rows of which not all columns are written leave their table, whole, until all can be put back."""
        table = work.table
        rows = [*work.patches, *((*work.puts, *work.adds) if table.others and not table.partial else ())]
        if not rows:
            return
        keys = await self._stage(table, [copy_text(map(table.key_of, rows))], table.key)
        form = sql.SQL("(LIKE {}) ON COMMIT DELETE ROWS").format(_place(table))
        if str(table) not in aside:
            aside[str(table)] = await self._empty_stage(("aside", str(table)), form)
        await self._connection.execute(
            sql.SQL(
                "WITH gone AS (DELETE FROM {} t USING {} s WHERE {} RETURNING t.*)"
                " INSERT INTO {} SELECT * FROM gone"
            ).format(_place(table), keys, _same_key(table), aside[str(table)])
        )

    async def _put_back(self, table: TargetTable, aside: sql.Identifier) -> None:
        cursor = await self._connection.execute(
            _WRITTEN_COLUMNS, (_place(table).as_string(self._connection),)
        )
        names = [sql.Identifier(name) for (name,) in await cursor.fetchall()]
        columns = sql.SQL(", ").join(names)
        await self._connection.execute(
            sql.SQL("INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {}").format(
                _place(table), columns, columns, aside
            )
        )

    async def _patch(
        self,
        table: TargetTable,
        columns: tuple[int, ...],
        rows: Sequence[Row],
        whole: bool,
        aside: sql.Identifier | None = None,
    ) -> None:
        known = copy_text(tuple(row[at] for at in columns) for row in rows)
        stage = await self._stage(table, [known], columns)
        found = 0
        for place in (_place(table), aside):
            if place is not None:
                cursor = await self._connection.execute(_update(table, place, stage, columns))
                found += cursor.rowcount
                await self._compute(table, place, stage)
        if whole and found != len(rows):
            raise MissingRowError(f"{len(rows) - found} of {len(rows)} changed rows of {table} are not there")

    async def _compute(self, table: TargetTable, place: sql.Composable, stage: sql.Identifier) -> None:
        """What is computed from rows that have changed in part is computed from what they are now."""
        if not table.computed:
            return
        key = _list("{0}", table, table.key)
        expressions = [
            sql.SQL("({}) AS {}").format(sql.SQL(said), sql.Identifier(f"new {name}"))
            for name, said in table.computed
        ]
        sets = [
            sql.SQL("{} = s.{}").format(sql.Identifier(name), sql.Identifier(f"new {name}"))
            for name, _ in table.computed
        ]
        await self._connection.execute(
            sql.SQL(
                "UPDATE {} t SET {} FROM"
                " (SELECT {}, {} FROM {} given WHERE ({}) IN (SELECT {} FROM {})) s WHERE {}"
            ).format(
                place,
                sql.SQL(", ").join(sets),
                _list("given.{0}", table, table.key),
                sql.SQL(", ").join(expressions),
                place,
                _list("given.{0}", table, table.key),
                key,
                stage,
                _same_key(table),
            )
        )

    async def _last(self, op: Op) -> None:
        if op.action is Action.EMPTY:
            # TRUNCATE is refused where another table points here, whatever the session's role.
            await self._connection.execute(sql.SQL("DELETE FROM {}").format(_place(op.table)))
            return
        known = [at for at, value in enumerate(op.row) if value is not ABSENT]
        names = op.table.columns
        cursor = await self._connection.execute(
            sql.SQL("UPDATE {} SET {} WHERE {}").format(
                _place(op.table),
                sql.SQL(", ").join(sql.SQL("{} = %s").format(sql.Identifier(names[at])) for at in known),
                sql.SQL(" AND ").join(
                    sql.SQL("{} = %s").format(sql.Identifier(names[at])) for at in op.table.key
                ),
            ),
            [_literal(op.row[at]) for at in known] + [_literal(value) for value in op.key],
        )
        if not cursor.rowcount:
            # While the table is still being copied, too: the copy may have passed the new key already.
            raise MissingRowError(
                f"{op.table} has no row with key {shown(op.key)} to give another key to; with"
                " REPLICA IDENTITY FULL the source would have sent the whole row"
            )

    async def _stage(
        self,
        table: TargetTable,
        lines: Sequence[bytes],
        columns: tuple[int, ...] | None = None,
        *,
        binary: bool = False,
    ) -> sql.Identifier:
        """A temporary table with these columns, filled from lines of COPY; its types are the target's."""
        places = tuple(range(len(table.columns))) if columns is None else columns
        form = sql.SQL("ON COMMIT DELETE ROWS AS SELECT {} FROM {} WITH NO DATA").format(
            _list("{0}", table, places), _place(table)
        )
        return await self._filled_stage((table, places), form, lines, binary)

    async def _filled_stage(
        self, of: object, form: sql.Composable, lines: Sequence[bytes], binary: bool = False
    ) -> sql.Identifier:
        stage = await self._empty_stage(of, form)
        await self._copy_in(stage, lines, binary)
        return stage

    async def _empty_stage(self, of: object, form: sql.Composable) -> sql.Identifier:
        name = self._stages.get(of)
        if name is None:
            name = f"crossfade_stage_{len(self._stages)}"
            await self._connection.execute(
                sql.SQL("CREATE TEMP TABLE {} ").format(sql.Identifier(name)) + form
            )
            self._stages[of] = name
            await expected_to_be_small(self._connection, sql.Identifier(name))
        elif name in self._filled:
            await self._connection.execute(sql.SQL("TRUNCATE {}").format(sql.Identifier(name)))
            await expected_to_be_small(self._connection, sql.Identifier(name))
        self._filled.add(name)
        return sql.Identifier(name)


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


def _place(table: TargetTable) -> sql.Composed:
    return qualified(table.schema, table.name)


def _list(form: str, table: TargetTable, columns: Sequence[int]) -> sql.Composed:
    return sql.SQL(", ").join(sql.SQL(form).format(sql.Identifier(table.columns[at])) for at in columns)


def _same_key(table: TargetTable) -> sql.Composed:
    names = (sql.Identifier(table.columns[at]) for at in table.key)
    return sql.SQL(" AND ").join(sql.SQL("t.{0} = s.{0}").format(name) for name in names)


def _update(
    table: TargetTable, place: sql.Composable, stage: sql.Identifier, columns: Sequence[int]
) -> sql.Composed:
    """These columns of the rows that are there, from the stage."""
    return sql.SQL("UPDATE {} t SET {} FROM {} s WHERE {}").format(
        place,
        _list("{0} = s.{0}", table, [at for at in columns if at not in table.key] or columns),
        stage,
        _same_key(table),
    )


def _put(table: TargetTable, stage: sql.Identifier, instead: sql.Composable | None = None) -> sql.Composed:
    """Rows of the stage into the table; of a row that is there, all columns, unless it says what else."""
    key = {table.columns[at] for at in table.key}
    computed = [name for name, _ in table.computed]
    names = [*table.columns, *computed]
    values = [sql.SQL("given.{}").format(sql.Identifier(name)) for name in table.columns]
    expressions = [sql.SQL("(") + sql.SQL(said) + sql.SQL(")") for _, said in table.computed]
    if instead is None:
        rest = [sql.Identifier(name) for name in names if name not in key]
        sets = sql.SQL(", ").join(sql.SQL("{0} = EXCLUDED.{0}").format(name) for name in rest)
        instead = sql.SQL("UPDATE SET {}").format(sets) if rest else sql.SQL("NOTHING")
    return sql.SQL(
        "INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {} given ON CONFLICT ({}) DO {}"
    ).format(
        _place(table),
        sql.SQL(", ").join(map(sql.Identifier, names)),
        sql.SQL(", ").join((*values, *expressions)),
        stage,
        _list("{0}", table, table.key),
        instead,
    )


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _by_columns(table: TargetTable, rows: Sequence[Row]) -> dict[tuple[int, ...], list[Row]]:
    """Rows by the columns that they have."""
    found: dict[tuple[int, ...], list[Row]] = {}
    for row in rows:
        known = tuple(at for at in range(len(table.columns)) if row[at] is not ABSENT)
        found.setdefault(known, []).append(row)
    return found


def _keys_of(op: Op) -> list[tuple[str, ...]]:
    """Of the rows that it may change; an empty one is the whole table."""
    if op.action is Action.EMPTY:
        return [()]
    return [tuple(_literal(part) or "" for part in key) for key in quarantine.keys_of(op)]


def _literal(value: object) -> str | None:
    """As a parameter without a type, which the server reads as the column's."""
    return value.decode() if isinstance(value, bytes) else None
