"""What is found out before anything is touched, and what stops a stream that cannot go on."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualwrite import heartbeat, pg_source
from dualwrite.capture import CaptureStopped
from dualwrite.change import Message
from dualwrite.pg_stream import PgStream
from dualwrite.preflight import (
    SlotFacts,
    SourceFacts,
    TableFacts,
    Weight,
    findings,
    must_be_resumable,
)
from dualwrite.target import Source, StreamState
from tests.dualwrite.conftest import PUBLICATION, SLOT

Connection = psycopg.AsyncConnection[Any]

GOOD = SourceFacts(
    version=160_004, wal_level="logical", in_recovery=False,
    free_slots=3, free_senders=3, keeps_wal=10**9, tables=(TableFacts("public.notes"),),
)  # fmt: skip


def test_a_source_that_is_as_it_should_be_gives_nothing_to_say() -> None:
    assert findings(GOOD) == []


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"version": 130_010}, "version_too_old"),
        ({"wal_level": "replica"}, "wal_level"),
        ({"in_recovery": True}, "standby"),
        ({"refused": "no"}, "no_replication"),
        ({"tables": (TableFacts("a.b", is_subscribed=True),)}, "subscribed"),
        ({"free_slots": 0}, "no_slot"),
        ({"free_senders": 0}, "no_sender"),
        ({"tables": (TableFacts("a.b", kind=""),)}, "no_table"),
        ({"tables": (TableFacts("a.b", kind="v"),)}, "no_table"),
        ({"tables": (TableFacts("a.b", persistence="u"),)}, "not_logged"),
        ({"tables": (TableFacts("a.b", has_primary_key=False),)}, "no_identity"),
        ({"tables": (TableFacts("a.b", identity="n"),)}, "no_identity"),
    ],
)
def test_each_thing_that_is_wrong_stops_with_its_reason(wrong: dict[str, Any], reason: str) -> None:
    (finding,) = findings(replace(GOOD, **wrong))
    assert (finding.weight, finding.reason) == (Weight.STOPS, reason)
    assert finding.message
    assert finding.remedy


def test_a_table_without_a_key_may_send_its_whole_row() -> None:
    assert findings(replace(GOOD, tables=(TableFacts("a.b", identity="f", has_primary_key=False),))) == []


def test_all_is_said_at_once_and_a_missing_limit_only_warns() -> None:
    found = findings(replace(GOOD, wal_level="minimal", in_recovery=True, keeps_wal=None))
    assert [(one.reason, one.weight) for one in found] == [
        ("standby", Weight.STOPS), ("wal_level", Weight.STOPS), ("wal_without_limit", Weight.WARNS),
    ]  # fmt: skip


STATE = StreamState("forward", 3, Source("7001", 1, SLOT), applied=500, heartbeat=0)
SLOT_THERE = SlotFacts(confirmed=480, wal_status="reserved", retained=10, database="d", plugin="pgoutput")


@pytest.mark.parametrize("confirmed", [0, 480, 500])
def test_a_slot_that_stands_at_or_before_what_was_applied_can_be_read(confirmed: int) -> None:
    must_be_resumable(STATE, STATE.source, replace(SLOT_THERE, confirmed=confirmed), server_at=500)


@pytest.mark.parametrize(
    ("here", "slot", "server_at", "reason"),
    [
        (Source("7002", 1, SLOT), SLOT_THERE, 900, "other_source"),
        (Source("7001", 2, SLOT), SLOT_THERE, 900, "other_timeline"),
        (STATE.source, None, 900, "slot_missing"),
        (STATE.source, replace(SLOT_THERE, wal_status="lost"), 900, "slot_lost"),
        (STATE.source, replace(SLOT_THERE, confirmed=501), 900, "gap"),
        (STATE.source, SLOT_THERE, 499, "target_ahead"),
    ],
)
def test_what_may_have_been_lost_stops_the_stream_by_name(
    here: Source, slot: SlotFacts | None, server_at: int, reason: str
) -> None:
    with pytest.raises(CaptureStopped) as stopped:
        must_be_resumable(STATE, here, slot, server_at)
    assert (stopped.value.reason, stopped.value.passing) == (reason, False)


async def test_a_real_source_is_seen_as_it_is(source_url: str, writer: Connection) -> None:
    await writer.execute("CREATE TABLE keyless (a int); CREATE UNLOGGED TABLE fleeting (a int PRIMARY KEY)")
    tables = [("public", name) for name in ("notes", "whole", "keyless", "fleeting", "nowhere")]
    seen = await pg_source.facts(writer, tables)
    assert {(one.reason, one.message.split()[0]) for one in findings(seen) if one.weight is Weight.STOPS} == {
        ("no_identity", "public.keyless"),
        ("not_logged", "public.fleeting"),
        ("no_table", "there"),
    }
    assert [table.identity for table in seen.tables[:3]] == ["d", "f", "d"]


async def test_a_slot_that_was_dropped_and_made_again_is_a_gap(source_url: str, writer: Connection) -> None:
    here, at = await pg_source.identify(source_url, SLOT)
    slot = await pg_source.slot_facts(writer, SLOT)
    assert slot is not None
    state = StreamState("forward", 1, here, slot.confirmed, 0)
    must_be_resumable(state, here, slot, at)
    await writer.execute("SELECT pg_drop_replication_slot(%s)", (SLOT,))
    await writer.execute("INSERT INTO notes VALUES (1)")
    _, at = await pg_source.identify(source_url, SLOT)
    with pytest.raises(CaptureStopped, match="is gone"):
        must_be_resumable(state, here, await pg_source.slot_facts(writer, SLOT), at)
    await pg_source.make_slot(writer, SLOT)
    with pytest.raises(CaptureStopped, match="was made anew") as stopped:
        must_be_resumable(state, here, await pg_source.slot_facts(writer, SLOT), at)
    assert stopped.value.reason == "gap"


async def test_a_slot_waits_for_an_open_transaction_and_says_whose_it_is(
    source_url: str, writer: Connection
) -> None:
    name = "nightly_report"
    holder = await psycopg.AsyncConnection.connect(source_url, application_name=name)
    await holder.execute("INSERT INTO notes VALUES (1)")
    with pytest.raises(CaptureStopped, match=f"pid {holder.info.backend_pid} .*{name}") as stopped:
        await pg_source.make_slot(writer, "crossfade_late", within=0.5)
    assert (stopped.value.reason, stopped.value.passing) == ("long_transaction", True)
    assert await pg_source.slot_facts(writer, "crossfade_late") is None
    await holder.close()
    assert await pg_source.make_slot(writer, "crossfade_late") > 0
    with pytest.raises(CaptureStopped, match="exists already"):
        await pg_source.make_slot(writer, "crossfade_late")
    await writer.execute("SELECT pg_drop_replication_slot('crossfade_late')")


async def test_the_publication_holds_the_tables_that_are_wanted_and_no_others(writer: Connection) -> None:
    both = [("public", "notes"), ("public", "whole")]
    await pg_source.must_publish(writer, PUBLICATION, both)
    await pg_source.publish(writer, PUBLICATION, both[:1])
    with pytest.raises(CaptureStopped, match=r"lacks public\.whole"):
        await pg_source.must_publish(writer, PUBLICATION, both)
    await pg_source.publish(writer, "another", both)
    await pg_source.must_publish(writer, "another", both)


async def test_changes_of_a_partition_are_told_of_its_table(source_url: str, writer: Connection) -> None:
    await writer.execute(
        "CREATE TABLE measured (id int, day date, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);"
        "CREATE TABLE measured_26 PARTITION OF measured FOR VALUES FROM ('2026-01-01') TO ('2027-01-01')"
    )
    table = [("public", "measured")]
    seen = await pg_source.facts(writer, table, slot=SLOT)
    assert [(one.reason, one.weight) for one in findings(seen) if one.reason != "wal_without_limit"] == [
        ("partitioned", Weight.WARNS)
    ]
    await pg_source.publish(writer, PUBLICATION, table)
    await pg_source.must_publish(writer, PUBLICATION, table)
    await writer.execute("INSERT INTO measured VALUES (1, '2026-05-01')")
    stream = await PgStream.open(source_url, SLOT, PUBLICATION, 0)
    async with asyncio.timeout(20):
        while (part := await stream.next()) is None or not part.changes:
            pass
    await stream.close()
    assert [(str(one.relation), one.new) for one in part.changes] == [
        ("public.measured", (b"1", b"2026-05-01"))
    ]


@given(st.integers(0, 3), st.integers(0, 50), st.integers(1, 60))
def test_within_an_epoch_no_beat_may_be_missing(epoch: int, last: int, seen: int) -> None:
    before, now = epoch << 32 | last, epoch << 32 | seen
    if seen > last + 1:
        with pytest.raises(CaptureStopped, match=f"{epoch}/{last} came {epoch}/{seen}") as stopped:
            heartbeat.next_after(before, now)
        assert stopped.value.reason == "gap"
    else:
        assert heartbeat.next_after(before, now) == max(before, now)


def test_a_new_epoch_begins_with_its_first_beat() -> None:
    last = heartbeat.first(4) + 7
    assert heartbeat.next_after(last, heartbeat.first(6)) == heartbeat.first(6)
    with pytest.raises(CaptureStopped):
        heartbeat.next_after(last, heartbeat.first(6) + 1)


def test_a_beat_of_another_stream_is_none_of_ours() -> None:
    assert heartbeat.number_of(Message("crossfade.beat.forward", b"12", True), "forward") == 12
    assert heartbeat.number_of(Message("crossfade.beat.back", b"12", True), "forward") is None
    assert heartbeat.number_of(Message("somebody", b"else", True), "forward") is None
