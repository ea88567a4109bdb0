"""What a real PostgreSQL says of its changes, by both ways to read it, and what becomes of what breaks."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest

from dualwrite import pg_source
from dualwrite.capture import Capture, CaptureStopped
from dualwrite.change import ABSENT, Change, Kind, Part
from dualwrite.pg_peek import FETCH, PgPeek
from dualwrite.pg_stream import PgStream, lsn, lsn_text
from tests.dualwrite.conftest import PUBLICATION, SLOT

Writer = psycopg.AsyncConnection[Any]
LARGE = "x" * 10_000
"""Kept out of line, and so not sent again by an update that leaves it alone."""


Reader = type[PgStream] | type[PgPeek]


@pytest.fixture(params=[PgStream, PgPeek])
def by(request: pytest.FixtureRequest) -> Reader:
    """Both ways have one contract."""
    found: Reader = request.param
    return found


@contextlib.asynccontextmanager
async def reading(by: Reader, url: str, start: int = 0, **more: Any) -> AsyncIterator[Capture]:
    """A reader of a stream is noticed to have gone only after a moment."""
    async with asyncio.timeout(20):
        while True:
            try:
                stream = await by.open(url, SLOT, PUBLICATION, start, **more)
                break
            except CaptureStopped as stopped:
                if stopped.reason != "slot_in_use":
                    raise
    try:
        yield stream
    finally:
        await stream.close()


async def transactions(stream: Capture, count: int) -> list[Part]:
    """Parts until so many transactions are whole."""
    found: list[Part] = []
    async with asyncio.timeout(20):
        while sum(part.end is not None for part in found) < count:
            if (part := await stream.next()) is not None:
                found.append(part)
    return found


def said(parts: list[Part]) -> list[tuple[str, Any]]:
    return [(one.kind.value, one.new or one.old) for part in parts for one in part.changes]


async def scalar(writer: Writer, query: str) -> Any:
    row = await (await writer.execute(query)).fetchone()
    assert row is not None
    return row[0]


async def test_transactions_come_whole_in_the_order_of_their_commits(
    by: Reader, source_url: str, writer: Writer
) -> None:
    other = await psycopg.AsyncConnection.connect(source_url)
    await other.execute("SET synchronous_commit = on")
    await other.execute("INSERT INTO notes VALUES (1, 'began first', 'b')")
    async with writer.transaction():
        await writer.execute("INSERT INTO notes VALUES (2, NULL, '')")
        await writer.execute("UPDATE notes SET title = 'two' WHERE id = 2")
    await other.commit()
    await other.close()
    await writer.execute("DELETE FROM notes WHERE id = 1")
    await writer.execute("TRUNCATE whole")
    async with reading(by, source_url) as stream:
        parts = await transactions(stream, 4)
    assert said(parts) == [
        ("insert", (b"2", None, b"")),
        ("update", (b"2", b"two", b"")),
        ("insert", (b"1", b"began first", b"b")),
        ("delete", (b"1", None, None)),
        ("truncate", None),
    ]
    ends = [part.end for part in parts]
    assert ends == sorted(ends, key=lambda one: one or 0)
    assert all(part.end is not None and part.at < part.end for part in parts)


async def test_an_unchanged_large_value_is_absent_unless_the_old_row_is_sent(
    by: Reader, source_url: str, writer: Writer
) -> None:
    for table in ("notes", "whole"):
        await writer.execute(f"INSERT INTO {table} VALUES (1, 'a', %s)", (LARGE,))
        await writer.execute(f"UPDATE {table} SET title = 'b'")
    async with reading(by, source_url) as stream:
        parts = await transactions(stream, 4)
    by_key, whole = (part.changes[0] for part in (parts[1], parts[3]))
    assert by_key == Change(Kind.UPDATE, by_key.relation, None, (b"1", b"b", ABSENT))
    assert whole.old == (b"1", b"a", LARGE.encode())


async def test_what_was_not_confirmed_comes_again_and_what_was_does_not(
    by: Reader, source_url: str, writer: Writer
) -> None:
    for number in range(3):
        await writer.execute("INSERT INTO notes VALUES (%s)", (number,))
    async with reading(by, source_url) as stream:
        first, second, third = await transactions(stream, 3)
        assert first.end is not None
        await stream.confirm(first.end)
        async with asyncio.timeout(20):
            while (
                lsn(await scalar(writer, "SELECT confirmed_flush_lsn FROM pg_replication_slots")) < first.end
            ):
                await stream.next()
    async with reading(by, source_url) as again:
        assert await transactions(again, 2) == [second, third]


async def test_the_position_that_is_asked_for_wins_over_an_older_one_of_the_slot(
    by: Reader, source_url: str, writer: Writer
) -> None:
    for number in range(3):
        await writer.execute("INSERT INTO notes VALUES (%s)", (number,))
    async with reading(by, source_url) as stream:
        parts = await transactions(stream, 3)
    assert parts[1].end is not None
    async with reading(by, source_url, parts[1].end) as again:
        assert await transactions(again, 1) == [parts[2]]


async def test_what_our_own_apply_has_written_is_not_sent_back(
    by: Reader, source_url: str, writer: Writer
) -> None:
    await writer.execute("SELECT pg_replication_origin_create('crossfade_test')")
    try:
        await writer.execute("SELECT pg_replication_origin_session_setup('crossfade_test')")
        await writer.execute("INSERT INTO notes VALUES (1)")
        await writer.execute("SELECT pg_replication_origin_session_reset()")
        await writer.execute("INSERT INTO notes VALUES (2)")
        async with reading(by, source_url) as stream:
            assert said(await transactions(stream, 1)) == [("insert", (b"2", None, None))]
    finally:
        await writer.execute("SELECT pg_replication_origin_drop('crossfade_test')")


async def test_messages_in_the_stream_are_told_with_their_transaction(
    by: Reader, source_url: str, writer: Writer
) -> None:
    await writer.execute("SELECT pg_logical_emit_message(true, 'crossfade.beat', '41')")
    async with reading(by, source_url) as stream:
        (part,) = await transactions(stream, 1)
    assert [(one.prefix, one.content) for one in part.messages] == [("crossfade.beat", b"41")]


async def test_a_large_transaction_is_read_in_parts_and_not_ahead_of_the_reader(
    source_url: str, writer: Writer
) -> None:
    await writer.execute("INSERT INTO notes SELECT n, 'title ' || n FROM generate_series(1, 25000) n")
    async with reading(PgStream, source_url, most=1_000, read_ahead=3_000) as stream:
        assert isinstance(stream, PgStream)
        parts: list[Part] = []
        async with asyncio.timeout(60):
            while not parts or parts[-1].end is None:
                # The loop turns, so the stream could read on; what waits here must stay bounded.
                for _ in range(20):
                    await asyncio.sleep(0)
                assert stream._changes <= 3_000
                if (part := await stream.next()) is not None:
                    parts.append(part)
    assert len(parts) == 26
    assert [change.new[0] for part in parts for change in part.changes if change.new] == [
        b"%d" % number for number in range(1, 25_001)
    ]


async def test_a_slot_that_is_gone_stops_the_stream_for_good(by: Reader, source_url: str) -> None:
    with pytest.raises(CaptureStopped, match="nobody_made_it") as stopped:
        await by.open(source_url, "nobody_made_it", PUBLICATION, 0)
    assert (stopped.value.reason, stopped.value.passing) == ("slot_missing", False)


async def test_a_second_reader_is_told_to_wait(source_url: str) -> None:
    async with reading(PgStream, source_url):
        with pytest.raises(CaptureStopped) as stopped:
            await PgStream.open(source_url, SLOT, PUBLICATION, 0)
    assert (stopped.value.reason, stopped.value.passing) == ("slot_in_use", True)


async def test_who_has_taken_over_need_not_wait_for_one_that_sleeps(source_url: str, writer: Writer) -> None:
    """Its connection stays; the server would wait for its word until wal_sender_timeout."""
    async with reading(PgStream, source_url):
        await pg_source.release_slot(writer, SLOT)
        async with reading(PgStream, source_url) as stream:
            await writer.execute("INSERT INTO notes VALUES (1)")
            assert said(await transactions(stream, 1)) == [("insert", (b"1", None, None))]
    await pg_source.release_slot(writer, SLOT)


async def test_a_connection_that_is_cut_ends_in_a_word_and_not_in_silence(
    source_url: str, writer: Writer
) -> None:
    await writer.execute("INSERT INTO notes VALUES (1)")
    async with reading(PgStream, source_url) as stream:
        assert len(await transactions(stream, 1)) == 1
        await writer.execute("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots")
        with pytest.raises(CaptureStopped) as stopped:
            await transactions(stream, 1)
    assert (stopped.value.reason, stopped.value.passing) == ("source_ended", True)


async def test_no_server_is_something_that_may_pass(by: Reader) -> None:
    with pytest.raises(CaptureStopped) as stopped:
        await by.open("postgresql://nobody@127.0.0.1:1/nothing", SLOT, PUBLICATION, 0)
    assert (stopped.value.reason, stopped.value.passing) == ("source_unreachable", True)


async def test_a_session_of_a_peek_that_is_cut_may_pass(source_url: str, writer: Writer) -> None:
    async with reading(PgPeek, source_url) as stream:
        await writer.execute("INSERT INTO notes VALUES (1)")
        assert len(await transactions(stream, 1)) == 1
        assert isinstance(stream, PgPeek)
        await writer.execute("SELECT pg_terminate_backend(%s)", (stream._connection.info.backend_pid,))
        with pytest.raises(CaptureStopped) as stopped:
            await transactions(stream, 1)
    assert stopped.value.passing


async def test_a_large_transaction_is_fetched_in_parts_and_confirmed_at_its_end(
    source_url: str, writer: Writer
) -> None:
    await writer.execute("INSERT INTO notes SELECT n, 'title ' || n FROM generate_series(1, 25000) n")
    await writer.execute("INSERT INTO notes VALUES (0)")
    async with reading(PgPeek, source_url, most=1_000, at_once=100) as stream:
        parts: list[Part] = []
        async with asyncio.timeout(60):
            while not parts or parts[-1].end is None:
                assert isinstance(stream, PgPeek)
                assert len(stream._parts) <= FETCH // 1_000
                if (part := await stream.next()) is not None:
                    parts.append(part)
        assert len(parts) == 26
        end = parts[-1].end
        assert end is not None
        await stream.confirm(end)
        assert said(await transactions(stream, 1)) == [("insert", (b"0", None, None))]
        await stream.next()
    assert lsn(await scalar(writer, "SELECT confirmed_flush_lsn FROM pg_replication_slots")) == end


async def test_what_is_not_confirmed_hides_nothing_that_comes_later(
    by: Reader, source_url: str, writer: Writer
) -> None:
    async with reading(by, source_url, **({"at_once": 5} if by is PgPeek else {})) as stream:
        for number in range(40):
            await writer.execute("INSERT INTO notes VALUES (%s)", (number,))
            (part,) = await transactions(stream, 1)
            assert said([part]) == [("insert", (b"%d" % number, None, None))]
        assert part.end is not None
        await stream.confirm(part.end)


async def test_a_slot_that_was_dropped_meanwhile_stops_a_peek_for_good(
    source_url: str, writer: Writer
) -> None:
    async with reading(PgPeek, source_url) as stream:
        await writer.execute("SELECT pg_drop_replication_slot(%s)", (SLOT,))
        await writer.execute("INSERT INTO notes VALUES (1)")
        with pytest.raises(CaptureStopped) as stopped:
            await transactions(stream, 1)
    assert (stopped.value.reason, stopped.value.passing) == ("slot_missing", False)


async def test_both_ways_know_the_source_by_the_same_words(source_url: str, writer: Writer) -> None:
    by_stream, at = await pg_source.identify(source_url, SLOT)
    by_sql, then = await pg_source.identify_by_sql(writer, SLOT)
    assert by_sql == by_stream
    assert then >= at


def test_positions_are_written_as_postgresql_writes_them() -> None:
    assert lsn_text(0x16_B374D848) == "16/B374D848"
    assert lsn("16/B374D848") == 0x16_B374D848
