"""Compare both sides' rows while both are written to, and say only what is sure.

First everything is compared as it stands: where both sides write values alike, by sums of hashes in buckets,
of which only those that differ are looked into; else the source's rows are mapped and compared in the target.
Both sides are read at different moments, so what differs then is only suspected. Each suspect is read once
more: the row at the source, then, when the stream has brought all that was written until then, the row at the
target, and then the source's again. One that has not changed meanwhile and still differs is a difference. Not
the values tell that it has not changed (a balance goes up and down again) but which version of the row it is;
one that is not there has no version, and has to be found so twice.

On the way back both sides are compared by the same mapping as on the way there: what one side writes in two
ways and the other in one (NULL and '') is no difference, whichever is written to. Only what is read first
changes places: it is always the side that is written to (`backwards`).
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

import psycopg
from psycopg import errors, sql

from dualwrite import desired, heartbeat, lease, pg_source, target
from dualwrite.backfill import copy_name, key_of
from dualwrite.change import Row, Value
from dualwrite.copy_text import copy_text, read_copy_text
from dualwrite.cut import Cut, CutAt
from dualwrite.mapped import Mapped, MappingFailedError, RowMapping, SourceTable
from dualwrite.pg_chunks import shown
from dualwrite.pg_connect import connect
from dualwrite.plan import Copying, TargetTable
from dualwrite.repair import read_rows
from dualwrite.row_hash import Column, Form, common_type, form_for
from dualwrite.segments import Half, Key, Progress, differing
from dualwrite.staging import expected_to_be_small
from dualwrite.stream_states import State
from dualwrite.target import qualified

ROUNDS: Final = 6
"""How often a suspect that keeps changing is read."""
AT_ONCE: Final = 1_000
"""Suspects that are read in one go."""
MOST: Final = 100_000
"""Suspects of one table beyond which comparing it ends: it was never copied, or mapped otherwise."""
LOOK_AGAIN: Final = 0.01
"""Seconds between two looks at how far the stream has come."""
PATIENCE: Final = 30.0
"""Seconds that the stream has to bring what was written."""
LOOK_WHO: Final = 0.2
"""Seconds between two looks at who works on the stream, while it is waited for."""
SEEN_WITHIN: Final = 3.0
"""Seconds that what hangs in its commit, for a standby, is waited for."""
NOBODY_FOR: Final = 3.0
"""Seconds that a stream is left without a process where the next one takes over by itself."""
TOLD_AFTER: Final = 2.0
"""Seconds of waiting after which it is told that the stream is waited for."""

Connection = psycopg.AsyncConnection[Any]
_numbers = itertools.count()
_VERSION: Final = ("xmin", "ctid")


class NotFollowingError(Exception):
    """The stream does not bring what was written, so nothing can be said of rows that differ."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A row that is not as the source has it. `columns` are those of the target; values are not told."""

    kind: str
    """missing (in the target), extra, or different."""
    key: Key
    """At the target."""
    source_key: Key | None
    columns: tuple[str, ...] = ()


@dataclass(slots=True)
class Compared:
    """What is known of one table and mapping."""

    name: str
    """As `backfill.copy_name`."""
    rows: int = 0
    """At the source."""
    rows_before: int = 0
    """Of these, such as another process has compared before this one went on."""
    suspected: int = 0
    differences: list[Difference] = field(default_factory=list)
    unsettled: int = 0
    """Rows that changed each time that they were read."""
    seconds: float = 0.0
    """That it took."""
    form: Form | None = None
    """How rows were hashed; None: each was mapped and compared by itself."""
    segments: int = 0
    """Parts whose sums were compared."""
    cut_short: bool = False
    """So many rows differ that comparing ended there."""
    cut: CutAt | None = None
    """The one moment at which both sides were compared; None: each row at a moment of its own."""

    @property
    def equal(self) -> bool:
        return not self.differences and not self.unsettled


def _told(_: Progress) -> None:
    """Nobody asks."""


def _waits(_: str) -> None:
    """Nobody asks."""


