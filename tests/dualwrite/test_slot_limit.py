"""A slot that nobody confirms, on a source that keeps its log only so far: an alarm comes before the loss."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psycopg
import pytest

from crossfade.embedded.postgres import EmbeddedPostgres
from dualwrite import pg_source
from dualwrite.capture import CaptureStopped
from dualwrite.pg_peek import PgPeek
from dualwrite.pg_stream import PgStream
from dualwrite.preflight import must_be_resumable, near_limit
from dualwrite.target import StreamState

SLOT = "crossfade_limited"
SETTINGS = ("max_slot_wal_keep_size = '64MB'", "max_wal_size = '32MB'", "min_wal_size = '32MB'")


async def test_half_of_what_a_slot_may_hold_back_is_an_alarm_and_beyond_all_of_it_every_way_stops(
    tmp_path: Path,
) -> None:
    with EmbeddedPostgres(tmp_path / "pg", durable=False) as server:
        url = server.url()
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as source:
            for setting in SETTINGS:
                await source.execute(f"ALTER SYSTEM SET {setting}".encode())
            await source.execute("SELECT pg_reload_conf()")
            await source.execute("CREATE TABLE notes (id int PRIMARY KEY)")
            await pg_source.publish(source, SLOT, [("public", "notes")])
            start = await pg_source.make_slot(source, SLOT)
            here, _ = await pg_source.identify(url, SLOT)

            alarmed_at = None
            async with asyncio.timeout(60):
                while True:
                    slot = await pg_source.slot_facts(source, SLOT)
                    assert slot is not None
                    if slot.wal_status == "lost":
                        break
                    if near_limit(slot) is not None and alarmed_at is None:
                        alarmed_at = slot.share
                        must_be_resumable(StreamState("s", 1, here, start, 0), here, slot, slot.confirmed)
                    await source.execute(
                        "SELECT pg_logical_emit_message(false, 'filling', repeat('x', 1000000))"
                        " FROM generate_series(1, 8)"
                    )
                    await source.execute("SELECT pg_switch_wal()")
                    await source.execute("CHECKPOINT")
            assert alarmed_at is not None
            assert 0.5 <= alarmed_at < 1

            with pytest.raises(CaptureStopped) as stopped:
                must_be_resumable(StreamState("s", 1, here, start, 0), here, slot, start)
            assert stopped.value.reason == "slot_lost"
        for by in (PgStream, PgPeek):
            with pytest.raises(CaptureStopped) as refused:
                await read(by, url)
            assert (refused.value.reason, refused.value.passing) == ("slot_lost", False)


async def read(by: type[PgStream] | type[PgPeek], url: str) -> None:
    stream = await by.open(url, SLOT, SLOT, 0)
    try:
        async with asyncio.timeout(20):
            while True:
                await stream.next()
    finally:
        await stream.close()
