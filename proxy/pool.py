"""The connections of one worker to one target, and the requests that wait for one.

Bounded on both sides: so many connections, so many waiting requests, and each wait has a limit.
A connection that becomes free goes to the request that waited longest; the most recently used idle
connection is taken first, so that the others may grow old and be closed.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections import deque
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from core import metrics
from core.http import Refusal
from core.metrics import Sample
from proxy.config import Target
from proxy.upstream import UpstreamConnection

if TYPE_CHECKING:
    from proxy.counters import Counters
    from proxy.upstream import Asker

_KEEP_ALIVE_MARGIN = 1.0
"""Seconds by which we give a connection up before the target has said that it will close it."""
_ADDRESSES_FRESH = 5.0
"""Seconds for which resolved addresses are used without asking again."""

_Address = tuple[socket.AddressFamily, Any]


class Pool:
    """Connections to `target`. Belongs to the worker's event loop."""

    def __init__(self, side: str, target: Target, counters: Counters, *, looks: bool = True) -> None:
        """`side` is what it is called in metrics.

        `looks` is whether a connection is looked into before it is used again. Where a wrong answer reaches
        nobody, what the event loop has seen of it is enough.
        """
        self.side = side
        self._looks = looks
        self.target = target
        self.authority = _authority(target)
        """What Host says when the client sent none (HTTP/1.0)."""
        self._ca_stamp = _ca_stamp(target)
        self._tls = _tls_context(target)
        self._counters = counters
        self._loop = asyncio.get_running_loop()
        self._idle: list[UpstreamConnection] = []
        self._open: set[UpstreamConnection] = set()
        self._waiting: deque[Asker] = deque()
        self._connecting: set[asyncio.Task[None]] = set()
        self._addresses: tuple[float, list[_Address]] = (0.0, [])
        self._retired = False

    def __repr__(self) -> str:
        return (
            f"<Pool {self.side} {self.authority.decode()}: {len(self._open)} open, "
            f"{len(self._idle)} idle, {len(self._connecting)} connecting, {len(self._waiting)} waiting>"
        )

    def still_fits(self, target: Target) -> bool:
        """Whether the pool serves `target` as it is now, its CA file included."""
        return self.target == target and self._ca_stamp == _ca_stamp(target)

    @property
    def has_idle(self) -> bool:
        """Whether a request might go out without a new connection."""
        return bool(self._idle)

    def take(self) -> UpstreamConnection | None:
        """An idle connection that is fit for another request, or None."""
        now = self._loop.time()
        while self._idle:
            connection = self._idle.pop()
            if connection.is_fit(now) if self._looks else now < connection.expires:
                return connection
            self.discard(connection, "stale")
        return None

    def wait(self, exchange: Asker) -> Refusal | None:
        """Queue `exchange` for the next connection; a `Refusal` when the queue is full.

        A request whose connection is only being opened does not count: it waits for nobody.
        """
        room = self.target.max_connections - len(self._open)
        if len(self._waiting) >= self.target.max_waiting + room:
            return Refusal(503, "connection_limit_reached")
        self._waiting.append(exchange)
        self._grow()
        return None

    def give_up_waiting(self, exchange: Asker) -> None:
        """The exchange no longer wants a connection."""
        try:
            self._waiting.remove(exchange)
        except ValueError:
            return

    def release(self, connection: UpstreamConnection, promised: float | None) -> None:
        """Take back a connection whose exchange has ended cleanly.

        `promised` is the number of seconds for which the target said it will keep the connection.
        """
        connection.rest()
        if self._retired:
            connection.close()
            return
        idle = self.target.idle_timeout
        if promised is not None:
            idle = min(idle, promised - _KEEP_ALIVE_MARGIN)
        if idle <= 0:
            self.discard(connection, "short_keep_alive")
            return
        now = self._loop.time()
        connection.expires = now + idle
        if self._waiting and not connection.is_fit(now):
            self.discard(connection, "stale")
        else:
            self._serve(connection)

    def discard(self, connection: UpstreamConnection, reason: str) -> None:
        """Close a connection instead of reusing it."""
        self._counters.event(metrics.UPSTREAM_DISCARDED, self.side, reason)
        if connection in self._idle:
            self._idle.remove(connection)
        connection.close()

    def lost(self, connection: UpstreamConnection) -> None:
        """The connection is closed, whoever closed it."""
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        self._grow()

    def sweep(self, now: float) -> None:
        """Close what has been idle for too long, and what died while idle."""
        for connection in [c for c in self._idle if not c.is_fit(now)]:
            self.discard(connection, "idle")

    def retire(self) -> None:
        """Serve nobody new: idle connections close now, busy ones when their exchange has ended."""
        self._retired = True
        for connection in list(self._idle):
            self.discard(connection, "retired")

    def close(self) -> None:
        """Close everything at once."""
        self._retired = True
        for task in self._connecting:
            task.cancel()
        for connection in list(self._open):
            connection.close()

    @property
    def is_unused(self) -> bool:
        """Whether a retired pool has nothing left to do."""
        return not (self._open or self._waiting or self._connecting)

    def samples(self) -> list[Sample]:
        side = self.side
        idle = len(self._idle)
        name = metrics.UPSTREAM_CONNECTIONS.name
        return [
            Sample(name, (side, "idle"), idle),
            Sample(name, (side, "busy"), len(self._open) - idle),
            Sample(metrics.REQUESTS_WAITING.name, (side,), len(self._waiting)),
        ]

    def _serve(self, connection: UpstreamConnection) -> None:
        """Give a connection to the first who waits and still wants one, or keep it."""
        while self._waiting:
            if self._waiting.popleft().connected(connection):
                return
        if self._retired:
            connection.close()
        else:
            self._idle.append(connection)

    def _grow(self) -> None:
        """Open as many connections as there are requests waiting, within the bound."""
        while (
            len(self._connecting) < len(self._waiting)
            and len(self._open) + len(self._connecting) < self.target.max_connections
        ):
            task = self._loop.create_task(self._connect())
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    async def _connect(self) -> None:
        outcome = await self._open_connection()
        task = asyncio.current_task()
        assert task is not None
        self._connecting.discard(task)
        if isinstance(outcome, UpstreamConnection):
            self._counters.event(metrics.UPSTREAM_CONNECTS, self.side, "connected")
            self._open.add(outcome)
            outcome.expires = self._loop.time() + self.target.idle_timeout
            self._serve(outcome)
            return
        self._counters.event(metrics.UPSTREAM_CONNECTS, self.side, outcome.reason)
        if self._waiting:
            self._waiting.popleft().fail(outcome.status, outcome.reason)
        self._grow()

    async def _open_connection(self) -> UpstreamConnection | Refusal:
        """A new connection, or why there is none. The first address that accepts is used."""
        try:
            async with asyncio.timeout(self.target.connect_timeout):
                return await self._dial()
        except TimeoutError:
            return Refusal(504, "connection_timeout")
        except ConnectionRefusedError:
            return Refusal(502, "connection_refused")
        except socket.gaierror:
            return Refusal(502, "dns_error")
        except ssl.SSLCertVerificationError:
            return Refusal(502, "tls_certificate_error")
        except ssl.SSLError:
            return Refusal(502, "tls_protocol_error")
        except OSError:
            return Refusal(502, "destination_unavailable")

    async def _dial(self) -> UpstreamConnection:
        problem: OSError | None = None
        addresses = await self._resolve()
        for place, (family, address) in enumerate(addresses):
            sock = socket.socket(family, socket.SOCK_STREAM)
            try:
                sock.setblocking(False)
                # An address that swallows everything must leave time for those behind it.
                async with asyncio.timeout(self.target.connect_timeout / len(addresses)):
                    await self._loop.sock_connect(sock, address)
                _, connection = await self._loop.create_connection(
                    lambda sock=sock: UpstreamConnection(self, sock),
                    sock=sock,
                    ssl=self._tls,
                    server_hostname=self._server_name(),
                )
            except ssl.SSLError:
                sock.close()
                raise
            except OSError as error:
                sock.close()
                problem = error
            except BaseException:
                sock.close()
                raise
            else:
                if place:  # the next one begins with what has worked
                    self._addresses = (self._addresses[0], [*addresses[place:], *addresses[:place]])
                return connection
        self._addresses = (0.0, [])
        raise problem or OSError("no address")

    async def _resolve(self) -> list[_Address]:
        fresh_until, addresses = self._addresses
        if addresses and self._loop.time() < fresh_until:
            return addresses
        found = await self._loop.getaddrinfo(self.target.host, self.target.port, type=socket.SOCK_STREAM)
        addresses = [(family, address) for family, _, _, _, address in found]
        self._addresses = (self._loop.time() + _ADDRESSES_FRESH, addresses)
        return addresses

    def _server_name(self) -> str | None:
        if self.target.tls is None:
            return None
        return self.target.tls.server_name or self.target.host


def _authority(target: Target) -> bytes:
    if target.host_header is not None:
        return target.host_header.encode()
    host = target.host
    try:
        if ip_address(host).version == 6:
            host = f"[{host}]"
    except ValueError:
        pass  # a name
    default = 443 if target.tls is not None else 80
    return (host if target.port == default else f"{host}:{target.port}").encode()


def _ca_stamp(target: Target) -> tuple[int, int] | None:
    """Changes when the target's CA file does."""
    if target.tls is None or target.tls.ca_file is None:
        return None
    found = os.stat(target.tls.ca_file)
    return found.st_mtime_ns, found.st_size


def _tls_context(target: Target) -> ssl.SSLContext | None:
    """Raises OSError or ssl.SSLError for a CA file that cannot be used."""
    if target.tls is None:
        return None
    context = ssl.create_default_context(cafile=target.tls.ca_file)
    context.set_alpn_protocols(["http/1.1"])
    if not target.tls.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