@dataclass(frozen=True, slots=True)
class Going:
    """How a comparison is to go on, and who is told how far it is."""

    portable: bool = False
    """Hash rows as any two servers can, even where these two have a quicker way."""
    progress: Progress = field(default_factory=Progress)
    """Where another process has ended; it changes as this one goes on."""
    told: Callable[[Progress], None] = _told
    pace: int | None = None
    """Rows a second, at most."""
    waits: Callable[[str], None] = _waits
    """Is told for what it waits, where that takes long."""

    def by_pace(self) -> Callable[[Progress], Awaitable[None]]:
        """Tells, and then waits as long as the pace wants it."""
        begun, before = time.monotonic(), self.progress.rows

        async def told(progress: Progress) -> None:
            self.told(progress)
            if self.pace is not None:
                due = begun + (progress.rows - before) / self.pace
                await asyncio.sleep(max(0.0, due - time.monotonic()))

        return told


async def compare(
    stream: str,
    source_url: str,
    target_url: str,
    table: SourceTable,
    mapping: RowMapping,
    *,
    rounds: int = ROUNDS,
    backwards: bool = False,
    going: Going | None = None,
) -> Compared:
    """Compare the rows of one mapping; a row that changes all the time is read in so many rounds.

    `backwards`: the mapping's target is written to, and `stream` brings that to its source.

    Raises NotFollowingError, MappingFailedError and psycopg.Error.
    """
    began = time.monotonic()
    source = await connect(source_url)
    try:
        looking = await connect(target_url)
        try:
            one = Comparison(stream, source, looking, table.name, mapping, backwards=backwards)
            found = await one.run(rounds, going or Going())
            found.seconds = time.monotonic() - began
            return found
        finally:
            await looking.close()
    finally:
        await source.close()


async def compare_at(
    cut: Cut,
    table: SourceTable,
    mapping: RowMapping,
    *,
    backwards: bool = False,
    going: Going | None = None,
) -> Compared:
    """As `compare`, with both sides as they were at one moment: what differs there is a difference.

    Raises MappingFailedError and psycopg.Error.
    """
    began = time.monotonic()
    source, looking = (cut.fed, cut.written) if backwards else (cut.written, cut.fed)
    one = Comparison(cut.at.stream, source, looking, table.name, mapping, backwards=backwards)
    found = await one.at_one_moment(going or Going())
    found.seconds, found.cut = time.monotonic() - began, cut.at
    return found


class _Version(NamedTuple):
    """A row at the source: its values, and by which transaction it was written, and where it lies."""

    line: bytes
    version: tuple[bytes, ...]


