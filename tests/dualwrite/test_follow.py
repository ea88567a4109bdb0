"""From a real source to a real target, with everything that may happen on the way."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from crossfade.embedded.postgres import EmbeddedPostgres
from dualwrite import heartbeat, pg_source, target
from dualwrite.apply import Applier
from dualwrite.capture import CaptureStopped
from dualwrite.follow import Follower
from dualwrite.mapped import SourceTable
from dualwrite.pg_stream import PgStream
from dualwrite.plan import Copying, Op, TargetTable
from dualwrite.rows import MissingRowError
from tests.dualwrite.conftest import NAME, NOTES, PUBLICATION, SLOT

Connection = psycopg.AsyncConnection[Any]
PECULIAR = TargetTable("public", "peculiar", ("id", "day", "span", "at", "ratio", "raw", "word"), (0,))
SOURCES = {
    "public.peculiar": SourceTable("public.peculiar", (Copying(PECULIAR, PECULIAR.columns),), ()),
    "public.notes": SourceTable("public.notes", (Copying(NOTES, ("id", "title", "body")),), ()),
}


class Ended(Exception):  # noqa: N818
    """The process ends here."""


class Interrupted(PgStream):
    """A stream whose process ends after the commit at the target, before the source hears of it."""

    async def confirm(self, position: int) -> None:
        raise Ended


@pytest.fixture(autouse=True)
async def plain_target(looking: Connection) -> None:
    """Without the constraints that other tests want."""
    await looking.execute(
        "ALTER TABLE notes DROP CONSTRAINT notes_body_check, DROP CONSTRAINT notes_title_key"
    )


@contextlib.asynccontextmanager
async def following(
    source_url: str,
    target_url: str,
    epoch: int,
    kind: type[PgStream] = PgStream,
    *,
    most: int = 5,
    apply: type[Applier] = Applier,
) -> AsyncIterator[tuple[Follower, Applier]]:
    applier = await apply.open(target_url, NAME, epoch)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(applier.close)
        stream = await opened(kind, source_url, applier.applied, most)
        stack.push_async_callback(stream.close)
        yield Follower(NAME, stream, applier, SOURCES), applier


async def opened(kind: type[PgStream], url: str, start: int, most: int = 5) -> PgStream:
    """The server notices after a moment that the one before has gone."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await kind.open(url, SLOT, PUBLICATION, start, most=most)
            except CaptureStopped as stopped:
                if stopped.reason != "slot_in_use":
                    raise


async def until_beat(follower: Follower, applier: Applier, number: int) -> None:
    async with asyncio.timeout(60):
        while applier.heartbeat < number:
            await follower.step()


async def rows(connection: Connection) -> list[Any]:
    return await (await connection.execute("SELECT * FROM notes ORDER BY 1")).fetchall()


async def test_both_tables_end_alike_however_often_the_process_ends(
    source_url: str, writer: Connection, target_url: str, looking: Connection
) -> None:
    """Transactions of any size, some rolled back; every other process ends after its commit."""
    chance = random.Random(20_261_124)
    for round_ in range(1, 9):
        for _ in range(12):
            with contextlib.suppress(psycopg.errors.UniqueViolation, psycopg.Rollback):
                async with writer.transaction():
                    for _ in range(chance.randint(1, 8)):
                        await writer.execute(*something(chance))
                    if chance.random() < 0.1:
                        raise psycopg.Rollback
        number = heartbeat.first(round_)
        await heartbeat.beat(writer, NAME, number)
        kind = Interrupted if round_ % 2 else PgStream
        async with following(source_url, target_url, round_, kind) as (follower, applier):
            with contextlib.suppress(Ended):
                await until_beat(follower, applier, number)
    expected = await rows(writer)
    assert len(expected) > 3
    assert await rows(looking) == expected


async def test_what_commits_at_the_limit_itself_waits_behind_it(
    source_url: str, writer: Connection, target_url: str, looking: Connection
) -> None:
    for number in (1, 2, 3):
        await writer.execute("INSERT INTO notes VALUES (%s, 'a')", (number,))
    cursor = await writer.execute(
        "SELECT data FROM pg_logical_slot_peek_binary_changes(%s, NULL, NULL, 'proto_version', '1',"
        " 'publication_names', %s)",
        (SLOT, PUBLICATION),
    )
    commits = [int.from_bytes(data[1:9]) for (data,) in await cursor.fetchall() if data[:1] == b"B"]
    async with following(source_url, target_url, 1) as (follower, applier):
        follower.limit(commits[1])
        async with asyncio.timeout(20):
            while not follower.is_at_its_limit:
                await follower.step()
        assert not await follower.step()
        assert [row[0] for row in await rows(looking)] == [1]
        assert applier.applied <= commits[1]
        follower.limit(None)
        async with asyncio.timeout(20):
            while len(await rows(looking)) < 3:
                await follower.step()


