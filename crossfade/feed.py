"""The feed: it brings the store's flags to this instance and this host's kills to the store.

It runs in the control process and holds nothing: the supervisor says which version it has, the store which
one there is. It looks when the bell rings, when this process has changed something, and every two seconds
in any case. While the store cannot be asked, traffic goes on by what the supervisor holds, and the feed
tries again.

After each look the instance says in the store which version each of its workers runs, so that whoever has
changed something can wait until all of them do.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import secrets
import socket
import time
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from core.metrics import FLAG_PROPAGATION_SECONDS, LATENCY_BUCKETS, Histogram, Sample
from crossfade import exposition
from crossfade.bell import Bell
from crossfade.channel import Message
from crossfade.cohort_counts import cohort_counts
from crossfade.convergence import ALIVE_WITHIN, Convergence, Patience, converged
from crossfade.cutover.leases import Leases, is_under_way, lease_from
from crossfade.embedded.postgres import EmbeddedPostgresError
from crossfade.private_file import read_or_make
from crossfade.store.actors import Actor, ActorType, Role, Via
from crossfade.store.audit import Deed, Head
from crossfade.store.changes import LONGEST_REASON, Done, Work
from crossfade.store.connection import StoreError
from crossfade.store.instances import InstanceReport
from crossfade.store.store import Store
from crossfade.store_here import open_store
from flags.change import KillAll, KillFlag, Refused, Unkill, UnkillAll
from flags.document import one_line
from flags.model import Bucketing, Flag, Side, Stage
from flags.stages import settled_at

log = structlog.get_logger(__name__)

POLL_EVERY = 2.0
"""Seconds between two looks when no bell rings; up to a fifth sooner, so that not all look at once."""
TRY_AGAIN = 0.5
SAY_AFTER = 10.0
"""Seconds that the store may be away before the log says so."""
COUNT_EVERY = 0.5
"""Seconds between two looks at what was counted: guardrails see no sooner than that."""

Ask = Callable[[Message], Awaitable[Message]]
"""A question to the supervisor. Raises TimeoutError or ConnectionResetError."""


class Feed:
    """`run` goes on until it is cancelled. `store` is None until there is one to be asked."""

    def __init__(self, context: Message, ask: Ask) -> None:
        self._context = context
        self._ask = ask
        self._data_dir = Path(context["data_dir"])
        self._bell = Bell(context["bus"], self._data_dir)
        self._wake = asyncio.Event()
        self._looked = asyncio.Event()
        """Who waits for workers should look; several may wait, so each also looks now and then."""
        self._rung = 0
        """The newest version that somebody has rung the bell for."""
        self._known = 0
        """The version that the supervisor has, as far as this process has heard."""
        self._leases = Leases(ask, self._hear)
        self._saying = asyncio.Lock()
        self._said_last: InstanceReport | None = None
        self.store: Store | None = None
        self.opened = asyncio.Event()
        """There is a store; it stays, even while it cannot be asked."""
        self.trouble: str | None = "the store has not been asked yet"
        """Why the store cannot be asked, in one line; None while it can."""
        self._troubled_since: float | None = None
        self._said = False
        self._registered: frozenset[str] = frozenset()
        self._stuck: dict[str, int] = {}
        """Kills of this host that the store refused, each with the version at which it did."""
        self._counts: dict[str, Any] | None = None
        """None until the workers have been asked: nothing is not the same as not known."""
        self._propagation = {source: [0] * (len(LATENCY_BUCKETS) + 1) for source in ("push", "poll")}
        self._propagation_sum = dict.fromkeys(self._propagation, 0.0)
        self.instance = f"{socket.gethostname()}-{_own_name(self._data_dir)}"

    def update(self, context: Message) -> None:
        """The configuration was reloaded; its routes may name other flags."""
        self._context = {**self._context, "routes": context["routes"]}
        self._wake.set()

    async def run(self) -> None:
        """Do nothing where the configuration has no store."""
        if self._context["store"] == "none":
            self.trouble = "this instance has no flags: store is none"
            return
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._bell.listen(self._hear))
            tasks.create_task(self._count_often())
            tasks.create_task(self._renew_leases())
            await self._look_for_ever()

    async def take_leave(self) -> None:
        """The instance has ended, and nobody is to wait for what it will never say."""
        if self.store is not None:
            with contextlib.suppress(StoreError):
                await self.store.leave(self.instance, ALIVE_WITHIN)

    async def close(self) -> None:
        if self.store is not None:
            await self.store.close()

    # Looking.

    async def _look_for_ever(self) -> None:
        while True:
            self._wake.clear()
            wait = POLL_EVERY * random.uniform(0.8, 1.0)
            try:
                await self._look()
                self._well()
            except (StoreError, EmbeddedPostgresError) as error:
                self._trouble(str(error))
                wait = TRY_AGAIN
            except (TimeoutError, ConnectionResetError):
                wait = TRY_AGAIN  # the supervisor is busy, or this process is about to end
            except Exception:
                # A bug of ours must not leave the instance without flags for ever.
                log.exception("feed_failed")
                self._trouble("a fault of Crossfade; see the log")
                wait = POLL_EVERY
            self._looked.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._wake.wait()

    async def _look(self) -> None:
        store = await self._open()
        if self._known and self._rung > self._known:
            known = await self._pull(store, "push")
        else:
            known = await self._compare(store)
        # Also where a bell has promised more than there is.
        self._rung = self._known = known["version"]
        self._leases.note(under_way=known["under_way"])
        if known["kills"]["every"] or known["kills"]["flags"]:
            await self._carry(store, known["kills"])
        if known["kills"]["over"]:
            await self._tell_of_the_past(store, known["kills"]["over"])
        await self._report(store)

    async def _compare(self, store: Store) -> Message:
        """Ask the store for its version, and for the set only if that is another one."""
        version = await store.version()
        known = await self._ask({"do": "confirm", "version": version})
        if version >= known["version"] and not self._registered >= self._route_flags().keys():
            # Never into a store that has lost what it knew: it would soon look like a newer one.
            version = (await store.register(self._route_flags().values())).version
            self._registered = frozenset(self._route_flags())
        if version != known["version"]:
            known = await self._pull(store, "poll")
        return known

    async def _pull(self, store: Store, source: str) -> Message:
        """Hand the store's set to the supervisor, who answers when all workers decide by it."""
        asked = time.monotonic()
        document, age = await store.flag_document()
        # Some worker may be waited for, and the others' leases are not to end meanwhile.
        self._leases.note(under_way=is_under_way(document))
        began = time.monotonic()
        known = await self._ask({"do": "flags", "document": document, "lease": lease_from(asked)})
        if known.get("acks"):
            seconds = age + time.monotonic() - began
            self._propagation[source][bisect_left(LATENCY_BUCKETS, seconds)] += 1
            self._propagation_sum[source] += seconds
        return known

    async def _open(self) -> Store:
        if self.store is None:
            store = await open_store(self._context["store"], self._data_dir)
            store.on_change = self._on_change
            self.store = store
            self.opened.set()
        return self.store

    def _on_change(self, version: int) -> None:
        self._hear(version)
        self._bell.ring(version)

    def _hear(self, version: int) -> None:
        """Look at once, unless it is an echo of what has been looked at."""
        if version == 0 or version > self._known:
            self._rung = max(self._rung, version)
            self._wake.set()

    def _route_flags(self) -> dict[str, Flag]:
        """Of each flag that a route names, what the store is given if it does not know it."""
        wanted: dict[str, Flag] = {}
        for route in self._context["routes"]:
            stage = Stage.NEW if route["side"] == Side.NEW else Stage.LEGACY
            key = route["flag"]
            wanted.setdefault(key, Flag(key, 0, settled_at(stage), Bucketing((), key)))
        return wanted

    # Kills of this host.

    async def _carry(self, store: Store, kills: Message) -> None:
        """Have the store take over what was killed here; from then on it is the store's to take back.

        The audit remembers which kill of this host it was, so that one that somebody has taken back by now
        does not come back.
        """
        carried = {}
        version = 0
        for key, kill in (("*", kills["every"]), *kills["flags"].items()):
            if not kill or self._stuck.get(key) == kills["version"]:
                continue
            command = (
                KillAll(kill["reason"], kill["by"], kill["at"])
                if key == "*"
                else KillFlag(key, kill["reason"], kill["by"], kill["at"])
            )
            actor = Actor(ActorType.LOCAL, kill["by"], Role.ADMIN, None, Via.CLI)
            reason = one_line(f"killed on {self.instance}: {kill['reason']}", LONGEST_REASON)
            this_kill = f"kill of {key} on {self.instance} at {kill['at']}"
            try:
                taken = await store.audit_of(this_kill)
                if taken is not None and taken.to_version is not None:
                    version = max(version, taken.to_version)
                else:
                    applied = await store.change(actor, command, reason=reason, request_id=this_kill)
                    version = max(version, applied.version)
                carried[key] = kill["at"]
            except Refused as refusal:
                # It stays killed here, and the status shows it; asked again only when the store has changed.
                self._stuck[key] = kills["version"]
                log.warning("kill_stays_here", flag=key, reason=refusal.kind, message=str(refusal))
        if carried:
            await self._pull(store, "push")
            await self._ask({"do": "carried", "kills": carried, "version": version})

    async def _tell_of_the_past(self, store: Store, over: Sequence[Message]) -> None:
        """Have the audit know of kills that ended here before the store heard of them; it changes no flag."""
        for one in over:
            kill, end, key = one["kill"], one["end"], one["flag"] or "*"
            this_kill = f"kill of {key} on {self.instance} at {kill['at']}"
            known = await store.audit_of(this_kill)
            if known is not None and known.to_version is not None:
                await self._take_back(store, one)
            if known is None:
                actor = Actor(ActorType.LOCAL, kill["by"], Role.ADMIN, None, Via.CLI)
                words = f"killed on {self.instance}, and taken back there: {kill['reason']}"
                reason = one_line(words, LONGEST_REASON)
                objects = () if one["flag"] is None else (one["flag"],)
                deed = Deed("flag.kill_over", "flag", objects, reason, {}, None, None, this_kill)
                await store.perform(actor, deed, _recorded(kill, end))
        await self._ask({"do": "told", "ends": [one["end"]["at"] for one in over]})

    async def _take_back(self, store: Store, one: Message) -> None:
        """The store has taken over a kill that had just been taken back here: it ends there, too."""
        flag_set, key = await store.flag_set(), one["flag"]
        flag = None if key is None else flag_set.flag(key)
        kill = flag_set.kill if key is None else None if flag is None else flag.kill
        if kill is None or kill.at != one["kill"]["at"]:
            return
        end = one["end"]
        actor = Actor(ActorType.LOCAL, end["by"], Role.ADMIN, None, Via.CLI)
        reason = one_line(f"taken back on {self.instance}: {end['reason']}", LONGEST_REASON)
        try:
            await store.change(actor, UnkillAll() if key is None else Unkill(key), reason=reason)
        except Refused as refusal:
            log.warning("kill_stays", flag=key or "*", reason=refusal.kind, message=str(refusal))

    # Saying who runs what.

    async def _count_often(self) -> None:
        while True:
            await asyncio.sleep(COUNT_EVERY)
            if self.store is None or self.trouble is not None:
                continue
            with contextlib.suppress(StoreError, TimeoutError, ConnectionResetError):
                self._counts = await self._counted()
                await self._report(self.store)

    async def _renew_leases(self) -> None:
        await self.opened.wait()
        assert self.store is not None
        await self._leases.run(self.store)

    async def _report(self, store: Store) -> None:
        # One after the other, so that what is newer is written last.
        async with self._saying:
            self._said_last = await self._report_of_now()
            self._looked.set()
            await store.report(self._said_last)

    async def _counted(self) -> dict[str, Any]:
        samples = (await self._ask({"do": "samples"}))["samples"]
        return cohort_counts(exposition.from_wire(samples))

    async def _report_of_now(self) -> InstanceReport:
        if self._counts is None:
            self._counts = await self._counted()
        status = (await self._ask({"do": "status"}))["status"]
        flags = status["flags"]
        return InstanceReport(
            id=self.instance,
            host=socket.gethostname(),
            address=self._context["address"],
            flags_version=flags["version"],
            started_at=self._context["started"],
            kill_overlay={"kills": flags["kills"]},
            workers=[
                {
                    "worker": w["worker"],
                    "pid": w["pid"],
                    "state": w["state"],
                    "version": w["flags_version"],
                    "taken": w["flags_taken"],
                }
                for w in status["workers"]
                if w["state"] in ("ready", "draining")
            ],
            counts=self._counts,
        )

    async def converged(self, version: int, within: float, patience: Patience | None = None) -> Convergence:
        """Wait until every worker of every living instance runs `version` or a later one."""
        assert self.store is not None, "nothing was changed without a store"
        return await converged(self.store, version, within, self._looked, lambda: self._said_last, patience)

    # Saying how it is.

    def _trouble(self, why: str) -> None:
        """Remember it at once, say it when it lasts: an embedded store needs some seconds to begin."""
        self.trouble = why
        now = time.monotonic()
        if self._troubled_since is None:
            self._troubled_since = now
        if not self._said and now - self._troubled_since >= SAY_AFTER:
            self._said = True
            log.warning("store unavailable", message=why)

    def _well(self) -> None:
        if self._said:
            log.info("store available")
        self.trouble, self._troubled_since, self._said = None, None, False

    def samples(self) -> list[Sample]:
        return [
            Sample(
                FLAG_PROPAGATION_SECONDS.name,
                (source,),
                Histogram(tuple(counts), self._propagation_sum[source]),
            )
            for source, counts in self._propagation.items()
        ]

    @property
    def bus_trouble(self) -> str | None:
        return self._bell.trouble


def _recorded(kill: Message, end: Message) -> Work[None]:
    """An act that is over and only to be recorded: who killed, and who took it back."""

    async def work(_: AsyncConnection, __: Head) -> Done[None]:
        return Done(None, before={"killed": kill}, after={"taken back": end})

    return work


def _own_name(data_dir: Path) -> str:
    """What tells this instance from others on hosts of the same name; it stays as long as the data does."""
    try:
        return read_or_make(data_dir / "instance.id", secrets.token_hex(4))
    except (OSError, ValueError) as error:
        log.warning("instance has no id of its own", reason=str(error))
        return hashlib.sha256(str(data_dir).encode()).hexdigest()[:8]
