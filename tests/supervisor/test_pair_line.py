"""The worker's end of comparing: bounded, counted, and never waiting for the bus."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

from core.mirrored import Leg, Mirrored
from crossfade.embedded.valkey import EmbeddedValkey
from crossfade.observing import Observing
from crossfade.pair_line import MOST_WAITING, STREAM, PairLine
from shadow import wire

SETTINGS = Observing("none", "/nowhere", "00" * 32, 1000.0, 100_000)
JSON = b"Content-Type: application/json\r\n"


def pair(legacy: bytes = b'{"a": 1}', new: bytes = b'{"a": 1}', **more: Any) -> Mirrored:
    legs = (Leg("legacy", 0.0, 0.01, 200, JSON, legacy), Leg("new", 0.0, 0.02, 200, JSON, new))
    return Mirrored("items", "/items", "shadow", 1, "GET", b"/items", b"", b"", legs, **more)


def counted(line: PairLine) -> dict[tuple[str, ...], float]:
    return {sample.labels: sample.value for sample in line.samples() if isinstance(sample.value, int)}


async def test_equal_pairs_are_counted_and_others_are_worth_asking_again() -> None:
    line = PairLine(SETTINGS)
    assert not line.compare(pair())
    assert line.compare(pair(new=b'{"a": 2}'))
    assert counted(line) == {("items", "equal"): 1, ("items", "unequal"): 1}


async def test_pairs_are_counted_by_operation_where_there_is_a_document() -> None:
    line = PairLine(replace(SETTINGS, operations=(("GET", "/items"), ("GET", "/items/{id}"))))
    for _ in range(3):
        line.compare(pair())
    line.compare(replace(pair(), target=b"/items/7?x=1"))
    line.compare(replace(pair(), target=b"/else"))
    (tally,) = line._tallies(list(line._minutes))
    counts = json.loads(tally)["counts"]
    assert {name: n for name, n in counts.items() if name.startswith("operation:")} == {
        "operation:GET /items": 3, "operation:GET /items/{id}": 1, "operation:none": 1,
    }  # fmt: skip


async def test_what_clients_and_backends_make_up_has_no_names_of_its_own() -> None:
    line = PairLine(SETTINGS)
    legs = (Leg("legacy", 0.0, 0.01, 999, b"", b""), Leg("new", 0.0, 0.02, 999, b"", b""))
    for number in range(100):
        line.compare(replace(pair(), method=f"SECRET{number}", legs=legs))
    (tally,) = line._tallies(list(line._minutes))
    counts = json.loads(tally)["counts"]
    assert (counts["method:other"], counts["status:other"]) == (100, 100)
    assert "SECRET" not in tally.decode()


async def test_no_more_are_looked_at_than_the_budget_allows() -> None:
    line = PairLine(replace(SETTINGS, inspect=3.0), now=lambda: 1000.0)
    assert sum(line.compare(pair(new=b"{}")) for _ in range(10)) == 3
    assert counted(line)["budget",] == 7
    none_at_all = PairLine(replace(SETTINGS, inspect=0.0))
    assert not none_at_all.compare(pair(new=b"{}"))


async def test_what_waits_for_the_bus_is_bounded(tmp_path: Path) -> None:
    line = PairLine(replace(SETTINGS, bus="embedded", data_dir=str(tmp_path)))
    for _ in range(MOST_WAITING + 5):
        line.take(pair(new=b"{}"))
    assert counted(line)["bus_away",] == 5
    without = PairLine(SETTINGS)
    without.take(pair(new=b"{}"))
    assert counted(without)["no_bus",] == 1


async def test_pairs_and_counts_reach_the_bus_without_their_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crossfade.pair_line.SEND_WITHIN", 30)
    with EmbeddedValkey(tmp_path / "valkey") as bus:
        line = PairLine(replace(SETTINGS, bus="embedded", data_dir=str(tmp_path)), now=lambda: 60_030.0)
        line.compare(pair())
        line.compare(pair(new=b"{}"))
        line.take(pair(new=b'{"password": "hunter22"}'))
        line.take(pair(sampled=True, again=pair().legs[:1]))
        line.skipped("items", "unsafe_method")

        await line.close()

        async with redis.asyncio.Redis.from_url(bus.url()) as client:
            messages = [fields for _, fields in await client.xrange(STREAM)]
    found = [wire.from_bytes(fields[b"pair"]) for fields in messages if b"pair" in fields]
    assert [one.new.body.text[:21] for one in found] == ['{"password": "<secret']
    tallies = [json.loads(fields[b"tally"]) for fields in messages if b"tally" in fields]
    # fmt: off
    assert {one["route"]: one["counts"] for one in tallies} == {
        "/items": {
            "equal": 1, "unequal": 1, "drawn": 1, "drawn_equal": 1, "legacy_le:3": 2, "new_le:4": 2,
            "method:GET": 2, "status:200": 2,
        },
        "": {"skipped:unsafe_method": 1},
    }
    # fmt: on
    assert {one["minute"] for one in tallies} == {60_000}


async def test_a_bus_that_is_away_costs_nothing_but_what_is_counted(tmp_path: Path) -> None:
    line = PairLine(replace(SETTINGS, bus="redis://127.0.0.1:1", data_dir=str(tmp_path)))
    line.take(pair(new=b"{}"))
    await line.close()
    assert counted(line) == {}
