"""From the flags that an instance holds to what each of its workers decides by.

Whatever changes what is held (a set from the store, a kill on this host) goes to disk, then to all workers
at once, and comes back as one acknowledgement per worker. One change at a time, so that no worker sees them
in another order.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from core.metrics import (
    AUTHORITY,
    AUTHORITY_PHASE,
    FLAGS_AGE_SECONDS,
    FLAGS_REFUSED,
    FLAGS_VERSION,
    KILL_ACTIVE,
    Sample,
)
from crossfade.channel import Message
from crossfade.fleet import Fleet, State
from crossfade.held_flags import HeldFlags, Kills, RefusedSetError
from crossfade.logs import Log
from crossfade.outcome import Outcome
from crossfade.status import FlagsAck, FlagsStatus
from flags.change import beyond_a_kill, no_say, no_such_flag
from flags.document import one_line, to_json
from flags.model import Authority, Kill, Phase, Side

EVERYTHING = "*"
"""How a kill of everything is spelled where a list of keys stands."""
LONGEST_REASON = 900
"""Characters of a kill's reason; the store takes a hundred more, for where it was made."""
LONGEST_NAME = 64


class FlagDistribution:
    """The supervisor's side of flags."""

    def __init__(self, fleet: Fleet, log: Log) -> None:
        self._fleet = fleet
        self._log = log
        self._turn = asyncio.Lock()
        self._held: HeldFlags
        self._store = "none"
        self._refusals: dict[str, int] = {}
        self._refusal: str | None = None
        self.route_flags: Collection[str] = ()
        """The flags that the configuration's routes name."""

    def begin(self, data_dir: Path, store: str, cutovers: Sequence[Authority] = ()) -> None:
        """Take what the disk remembers, before any worker starts. `store` is for people.

        `cutovers` are those of the configuration, as they would begin.
        """
        self._store = store
        self._held = HeldFlags(data_dir, cutovers)
        if store == "none":
            return
        self._held.load()
        if self._held.trouble:
            self._log.error("flags on disk are not used", reason=self._held.trouble)
        effective = self._held.effective
        self._fleet.flags = None if effective is None else to_json(effective)

    def standing_still(self) -> asyncio.Lock:
        """While it is held nothing changes, and the disk has what the workers have."""
        return self._turn

    # The feed's questions.

    async def take(self, document: Any, lease: float | None = None) -> Message:
        """A set from the store: who decides by it now, or why it was refused. `lease`: `Fleet.tell_flags`."""
        async with self._turn:
            acks: list[FlagsAck] = []
            try:
                changed = self._held.take(document)
            except RefusedSetError as error:
                self._refusals[error.reason] = self._refusals.get(error.reason, 0) + 1
                if str(error) != self._refusal:
                    self._log.error("flags refused", reason=error.reason, message=str(error))
                self._refusal = str(error)
                return {**self._known(), "refused": {"reason": error.reason, "message": str(error)}}
            # Traffic waits neither for a slow disk nor for a full one.
            saving = asyncio.create_task(asyncio.to_thread(self._save))
            if changed:
                acks = await self._distribute(lease)
            await saving
            self._confirm()
            self._drop_carried()
            if changed:
                self._log.info("flags taken", version=self._held.version, workers=len(acks))
            return {**self._known(), "acks": [asdict(ack) for ack in acks]}

    async def carried(self, kills: Mapping[str, str], version: int) -> Message:
        """The store has had these kills of this host since `version`, and decides about them from there on.

        `kills` says of each key when it was made: a later one of the same flag is another one.
        """
        async with self._turn:
            if self._held.version >= version and self._held.saved:
                left = self._held.kills
                for key, at in kills.items():
                    flag = None if key == EVERYTHING else key
                    kill = left.every if flag is None else left.flags.get(flag)
                    if kill is not None and kill.at == at:
                        left = left.without(flag)
                before = self._held.effective
                self._keep(left)
                if self._held.effective != before:
                    # It has been taken back there already.
                    await self._distribute()
            return self._known()

    async def told(self, ends: Collection[str]) -> Message:
        """The audit has the kills that were taken back here at these times."""
        async with self._turn:
            kills = self._held.kills
            self._keep(replace(kills, over=tuple(one for one in kills.over if one.end.at not in ends)))
            return self._known()

    async def confirm(self, version: int) -> Message:
        """The store has said that `version` is its newest."""
        if version == self._held.version:
            async with self._turn:
                if self._held.hear():
                    await self._distribute()
            self._confirm()
        return self._known()

    def _save(self) -> None:
        try:
            self._held.save()
        except OSError as error:
            self._log.error("flags are not on disk", reason=error.strerror or str(error))

    def _confirm(self) -> None:
        self._held.confirm()
        self._refusal = None

    def _known(self) -> Message:
        kills = {**self._held.kills.to_json(), "version": self._held.version}
        return {"version": self._held.version, "kills": kills, "under_way": self._held.under_way}

    def _drop_carried(self) -> None:
        """Kills of this host that the store's set has in it by now need no place of their own.

        What is in force stays the same. The disk must never have neither.
        """
        given = self._held.given
        kills = self._held.kills
        if given is None or not kills or not self._held.saved:
            return
        left = kills.without(None) if given.kill else kills
        for key in kills.flags:
            flag = given.flag(key)
            if flag is not None and flag.kill is not None:
                left = left.without(key)
        self._keep(left)

    def _keep(self, kills: Kills) -> None:
        """Of this host's kills only these."""
        try:
            self._held.set_kills(kills)
        except OSError as error:
            self._log.error("kills are not on disk", reason=error.strerror or str(error))

    # The control socket's orders.

    async def kill(self, key: str | None, reason: str, by: str) -> Outcome:
        """Send a flag's requests (None: all) to legacy, whether or not the store can be asked."""
        if self._store == "none":
            return Outcome(1, ["this instance has no flags: store is none"], "refused")
        # Cleaned and not refused: what workers, disk or store could not read would kill nobody.
        reason, by = one_line(reason, LONGEST_REASON), one_line(by, LONGEST_NAME)
        if not reason:
            return Outcome(2, ['a kill needs a reason: --reason "why, in a few words"'], "invalid")
        async with self._turn:
            unknown = self._unknown(key)
            if unknown:
                return Outcome(3, [unknown], "refused")
            if key is not None and self._held.given is not None and (why := no_say(self._held.given, key)):
                return Outcome(6, [why], "refused")
            name = "everything" if key is None else key
            if self._is_archived(key):
                todo = "change its target and crossfade reload, or crossfade kill --all"
                return Outcome(
                    3, [f"{key} is archived: its routes go where crossfade.yaml says; {todo}"], "refused"
                )
            if self._is_killed(key):
                return Outcome(0, [f"{name} is killed already"], "applied")
            kill = Kill(reason, by, datetime.now(UTC).isoformat(timespec="milliseconds"))
            try:
                self._held.set_kills(self._held.kills.with_kill(key, kill))
            except OSError as error:
                return Outcome(1, [f"not killed: the disk refuses it: {error.strerror}"], "failed")
            acks = await self._distribute()
            self._log.warning("killed", flag=key or EVERYTHING, reason=kill.reason, by=by)
            told = _told(f"killed {name}", acks)
            kept = [] if key is not None or self._held.given is None else beyond_a_kill(self._held.given)
            lines = [f"but not {one}: new has the authority, crossfade cutover back {one}" for one in kept]
            return replace(told, lines=[*told.lines, *lines])

    async def unkill(self, key: str | None, reason: str, by: str) -> Outcome:
        """Take back a kill of this host. One that the store has is the store's to take back."""
        end = Kill(
            one_line(reason, LONGEST_REASON) or "no reason given",
            one_line(by, LONGEST_NAME),
            datetime.now(UTC).isoformat(timespec="milliseconds"),
        )
        async with self._turn:
            name = "everything" if key is None else key
            kills = self._held.kills
            if (kills.every if key is None else kills.flags.get(key)) is None:
                if not self._is_killed(key):
                    return Outcome(
                        0, ["nothing is killed" if key is None else f"{name} is not killed"], "applied"
                    )
                why = "its kill is in the store, which must be there to take it back"
                return Outcome(1, [f"{name}: {why}"], "refused")
            try:
                self._held.set_kills(kills.taken_back(key, end))
            except OSError as error:
                return Outcome(1, [f"not taken back: the disk refuses it: {error.strerror}"], "failed")
            acks = await self._distribute()
            self._log.warning("kill taken back", flag=key or EVERYTHING, reason=end.reason, by=end.by)
            return _told(f"took back the kill of {name}", acks)

    def _unknown(self, key: str | None) -> str | None:
        given = self._held.given
        known = {*self.route_flags, *((flag.key for flag in given.flags) if given else ())}
        return None if key is None or key in known else no_such_flag(key, sorted(known))

    def _is_archived(self, key: str | None) -> bool:
        flag = None if key is None or self._held.given is None else self._held.given.flag(key)
        return flag is not None and flag.archived

    def _is_killed(self, key: str | None) -> bool:
        effective = self._held.effective
        if effective is None:
            return False
        flag = effective.flag(key) if key is not None else None
        return effective.kill is not None if key is None else flag is not None and flag.kill is not None

    async def _distribute(self, lease: float | None = None) -> list[FlagsAck]:
        effective = self._held.effective
        if effective is None:
            return []
        acks = await self._fleet.tell_flags(to_json(effective), lease)
        for ack in acks:
            if ack.error is not None:
                who = {"worker": ack.worker, "pid": ack.pid}
                self._log.warning("flags not acknowledged", **who, reason=ack.error)
        return acks

    # What it knows.

    def status(self) -> FlagsStatus:
        kills = self._held.kills
        return FlagsStatus(
            store=self._store,
            version=self._held.version,
            age_seconds=self._age(),
            kills=[*([EVERYTHING] if kills.every else []), *sorted(kills.flags)],
            trouble=self._refusal or self._held.trouble,
        )

    def _age(self) -> float | None:
        confirmed = self._held.confirmed_at
        return None if confirmed is None else round(max(0.0, time.time() - confirmed), 3)

    def samples(self) -> list[Sample]:
        found = [Sample(FLAGS_REFUSED.name, (reason,), n) for reason, n in self._refusals.items()]
        effective = self._held.effective
        if effective is not None:
            found += [
                Sample(FLAGS_VERSION.name, (str(worker.place),), worker.flags_version)
                for worker in self._fleet.living
                # One per place: its successor may be there while it drains.
                if worker.state is State.READY
            ]
            age = self._age()
            if age is not None:
                found.append(Sample(FLAGS_AGE_SECONDS.name, (), age))
            for one in effective.authorities:
                found += [
                    Sample(AUTHORITY.name, (one.cutover, side.value), float(one.side is side))
                    for side in Side
                ]
                found += [
                    Sample(AUTHORITY_PHASE.name, (one.cutover, phase.value), float(one.phase is phase))
                    for phase in Phase
                ]
            killed = [flag.key for flag in effective.flags if flag.kill and not flag.archived]
            killed += [EVERYTHING] if effective.kill else []
            found += [Sample(KILL_ACTIVE.name, (key,), 1.0) for key in killed]
        return found


def _told(what: str, acks: Sequence[FlagsAck]) -> Outcome:
    """An order that is in force: which workers decide by it."""
    obeying = [ack for ack in acks if ack.taken]
    slowest = max((ack.milliseconds for ack in obeying), default=0.0)
    lines = [f"{what}: {len(obeying)}/{len(acks)} workers, slowest {slowest:.0f} ms"]
    lines += [f"worker {ack.worker} (pid {ack.pid}): {ack.error}" for ack in acks if ack.error is not None]
    return Outcome(0 if len(obeying) == len(acks) else 7, lines, "applied")
