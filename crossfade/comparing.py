"""Take pairs of answers off the bus, judge them, and write down what they came to.

Any number of processes may do it, on any host: the bus gives each message to one of them, and to another one
if that one dies with it. A message is taken off only when the store has what it came to, in one transaction;
one that comes twice counts once.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeAlias

import redis.asyncio
import structlog

from core.metrics import COMPARED, COMPARING_FAILED, Sample
from crossfade import bus
from crossfade.pair_line import STREAM
from crossfade.store import comparisons
from crossfade.store.comparisons import Found, Tally
from crossfade.store.connection import StoreError
from crossfade.store.store import Store
from shadow import wire
from shadow.compare import Verdict
from shadow.exhibit import Exhibit
from shadow.judge import drawn, judge
from shadow.rules import Rule, RuleBook

log = structlog.get_logger(__name__)

GROUP: Final = "compare"
AT_ONCE: Final = 50
WAIT_MS: Final = 1000
"""How long the bus is asked to wait for something."""
ABANDONED_MS: Final = 30_000
"""After which another one takes over what somebody has not finished."""
TRY_AGAIN: Final = 1.0
RULES_EVERY: Final = 5.0
FORGET_EVERY: Final = 3600.0

Minutes: TypeAlias = dict[tuple[str, str, int], Counter[str]]
"""By flag, route and minute."""


class Comparing:
    """`run` goes on until it is cancelled, and takes messages while they are `wanted` here.

    `code_rules` are those of the users' code.
    """

    def __init__(
        self,
        store: Store,
        where: str,
        data_dir: Path,
        *,
        keep_days: int,
        code_rules: Callable[[], Sequence[Rule]] = tuple,
        wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        self._store = store
        self._where = where
        self._data_dir = data_dir
        self._keep_days = keep_days
        self._code_rules = code_rules
        self._wanted = wanted
        self._name = uuid.uuid4().hex[:12]
        self._book = RuleBook((), datetime.now(UTC).date())
        self._book_read = -math.inf
        self._forgotten = -math.inf
        self._minutes: Minutes = {}
        self._compared: Counter[tuple[str, str]] = Counter()
        self._failed: Counter[str] = Counter()
        self._well = True

    async def run(self) -> None:
        if self._where == "none":
            return
        while True:
            if not self._wanted():
                await asyncio.sleep(TRY_AGAIN)
                continue
            try:
                async with bus.client_of(self._where, self._data_dir) as client:
                    await self._begin(client)
                    while self._wanted():
                        await self._take_some(client)
                        self._well = True
                continue
            except StoreError as error:
                self._trouble("store", error)
            except bus.AWAY as error:
                self._trouble("bus", error)
            except Exception as error:
                # A bug of ours must not end comparing for good; it is told, and the messages wait.
                log.exception("comparing_failed")
                self._trouble("fault", error)
            await asyncio.sleep(TRY_AGAIN)

    def samples(self) -> list[Sample]:
        return [
            *(Sample(COMPARED.name, labels, count) for labels, count in self._compared.items()),
            *(Sample(COMPARING_FAILED.name, (why,), count) for why, count in self._failed.items()),
        ]

    def _trouble(self, what: str, error: Exception) -> None:
        self._failed[what] += 1
        if self._well:
            log.warning("comparing_waits", what=what, message=str(error))
        self._well = False

    async def _begin(self, client: redis.asyncio.Redis) -> None:
        try:
            await client.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
        except bus.RefusedError as error:
            if "BUSYGROUP" not in str(error):
                raise

    async def _take_some(self, client: redis.asyncio.Redis) -> None:
        """One batch: what somebody has left behind, else what is new."""
        await self._keep_up()
        taken: Any = await client.xautoclaim(STREAM, GROUP, self._name, ABANDONED_MS, count=AT_ONCE)
        messages: list[tuple[bytes, dict[bytes, bytes]]] = [one for one in taken[1] if one[1]]
        if not messages:
            read: Any = await client.xreadgroup(
                GROUP, self._name, {STREAM: ">"}, count=AT_ONCE, block=WAIT_MS
            )
            messages = read[0][1] if read else []
        if not messages:
            return
        await self._take_in([fields for _, fields in messages])
        names = [name for name, _ in messages]
        await client.xack(STREAM, GROUP, *names)
        await client.xdel(STREAM, *names)

    async def _keep_up(self) -> None:
        now = time.monotonic()
        if now - self._book_read >= RULES_EVERY:
            found, wrong = await comparisons.rules(self._store)
            for one in wrong:
                log.warning("rule_not_understood", message=one)
            self._book = RuleBook((*self._code_rules(), *found), datetime.now(UTC).date())
            self._book_read = now
        if now - self._forgotten >= FORGET_EVERY:
            await comparisons.forget(self._store, self._keep_days)
            self._forgotten = now

    async def _take_in(self, messages: Sequence[dict[bytes, bytes]]) -> None:
        tallies: list[Tally] = []
        exhibits: list[Exhibit] = []
        for fields in messages:
            try:
                if b"pair" in fields:
                    exhibits.append(wire.from_bytes(fields[b"pair"]))
                else:
                    tallies.append(Tally(**json.loads(fields[b"tally"])))
            except (ValueError, KeyError, TypeError) as error:
                # Of another version, or of somebody else: nobody here will ever understand it.
                self._failed["not_understood"] += 1
                log.warning("message_not_understood", message=str(error)[:200])
        # Judged beside the event loop: the admin API is answered by this process too.
        judged = await asyncio.to_thread(self._judge, exhibits)
        async with self._store.transaction() as connection:
            new = await comparisons.new_ones(connection, [one.id for one in exhibits])
            counted = [one for one in judged if one[0].exhibit.id in new]
            minutes = self._counted(counted)
            await comparisons.write_found(connection, [found for found, _ in counted])
            await comparisons.write_tallies(connection, [*tallies, *self._own(minutes)])
        # Not before the store has it: what it refuses comes again.
        self._minutes = minutes
        for found, verdict in counted:
            self._compared[found.exhibit.flag, verdict.partition(":")[0]] += 1

    def _judge(self, exhibits: Sequence[Exhibit]) -> list[tuple[Found, str]]:
        found = []
        for exhibit in exhibits:
            rules = self._book.of(exhibit.route)
            judged = judge(exhibit, rules)
            verdict = judged.verdict.value
            if judged.verdict in (Verdict.NOT_COMPARABLE, Verdict.SHADOW_ERROR):
                verdict += f":{judged.reason}"
            found.append((Found(exhibit, judged.differences, drawn(exhibit, rules)), verdict))
        return found

    def _counted(self, judged: Sequence[tuple[Found, str]]) -> Minutes:
        """The counts with these in them."""
        now = int(time.time() // 60)
        minutes = {key: Counter(counts) for key, counts in self._minutes.items() if key[2] == now}
        for found, verdict in judged:
            key = (found.exhibit.flag, found.exhibit.route, now)
            counts = minutes.setdefault(key, Counter())
            counts[f"verdict:{verdict}"] += 1
            if found.drawn is not None:
                counts["drawn_judged"] += 1
                counts["drawn_new"] += bool(found.drawn.new_only)
                counts["drawn_legacy"] += bool(found.drawn.legacy_only)
        return minutes

    def _own(self, minutes: Minutes) -> list[Tally]:
        return [
            Tally(self._name, flag, route, minute * 60, counts)
            for (flag, route, minute), counts in minutes.items()
        ]