class Comparison:
    """Of one mapping, by two connections; may be asked again and again."""

    def __init__(
        self,
        stream: str,
        source: Connection,
        looking: Connection,
        table: str,
        mapping: RowMapping,
        *,
        backwards: bool,
    ) -> None:
        self._stream = stream
        self._written, self._fed = (looking, source) if backwards else (source, looking)
        """The side that is written to, and the one that the stream goes to."""
        self._backwards = backwards
        self._source = source
        self._looking = looking
        self._table = table
        self._mapping = mapping
        self._found = Compared(copy_name(table, mapping))
        number = next(_numbers)
        self._expected = sql.Identifier(f"crossfade_expected_{number}")
        self._wanted = sql.Identifier(f"crossfade_wanted_{number}")
        """Temporary tables, which stay as long as the connection: making one takes longer than using it."""
        self._staged = False
        self._at_rest = False
        self._waits: Callable[[str], None] = _waits
        self._gone: set[Key] = set()
        """Keys at the source that were not there when they were looked for."""
        self._standbys: bool | None = None
        """Whether commits on the written side wait for any; None until it was asked."""
        self._long: frozenset[int] = frozenset()
        """Transactions there that were waited for in vain."""

    async def run(self, rounds: int, going: Going) -> Compared:
        self._waits = going.waits
        return await self.settle(await self.suspects(going), rounds)

    async def suspects(self, going: Going) -> list[Key]:
        """Keys at the target of rows that differ as both sides stand now, each at its own moment."""
        mapping = self._mapping
        columns = await self._written_alike(mapping) if isinstance(mapping, Copying) else []
        if isinstance(mapping, Copying) and columns:
            return await self._by_segments(mapping, columns, going)
        return await self._by_rows(going)

    async def again(self, keys: Sequence[Key], rounds: int, *, at_rest: bool) -> Compared:
        """What is sure of these rows, by their keys at the target. `at_rest`: nobody writes.

        Raises as `compare`.
        """
        self._found = Compared(self._found.name)
        self._gone.clear()
        return await self.settle(keys, rounds, at_rest=at_rest)

    async def at_one_moment(self, going: Going) -> Compared:
        """Both connections show one and the same: nothing is read twice."""
        keys = self._with_a_source(await self.suspects(going))
        for start in range(0, len(keys), AT_ONCE):
            some = keys[start : start + AT_ONCE]
            by_key = {_text(self._mapping.key_of_source(_row(key))): key for key in some}
            for one in await self._as_mapped((await self._at_source(some)).values(), list(by_key)):
                key = by_key[self._known(one.key, by_key)]
                self._found.differences.append(Difference(one.kind, one.key, key, one.columns))
        return self._found

    async def settle(self, suspects: Sequence[Key], rounds: int, *, at_rest: bool = False) -> Compared:
        self._at_rest = at_rest
        keys = self._with_a_source(suspects)
        for _ in range(rounds):
            left: list[Key] = []
            for start in range(0, len(keys), AT_ONCE):
                left += await self._settle(keys[start : start + AT_ONCE])
            keys = left
            if not keys:
                break
        self._found.unsettled = len(keys)
        return self._found

    def _with_a_source(self, suspects: Sequence[Key]) -> list[Key]:
        """Their keys at the source. What can have none there is noted as too much."""
        mapping = self._mapping
        self._found.suspected = len(suspects)
        keys: list[Key] = []
        for key in suspects:
            back = mapping.source_key_of(tuple(part.encode() for part in key))
            if back is None:
                self._found.differences.append(Difference("extra", key, None))
            else:
                keys.append(_text(back))
        return keys

    # Suspects, by their keys at the target.

    async def _by_segments(
        self, mapping: Copying, columns: Sequence[tuple[Column, Column]], going: Going
    ) -> list[Key]:
        form = Form.PORTABLE if going.portable else await form_for(self._source, self._looking)
        ours, theirs = zip(*columns, strict=True)
        halves = []
        for where, table, columns_, key in (
            (self._source, self._table, ours, key_of(mapping)),
            (self._looking, str(mapping.table), theirs, _key(mapping.table)),
        ):
            types = await pg_source.column_types(where, table)
            named = tuple(Column(name, types[name]) for name in key)
            utf8 = where.info.parameter_status("server_encoding") == "UTF8"
            halves.append(Half(where, table, columns_, named, utf8))
        progress = going.progress.of_this(f"{form} {self._found.name} {ours} {theirs}")
        self._found.rows_before = progress.rows
        found = await differing(halves[0], halves[1], form, progress, MOST, going.by_pace())
        self._found.form = form
        self._found.rows = progress.rows
        self._found.segments = progress.segments
        self._found.cut_short = progress.cut_short
        return found

    async def _written_alike(self, mapping: Copying) -> list[tuple[Column, Column]]:
        """The columns of both sides, if equal values of them have equal texts; else none."""
        ours = await pg_source.column_types(self._source, self._table)
        theirs = await pg_source.column_types(self._looking, str(mapping.table))
        pairs = [
            (one, other, common_type(ours.get(one), theirs.get(other)))
            for one, other in zip(mapping.inputs, mapping.table.columns, strict=True)
        ]
        found = [(Column(one, kind), Column(other, kind)) for one, other, kind in pairs if kind is not None]
        return found if len(found) == len(pairs) else []

    async def _by_rows(self, going: Going) -> list[Key]:
        """All rows, mapped and compared in the target; one that ends on the way begins anew."""
        progress = going.progress.of_this("")
        told = going.by_pace()
        progress.about = await pg_source.rows_about(self._source, self._table)
        query = sql.SQL("COPY {} ({}) TO STDOUT").format(
            _place(self._table), sql.SQL(", ").join(map(sql.Identifier, self._mapping.read))
        )
        await self._stage()
        async with self._looking.transaction(force_rollback=True):
            async with (
                self._source.cursor().copy(query) as reading,
                self._filling(self._expected) as writing,
            ):
                batch: list[bytes] = []
                async for line in reading:
                    batch.append(bytes(line))
                    if len(batch) >= AT_ONCE:
                        await self._pass_on(writing, batch)
                        progress.rows = self._found.rows
                        await told(progress)
                        batch = []
                await self._pass_on(writing, batch)
            found = await self._differences(None)
        return sorted(one.key for one in found)

    async def _pass_on(self, writing: psycopg.AsyncCopy, batch: Sequence[bytes]) -> None:
        self._found.rows += len(batch)
        for line in self._mapping.lines(batch):
            await writing.write(line)

    # What is expected, compared with what is there.

    async def _stage(self) -> None:
        """Have the temporary tables, with the target's types; outside of any transaction."""
        if self._staged:
            return
        table = self._mapping.table
        for name, columns in ((self._expected, table.columns), (self._wanted, _key(table))):
            await self._looking.execute(
                sql.SQL("CREATE TEMP TABLE {} AS SELECT {} FROM {} WITH NO DATA").format(
                    name, sql.SQL(", ").join(map(sql.Identifier, columns)), _place(str(table))
                )
            )
            await expected_to_be_small(self._looking, name)
        self._staged = True

    def _filling(self, table: sql.Identifier) -> AbstractAsyncContextManager[psycopg.AsyncCopy]:
        return self._looking.cursor().copy(sql.SQL("COPY {} FROM STDIN").format(table))

    async def _differences(self, keys: Sequence[Key] | None) -> list[Difference]:
        """Where the table is not as was expected; of these keys, or of all."""
        table = self._mapping.table
        key = _key(table)
        there: list[sql.Composable] = [sql.SQL("true")]
        place = _place(str(table))
        names = sql.SQL(", ").join(map(sql.Identifier, key))
        if keys is not None:
            async with self._filling(self._wanted) as writing:
                await writing.write(copy_text([_row(one) for one in keys]))
            there.append(sql.SQL("({}) IN (SELECT {} FROM {})").format(names, names, self._wanted))
        if isinstance(self._mapping, Mapped) and self._mapping.mark is not None:
            alive = self._mapping.mark[0].decode()
            there.append(sql.SQL("{} = {}").format(_as_text("t", table.columns[-1]), sql.Literal(alive)))
        values = [
            sql.SQL("ARRAY[{}]").format(sql.SQL(", ").join(_as_text(row, name) for name in table.columns))
            if isinstance(self._mapping, Mapped)
            else sql.SQL("NULL::text[]")
            for row in "et"
        ]
        query = sql.SQL(
            "SELECT ARRAY[{keys}], e.{first} IS NULL, t.{first} IS NULL, ARRAY[{differ}], {values}"
            " FROM {expected} e FULL JOIN (SELECT * FROM {place} t WHERE {there}) t ON {same}"
            " WHERE e.{first} IS NULL OR t.{first} IS NULL OR true = ANY(ARRAY[{differ}])"
        ).format(
            expected=self._expected,
            keys=sql.SQL(", ").join(
                sql.SQL("coalesce({}, {})").format(_as_text("e", name), _as_text("t", name)) for name in key
            ),
            first=sql.Identifier(key[0]),
            values=sql.SQL(", ").join(values),
            differ=sql.SQL(", ").join(
                sql.SQL("{} IS DISTINCT FROM {}").format(_as_text("e", name), _as_text("t", name))
                for name in table.columns
            ),
            place=place,
            there=sql.SQL(" AND ").join(there),
            same=sql.SQL(" AND ").join(sql.SQL("e.{0} = t.{0}").format(sql.Identifier(name)) for name in key),
        )
        if keys is not None:
            # Few, and people may be waiting.
            return await self._told_apart(await (await self._looking.execute(query)).fetchall())
        found: list[Difference] = []
        async with self._looking.cursor(name="crossfade_differences") as cursor:
            await cursor.execute(query)
            while len(found) < MOST and (rows := await cursor.fetchmany(AT_ONCE)):
                found += await self._told_apart(rows)
        self._found.cut_short |= len(found) >= MOST
        return found

    async def _told_apart(self, rows: Sequence[Any]) -> list[Difference]:
        """What rows of the two tables joined tell."""
        table = self._mapping.table
        found, values = [], []
        for keys, extra, missing, differ, wanted, is_there in rows:
            if extra and table.partial:
                continue
            columns = tuple(name for name, is_so in zip(table.columns, differ, strict=True) if is_so)
            kind = "extra" if extra else "missing" if missing else "different"
            found.append(Difference(kind, tuple(keys), None, () if kind != "different" else columns))
            values.append((wanted, is_there))
        return await self._meant_otherwise(found, values) if isinstance(self._mapping, Mapped) else found

    async def _meant_otherwise(
        self, found: Sequence[Difference], values: Sequence[tuple[Sequence[str | None], Sequence[str | None]]]
    ) -> list[Difference]:
        """Without those columns whose values stand for the same (`Mapped.means`), and rows of which none is
        left. `values` are what was expected of each row, and what is there."""
        assert isinstance(self._mapping, Mapped)
        pairs: dict[str, list[tuple[int, str | None, str | None]]] = {}
        for number, (one, (wanted, is_there)) in enumerate(zip(found, values, strict=True)):
            for name in one.columns:
                at = self._mapping.table.columns.index(name)
                if at < len(self._mapping.conversions):
                    means = _as_str(self._mapping.means(at, _as_value(is_there[at])))
                    pairs.setdefault(name, []).append((number, wanted[at], means))
        alike: dict[int, set[str]] = {}
        for name, rows in pairs.items():
            for number in await self._same_values(name, rows):
                alike.setdefault(number, set()).add(name)
        left = []
        for number, one in enumerate(found):
            columns = tuple(name for name in one.columns if name not in alike.get(number, ()))
            if columns or one.kind != "different":
                left.append(replace(one, columns=columns))
        return left

    async def _same_values(
        self, column: str, rows: Sequence[tuple[int, str | None, str | None]]
    ) -> list[int]:
        """The numbers of those whose two texts are one value of this column."""
        types = await pg_source.column_types(self._looking, str(self._mapping.table))
        numbers, ones, others = (list(part) for part in zip(*rows, strict=True))
        query = sql.SQL(
            "SELECT n FROM unnest(%s::int[], %s::text[], %s::text[]) AS u (n, one, other)"
            " WHERE one::{0} IS NOT DISTINCT FROM other::{0}"
        ).format(sql.SQL(types[column]))
        try:
            async with self._looking.transaction():
                cursor = await self._looking.execute(query, (numbers, ones, others))
                return [number for (number,) in await cursor.fetchall()]
        except errors.DataError:
            # A function of the mapping has said what the column cannot hold.
            return [number for number, one, other in rows if one == other]

    # Suspects settled.

    async def _settle(self, keys: Sequence[Key]) -> list[Key]:
        """Note those that differ for sure; those that have changed meanwhile come back."""
        by_key = {_text(self._mapping.key_of_source(_row(key))): key for key in keys}
        before: Mapping[Key, _Version | None]
        if self._backwards:
            before = await self._at_target(by_key)
            await self._applied()
            lines = (await self._at_source(keys)).values()
        else:
            before = seen = await self._at_source(keys)
            lines = seen.values()
            await self._applied()
        found = await self._as_mapped(lines, list(by_key))
        if not found:
            return []
        await self._commits_are_seen()
        suspects = {by_key[self._known(one.key, by_key)]: one for one in found}
        after: Mapping[Key, _Version | None]
        if self._backwards:
            after = await self._at_target(
                {_text(self._mapping.key_of_source(_row(key))): key for key in suspects}
            )
        else:
            after = await self._at_source(list(suspects))
        left = []
        for key, one in suspects.items():
            gone = before.get(key) is after.get(key) is None
            if gone and key not in self._gone:
                self._gone.add(key)
                left.append(key)
            elif before.get(key) == after.get(key):
                self._found.differences.append(Difference(one.kind, one.key, key, one.columns))
            else:
                left.append(key)
        return left

    async def _commits_are_seen(self) -> None:
        """Until each commit that the stream may have brought can be seen where it was made, if that is soon.

        Where a synchronous standby is waited for, a commit is in the log before anybody sees its rows.
        """
        if self._at_rest or not await self._has_standbys():
            return
        running = (await shown(self._written)).running - self._long
        until = time.monotonic() + SEEN_WITHIN
        while running:
            if time.monotonic() > until:
                # Nearly all of such are open, and have committed nothing.
                self._long |= running
                return
            await asyncio.sleep(LOOK_AGAIN)
            seen = await shown(self._written)
            running = frozenset(one for one in running if not seen.shows(one))

    async def _has_standbys(self) -> bool:
        if self._standbys is None:
            asked = await self._written.execute("SELECT current_setting('synchronous_standby_names') <> ''")
            row = await asked.fetchone()
            self._standbys = row is not None and bool(row[0])
        return self._standbys

    async def _as_mapped(self, lines: Iterable[_Version | None], keys: Sequence[Key]) -> list[Difference]:
        """Where the target's rows with these keys are not what becomes of the source's."""
        await self._stage()
        async with self._looking.transaction(force_rollback=True):
            async with self._filling(self._expected) as writing:
                for line in self._mapping.lines([one.line for one in lines if one is not None]):
                    await writing.write(line)
            return await self._differences(keys)

    async def _at_source(self, keys: Sequence[Key]) -> dict[Key, _Version | None]:
        lines = await read_rows(self._source, self._table, self._mapping, keys, also=_VERSION)
        places = [self._mapping.read.index(name) for name in key_of(self._mapping)]
        found: dict[Key, _Version | None] = dict.fromkeys(keys)
        for whole in lines:
            line, *version = whole.rsplit(b"\t", len(_VERSION))
            row = read_copy_text(line + b"\n")
            found[_text(tuple(row[at] for at in places))] = _Version(line + b"\n", tuple(version))
        return found

    async def _at_target(self, by_key: Mapping[Key, Key]) -> dict[Key, _Version | None]:
        """Which versions of the rows are there, by their keys at the source."""
        table = self._mapping.table
        key = _key(table)
        query = sql.SQL("SELECT ARRAY[{}], t.xmin::text, t.ctid::text FROM {} t WHERE ({}) IN ({})").format(
            sql.SQL(", ").join(_as_text("t", name) for name in key),
            _place(str(table)),
            sql.SQL(", ").join(sql.SQL("t.{}").format(sql.Identifier(name)) for name in key),
            sql.SQL(", ").join(
                sql.SQL("({})").format(sql.SQL(", ").join(map(sql.Literal, one))) for one in by_key
            ),
        )
        found: dict[Key, _Version | None] = dict.fromkeys(by_key.values())
        if by_key:
            for there, *version in await (await self._looking.execute(query)).fetchall():
                found[by_key[self._known(tuple(there), by_key)]] = _Version(
                    b"", tuple(part.encode() for part in version)
                )
        return found

    def _known(self, there: Key, by_key: Mapping[Key, Key]) -> Key:
        """A key as it was asked for. Raises MappingFailedError: else its row would be passed over unseen."""
        if there in by_key:
            return there
        raise MappingFailedError(
            f"{self._mapping.table}: a key that the mapping writes comes back as {', '.join(there)}; what a"
            " function returns for a key has to be written as PostgreSQL writes it"
        )

    async def _applied(self) -> None:
        """Until the side that is fed has all that has been written by now."""
        if self._at_rest:
            return
        position = await heartbeat.mark(self._written, self._stream)
        began = looked = left_at = time.monotonic()
        idle: str | None = None
        told = False
        while True:
            state = await target.state(self._fed, self._stream)
            if state is not None and state.applied >= position:
                return
            now = time.monotonic()
            if now - looked > LOOK_WHO:
                looked, idle = now, await self._nobody(state)
            if idle is None:
                left_at = now
            elif idle or now - left_at > NOBODY_FOR:
                why, side = idle and f" ({idle})", self._stream.rpartition("to_")[2]
                raise NotFollowingError(
                    f"nobody works on the stream {self._stream}{why}, so nothing can be said of rows that"
                    f" differ; to have it go on: crossfade data start --towards {side} --reason WHY"
                )
            if now - began > PATIENCE:
                raise NotFollowingError(
                    f"the stream {self._stream} has not brought within {PATIENCE:g} s what was written; see:"
                    " crossfade data status"
                )
            if not told and now - began > TOLD_AFTER:
                told = True
                self._waits(f"waiting for the stream {self._stream} to bring what was written by now")
            await asyncio.sleep(LOOK_AGAIN)

    async def _nobody(self, state: target.StreamState | None) -> str | None:
        """None while somebody works on the stream; else why nobody will, or "" where the next one may."""
        held = await lease.look(self._fed, self._stream)
        if held.alive or await target.is_held(self._fed, self._stream):
            return None
        wish = await desired.of(self._fed, self._stream)
        if wish is not None and not wish.run:
            return f"stopped by {wish.by}: {wish.reason}"
        if state is not None and state.state is State.STOPPED and (wish is None or held.tried >= wish.number):
            return f"it has stopped ({state.reason})"
        return ""


def _key(table: TargetTable) -> list[str]:
    return [table.columns[at] for at in table.key]


def _text(row: Row) -> Key:
    return tuple(part.decode() if isinstance(part, bytes) else "" for part in row)


def _row(key: Key) -> Row:
    return tuple(part.encode() for part in key)


def _place(table: str) -> sql.Composed:
    schema, _, name = table.partition(".")
    return qualified(schema, name)


def _as_value(text: str | None) -> Value:
    return None if text is None else text.encode()


def _as_str(value: Value) -> str | None:
    return value.decode() if isinstance(value, bytes) else None


def _as_text(alias: str, name: str) -> sql.Composed:
    return sql.SQL("{}.{}::text").format(sql.Identifier(alias), sql.Identifier(name))
