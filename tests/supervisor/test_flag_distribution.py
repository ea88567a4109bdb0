"""The supervisor's side of flags, without workers: what goes to disk when, and what a kill outlives."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from crossfade.flag_distribution import FlagDistribution, _told
from crossfade.fleet import Fleet
from crossfade.ledger import Ledger
from crossfade.logs import Log
from crossfade.processes import Children
from crossfade.status import FlagsAck
from flags.change import Archive, KillFlag, change
from flags.document import one_line, to_json
from flags.model import Bucketing, Flag, FlagSet, Stage
from flags.stages import settled_at

BEFORE = FlagSet(3, None, (Flag("items.read", 1, settled_at(Stage.NEW), Bucketing((), "items.read")),))


def started(folder: Path) -> FlagDistribution:
    log = Log("test")
    found = FlagDistribution(Fleet(Children(), Ledger(), log), log)
    found.begin(folder, "embedded")
    return found


def with_the_kill(version: int) -> Any:
    killed = change(BEFORE, KillFlag("items.read", "it burns", "ada"), now=0.0)
    return to_json(FlagSet(version, None, killed.flags))


def test_a_kill_is_in_force_where_it_is_decided_by() -> None:
    """What is under way may take its time: it was begun before, and is not what was asked for."""
    quick = FlagsAck(0, 100, 7, 3.0)
    busy = FlagsAck(1, 101, 7, 1_500.0, "1 requests that change something are still under way", taken=True)
    silent = FlagsAck(1, 101, 6, 2_000.0, "no answer within 2 s", taken=False)
    done = _told("killed items", [quick, busy])
    assert (done.code, done.lines[0]) == (0, "killed items: 2/2 workers, slowest 1500 ms")
    assert "still under way" in done.lines[1]
    assert _told("killed items", [quick, silent]).code == 7


async def test_a_kill_ends_here_when_the_store_has_it(tmp_path: Path) -> None:
    flags = started(tmp_path)
    await flags.take(to_json(BEFORE))
    assert (await flags.kill("items.read", "it burns", "ada")).code == 0
    assert flags.status().kills == ["items.read"]

    await flags.take(to_json(FlagSet(4, None, BEFORE.flags)))
    assert flags.status().kills == ["items.read"]

    await flags.take(with_the_kill(5))
    assert flags.status().kills == []
    assert "killed already" in (await flags.kill("items.read", "it burns", "ada")).lines[0]


async def test_a_program_that_died_before_it_could_end_the_kill_ends_it_later(tmp_path: Path) -> None:
    flags = started(tmp_path)
    await flags.take(to_json(BEFORE))
    await flags.kill("items.read", "it burns", "ada")
    kills = tmp_path / "flags" / "kills.json"
    shutil.copy(kills, tmp_path / "copy")
    await flags.take(with_the_kill(4))
    shutil.copy(tmp_path / "copy", kills)

    flags = started(tmp_path)
    assert flags.status().kills == ["items.read"]
    await flags.take(with_the_kill(4))

    assert flags.status().kills == []


async def test_a_kill_stays_on_disk_until_the_set_that_has_it_is_there_too(tmp_path: Path) -> None:
    flags = started(tmp_path)
    await flags.take(to_json(BEFORE))
    await flags.kill("items.read", "it burns", "ada")
    full = tmp_path / "flags" / "last.json.new"
    full.symlink_to("/dev/full")

    known = await flags.take(with_the_kill(4))

    assert known["version"] == 4, "traffic does not wait for the disk"
    assert flags.status().kills == ["items.read"]
    assert started(tmp_path).status().kills == ["items.read"]
    full.unlink()
    await flags.take(with_the_kill(4))
    assert flags.status().kills == []
    assert started(tmp_path).status().version == 4


async def test_an_archived_flag_is_not_killed_for_good(tmp_path: Path) -> None:
    flags = started(tmp_path)
    gone = change(BEFORE, Archive("items.read"), now=0.0)
    await flags.take(to_json(FlagSet(4, None, gone.flags)))
    refused = await flags.kill("items.read", "it burns", "ada")
    assert (refused.code, "kill --all" in refused.lines[0]) == (3, True)
    assert (await flags.kill(None, "it burns", "ada")).code == 0


async def test_a_kill_of_an_unknown_flag_or_without_a_reason_says_what_to_do(tmp_path: Path) -> None:
    flags = started(tmp_path)
    await flags.take(to_json(BEFORE))

    unknown = await flags.kill("items.reed", "it burns", "ada")
    without = await flags.kill("items.read", " ", "ada")

    assert (unknown.code, without.code) == (3, 2)
    assert "did you mean items.read?" in unknown.lines[0]
    assert "--reason" in without.lines[0]
    assert flags.status().kills == []


async def test_a_kill_holds_whatever_bytes_its_reason_has(tmp_path: Path) -> None:
    flags = started(tmp_path)
    await flags.take(to_json(BEFORE))
    odd = "it burns:\n  caf\udce9 \x07\x00 " + "very " * 1000

    assert (await flags.kill("items.read", odd, "an\udce4 ")).code == 0

    again = started(tmp_path)
    assert again.status().trouble is None
    assert again.status().kills == ["items.read"]
    known = await again.confirm(3)
    told = known["kills"]["flags"]["items.read"]
    assert told["reason"].startswith("it burns: caf very very")
    assert len(told["reason"]) <= 900
    assert told["by"] == "an"


@given(st.text(), st.integers(0, 50))
def test_any_text_becomes_one_line(text: str, most: int) -> None:
    line = one_line(text, most)
    assert len(line) <= most
    assert line.isprintable()
    assert line == line.strip()
    assert one_line(line, most) == line


async def test_a_kill_that_the_store_has_had_is_the_stores_to_take_back(tmp_path: Path) -> None:
    flags = started(tmp_path)
    await flags.take(to_json(BEFORE))
    await flags.kill("items.read", "it burns", "ada")
    kill = (await flags.confirm(3))["kills"]["flags"]["items.read"]

    await flags.carried({"items.read": kill["at"]}, 4)
    assert flags.status().kills == ["items.read"], "this instance has not got the store's version yet"
    await flags.take(to_json(FlagSet(5, None, BEFORE.flags)))  # taken back there meanwhile
    assert flags.status().kills == ["items.read"]
    await flags.carried({"items.read": "another time"}, 4)
    assert flags.status().kills == ["items.read"]

    await flags.carried({"items.read": kill["at"]}, 4)
    assert flags.status().kills == []
    assert started(tmp_path).status().kills == []


async def test_a_kill_that_ends_before_the_store_hears_of_it_is_remembered_until_it_has(
    tmp_path: Path,
) -> None:
    flags = started(tmp_path)
    await flags.take(to_json(BEFORE))
    await flags.kill("items.read", "it burns", "ada")
    assert (await flags.unkill("items.read", "a false alarm\n", "bob")).code == 0
    assert flags.status().kills == []

    known = await started(tmp_path).confirm(3)
    (over,) = known["kills"]["over"]
    assert (over["flag"], over["kill"]["by"], over["end"]["reason"]) == ("items.read", "ada", "a false alarm")

    flags = started(tmp_path)
    await flags.told([over["end"]["at"]])
    assert (await started(tmp_path).confirm(3))["kills"]["over"] == []


async def test_what_was_wrong_with_the_disk_is_over_when_it_has_been_written(tmp_path: Path) -> None:
    flags = started(tmp_path)
    await flags.take(to_json(BEFORE))
    await flags.kill("items.read", "it burns", "ada")
    for name in ("last.json", "kills.json"):
        (tmp_path / "flags" / name).write_text("{}")
    flags = started(tmp_path)
    await flags.take(to_json(BEFORE))
    assert "last.json" not in (flags.status().trouble or "")
    assert "make them again" in (flags.status().trouble or "")
    await flags.kill("items.read", "it burns", "ada")
    assert flags.status().trouble is None


async def test_an_older_set_is_refused_counted_and_shown_until_it_is_mended(tmp_path: Path) -> None:
    flags = started(tmp_path)
    await flags.take(to_json(BEFORE))

    answer = await flags.take(to_json(FlagSet(2, None, BEFORE.flags)))

    assert answer["refused"]["reason"] == "older"
    assert answer["version"] == 3
    assert "restored from an old copy" in (flags.status().trouble or "")
    assert [sample.value for sample in flags.samples() if sample.labels == ("older",)] == [1]
    await flags.confirm(3)
    assert flags.status().trouble is None
