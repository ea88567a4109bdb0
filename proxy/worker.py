"""One proxy worker: it accepts, keeps the connections, watches the time, reloads and drains.

It knows nothing of processes: the wiring runs it in a process of its own, hands it the listening
sockets and asks it for its counts.
"""

from __future__ import annotations

import asyncio
import errno
import math
import ssl
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from socket import socket

from core import metrics
from core.http import RequestHead
from core.metrics import Sample
from core.mirrored import Mirrored
from flags.snapshot import Snapshot
from legacy_adapter.adapter import Plugs
from legacy_adapter.declared import with_declared
from proxy.accept import Acceptor
from proxy.access_log import AccessLogWriter
from proxy.claims import TokenReader
from proxy.client import ClientConnection
from proxy.config import ListenTls, ProxyConfig, Target, Timeouts
from proxy.counters import Counters
from proxy.fallback import Budgets
from proxy.forwarding import Peer
from proxy.freshness import Freshness
from proxy.head import parse_request
from proxy.holding import Holding
from proxy.lease import Lease
from proxy.mirror import Mirror, Observer
from proxy.pool import Pool
from proxy.recent import Recent
from proxy.runtime import Runtime

_SHORTEST_SWEEP = 0.02
_LONGEST_SWEEP = 0.5
_TURNS_TO_END = 20
"""Turns of the event loop in which connections that were cut are reported as lost."""
_IDLE_GRACE = 2.0
"""Seconds in which a draining worker still takes one more request from an idle connection."""


