"""Ask the other side what a client has asked, once the client has its answer, and hand over both answers.

The client's answer is sacred: nothing here is waited for, nothing is sent before the client's answer is out,
connections and bounds are the mirror's own, nothing is retried. Whatever is not mirrored is counted by its
reason. A request that would change something is mirrored only where its route says how.

A request that is asked for comparison says so (`MARK`, and the same in W3C baggage, so that it is known
behind the first hop too). One that comes with that mark from outside is refused: it would be a loop, or
somebody who pretends.

While an exchange is under way its `Witness` keeps what went by: references to bytes that are there anyway,
up to a bound. Nobody's reading or writing depends on it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Protocol

from core import metrics
from core.http import SAFE_METHODS, RequestHead, ResponseHead, field_values
from core.metrics import Sample
from core.mirrored import Leg, Mirrored
from flags.model import EVERYBODY, Decision, Reason, Side, UnsafeMirror
from legacy_adapter.messages import Request
from proxy.adapted import answer_of, outgoing_answer, outgoing_request, request_of, without_other_body
from proxy.asking import Asking, Outcome
from proxy.demand import LOOK_EVERY, Demand
from proxy.head import parse_response
from proxy.outgoing import outgoing_head

if TYPE_CHECKING:
    from flags.model import Route
    from proxy.config import Mirroring
    from proxy.counters import Counters
    from proxy.forwarding import Peer
    from proxy.pipeline import Exchange
    from proxy.pool import Pool
    from proxy.runtime import Runtime

MARK = b"X-Crossfade-Mirror"
"""The field that a mirrored request carries; its value is the side that is asked."""
REPLAYED = "replay"
"""In the place of the stage, of a pair that nobody has asked for but to see."""
_NOT_SENT = (b"transfer-encoding:", b"content-length:", b"expect:", b"trailer:")


class Observer(Protocol):
    """Who is behind the mirror. It must not wait."""

    def compare(self, pair: Mirrored) -> bool:
        """Take note of a pair; whether it is worth asking both sides again."""

    def take(self, pair: Mirrored) -> None:
        """A pair of which `again` is known, or one that was worth asking again and cannot be."""

    def skipped(self, flag: str, reason: str) -> None:
        """A request that could have been mirrored and was not."""


@dataclass(slots=True)
class Held:
    """Bytes that are kept for comparison, of all requests together."""

    bytes: int = 0
    most: int = 0


class Witness:
    """What is kept of one exchange for the other side's sake. `skip` is why it will not be asked.

    Whoever has one lets go of it in the end: what it holds counts against everybody.
    """

    __slots__ = ("_all", "_keep", "_pieces", "_received", "answer", "held", "skip")

    def __init__(self, keep: int, all_held: Held) -> None:
        self._keep = keep
        self._all = all_held
        self._received: list[bytes] = []
        self._pieces: list[bytes] = []
        self.held = 0
        """Bytes of both bodies."""
        self.answer: ResponseHead | None = None
        self.skip: str | None = None

    def saw_request(self, payload: bytes) -> None:
        if self.skip is None and payload:
            self._received.append(payload)
            self.hold(len(payload))
            self._keep_bounds("request_too_long")

    def saw_answer(self, head: ResponseHead) -> None:
        if self.answer is None and not self._pieces:
            self.answer = head
            self._keep += self.held  # as much again for the answer

    def saw_body(self, payload: bytes) -> None:
        if self.skip is None and payload:
            self._pieces.append(payload)
            self.hold(len(payload))
            self._keep_bounds("answer_too_long")

    def hold(self, size: int) -> None:
        """Count `size` more bytes as held."""
        self.held += size
        self._all.bytes += size

    def _keep_bounds(self, too_long: str) -> None:
        """Let go of everything where it is too long, or too much for everybody together."""
        if self.held > self._keep:
            self.let_go(too_long)
        elif self._all.bytes > self._all.most:
            self.let_go("held_bytes")

    @property
    def request_body(self) -> bytes:
        return b"".join(self._received)

    @property
    def answer_body(self) -> bytes:
        return b"".join(self._pieces)

    def let_go(self, why: str) -> None:
        self.skip = self.skip or why
        self._all.bytes -= self.held
        self.held = 0
        self._received.clear()
        self._pieces.clear()


@dataclass(slots=True, eq=False)
class _Flight:
    """One request that is being mirrored."""

    runtime: Runtime
    route: Route
    head: RequestHead
    body: bytes
    peer: Peer
    decision: Decision
    primary: Leg
    witness: Witness
    deadline: float
    replayed: bool = False
    """Nobody has asked it now: it is asked again of both sides, for somebody who wants to see."""
    askings: set[Asking] = field(default_factory=set)
    pair: Mirrored | None = None
    sampled: bool = False
    again: list[Leg] = field(default_factory=list)

    @property
    def is_safe(self) -> bool:
        """Whether it changes nothing, however often it is asked."""
        return self.head.method in SAFE_METHODS and not self.route.writes


class Bucket:
    """So many a second, and as many at once."""

    def __init__(self) -> None:
        self._left = 0.0
        self._seen = 0.0

    def take(self, rate: float, now: float) -> bool:
        """Whether there is one left; a `rate` of 0 has no bound. `now` is in seconds and only grows."""
        if rate <= 0:
            return True
        self._left = min(rate, self._left + (now - self._seen) * rate)
        self._seen = now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


class Mirror:
    """All mirroring of one worker. Belongs to its event loop."""

    def __init__(
        self,
        counters: Counters,
        observer: Observer,
        *,
        now: Callable[[], float],
        later: Callable[[float, Callable[[], None]], object],
        note_fault: Callable[[str, Exception], None],
    ) -> None:
        """`now` is the event loop's time, `later` its timer, `note_fault` tells faults of adapters."""
        self._counters = counters
        self._observer = observer
        self._now = now
        self._later = later
        self._note_fault = note_fault
        self._flights: set[_Flight] = set()
        self._held = Held()
        self._rate = Bucket()
        self._connects = Bucket()
        self._lots = Bucket()
        self._draw: Callable[[], float] = random.random
        self._demand = Demand()
        self._seen = 0
        """Requests since the last look at the demand; 0 while nobody looks."""

    # What exchanges say.

    def witness(self, exchange: Exchange) -> Witness | None:
        """Whether an exchange that begins is to be mirrored, as far as that is known yet."""
        try:
            return self._witness(exchange)
        except Exception as bug:
            self._note_fault("a fault of Crossfade's mirror", bug)
            return None

    def _witness(self, exchange: Exchange) -> Witness | None:
        decision, head = exchange.decision, exchange.head
        if decision.mirror_ppm < EVERYBODY and self._draw() * EVERYBODY >= decision.mirror_ppm:
            self.skip(decision.flag, "sampled_out")
            return None
        settings = exchange.runtime.config.mirror
        if settings.busy_share < 1.0:
            self._seen += 1
            if self._seen == 1:
                self._look(settings.busy_share)
            if self._demand.allowed < 1.0 and self._draw() >= self._demand.allowed:
                self.skip(decision.flag, "busy")
                return None
        why = None
        if head.marked:
            why = "mirrored_already"
        elif head.upgrade:
            why = "upgrade"
        elif not exchange.runtime.snapshot.is_safe(head):
            route = exchange.runtime.snapshot.route_of(head)
            why = _why_not_unsafe(route, head)
        if why is not None:
            self.skip(decision.flag, why)
            return None
        self._held.most = settings.held_bytes
        return Witness(settings.body_bytes, self._held)

    def _look(self, most: float) -> None:
        """Look every now and then while there is something to mirror."""

        def again() -> None:
            self._demand.look(most)
            if self._seen > 1:
                self._seen = 1
                self._later(LOOK_EVERY, again)
            else:
                self._seen = 0

        self._demand.rest()
        self._later(LOOK_EVERY, again)

    def observe(self, exchange: Exchange, witness: Witness, seconds: float, wall: float) -> None:
        """An exchange is over, and its client has all of its answer. `wall` is Unix time now."""
        try:
            self._observe(exchange, witness, seconds, wall)
        except Exception as bug:
            witness.let_go("fault")
            self._note_fault("a fault of Crossfade's mirror", bug)

    def _observe(self, exchange: Exchange, witness: Witness, seconds: float, wall: float) -> None:
        runtime, decision = exchange.runtime, exchange.decision
        settings = runtime.config.mirror
        why = witness.skip
        if exchange.error is not None or witness.answer is None or exchange.request_body is not None:
            why = "no_answer"
        elif why is None:
            why = self._why_not_now(runtime, decision, settings)
        route = None if why is not None else runtime.snapshot.route_of(exchange.head)
        if route is None:
            why = why or "no_route"  # which cannot be: without a route nothing is mirrored
            witness.let_go(why)
            self.skip(decision.flag, why)
            return
        answer = witness.answer
        assert answer is not None
        primary = Leg(
            decision.side.value, wall - seconds, seconds, exchange.status, answer.fields, witness.answer_body
        )
        flight = _Flight(
            runtime, route, exchange.head, witness.request_body, exchange.client.peer, decision, primary,
            witness, self._now() + settings.deadline,
        )  # fmt: skip
        self._flights.add(flight)
        # The client's next request may be there already: it comes first.
        self._later(0, partial(self._guarded, flight, partial(self._begin, flight, time.perf_counter())))

    def skip(self, flag: str, reason: str) -> None:
        """Count a request that is not mirrored."""
        self._counters.event(metrics.MIRROR_SKIPPED, flag, reason)
        self._observer.skipped(flag, reason)

    # What the worker says.

    def replay(
        self, runtime: Runtime, head: RequestHead, peer: Peer, done: Callable[[Mirrored], None]
    ) -> bool:
        """Ask both sides what somebody has asked once, then legacy once more; False where no route has it.

        Nothing is counted, and no observer hears of it. `head` is of a safe request without a body.
        """
        route = runtime.snapshot.route_of(head)
        if route is None:
            return False
        settings = runtime.config.mirror
        flight = _Flight(
            runtime, route, head, b"", peer,
            Decision(Side.LEGACY, Reason.ROUTE, route.flag, runtime.snapshot.flags_version),
            Leg(Side.LEGACY.value, time.time(), 0.0), Witness(settings.body_bytes, self._held),
            self._now() + settings.deadline, replayed=True,
        )  # fmt: skip
        self._flights.add(flight)
        legs: list[Leg] = []

        def both(leg: Leg) -> None:
            legs.append(leg)
            if len(legs) == 2:
                flight.deadline = self._now() + settings.deadline
                self._ask(flight, Side.LEGACY, runtime.mirror_pools[Side.LEGACY], b"", over)

        def over(leg: Leg) -> None:
            self._land(flight)
            legacy, new = sorted(legs, key=lambda one: one.side)
            done(
                Mirrored(
                    route.flag, route.path, REPLAYED, flight.decision.version, head.method.decode("latin-1"),
                    head.sent_target, head.fields, b"", (legacy, new), again=(leg,),
                )
            )  # fmt: skip

        for side in (Side.LEGACY, Side.NEW):
            self._ask(flight, side, runtime.mirror_pools[side], b"", both)
        return True

    def sweep(self, now: float) -> None:
        """End what takes too long, and what somebody has switched off."""
        for flight in [flight for flight in self._flights if now >= flight.deadline]:
            for asking in list(flight.askings):
                asking.abandon("deadline")

    def stop(self, still: frozenset[str] = frozenset()) -> None:
        """End what is under way, but for the flags that are `still` mirrored."""
        for flight in [f for f in self._flights if f.decision.flag not in still and not f.replayed]:
            self._land(flight)
            for asking in list(flight.askings):
                asking.abandon("stopped")
            self.skip(flight.decision.flag, "stopped")

    def close(self) -> None:
        self.stop()
        self._demand.close()

    @property
    def in_flight(self) -> int:
        return len(self._flights)

    def samples(self) -> list[Sample]:
        return [
            Sample(metrics.MIRROR_IN_FLIGHT.name, (), len(self._flights)),
            Sample(metrics.MIRROR_HELD_BYTES.name, (), self._held.bytes),
        ]

    # The way of a mirrored request.

    def _why_not_now(self, runtime: Runtime, decision: Decision, settings: Mirroring) -> str | None:
        assert decision.mirror is not None
        if len(self._flights) >= settings.in_flight:
            return "in_flight"
        now = self._now()
        pool = runtime.mirror_pools[decision.mirror]
        # A side that refuses, or ends each connection, would cost one for each request.
        if not pool.has_idle and not self._connects.take(settings.connects, now):
            return "no_connection"
        return None if self._rate.take(settings.rate, now) else "rate"

    def _begin(self, flight: _Flight, since: float) -> None:
        if flight not in self._flights:
            return
        if time.perf_counter() - since > flight.runtime.config.mirror.busy_after:
            self._land(flight)
            self.skip(flight.decision.flag, "busy")
            return
        side = flight.decision.mirror
        assert side is not None
        unsafe = not flight.is_safe
        pool = flight.runtime.mirror_pools[side]
        if unsafe and flight.route.mirror_unsafe is UnsafeMirror.SANDBOX:
            assert flight.runtime.sandbox is not None, "the settings want one for such a route"
            pool = flight.runtime.sandbox
        more = b""
        if unsafe and flight.route.mirror_unsafe is UnsafeMirror.DRY_RUN:
            more = flight.route.mirror_field.encode("latin-1") + b"\r\n"
        self._ask(flight, side, pool, more, lambda leg: self._mirrored(flight, leg))

    def _mirrored(self, flight: _Flight, leg: Leg) -> None:
        if flight not in self._flights:
            return
        decision, head = flight.decision, flight.head
        self._counters.event(metrics.MIRRORED, decision.flag, leg.side, leg.trouble or _status_class(leg))
        assert decision.stage is not None
        pair = flight.pair = Mirrored(
            decision.flag, flight.route.path, decision.stage.value, decision.version,
            head.method.decode("latin-1"), head.sent_target, head.fields, flight.body, (flight.primary, leg),
        )  # fmt: skip
        closer = self._observer.compare(pair)
        safe = flight.is_safe
        settings = flight.runtime.config.mirror
        # Bounded before anything is known of the pair: a bound on what is found would bend the sample.
        flight.sampled = (
            safe
            and settings.inspect > 0
            and self._draw() < settings.ask_again
            and self._lots.take(settings.inspect, self._now())
        )
        if safe and (closer or flight.sampled):
            again = partial(self._ask_again, flight, both=closer)
            self._later(settings.ask_again_after, lambda: self._guarded(flight, again))
            return
        self._land(flight)
        if closer:
            self._observer.take(pair)

    def _ask_again(self, flight: _Flight, *, both: bool) -> None:
        if flight not in self._flights:
            return
        sides = [Side.LEGACY, Side.NEW] if both else [Side.LEGACY]
        flight.deadline = self._now() + flight.runtime.config.mirror.deadline

        def ended(leg: Leg) -> None:
            flight.again.append(leg)
            if flight not in self._flights:
                return
            if len(flight.again) == len(sides):
                self._land(flight)
                assert flight.pair is not None
                again = tuple(sorted(flight.again, key=lambda one: one.side))
                self._observer.take(replace(flight.pair, again=again, sampled=flight.sampled))

        for side in sides:
            self._ask(flight, side, flight.runtime.mirror_pools[side], b"", ended)

    def _guarded(self, flight: _Flight, step: Callable[[], None]) -> None:
        """A fault in here, or in the observer, ends this one comparison and nothing else."""
        try:
            step()
        except Exception as bug:
            self._land(flight)
            self._note_fault("a fault of Crossfade's mirror", bug)

    def _land(self, flight: _Flight) -> None:
        if flight in self._flights:
            self._flights.discard(flight)
            flight.witness.let_go("landed")

    def _ask(
        self, flight: _Flight, side: Side, pool: Pool, more: bytes, ended: Callable[[Leg], None]
    ) -> None:
        adapter = _adapter_for(flight, side)
        asked: Request | None = None
        mark = MARK + b": " + side.value.encode() + b"\r\nbaggage: crossfade.mirror=" + side.value.encode()
        more += mark + b"\r\n"
        try:
            if adapter is None:
                request = _request(flight.head, flight.peer, pool, flight.body, more)
            else:
                asked = request_of(flight.head, flight.body)
                sent, body = outgoing_request(
                    flight.runtime.plugs.adapters[adapter].request(asked), flight.head, pool.authority,
                    flight.runtime.config.limits,
                )  # fmt: skip
                request = outgoing_head(sent, flight.peer, pool)[:-2] + more + b"\r\n" + body
        except Exception as fault:
            self._note_fault(f"mirrored request not translated, flag {flight.decision.flag}", fault)
            ended(Leg(side.value, flight.primary.began, 0.0, trouble="adapter_failed"))
            return

        def heard(outcome: Outcome) -> None:
            flight.askings.discard(asking)
            if flight in self._flights:
                flight.witness.hold(len(outcome.body))
            self._guarded(flight, lambda: ended(self._leg(flight, side, adapter, asked, outcome)))

        asking = Asking(
            flight.runtime, pool, request,
            head_only=flight.head.method == b"HEAD",
            keep=flight.runtime.config.mirror.body_bytes,
            ended=heard,
        )  # fmt: skip
        flight.askings.add(asking)
        asking.start()

    def _leg(
        self, flight: _Flight, side: Side, adapter: str | None, asked: Request | None, outcome: Outcome
    ) -> Leg:
        """An outcome in the clients' terms."""
        head = outcome.head
        if outcome.trouble is not None or head is None:
            return Leg(side.value, outcome.began, outcome.seconds, trouble=outcome.trouble or "no_answer")
        status, fields, body = head.status, head.fields, outcome.body
        if adapter is not None and not outcome.cut:
            assert asked is not None
            try:
                before = answer_of(head, body)
                after = without_other_body(
                    before, flight.runtime.plugs.adapters[adapter].answer(before, asked)
                )
                whole = outgoing_answer(after, head, flight.head, flight.runtime.config.limits)
                translated = parse_response(whole, max_head=len(whole))
                assert isinstance(translated, ResponseHead)
            except Exception as fault:
                self._note_fault(f"mirrored answer not translated, flag {flight.decision.flag}", fault)
                return Leg(side.value, outcome.began, outcome.seconds, trouble="adapter_failed")
            status, fields, body = translated.status, translated.fields, whole[translated.size :]
        return Leg(side.value, outcome.began, outcome.seconds, status, fields, body, outcome.cut)


