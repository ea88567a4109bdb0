"""The worker's end of comparing: equal pairs are counted, others are redacted and put on the bus.

It is the proxy's `Observer`. It never waits: what the bus does not take is kept up to a bound, then dropped
and counted. Counts are kept by minute and sent whole, again and again while the minute lasts, so that a
message that is lost or comes twice changes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from bisect import bisect_left
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from core import metrics
from core.metrics import LATENCY_BUCKETS, Sample
from core.mirrored import Leg, Mirrored
from crossfade.observing import Observing
from proxy.mirror import Bucket
from shadow import wire
from shadow.exhibits import exhibit
from shadow.openapi import METHODS, Operations, name_of
from shadow.quick import same
from shadow.redact import Policy, Redactor

if TYPE_CHECKING:
    import redis.asyncio

STREAM = "crossfade:pairs"
LONGEST_STREAM = 5000
"""Messages that wait on the bus at most; beyond that the oldest go."""
MOST_WAITING = 200
MOST_WAITING_BYTES = 16 * 1024 * 1024
"""What waits in a worker for the bus."""
SEND_EVERY = 1.0
SEND_WITHIN = 2.0
MINUTES_KEPT = 30
"""Minutes of counts that are kept while the bus is away."""

_BUCKETS = {
    side: [f"{side}_le:{number}" for number in range(len(LATENCY_BUCKETS) + 1)] for side in ("legacy", "new")
}
_METHODS = {method.upper(): f"method:{method.upper()}" for method in METHODS}
_STATUSES = {status: f"status:{status}" for status in (0, *range(100, 600))}
"""Clients choose methods, and backends statuses: any other is counted as one."""
Minute: TypeAlias = dict[tuple[str, str], dict[str, int]]
"""Counts of one minute, by flag and route."""


class PairLine:
    """`run` goes on until it is cancelled; everything else returns at once."""

    def __init__(self, settings: Observing, *, now: Callable[[], float] = time.time) -> None:
        self.source = uuid.uuid4().hex[:12]
        self._now = now
        self._budget = Bucket()
        self._minutes: dict[int, Minute] = {}
        self._changed: set[int] = set()
        self._over: Counter[tuple[str, str]] = Counter()
        self._dropped: Counter[str] = Counter()
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._wake = asyncio.Event()
        self._client: redis.asyncio.Redis | None = None
        self._sending = asyncio.Lock()
        self.update(settings)

    def update(self, settings: Observing) -> None:
        """The configuration was reloaded."""
        self._settings = settings
        policy = Policy(settings.also, settings.never, settings.emails)
        self._redactor = Redactor(bytes.fromhex(settings.key), policy)
        self._operations = Operations(settings.operations) if settings.operations else None

    # What the mirror says.

    def compare(self, pair: Mirrored) -> bool:
        legacy, new = _by_side(pair)
        counts = self._counts(pair.flag, pair.route)
        counts[_METHODS.get(pair.method, "method:other")] += 1
        counts[_STATUSES.get(legacy.status, "status:other")] += 1
        for leg in pair.legs:
            if leg.trouble is None:
                counts[_BUCKETS[leg.side][bisect_left(LATENCY_BUCKETS, leg.seconds)]] += 1
        if self._operations is not None:
            operation = self._operations.of(pair.method, pair.target)
            counts["operation:" + ("none" if operation is None else name_of(operation))] += 1
        if same(legacy, new):
            counts["equal"] += 1
            return False
        counts["unequal"] += 1
        if not self._budget.take(self._settings.inspect, self._now()) or not self._settings.inspect:
            self._drop("budget")
            return False
        if legacy.trouble or new.trouble or legacy.cut or new.cut:
            # Asking again would not tell more.
            self._send(pair)
            return False
        return True

    def take(self, pair: Mirrored) -> None:
        if pair.sampled:
            self._counts(pair.flag, pair.route)["drawn"] += 1
            legacy, new = _by_side(pair)
            if same(legacy, new) and all(same(legacy, leg) for leg in pair.again):
                self._counts(pair.flag, pair.route)["drawn_equal"] += 1
                return
        self._send(pair)

    def shown(self, pair: Mirrored) -> bytes:
        """A pair as it may be seen: without its secrets."""
        return wire.to_bytes(exhibit(pair, uuid.uuid4().hex, self._redactor, self._settings.longest))

    def skipped(self, flag: str, reason: str) -> None:
        self._counts(flag, "")[f"skipped:{reason}"] += 1

    def samples(self) -> list[Sample]:
        return [
            *(Sample(metrics.PAIRS.name, labels, count) for labels, count in self._outcomes().items()),
            *(Sample(metrics.PAIRS_DROPPED.name, (why,), count) for why, count in self._dropped.items()),
        ]

    def _outcomes(self) -> Counter[tuple[str, str]]:
        """By flag and outcome, those of minutes that are over and forgotten included."""
        found = Counter(self._over)
        for minute in self._minutes.values():
            found.update(_outcomes_of(minute))
        return found

    def _counts(self, flag: str, route: str) -> dict[str, int]:
        minute = int(self._now() // 60)
        self._changed.add(minute)
        known = self._minutes.get(minute)
        if known is None:
            known = self._minutes[minute] = {}
        counts = known.get((flag, route))
        if counts is None:
            counts = known[flag, route] = defaultdict(int)
        return counts

    def _drop(self, why: str) -> None:
        self._dropped[why] += 1

    def _send(self, pair: Mirrored) -> None:
        if self._settings.bus == "none":
            self._drop("no_bus")
            return
        if len(self._waiting) >= MOST_WAITING or self._waiting_bytes >= MOST_WAITING_BYTES:
            self._drop("bus_away")
            return
        written = self.shown(pair)
        self._waiting.append(written)
        self._waiting_bytes += len(written)
        self._wake.set()

    # The bus.

    async def run(self) -> None:
        if self._settings.bus == "none":
            return
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), SEND_EVERY)
            self._wake.clear()
            if self._waiting or self._changed:
                await self._flush()

    async def close(self) -> None:
        """Send what is left, if the bus takes it at once."""
        if self._settings.bus != "none" and (self._waiting or self._changed):
            await self._flush(again_after=0.0)
        if self._client is not None:
            await self._client.aclose()

    async def _flush(self, again_after: float = SEND_EVERY) -> None:
        """Send what waits. What the bus does not take now is tried again."""
        async with self._sending:
            await self._flush_now(again_after)

    async def _flush_now(self, again_after: float) -> None:
        # A worker that mirrors nothing needs none of this, and no request waits for it to be loaded.
        bus = await asyncio.to_thread(import_module, "crossfade.bus")
        pairs = [self._waiting[n] for n in range(min(50, len(self._waiting)))]
        # What is counted from here on is sent the next time.
        minutes, self._changed = sorted(self._changed), set()
        try:
            async with asyncio.timeout(SEND_WITHIN):
                if self._client is None:
                    self._client = bus.client_of(self._settings.bus, Path(self._settings.data_dir))
                pipeline = self._client.pipeline(transaction=False)
                for pair in pairs:
                    pipeline.xadd(STREAM, {"pair": pair}, maxlen=LONGEST_STREAM, approximate=True)
                for tally in self._tallies(minutes):
                    pipeline.xadd(STREAM, {"tally": tally}, maxlen=LONGEST_STREAM, approximate=True)
                await pipeline.execute()
        except bus.RefusedError:
            # It is there and refuses (its memory is full): these would be refused again.
            self._dropped["bus_refuses"] += len(pairs)
            self._forget(pairs)
            return
        except (*bus.AWAY, TimeoutError):
            self._changed.update(minutes)
            self._forget_old_minutes()
            await asyncio.sleep(again_after)
            return
        self._forget(pairs)
        if self._waiting:
            self._wake.set()

    def _tallies(self, minutes: list[int]) -> list[bytes]:
        return [
            json.dumps(
                {
                    "source": self.source, "flag": flag, "route": route, "minute": minute * 60,
                    "counts": dict(counts),
                }
            ).encode()
            for minute in minutes
            for (flag, route), counts in self._minutes.get(minute, {}).items()
        ]  # fmt: skip

    def _forget(self, pairs: list[bytes]) -> None:
        for pair in pairs:
            self._waiting.popleft()
            self._waiting_bytes -= len(pair)
        now = int(self._now() // 60)
        for minute in [minute for minute in self._minutes if minute < now and minute not in self._changed]:
            self._over.update(_outcomes_of(self._minutes.pop(minute)))

    def _forget_old_minutes(self) -> None:
        oldest = int(self._now() // 60) - MINUTES_KEPT
        for minute in [minute for minute in self._minutes if minute < oldest]:
            self._over.update(_outcomes_of(self._minutes.pop(minute)))
            self._changed.discard(minute)


def _by_side(pair: Mirrored) -> tuple[Leg, Leg]:
    one, other = pair.legs
    return (one, other) if one.side == "legacy" else (other, one)


def _outcomes_of(minute: Minute) -> Counter[tuple[str, str]]:
    found: Counter[tuple[str, str]] = Counter()
    for (flag, _), counts in minute.items():
        for outcome in ("equal", "unequal"):
            if outcome in counts:
                found[flag, outcome] += counts[outcome]
    return found