async def test_a_process_that_ends_unheard_does_nothing_twice(
    source_url: str, writer: Connection, target_url: str, looking: Connection
) -> None:
    await writer.execute("INSERT INTO notes VALUES (1, 'a')")
    async with following(source_url, target_url, 1, Interrupted) as (follower, _):
        with pytest.raises(Ended):
            await _something_applied(follower)
    # What only a second apply of the same change could undo.
    await looking.execute("UPDATE notes SET title = 'seen'")
    await writer.execute("INSERT INTO notes VALUES (2, 'b')")
    async with following(source_url, target_url, 2) as (follower, _):
        await _something_applied(follower)
    assert await rows(looking) == [(1, "seen", None), (2, "b", None)]


async def _on_and_on(follower: Follower) -> None:
    async with asyncio.timeout(20):
        while True:
            await follower.step()


async def _something_applied(follower: Follower) -> None:
    async with asyncio.timeout(20):
        while not await follower.step():
            pass


async def test_a_missing_beat_stops_before_anything_of_it_is_applied(
    source_url: str, writer: Connection, target_url: str, looking: Connection
) -> None:
    await heartbeat.beat(writer, NAME, heartbeat.first(1))
    async with following(source_url, target_url, 1) as (follower, applier):
        await until_beat(follower, applier, heartbeat.first(1))
        before = applier.applied
        async with writer.transaction():
            await writer.execute("INSERT INTO notes VALUES (1, 'after a hole')")
            await heartbeat.beat(writer, NAME, heartbeat.first(1) + 2)
        with pytest.raises(CaptureStopped, match="heartbeat 1/1 came 1/3"):
            await _something_applied(follower)
    found = await target.state(looking, NAME)
    assert found is not None
    assert found.applied == before
    assert await rows(looking) == []


@pytest.mark.parametrize(
    ("ddl", "reason"),
    [
        ("ALTER TABLE notes ADD colour text", "column_unknown"),
        ("ALTER TABLE notes RENAME title TO heading", "column_gone"),
    ],
)
async def test_a_table_that_changes_its_columns_stops_the_stream_at_that_place(
    source_url: str, writer: Connection, target_url: str, looking: Connection, ddl: str, reason: str
) -> None:
    await writer.execute("INSERT INTO notes VALUES (1, 'before')")
    async with following(source_url, target_url, 1) as (follower, _):
        await _something_applied(follower)
        await writer.execute("INSERT INTO notes VALUES (2, 'also before')")
        await writer.execute(ddl)
        await writer.execute("INSERT INTO notes VALUES (3, 'after')")
        with pytest.raises(CaptureStopped) as stopped:
            await _on_and_on(follower)
    assert (stopped.value.reason, stopped.value.passing) == (reason, False)
    assert [row[1] for row in await rows(looking)] == ["before", "also before"]


async def test_a_published_table_that_no_mapping_names_stops_the_stream(
    source_url: str, writer: Connection, target_url: str, looking: Connection
) -> None:
    await writer.execute("INSERT INTO whole VALUES (1)")
    async with following(source_url, target_url, 1) as (follower, _):
        with pytest.raises(CaptureStopped, match=r"public\.whole is published") as stopped:
            await _something_applied(follower)
    assert stopped.value.reason == "unmapped_table"


async def test_a_row_that_somebody_else_has_deleted_is_noticed(
    source_url: str, writer: Connection, target_url: str, looking: Connection
) -> None:
    await writer.execute("INSERT INTO notes VALUES (1, 'a', %s)", ("x" * 9_000,))
    async with following(source_url, target_url, 1) as (follower, _):
        await _something_applied(follower)
        await looking.execute("DELETE FROM notes")
        await writer.execute("UPDATE notes SET title = 'b'")
        with pytest.raises(MissingRowError):
            await _something_applied(follower)