class Worker:
    """Serves clients on the sockets it is given until it is drained or closed.

    To be made inside a running event loop. Raises OSError or ssl.SSLError for a certificate, a key,
    a CA file or a log that cannot be used.
    """

    def __init__(
        self,
        config: ProxyConfig,
        snapshot: Snapshot,
        plugs: Plugs | None = None,
        observer: Observer | None = None,
    ) -> None:
        """`observer` is given the answers of both sides; without one nothing is mirrored."""
        self.loop = asyncio.get_running_loop()
        self.counters = Counters()
        self.freshness = Freshness()
        self.holding = Holding(self.counters, self.loop.call_later)
        self.lease = Lease()
        self._mirror = None if observer is None else self._mirror_for(observer)
        self.recent = Recent()
        self._budgets = Budgets()
        self.draining = False
        self._clients: set[ClientConnection] = set()
        self._retired: list[Pool] = []
        self._dropped_before = 0
        self._acceptors: list[Acceptor] = []
        """The last one accepts; those before it, from before a reload, may still introduce clients."""
        self._sockets: Sequence[socket] = ()
        self._tls = _listen_context(config.listen_tls)
        self._sweeper: asyncio.TimerHandle | None = None
        self._emptied: asyncio.Future[None] | None = None
        self._foreign_faults_quiet_until = 0.0
        self.runtime = self._build(config, snapshot, plugs or Plugs())

    def __repr__(self) -> str:
        state = "draining" if self.draining else "serving"
        return f"<Worker {state} {len(self._clients)} clients, version {self.runtime.snapshot.version}>"

    async def start(self, sockets: Sequence[socket]) -> None:
        """Begin to accept on `sockets`, which stay the caller's to close."""
        self._sockets = sockets
        await self._accept()
        self._sweep()

    async def reconfigure(self, config: ProxyConfig, snapshot: Snapshot, plugs: Plugs | None = None) -> None:
        """Run on `config`, `snapshot` and `plugs` from the next request on.

        Requests in flight end as they began. Raises as the constructor does, before anything has
        changed. Connections that were accepted keep their certificate and trusted peers.
        """
        tls = _listen_context(config.listen_tls)
        old = self.runtime
        new = self._build(config, snapshot, plugs or Plugs())
        self.runtime = new
        self.counters.forget_decisions()
        kept = new.all_pools()
        for pool in old.all_pools():
            if pool not in kept:
                pool.retire()
                self._retired.append(pool)
        self._stop_mirroring(snapshot)
        self.holding.go_on()
        if old.access_log is not None:
            if old.access_log is new.access_log:
                old.access_log.reopen()
            else:
                await asyncio.to_thread(old.access_log.close)
                self._dropped_before += old.access_log.dropped
        if tls is not None or old.config.proxy_protocol != config.proxy_protocol or self._tls is not None:
            self._tls = tls
            if self._acceptors and not self.draining:
                self._acceptors[-1].stop()
                await self._accept()

    def decide_by(self, snapshot: Snapshot) -> None:
        """Decide by `snapshot` from the next request on; everything else stays."""
        self.runtime = replace(self.runtime, snapshot=snapshot)
        self.counters.forget_decisions()
        self._stop_mirroring(snapshot)
        self.holding.go_on()

    def renew_lease(self, until: float) -> None:
        """What changes something may go on until then (time.monotonic), where a cutover is armed."""
        had_ended = not self.lease.lasts()
        self.lease.renew(until)
        if had_ended:
            self.holding.go_on()

    def changes_under_way(self, flags: Collection[str]) -> int:
        """Requests under these flags that a target may be carrying out and that change something."""
        return sum(client.changes_under(flags) for client in self._clients)

    async def drain(self, timeout: float) -> int:
        """Stop accepting and let what is in flight end; returns how many exchanges were cut off.

        Each answer closes its connection; idle connections are ended after a moment in which they
        may still bring a request. After `timeout` seconds whatever is left is cut.
        """
        self.draining = True
        for acceptor in self._acceptors:
            acceptor.stop()
        for client in self._clients:
            client.leave()
        self._emptied = self.loop.create_future()
        await asyncio.sleep(0)  # who was accepted in this turn becomes a client in the next
        self._note_emptiness()
        ending = self.loop.create_task(self._end_idle_clients(min(_IDLE_GRACE, timeout / 2)))
        try:
            async with asyncio.timeout(timeout):
                await self._emptied
        except TimeoutError:
            pass
        finally:
            ending.cancel()
        return sum(client.is_busy for client in self._clients)

    async def cut(self) -> None:
        """Cut off every client; what that ends is counted and logged when this returns."""
        for acceptor in self._acceptors:
            acceptor.close()
        for client in list(self._clients):
            client.cut()
        for _ in range(_TURNS_TO_END):
            if not self._clients:
                break
            await asyncio.sleep(0)

    async def close(self) -> None:
        """Cut everything off and let go of everything but the listening sockets."""
        await self.cut()
        if self._sweeper is not None:
            self._sweeper.cancel()
        if self._mirror is not None:
            self._mirror.close()
        for pool in [*self.runtime.all_pools(), *self._retired]:
            pool.close()
        if self.runtime.access_log is not None:
            await asyncio.to_thread(self.runtime.access_log.close)

    def reopen_log(self) -> None:
        """Open the access log's file again, after it was rotated."""
        if self.runtime.access_log is not None:
            self.runtime.access_log.reopen()

    def samples(self) -> list[Sample]:
        """Everything this worker has counted, and its gauges at this moment."""
        samples = self.counters.samples()
        for pool in [*self.runtime.all_pools(), *self._retired]:
            samples += pool.samples()
        if self._mirror is not None:
            samples += self._mirror.samples()
        busy = sum(client.is_busy for client in self._clients)
        samples.append(Sample(metrics.CLIENT_CONNECTIONS.name, (), len(self._clients)))
        samples.append(Sample(metrics.REQUESTS_IN_FLIGHT.name, (), busy))
        samples += self.holding.samples()
        log = self.runtime.access_log
        dropped = self._dropped_before + (log.dropped if log is not None else 0)
        samples.append(Sample(metrics.ACCESS_LOG_DROPPED.name, (), dropped))
        return samples

    # What client connections say.

    def admit(self, client: ClientConnection) -> bool:
        """Take note of a new connection; False when there are too many."""
        if len(self._clients) >= self.runtime.config.limits.connections:
            self.count_closed("too_many_connections")
            return False
        self._clients.add(client)
        return True

    def forget(self, client: ClientConnection) -> None:
        self._clients.discard(client)
        if self._emptied is not None:
            self._note_emptiness()

    def note_bug(self, bug: Exception) -> None:
        """Log a fault of ours with where it happened."""
        self.loop.call_exception_handler({"message": "a fault of Crossfade", "exception": bug})

    def note_foreign_fault(self, what: str, fault: Exception) -> None:
        """Log a fault of users' code; one a second is enough to know it, all of them are counted."""
        now = self.loop.time()
        if now >= self._foreign_faults_quiet_until:
            self._foreign_faults_quiet_until = now + 1.0
            self.loop.call_exception_handler({"message": what, "exception": fault})

    def count_closed(self, reason: str) -> None:
        self.counters.event(metrics.CLIENT_CONNECTIONS_CLOSED, reason)

    # Details.

    def _build(self, config: ProxyConfig, snapshot: Snapshot, plugs: Plugs) -> Runtime:
        """A runtime for `config` that keeps the pools and the log whose settings did not change."""
        old = getattr(self, "runtime", None)
        known: dict[str, Pool] = {} if old is None else {pool.side: pool for pool in old.all_pools()}

        def pool(name: str, target: Target, *, looks: bool = True) -> Pool:
            kept = known.get(name)
            if kept is not None and kept.still_fits(target):
                return kept
            return Pool(name, target, self.counters, looks=looks)

        mirror = config.mirror

        def own(target: Target) -> Target:
            """The same target with bounds of the mirror's own."""
            return replace(target, max_connections=mirror.in_flight, max_waiting=2 * mirror.in_flight)

        mirror_pools = {}
        if self._mirror is not None:
            for side, target in config.targets.items():
                mirror_pools[side] = pool(f"{side.value}_mirror", own(target), looks=False)
        pools = {side: pool(side.value, target) for side, target in config.targets.items()}
        if old is not None and old.config.access_log == config.access_log:
            log = old.access_log
        elif config.access_log.path is None:
            log = None
        else:
            log = AccessLogWriter(config.access_log)
        via = config.forwarding.via
        return Runtime(
            config,
            snapshot,
            pools,
            self.counters,
            log,
            None if via is None else via.encode(),
            with_declared(plugs, config.adapters),
            TokenReader(config.tokens),
            self._budgets,
            self.recent,
            self._mirror,
            mirror_pools,
            None if mirror.sandbox is None else pool("sandbox", own(mirror.sandbox)),
        )

    def _mirror_for(self, observer: Observer) -> Mirror:
        return Mirror(
            self.counters,
            observer,
            now=self.loop.time,
            later=self.loop.call_later,
            note_fault=self.note_foreign_fault,
        )

    def replay(self, request: bytes, done: Callable[[Mirrored], None]) -> str | None:
        """Ask both sides `request`, a head without a body, and give `done` their answers; or why not."""
        limits = self.runtime.config.limits
        head = parse_request(
            request, max_head=limits.head_bytes, max_target=limits.target_bytes, max_fields=limits.headers
        )
        if not isinstance(head, RequestHead):
            return "it is not whole" if head is None else head.reason
        if head.has_body or head.upgrade or not self.runtime.snapshot.is_safe(head):
            return "it might change something: only GET, HEAD and OPTIONS without a body are asked again"
        peer = Peer(self.runtime.config.forwarding, "127.0.0.1", tls=False)
        if self._mirror is None:
            return "this instance has no flags and mirrors nothing"
        return None if self._mirror.replay(self.runtime, head, peer, done) else "no route has it any more"

    def _stop_mirroring(self, snapshot: Snapshot) -> None:
        """Switched off is off at once, and not when the last answer has come."""
        if self._mirror is not None:
            self._mirror.stop(snapshot.mirrored)

    async def _accept(self) -> None:
        config = self.runtime.config
        acceptor = Acceptor(
            self._sockets,
            lambda address: ClientConnection(self, address),
            tls=self._tls,
            proxy_protocol=config.proxy_protocol,
            header_timeout=lambda: self.runtime.config.timeouts.header,
            may_come=self._has_room,
            on_refused=self.count_closed,
        )
        await acceptor.start()
        self._acceptors = [*(old for old in self._acceptors if old.introducing), acceptor]

    def _has_room(self) -> bool:
        """Whether one more connection may come, those counted that are no clients yet."""
        introducing = sum(acceptor.introducing for acceptor in self._acceptors)
        return len(self._clients) + introducing < self.runtime.config.limits.connections

    def _sweep(self) -> None:
        # First of all the next one: without it no timeout would ever fire again.
        self._sweeper = self.loop.call_later(_sweep_interval(self.runtime.config.timeouts), self._sweep)
        now = self.loop.time()
        for client in list(self._clients):
            try:
                client.sweep(now)
            except Exception as bug:
                client.on_bug(bug)
        for pool in self.runtime.all_pools():
            pool.sweep(now)
        if self._mirror is not None:
            self._mirror.sweep(now)
        self._retired = [pool for pool in self._retired if not pool.is_unused]

    async def _end_idle_clients(self, grace: float) -> None:
        while True:
            await asyncio.sleep(grace / 8)
            for client in list(self._clients):
                client.leave_if_idle(grace)
            self._note_emptiness()

    def _note_emptiness(self) -> None:
        """Tell `drain` when nobody is left, nor anybody who was accepted and is still to come."""
        emptied = self._emptied
        assert emptied is not None
        introducing = any(acceptor.introducing for acceptor in self._acceptors)
        if not self._clients and not introducing and not emptied.done():
            emptied.set_result(None)


def _sweep_interval(timeouts: Timeouts) -> float:
    """Often enough that a timeout is never late by more than a quarter of the shortest one."""
    shortest = min(
        timeouts.header, timeouts.body_idle, timeouts.keepalive, timeouts.response, timeouts.response_idle,
        timeouts.write_idle, timeouts.tunnel_idle, timeouts.expect, math.inf,
    )  # fmt: skip
    return max(_SHORTEST_SWEEP, min(_LONGEST_SWEEP, shortest / 4))


def _listen_context(tls: ListenTls | None) -> ssl.SSLContext | None:
    if tls is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Without a password to give, OpenSSL would ask for one on the terminal, and everything would wait.
    context.load_cert_chain(tls.cert_file, tls.key_file, password=_no_password)
    context.set_alpn_protocols(["http/1.1"])
    return context


def _no_password() -> str:
    raise OSError(errno.EACCES, "the key is encrypted; expected a key without a password")
