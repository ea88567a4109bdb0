"""The flags that this instance runs: the last good set that the store gave, and the kills made on this host.

The supervisor holds them, so that neither the store, the bus nor the control process has to be there:

    flags/last.json    the last good set, with its checksum; read at the start, before anybody is asked
    flags/kills.json   kills made here, in force until the store has taken them over

A set that cannot be read, is older than the one held, or is empty where the one held is not, is refused:
a store that was restored from an old copy, or emptied, must not move traffic. Both files are written whole
beside the old one, forced to disk and put in its place.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flags.document import InvalidFlagError, check_key, from_json, kill_to_json, to_json
from flags.model import Authority, Bucketing, Flag, FlagSet, Kill, Phase, Stage
from flags.stages import settled_at


class RefusedSetError(Exception):
    """A flag set that is not taken. `reason` is one word: invalid, older or empty."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class TakenBack:
    """A kill that ended on this host before the store had heard of it; for the audit. `flag` None: of all."""

    flag: str | None
    kill: Kill
    end: Kill
    """Who took it back, when and why."""


MOST_TAKEN_BACK = 100


@dataclass(frozen=True, slots=True)
class Kills:
    """Kills that were made on this host. `every` kills all flags; it is false where nothing is killed."""

    every: Kill | None = None
    flags: Mapping[str, Kill] = field(default_factory=dict)
    over: tuple[TakenBack, ...] = ()
    """Those that the store has not been told of, the oldest first."""

    def __bool__(self) -> bool:
        return self.every is not None or bool(self.flags)

    def with_kill(self, key: str | None, kill: Kill) -> Kills:
        """`key` None is everything. A kill that is there already stays as it is."""
        if key is None:
            return replace(self, every=self.every or kill)
        return replace(self, flags={key: kill, **self.flags})

    def without(self, key: str | None) -> Kills:
        if key is None:
            return replace(self, every=None)
        return replace(self, flags={other: kill for other, kill in self.flags.items() if other != key})

    def taken_back(self, key: str | None, end: Kill) -> Kills:
        """Without the kill of `key`, which is there, and remembered until the store has been told."""
        kill = self.every if key is None else self.flags[key]
        assert kill is not None
        over = (*self.over, TakenBack(key, kill, end))[-MOST_TAKEN_BACK:]
        return replace(self.without(key), over=over)

    def put_over(self, flag_set: FlagSet) -> FlagSet:
        """`flag_set` with these kills in it. A flag that it does not know is there then, and killed."""
        known = {flag.key for flag in flag_set.flags}
        flags = [
            replace(flag, kill=flag.kill or self.flags.get(flag.key), archived=False)
            if flag.key in self.flags
            else flag
            for flag in flag_set.flags
        ]
        flags += [
            Flag(key, 0, settled_at(Stage.LEGACY), Bucketing((), key), kill=kill)
            for key, kill in self.flags.items()
            if key not in known
        ]
        return replace(
            flag_set,
            kill=flag_set.kill or self.every,
            flags=tuple(sorted(flags, key=lambda flag: flag.key)),
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "every": kill_to_json(self.every) if self.every else None,
            "flags": {key: kill_to_json(kill) for key, kill in self.flags.items()},
            "over": [
                {"flag": one.flag, "kill": kill_to_json(one.kill), "end": kill_to_json(one.end)}
                for one in self.over
            ],
        }

    @classmethod
    def from_json(cls, document: Any) -> Kills:
        """Raises InvalidFlagError."""
        flags = {}
        for key, kill in document["flags"].items():
            found = _kill(kill)
            if found is not None:
                flags[check_key(key)] = found
        over = []
        for one in document.get("over", ()):
            begun, ended = _kill(one["kill"]), _kill(one["end"])
            if begun is not None and ended is not None:
                over.append(TakenBack(one["flag"] and check_key(one["flag"]), begun, ended))
        return cls(_kill(document["every"]), flags, tuple(over))


def _kill(document: Any) -> Kill | None:
    """The form of a kill is that of a flag set's, so that form reads it. Raises InvalidFlagError."""
    return from_json({"version": 0, "kill": document, "flags": []}).kill