def _adapter_for(flight: _Flight, side: Side) -> str | None:
    """By which adapter a side is spoken to: as the decision says, which may have gone on without one."""
    if flight.replayed:
        return next((use.adapter for use in flight.route.adapters if use.side is side), None)
    if side is not flight.decision.side:
        return flight.decision.mirror_adapter
    translation = flight.decision.translation
    return None if translation is None else translation.adapter


def _why_not_unsafe(route: Route | None, head: RequestHead) -> str | None:
    how = None if route is None else route.mirror_unsafe
    if route is None or how is None:
        return "unsafe_method"
    if how is UnsafeMirror.IDEMPOTENCY_KEY and not field_values(
        head.fields, route.mirror_field.lower().encode("latin-1")
    ):
        return "no_idempotency_key"
    return None


def _request(head: RequestHead, peer: Peer, pool: Pool, body: bytes, more: bytes) -> bytes:
    """The whole request; a body that came in chunks has a length now."""
    start = outgoing_head(head, peer, pool)
    if head.has_body:
        lines = [line for line in start.split(b"\r\n") if not line.lower().startswith(_NOT_SENT)]
        start = b"\r\n".join(lines)
        more += b"Content-Length: %d\r\n" % len(body)
    return start[:-2] + more + b"\r\n" + body


def _status_class(leg: Leg) -> str:
    return f"{leg.status // 100}xx"
