"""What was there before the stream, copied while an application goes on writing."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualwrite import backfill as backfills
from dualwrite import follow, heartbeat
from dualwrite.apply import Applier
from dualwrite.backfill import Backfill
from dualwrite.follow import Follower
from dualwrite.mapped import SourceTable
from dualwrite.pg_chunks import PgChunks
from dualwrite.pg_connect import connect
from dualwrite.pg_stream import PgStream
from dualwrite.plan import Copying
from dualwrite.snapshot import Snapshot
from tests.dualwrite.conftest import NAME, NOTES
from tests.dualwrite.test_follow import opened, rows, something

Connection = psycopg.AsyncConnection[Any]
COPYING = Copying(NOTES, ("id", "title", "body"))
WAITING = Copying(replace(NOTES, quarantine="notes"), COPYING.inputs)
"""Rows that the target does not take go into quarantine."""


@pytest.fixture(autouse=True)
async def plain_target(looking: Connection) -> None:
    await looking.execute("ALTER TABLE notes DROP CONSTRAINT notes_body_check")
    await looking.execute("ALTER TABLE notes DROP CONSTRAINT notes_title_key")


@contextlib.asynccontextmanager
async def working(
    source_url: str, target_url: str, epoch: int, copying: Copying = COPYING
) -> AsyncIterator[tuple[Follower, Backfill, Applier]]:
    async with contextlib.AsyncExitStack() as stack:
        applier = await Applier.open(target_url, NAME, epoch)
        stack.push_async_callback(applier.close)
        stream = await opened(PgStream, source_url, applier.applied)
        stack.push_async_callback(stream.close)
        reader = await connect(source_url)
        stack.push_async_callback(reader.close)
        sources = {"public.notes": SourceTable("public.notes", (copying,), ())}
        follower = Follower(NAME, stream, applier, sources)
        follower.remember = True
        chunks = PgChunks(reader, "public.notes", copying)
        yield follower, Backfill(chunks, applier, "notes", copying, rows=7), applier


async def test_a_copy_under_writes_and_crashes_ends_alike(
    source_url: str, writer: Connection, target_url: str, looking: Connection
) -> None:
    await writer.execute(
        "INSERT INTO notes SELECT n, 'title ' || n, repeat('z', 9000) FROM generate_series(1, 120) n"
    )
    chance = random.Random(7)
    for epoch in range(1, 60):
        async with working(source_url, target_url, epoch) as (follower, backfill, applier):
            done = False
            for _ in range(chance.randint(1, 6)):
                for _ in range(4):
                    with contextlib.suppress(psycopg.errors.UniqueViolation):
                        await writer.execute(*_elsewhere(chance))
                if chance.random() < 0.7:
                    await follower.step(whole=False)
                done = (await backfill.step(follower.recent)).done
            if done:
                number = heartbeat.first(epoch)
                await heartbeat.beat(writer, NAME, number)
                async with asyncio.timeout(60):
                    while applier.heartbeat < number:
                        await follower.step()
                break
    assert done
    expected = await rows(writer)
    assert len(expected) > 60
    assert await rows(looking) == expected


def _elsewhere(chance: random.Random) -> tuple[str, tuple[Any, ...]]:
    """As `something`, all over the table, but that no key moves: see the test below."""
    query, values = something(chance)
    if "SET id" in query:
        return "DELETE FROM notes WHERE id = %s", (chance.randint(1, 140),)
    key = chance.randint(1, 140)
    return (query, (key, *values[1:])) if query.startswith("INSERT") else (query, (*values[:-1], key))


@pytest.mark.parametrize("copying", [COPYING, WAITING], ids=["stop", "quarantine"])
async def test_a_unique_value_that_went_to_another_row_is_waited_for(
    source_url: str, writer: Connection, target_url: str, looking: Connection, copying: Copying
) -> None:
    """A chunk is newer than what the stream has brought, and both rows would have the value."""
    await looking.execute("ALTER TABLE notes ADD CONSTRAINT notes_title_key UNIQUE (title)")
    await writer.execute("INSERT INTO notes VALUES (2, 'x')")
    async with working(source_url, target_url, 1, copying) as (follower, backfill, applier):
        await _until_there_are(looking, 1, follower)
        await writer.execute("UPDATE notes SET title = 'y' WHERE id = 2; INSERT INTO notes VALUES (1, 'x')")
        assert not (await backfill.step([])).done
        async with asyncio.timeout(20):
            while not (await backfill.step([])).done:
                await follower.step(whole=False)
        assert [row[:2] for row in await rows(looking)] == [(1, "x"), (2, "y")]
        assert not applier.held


@pytest.mark.parametrize("copying", [COPYING, WAITING], ids=["stop", "quarantine"])
async def test_a_change_that_clashes_with_a_newer_chunk_is_made_with_what_comes_next(
    source_url: str,
    writer: Connection,
    target_url: str,
    looking: Connection,
    copying: Copying,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(follow, "GATHER", 1)  # each transaction comes by itself
    await looking.execute("ALTER TABLE notes ADD CONSTRAINT notes_title_key UNIQUE (title)")
    await writer.execute("INSERT INTO notes VALUES (9, 'a')")
    async with working(source_url, target_url, 1, copying) as (follower, backfill, applier):
        await _until_there_are(looking, 1, follower)
        await writer.execute("UPDATE notes SET title = 'x' WHERE id = 9")
        async with writer.transaction():
            await writer.execute("UPDATE notes SET title = 'y' WHERE id = 9")
            await writer.execute("INSERT INTO notes VALUES (1, 'x')")
        assert (await backfill.step([])).copied == 1
        async with asyncio.timeout(20):
            while await rows(looking) != await rows(writer):
                await follower.step(whole=False)
        assert not applier.held


async def test_a_unique_value_that_stays_another_rows_is_a_fault(
    source_url: str, writer: Connection, target_url: str, looking: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backfills, "CLASHES", 2)
    await looking.execute("ALTER TABLE notes ADD CONSTRAINT notes_title_key UNIQUE (title)")
    await writer.execute("INSERT INTO notes VALUES (1, 'x')")
    await looking.execute("INSERT INTO notes VALUES (9, 'x')")
    async with working(source_url, target_url, 1) as (_, backfill, _):
        for _ in range(2):
            assert not (await backfill.step([])).done
        with pytest.raises(psycopg.errors.UniqueViolation):
            await backfill.step([])


async def _until_there_are(looking: Connection, number: int, follower: Follower) -> None:
    async with asyncio.timeout(20):
        while len(await rows(looking)) < number:
            await follower.step(whole=False)


async def test_what_can_be_seen_is_asked_behind_a_chunk_that_is_read_ahead(
    source_url: str, writer: Connection, looking: Connection
) -> None:
    """By the same connection: the two must not meet."""
    await writer.execute("INSERT INTO notes SELECT n, n, repeat('z', 900) FROM generate_series(1, 20000) n")
    async with await connect(source_url) as reader:
        chunks = PgChunks(reader, "public.notes", COPYING)
        chunks.read_ahead(["1"], ["20000"], 30_000)
        await asyncio.sleep(0)  # it has begun
        assert (await chunks.snapshot()).xmax
        assert len((await chunks.read(["1"], ["20000"], 30_000)).lines) == 19_999


async def test_a_copy_that_ended_is_not_begun_again(
    source_url: str, writer: Connection, target_url: str, looking: Connection
) -> None:
    await writer.execute("INSERT INTO notes SELECT n FROM generate_series(1, 20) n")
    async with working(source_url, target_url, 1) as (_, backfill, _):
        counts = []
        async with asyncio.timeout(20):
            while not (progress := await backfill.step([])).done:
                counts.append(progress.copied)
        assert progress.copied == 20
        assert counts[0] == 7
    await looking.execute("DELETE FROM notes")
    async with working(source_url, target_url, 2) as (_, backfill, _):
        assert (await backfill.step([])).done
    assert await rows(looking) == []


async def test_an_empty_table_is_copied_at_once(
    source_url: str, target_url: str, looking: Connection
) -> None:
    async with working(source_url, target_url, 1) as (_, backfill, _):
        assert (await backfill.step([])).done


async def test_what_is_written_above_the_bound_is_left_to_the_stream(
    source_url: str, writer: Connection, target_url: str, looking: Connection
) -> None:
    await writer.execute("INSERT INTO notes SELECT n FROM generate_series(1, 10) n")
    async with working(source_url, target_url, 1) as (follower, backfill, _):
        assert not (await backfill.step([])).done
        await writer.execute("INSERT INTO notes SELECT n FROM generate_series(11, 2000) n")
        assert (await backfill.step([])).done
        assert len(await rows(looking)) == 10
        async with asyncio.timeout(20):
            while len(await rows(looking)) < 2000:
                await follower.step(whole=False)


async def test_a_chunk_that_cannot_see_what_was_applied_is_read_again(
    source_url: str, writer: Connection, target_url: str, looking: Connection
) -> None:
    """The stream has brought a commit that a snapshot does not show yet: here, one that is still open."""
    await writer.execute("INSERT INTO notes VALUES (1, 'old')")
    holder = await psycopg.AsyncConnection.connect(source_url)
    async with working(source_url, target_url, 1) as (_, backfill, _):
        await backfill.step([])
    await looking.execute("DELETE FROM crossfade_sync.copies; DELETE FROM notes")
    async with working(source_url, target_url, 2) as (_, backfill, _):
        await holder.execute("UPDATE notes SET title = 'new'")
        cursor = await holder.execute("SELECT pg_current_xact_id()::text::bigint % (2::bigint ^ 32)::bigint")
        row = await cursor.fetchone()
        assert row is not None
        # All that runs when a copy begins has to end first; this one is known to be applied besides.
        applied = [row[0]]
        for _ in range(3):
            progress = await backfill.step(applied)
            assert (progress.done, progress.copied) == (False, 0)
        await holder.commit()
        async with asyncio.timeout(20):
            while not progress.done:
                progress = await backfill.step(applied)
        assert (progress.again >= 3, applied) == (True, [])
    await holder.close()
    assert await rows(looking) == [(1, "new", None)]


def test_a_snapshot_is_read_as_it_is_written() -> None:
    seen = Snapshot.of("100:110:103,105")
    assert [xid for xid in range(98, 113) if not seen.shows(xid)] == [103, 105, 110, 111, 112]
    assert Snapshot.of("5:5:") == Snapshot(5, 5, frozenset())
    assert seen.hides([99, 103, 104, 110]) == [103, 110]


@given(st.integers(0, 2**40), st.integers(-(2**30), 2**30))
def test_lower_bits_are_widened_to_the_number_that_is_near(xmax: int, apart: int) -> None:
    xid = max(0, xmax + apart)
    assert Snapshot(xmax, xmax, frozenset()).widened(xid % 2**32) == xid