class HeldFlags:
    """What this instance knows of flags, in memory and in the folder `flags` of its data.

    Which side may change data is never taken from the disk: a cutover may have moved it since. Until the
    store has been heard, what changes something waits.
    """

    def __init__(self, data_dir: Path, cutovers: Sequence[Authority] = ()) -> None:
        """`cutovers` are those that the configuration knows."""
        self._cutovers = cutovers
        self._heard = False
        """Whether the store has confirmed what is held since this program began."""
        self._folder = data_dir / "flags"
        self._given: FlagSet | None = None
        self._saved: FlagSet | None = None
        """The one that the disk has."""
        self.kills = Kills()
        self._troubles: dict[str, str] = {}
        """By file: why it was not used. Over when it has been written anew."""

    @property
    def trouble(self) -> str | None:
        """Why what the disk remembers is not used, where it is not."""
        return "; ".join(self._troubles.values()) or None

    def load(self) -> None:
        """Take what the disk remembers. Nothing there is no trouble, something unreadable is."""
        try:
            last = _read(self._folder / "last.json")
            self._given = self._saved = None if last is None else from_json(last)
        except (OSError, ValueError, KeyError) as error:
            self._troubles["last.json"] = f"{self._folder / 'last.json'} cannot be used: {error}"
        try:
            kills = _read(self._folder / "kills.json")
            self.kills = Kills() if kills is None else Kills.from_json(kills)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            self._troubles["kills.json"] = (
                f"{self._folder / 'kills.json'} cannot be used: {error}; kills of this host that the store "
                "has not got are not in force: make them again, or remove the file"
            )

    @property
    def given(self) -> FlagSet | None:
        """The store's set, without the kills of this host."""
        return self._given

    @property
    def version(self) -> int:
        """Of the store's set; 0 while there is none."""
        return 0 if self._given is None else self._given.version

    @property
    def under_way(self) -> bool:
        """Whether a walk is, by the store's set: workers may need leases."""
        given = self._given
        return given is not None and any(one.phase is not Phase.OPEN for one in given.authorities)

    @property
    def effective(self) -> FlagSet | None:
        """What workers decide by: the store's set under the kills of this host."""
        found = self._given
        if not self._heard and (held := self._unsure(found)):
            found = replace(found or FlagSet(0), authorities=held)
        return self.kills.put_over(found or FlagSet(0)) if self.kills else found

    def _unsure(self, given: FlagSet | None) -> tuple[Authority, ...]:
        """What nobody can be sure of before the store has been asked."""
        known = () if given is None else given.authorities
        under = {key for one in known for key in one.flags}
        others = (one for one in self._cutovers if under.isdisjoint(one.flags))
        held = (replace(one, phase=Phase.HOLD) for one in (*known, *others))
        return tuple(sorted(held, key=lambda one: one.cutover))

    def hear(self) -> bool:
        """The store has said that what is held is its newest. True if by that something else is in force."""
        changed = not self._heard and bool(self._unsure(self._given))
        self._heard = True
        return changed

    def take(self, document: Any) -> bool:
        """Take a set from the store, to be saved next; False if it is the one held already.

        Raises RefusedSetError.
        """
        try:
            found = from_json(document, self._given)
        except InvalidFlagError as error:
            raise RefusedSetError("invalid", f"the store's flag set cannot be read: {error}") from None
        held = self._given
        if held is not None:
            if found.version < held.version:
                raise RefusedSetError(
                    "older",
                    f"the store has version {found.version}, this instance runs {held.version}: was it "
                    f"restored from an old copy? Stop, remove {self._folder / 'last.json'} and start to obey "
                    "it all the same",
                )
            if held.flags and not found.flags:
                raise RefusedSetError(
                    "empty",
                    f"the store's version {found.version} has no flags, {held.version} had some; `crossfade "
                    "apply -f` brings them back",
                )
            if found == held:
                return self.hear()
        self._given = found
        self._heard = True
        return True

    @property
    def saved(self) -> bool:
        return self._saved is self._given

    def save(self) -> None:
        """Have the disk remember the set. May run in a thread of its own. Raises OSError."""
        given = self._given
        if given is not None and self._saved is not given:
            self._write("last.json", to_json(given))
            self._saved = given

    @property
    def confirmed_at(self) -> float | None:
        """Unix time when the store last said that there is nothing newer, whichever program heard it."""
        try:
            return (self._folder / "last.json").stat().st_mtime if self._given is not None else None
        except OSError:
            return None

    def confirm(self) -> None:
        with contextlib.suppress(OSError):
            os.utime(self._folder / "last.json")

    def set_kills(self, kills: Kills) -> None:
        """Put `kills` into force once they are on disk. Raises OSError, and then nothing has changed."""
        if kills != self.kills:
            self._write("kills.json", kills.to_json())
            self.kills = kills

    def _write(self, name: str, value: dict[str, Any]) -> None:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        text = json.dumps(value, sort_keys=True, separators=(",", ":"))
        whole = json.dumps({"sha256": hashlib.sha256(text.encode()).hexdigest(), "value": value}) + "\n"
        new = self._folder / f"{name}.new"
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            file.write(whole)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._folder / name)
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        self._troubles.pop(name, None)


def _read(path: Path) -> Any:
    """What was written, None if nothing was. Raises OSError or ValueError."""
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    if not isinstance(whole, dict) or "value" not in whole:
        raise ValueError("it is not what Crossfade writes")
    text = json.dumps(whole["value"], sort_keys=True, separators=(",", ":"))
    if hashlib.sha256(text.encode()).hexdigest() != whole.get("sha256"):
        raise ValueError("its checksum does not fit")
    return whole["value"]
