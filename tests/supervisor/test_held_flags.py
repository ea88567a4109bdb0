"""The flags that an instance holds: on disk whole or not at all, never back to an older or empty set."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from crossfade.held_flags import HeldFlags, Kills, RefusedSetError
from flags.document import to_json
from flags.model import Authority, Bucketing, Flag, FlagSet, Kill, Phase, Side, Stage
from flags.stages import settled_at

KILL = Kill("it burns", "ada", "2026-11-23T18:00:00.000+00:00")


def flag(key: str, stage: Stage = Stage.NEW) -> Flag:
    return Flag(key, 1, settled_at(stage), Bucketing((), key))


def a_set(version: int, *keys: str) -> Any:
    return to_json(FlagSet(version, None, tuple(map(flag, keys))))


def held(folder: Path) -> HeldFlags:
    found = HeldFlags(folder)
    found.load()
    return found


def test_what_was_taken_is_there_after_a_restart(tmp_path: Path) -> None:
    before = held(tmp_path)
    assert before.take(a_set(3, "items.read"))
    assert not before.take(a_set(3, "items.read"))
    before.save()
    before.set_kills(Kills().with_kill("items.read", KILL))

    after = held(tmp_path)

    assert (after.version, after.trouble) == (3, None)
    assert after.effective == before.effective
    assert after.effective is not None
    assert after.effective.flags[0].kill == KILL
    for path in (tmp_path / "flags").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (a_set(2, "items.read"), "older"),
        (a_set(4), "empty"),
        ({"version": 4, "flags": [{"key": "x"}]}, "invalid"),
        ({"version": 4, "flags": a_set(4, "items.read")["flags"], "more": 1}, "invalid"),
        (None, "invalid"),
        ([], "invalid"),
    ],
)
def test_a_set_that_must_not_move_traffic_is_refused(tmp_path: Path, document: Any, reason: str) -> None:
    flags = held(tmp_path)
    flags.take(a_set(3, "items.read"))
    flags.save()
    with pytest.raises(RefusedSetError) as caught:
        flags.take(document)
    assert caught.value.reason == reason
    assert flags.version == held(tmp_path).version == 3


def test_a_first_set_may_be_empty(tmp_path: Path) -> None:
    flags = held(tmp_path)
    assert flags.effective is None
    assert flags.take(a_set(1))
    assert flags.take(a_set(2, "items.read"))


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"value": {}}', None])
def test_a_damaged_file_is_not_used_and_said(tmp_path: Path, damage: str | None) -> None:
    flags = held(tmp_path)
    flags.take(a_set(3, "items.read"))
    flags.save()
    path = tmp_path / "flags" / "last.json"
    if damage is None:
        whole = json.loads(path.read_text())
        whole["value"]["flags"][0]["transition"]["weight_ppm"] = 0
        damage = json.dumps(whole)
    path.write_text(damage)

    after = held(tmp_path)

    assert after.effective is None
    assert after.trouble is not None
    assert str(path) in after.trouble
    assert after.take(a_set(3, "items.read"))


def test_a_half_written_file_is_never_in_place(tmp_path: Path) -> None:
    flags = held(tmp_path)
    flags.take(a_set(3, "items.read"))
    flags.save()
    (tmp_path / "flags" / "last.json.new").write_text("half of")
    assert held(tmp_path).version == 3


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/dev/full").exists(), reason="needs a full device")
def test_a_kill_that_cannot_be_written_is_not_in_force(tmp_path: Path) -> None:
    flags = held(tmp_path)
    flags.take(a_set(3, "items.read"))
    flags.save()
    (tmp_path / "flags" / "kills.json.new").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        flags.set_kills(Kills().with_kill(None, KILL))
    assert not flags.kills
    assert flags.effective is not None
    assert flags.effective.kill is None


def test_kills_hold_whatever_the_store_says(tmp_path: Path) -> None:
    flags = held(tmp_path)
    flags.set_kills(Kills().with_kill("items.read", KILL).with_kill("unknown.flag", KILL))
    first = flags.effective
    assert first is not None
    assert [(f.key, f.kill) for f in first.flags] == [("items.read", KILL), ("unknown.flag", KILL)]

    flags.take(a_set(3, "items.read", "items.write"))
    effective = flags.effective
    assert effective is not None
    assert [(f.key, f.kill) for f in effective.flags] == [
        ("items.read", KILL),
        ("items.write", None),
        ("unknown.flag", KILL),
    ]

    flags.set_kills(flags.kills.without("items.read").without("unknown.flag"))
    assert flags.effective == FlagSet(3, None, (flag("items.read"), flag("items.write")))


def test_the_first_reason_of_a_kill_stays() -> None:
    later = Kill("again", "bob", "2026-11-23T19:00:00.000+00:00")
    assert Kills().with_kill("aa", KILL).with_kill("aa", later).flags == {"aa": KILL}
    assert Kills().with_kill(None, KILL).with_kill(None, later).every == KILL


# Which side may change data is not taken from the disk.

SHOP = Authority("shop", ("items",), Side.NEW, 3)


def test_what_the_disk_says_of_the_authority_is_not_believed_before_the_store_has_been_heard(
    tmp_path: Path,
) -> None:
    first = HeldFlags(tmp_path)
    first.take(to_json(FlagSet(7, authorities=(SHOP,))))
    first.save()
    assert first.effective is not None
    assert first.effective.authorities == (SHOP,)

    later = HeldFlags(tmp_path)
    later.load()
    assert later.effective is not None
    assert later.effective.authorities == (replace(SHOP, phase=Phase.HOLD),)
    assert later.hear()
    assert not later.hear()
    assert later.effective.authorities == (SHOP,)


def test_a_host_that_knows_nothing_yet_lets_wait_what_its_configuration_says_may_have_moved(
    tmp_path: Path,
) -> None:
    configured = Authority("shop", ("items",), Side.LEGACY, 0)
    held = HeldFlags(tmp_path, [configured])
    held.load()
    assert held.effective == FlagSet(0, authorities=(replace(configured, phase=Phase.HOLD),))
    assert held.take(to_json(FlagSet(7, authorities=(SHOP,))))
    assert held.effective == FlagSet(7, authorities=(SHOP,))


def test_one_that_was_held_before_the_cutover_was_prepared_waits_as_well(tmp_path: Path) -> None:
    before = HeldFlags(tmp_path)
    before.take(to_json(FlagSet(7)))
    before.save()
    configured = Authority("shop", ("items",), Side.LEGACY, 0)
    held = HeldFlags(tmp_path, [configured])
    held.load()
    assert held.effective is not None
    assert [one.phase for one in held.effective.authorities] == [Phase.HOLD]
    # The same set again is news: it says that nothing was moved.
    assert held.take(to_json(FlagSet(7)))
    assert held.effective == FlagSet(7)