async def test_values_mean_the_same_whatever_each_database_prefers(
    postgres: EmbeddedPostgres, target_url: str, looking: Connection
) -> None:
    """A source in another encoding that writes dates, spans and bytes in its own way."""
    table = (
        "CREATE TABLE peculiar (id int PRIMARY KEY, day date, span interval, at timestamptz,"
        " ratio float8, raw bytea, word text)"
    )
    await looking.execute(table)
    await looking.execute("ALTER DATABASE applied_to SET datestyle = 'German, MDY'")
    with psycopg.connect(postgres.url(), autocommit=True) as admin:
        admin.execute(
            "CREATE DATABASE old_habits TEMPLATE template0 ENCODING 'LATIN1' LOCALE_PROVIDER libc LOCALE 'C'"
        )
        for name, value in (
            ("datestyle", "SQL, DMY"),
            ("intervalstyle", "sql_standard"),
            ("timezone", "Asia/Kolkata"),
            ("extra_float_digits", "-10"),
            ("bytea_output", "escape"),
        ):
            admin.execute(f"ALTER DATABASE old_habits SET {name} = '{value}'")
    url = postgres.url("old_habits")
    source = await psycopg.AsyncConnection.connect(url, autocommit=True, client_encoding="UTF8")
    try:
        await source.execute(table)
        await source.execute("SET synchronous_commit = on")
        await pg_source.publish(source, PUBLICATION, [("public", "peculiar")])
        await pg_source.make_slot(source, SLOT)
        row: tuple[Any, ...] = (
            1,
            date(2026, 3, 4),
            timedelta(days=-40, seconds=3),
            datetime(2026, 3, 4, 5, 6, 7, 891, UTC),
        )
        row = (*row, 0.1 + 0.2, b"\x00\\\xff'", "Größe, Straße, ¿?")
        await source.execute("INSERT INTO peculiar VALUES (%s, %s, %s, %s, %s, %s, %s)", row)
        async with following(url, target_url, 1) as (follower, _):
            await _something_applied(follower)
        found = await (await looking.execute("SELECT * FROM peculiar")).fetchall()
        assert found == [row]
    finally:
        await source.close()
        async with (
            await psycopg.AsyncConnection.connect(postgres.url(), autocommit=True) as last,
            asyncio.timeout(20),
        ):
            while True:
                with contextlib.suppress(psycopg.errors.ObjectInUse):
                    await last.execute("DROP DATABASE old_habits WITH (FORCE)")
                    break


class Looked(Applier):
    """One whose process is looked at, and may end, while a large transaction is written."""

    largest = 0
    parts = 0
    ends_at = 0
    before = 0

    async def apply(self, ops: Sequence[Op], end: int | None, *arguments: Any, **more: Any) -> None:
        self.parts += 1
        if self.parts == self.ends_at:
            raise Ended
        await super().apply(ops, end, *arguments, **more)
        self.largest = max(self.largest, memory() - self.before)


def memory() -> int:
    """Bytes that this process has in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def test_a_large_transaction_is_written_as_it_comes_and_is_there_at_once_or_not_at_all(
    source_url: str, writer: Connection, target_url: str, looking: Connection
) -> None:
    """200,000 rows would be some 130 MB here."""
    await writer.execute("INSERT INTO notes VALUES (0, 'before')")
    async with writer.transaction():
        await writer.execute(
            "INSERT INTO notes SELECT n, 'note ' || n, 'text' FROM generate_series(1, 200000) n"
        )
        await writer.execute("UPDATE notes SET title = 'last' WHERE id % 100000 = 0")
        await writer.execute("DELETE FROM notes WHERE id = 7")
    expected = await (await writer.execute(_SUM)).fetchone()

    async with following(source_url, target_url, 1, most=10_000, apply=Looked) as (follower, applier):
        assert isinstance(applier, Looked)
        applier.ends_at = 5
        with pytest.raises(Ended):
            await until_beat(follower, applier, heartbeat.first(1))
    assert len(await rows(looking)) <= 1

    async with following(source_url, target_url, 2, most=10_000, apply=Looked) as (follower, applier):
        assert isinstance(applier, Looked)
        applier.before = memory()
        while await (await looking.execute(_SUM)).fetchone() != expected:
            await follower.step()
        assert applier.parts >= 20
        assert applier.largest < 60 << 20
    found = await target.state(looking, NAME)
    assert found is not None
    assert found.applied == applier.applied


_SUM = "SELECT count(*), sum(id), sum(hashtext(title)::bigint) FROM notes"


def something(chance: random.Random) -> tuple[str, tuple[Any, ...]]:
    key, other = chance.randint(1, 12), chance.randint(1, 12)
    text = chance.choice(["a", "tab\there", "back\\slash", "", None])
    large = chance.choice(["x" * 9_000, "y" * 9_000, "short"])
    return chance.choice(
        [
            ("INSERT INTO notes VALUES (%s, %s, %s)", (key, text, large)),
            ("INSERT INTO notes VALUES (%s, %s, %s)", (key, text, large)),
            ("UPDATE notes SET title = %s WHERE id = %s", (text, key)),
            ("UPDATE notes SET body = %s WHERE id = %s", (large, key)),
            ("UPDATE notes SET id = %s WHERE id = %s", (other, key)),
            ("DELETE FROM notes WHERE id = %s", (key,)),
        ]
    )
