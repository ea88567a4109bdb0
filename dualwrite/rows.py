"""What is planned, as SQL: rows go through temporary tables, filled by COPY, into a target's tables.

It knows nothing of streams and positions; who calls it says what a transaction is (`apply.py`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, TypeAlias

import psycopg
from psycopg import errors, sql
from psycopg.pq import TransactionStatus

from dualwrite.change import ABSENT, Row
from dualwrite.copy_text import copy_text
from dualwrite.mapped import Touching
from dualwrite.plan import Action, Op, Step, TargetTable, Work, shown
from dualwrite.staging import expected_to_be_small
from dualwrite.target import qualified

STAGED_AFTER_A_CLASH: Final = 8
Aside: TypeAlias = dict[str, sql.Identifier]
"""By schema.table: a temporary table with rows that were taken out for a while."""
_WRITTEN_COLUMNS: Final = """
    SELECT attname FROM pg_attribute
     WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = ''
     ORDER BY attnum
"""
POISON: Final = (errors.DataError, errors.IntegrityError)
"""What one row can do wrong: a value that the target's type or constraint does not take."""


class FollowUpError(Exception):
    """Users' SQL that follows the rows has failed. Nothing of its transaction was written."""


class MissingRowError(Exception):
    """An update of a row that is not there: something was lost, or somebody else has deleted it."""


class RowWriter:
    """Writes rows by one connection. Its temporary tables stay as long as the connection does."""

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self._connection = connection
        self._stages: dict[object, str] = {}
        """Temporary tables of this session, by what they are for."""
        self._filled: set[str] = set()
        self._not_straight: dict[TargetTable, int] = {}
        """How often rows of a table go by way of a temporary one before the straight way is tried again."""

    @asynccontextmanager
    async def one_transaction(self, force_rollback: bool = False) -> AsyncIterator[None]:
        """Or a savepoint in the one that is open."""
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

    async def carry_out(self, planned: Sequence[Step], whole: bool, clear: bool) -> None:
        """With `clear` no row that is written keeps one of the others from what it is about to be."""
        for step in planned:
            for work in step.works:
                await self.remove(work, clear)
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
                    await self.patch(work.table, columns, rows, whole and not work.table.partial, there)
            for table in {
                str(work.table): work.table for work in step.works if str(work.table) in aside
            }.values():
                await self._put_back(table, aside[str(table)])
            if step.last is not None:
                await self.last(step.last)

    async def put(self, table: TargetTable, rows: Sequence[Row]) -> None:
        """Whole rows, whether they are there or not."""
        await self._connection.execute(_put(table, await self._stage(table, [copy_text(rows)])))

    async def patch_all(self, table: TargetTable, rows: Sequence[Row]) -> None:
        """Rows that have some columns each, as far as they are there."""
        for columns, some in _by_columns(table, rows).items():
            await self.patch(table, columns, some, whole=False)

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

    async def remove(self, work: Work, clear: bool) -> None:
        """What goes, and with `clear` what is to be written anew as well."""
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

    async def patch(
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

    async def last(self, op: Op) -> None:
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
            [literal(op.row[at]) for at in known] + [literal(value) for value in op.key],
        )
        if not cursor.rowcount:
            # While the table is still being copied, too: the copy may have passed the new key already.
            raise MissingRowError(
                f"{op.table} has no row with key {shown(op.key)} to give another key to; with"
                " REPLICA IDENTITY FULL the source would have sent the whole row"
            )

    async def follow_up(self, touching: Touching, lines: Sequence[bytes]) -> None:
        """What users have said of rows that were touched. Raises FollowUpError."""
        columns = ", ".join(f"{_quoted(name)} text" for name in touching.inputs)
        form = sql.SQL(f"({columns}, gone boolean) ON COMMIT DELETE ROWS")
        stage = await self._filled_stage(("touched", touching.place), form, lines)
        name = stage.as_string(self._connection)
        for statement in touching.follow_up.statements:
            try:
                await self._connection.execute(statement.replace("{touched}", name).encode())
            except (errors.ProgrammingError, *POISON) as error:
                table, said = touching.follow_up.table, error.diag.message_primary or str(error)
                raise FollowUpError(f"the follow-up of {table} failed: {said}; in: {statement}") from error

    async def copy(self, table: TargetTable, made: Sequence[bytes], binary: bool) -> int:
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


def literal(value: object) -> str | None:
    """As a parameter without a type, which the server reads as the column's."""
    return value.decode() if isinstance(value, bytes) else None
