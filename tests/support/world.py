"""A small world around one proxy worker, in this process: clients, the worker, two backends.

Everything runs on one event loop and on real sockets of 127.0.0.1. Neither clients nor backends use
an HTTP library: a `Wire` sends exact bytes and hands over exact bytes, and both ends of the stage
are wires. Nothing sleeps; every wait is for a fact and ends after `PATIENCE` seconds with a
`TimeoutError` that says what the wire had heard.

    async with World.of(timeouts=Timeouts(response=0.3)) as world:
        client = await world.client()
        client.send(b"GET /x HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n")
        target = await world.legacy.connection()
        asked = await target.request()
        target.send(b"HTTP/1.1 204 No Content\\r\\n\\r\\n")
        answer = await client.answer()

A backend that should answer by itself gets a `play`: a coroutine that is run for each connection.
Leaving the world closes everything and fails if the event loop met an exception that nobody caught.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, cast

from core.metrics import WORKER_METRICS, Histogram
from flags.model import FlagSet, Route, Side
from flags.snapshot import Snapshot, compile_snapshot
from legacy_adapter.adapter import Plugs
from proxy.config import AccessLog, ProxyConfig, Target, TargetTls, Timeouts
from proxy.mirror import Observer
from proxy.worker import Worker
from tests.differential.wire import (
    REQUEST_LINE,
    STATUS_LINE,
    Answer,
    Fields,
    UnreadableError,
    named,
    read_answer_body,
    read_chunked,
    read_fields,
    read_length,
)

PATIENCE = 10.0
"""Seconds after which a fact that has not come is a failure."""


class EndedError(ConnectionError):
    """The connection ended before what was waited for had arrived."""


@dataclass(slots=True)
class Asked:
    """One request as a backend heard it."""

    method: bytes
    target: bytes
    minor: int
    head: bytes
    fields: Fields
    body: bytes = b""
    trailers: Fields = ()

    def values(self, name: bytes) -> list[bytes]:
        """The values of one field; `name` in lower case."""
        return named(self.fields, name)

    @property
    def keeps_alive(self) -> bool:
        options = b",".join(self.values(b"connection")).lower()
        return b"close" not in options if self.minor else b"keep-alive" in options


class Wire(asyncio.Protocol):
    """One end of one connection: says exact bytes, keeps what it hears until it is taken."""

    def __init__(self, *, on_made: Callable[[Wire], None] | None = None) -> None:
        self.raw = bytearray()
        """What was heard and has not been taken yet."""
        self.heard = 0
        """All bytes that were ever heard."""
        self.ending = "open"
        """`open`, then `closed` when the peer ended in order or `reset` when it did not."""
        self.lost = False
        """The connection is gone in both directions."""
        self.transport: asyncio.Transport
        self.write_paused = False
        self._on_made = on_made
        self._changed = asyncio.Event()
        self._secure = False

    # What the event loop says.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._secure = transport.get_extra_info("ssl_object") is not None
        if self._on_made is not None:
            self._on_made(self)

    def data_received(self, data: bytes) -> None:
        self.raw += data
        self.heard += len(data)
        self._changed.set()

    def eof_received(self) -> bool:
        self._end("closed")
        return not self._secure  # TLS has no half-closed connections here

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self._end("reset" if exc else "closed")

    def pause_writing(self) -> None:
        self.write_paused = True
        self._changed.set()

    def resume_writing(self) -> None:
        self.write_paused = False
        self._changed.set()

    def _end(self, ending: str) -> None:
        if self.ending == "open":
            self.ending = ending
        self._changed.set()

    # What a scene says.

    def send(self, *pieces: bytes) -> None:
        """Send each piece as a write of its own."""
        if self.lost:
            raise EndedError("the connection is gone")
        for piece in pieces:
            self.transport.write(piece)

    def half_close(self) -> None:
        self.transport.write_eof()

    def close(self) -> None:
        self.transport.close()

    def reset(self) -> None:
        """End the connection with a TCP reset."""
        sock = self.transport.get_extra_info("socket")
        if sock is not None and sock.fileno() >= 0:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def stop_reading(self) -> None:
        self.transport.pause_reading()

    def go_on_reading(self) -> None:
        self.transport.resume_reading()

    # What a scene waits for.

    async def fact(self, true: Callable[[], Any], what: str = "a fact") -> None:
        """Wait until `true()` holds; it is looked at whenever something happens on this wire."""
        if true():
            return
        try:
            async with asyncio.timeout(PATIENCE):
                while not true():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise TimeoutError(
                f"waited for {what}; {self.ending}, heard {bytes(self.raw[:2000])!r}"
            ) from None

    async def take(self, count: int) -> bytes:
        """Exactly `count` bytes."""
        await self.fact(lambda: len(self.raw) >= count or self.ending != "open", f"{count} bytes")
        if len(self.raw) < count:
            raise EndedError(f"{self.ending} after {bytes(self.raw[:2000])!r}, {count} bytes expected")
        taken = bytes(self.raw[:count])
        del self.raw[:count]
        return taken

    async def through(self, mark: bytes) -> bytes:
        """All bytes up to and with `mark`."""
        await self.fact(lambda: mark in self.raw or self.ending != "open", repr(mark))
        at = self.raw.find(mark)
        if at < 0:
            raise EndedError(f"{self.ending} after {bytes(self.raw[:2000])!r}, {mark!r} expected")
        return await self.take(at + len(mark))

    async def end(self) -> str:
        """How the peer ended the connection: `closed` or `reset`."""
        await self.fact(lambda: self.ending != "open", "the end")
        return self.ending

    async def gone(self) -> None:
        """The connection is gone in both directions."""
        await self.fact(lambda: self.lost, "the loss of the connection")

    async def drained(self) -> None:
        """Everything that was sent has left this process."""
        await self.fact(lambda: not self.write_paused or self.lost, "room to write")

    async def answer(self, method: bytes = b"GET") -> Answer:
        """The next answer, whole; `method` is that of its request."""
        while True:
            read = self._read_answer(method)
            if read is not None:
                answer, size = read
                del self.raw[:size]
                return answer
            if self.ending != "open":
                raise EndedError(f"{self.ending} after {bytes(self.raw[:2000])!r}, an answer expected")
            await self._more(final=True)

    def _read_answer(self, method: bytes) -> tuple[Answer, int] | None:
        end = self.raw.find(b"\r\n\r\n") + 4
        if end < 4:
            return None
        head = bytes(self.raw[:end])
        lines = head[:-4].split(b"\r\n")
        match = STATUS_LINE.fullmatch(lines[0])
        if match is None:
            raise UnreadableError(f"no status line: {bytes(self.raw[:2000])!r}")
        fields, status = read_fields(lines[1:]), int(match[2])
        length = None if named(fields, b"transfer-encoding") else read_length(fields)
        rest = bytes(self.raw[end:] if length is None else self.raw[end : end + length])
        ended = self.ending == "closed"
        body, used = read_answer_body(rest, fields, status, method, ended)
        if not body.complete:
            return None
        return Answer(status, int(match[1]), match[3], head, fields, body), end + used

    async def request(self, *, body: bool = True) -> Asked:
        """The next request; with `body` false its body stays on the wire."""
        head = await self.through(b"\r\n\r\n")
        lines = head[:-4].split(b"\r\n")
        match = REQUEST_LINE.fullmatch(lines[0])
        if match is None:
            raise UnreadableError(f"no request line: {head!r}")
        asked = Asked(match[1], match[2], int(match[3]), head, read_fields(lines[1:]))
        if body and asked.values(b"transfer-encoding"):
            while True:
                found, used = read_chunked(bytes(self.raw))
                if found.complete:
                    break
                await self._more()
            del self.raw[:used]
            asked.body, asked.trailers = found.data, found.trailers
        elif body:
            asked.body = await self.take(read_length(asked.fields) or 0)
        return asked

    async def _more(self, *, final: bool = False) -> None:
        """Wait for further bytes; `final` lets the end of the connection count as news."""
        before = self.heard
        await self.fact(lambda: self.heard > before or self.ending != "open", "more bytes")
        if self.heard == before and not final:
            raise EndedError(f"{self.ending} after {bytes(self.raw[:2000])!r}, more expected")


Play = Callable[[Wire], Awaitable[None]]


class Backend:
    """One backend on a free port. Its connections are led by the test, or by `play` if there is one."""

    def __init__(self, play: Play | None = None, tls: ssl.SSLContext | None = None) -> None:
        self.play = play
        self.tls = tls
        self.port = 0
        self.wires: list[Wire] = []
        """Every connection that was ever accepted, in order."""
        self.faults: list[BaseException] = []
        """What went wrong in plays, other than the end of a connection."""
        self._unclaimed: asyncio.Queue[Wire] = asyncio.Queue()
        self._plays: set[asyncio.Task[None]] = set()
        self._server: asyncio.AbstractServer | None = None

    async def start(self, port: int = 0) -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: Wire(on_made=self._meet), "127.0.0.1", port, backlog=1024, ssl=self.tls
        )
        self._server = server
        self.port = server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Accept no more and cut what is open."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for play in list(self._plays):
            play.cancel()
        await asyncio.gather(*self._plays, return_exceptions=True)
        for wire in self.wires:
            if not wire.lost:
                wire.transport.abort()

    async def connection(self) -> Wire:
        """The next connection that the proxy opens."""
        async with asyncio.timeout(PATIENCE):
            return await self._unclaimed.get()

    @property
    def open(self) -> list[Wire]:
        return [wire for wire in self.wires if not wire.lost and wire.ending == "open"]

    def _meet(self, wire: Wire) -> None:
        self.wires.append(wire)
        if self.play is None:
            self._unclaimed.put_nowait(wire)
            return
        task = asyncio.get_running_loop().create_task(self._run(self.play, wire))
        self._plays.add(task)
        task.add_done_callback(self._plays.discard)

    async def _run(self, play: Play, wire: Wire) -> None:
        try:
            await play(wire)
        except EndedError:
            pass
        except Exception as fault:
            self.faults.append(fault)
        finally:
            wire.transport.close()


async def echo(wire: Wire) -> None:
    """A play: answers every request with its method, target and body."""
    while True:
        asked = await wire.request()
        payload = asked.method + b" " + asked.target + b" " + asked.body
        wire.send(plain(payload, method=asked.method))
        if not asked.keeps_alive:
            return


def plain(
    payload: bytes = b"", *, status: bytes = b"200 OK", method: bytes = b"GET", more: bytes = b""
) -> bytes:
    """An answer with a length; `more` are further field lines."""
    head = b"HTTP/1.1 %b\r\nContent-Length: %d\r\n%b\r\n" % (status, len(payload), more)
    return head if method == b"HEAD" else head + payload


def get(target: bytes = b"/", more: bytes = b"", method: bytes = b"GET") -> bytes:
    """A request without a body; `more` are further field lines."""
    return b"%b %b HTTP/1.1\r\nHost: a.test\r\n%b\r\n" % (method, target, more)


def post(target: bytes = b"/", payload: bytes = b"", more: bytes = b"", method: bytes = b"POST") -> bytes:
    """A request with a body of known length."""
    return get(target, b"Content-Length: %d\r\n%b" % (len(payload), more), method) + payload


@dataclass(slots=True)
class World:
    """One worker, its two backends, and the clients that a scene makes."""

    legacy: Backend
    new: Backend
    config: ProxyConfig
    routes: tuple[Route, ...] = ()
    flags: FlagSet | None = None
    plugs: Plugs | None = None
    observer: Observer | None = None
    worker: Worker = field(init=False)
    sock: socket.socket = field(init=False)
    port: int = 0
    clients: list[Wire] = field(default_factory=list)
    faults: list[dict[str, Any]] = field(default_factory=list)
    """What reached the event loop's exception handler."""

    @staticmethod
    @contextlib.asynccontextmanager
    async def of(
        routes: Sequence[Route] = (),
        *,
        legacy: Play | None = None,
        new: Play | None = None,
        legacy_tls: ssl.SSLContext | None = None,
        legacy_trust: TargetTls | None = None,
        target: dict[str, Any] | None = None,
        timeouts: Timeouts | None = None,
        flags: FlagSet | None = None,
        plugs: Plugs | None = None,
        observer: Observer | None = None,
        **config: Any,
    ) -> AsyncIterator[World]:
        """A world that is closed and checked when it is left.

        `legacy` and `new` are the plays of the backends, `target` holds settings for both `Target`s,
        everything else goes into `ProxyConfig`.
        """
        backends = Backend(legacy, legacy_tls), Backend(new)
        for backend in backends:
            await backend.start()
        config.setdefault("access_log", AccessLog(path=None))
        settings = ProxyConfig(
            targets={
                Side.LEGACY: Target("127.0.0.1", backends[0].port, tls=legacy_trust, **(target or {})),
                Side.NEW: Target("127.0.0.1", backends[1].port, **(target or {})),
            },
            timeouts=timeouts or Timeouts(),
            **config,
        )
        world = World(*backends, settings, tuple(routes), flags, plugs, observer)
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, context: world.faults.append(context))
        try:
            await world.open()
            yield world
        finally:
            await world.close()
            loop.set_exception_handler(None)
        assert not world.faults, world.faults
        assert not [*backends[0].faults, *backends[1].faults], (backends[0].faults, backends[1].faults)

    async def open(self) -> None:
        self.sock = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port = self.sock.getsockname()[1]
        self.worker = Worker(self.config, self.snapshot(1), self.plugs, self.observer)
        await self.worker.start([self.sock])

    async def close(self) -> None:
        for wire in self.clients:
            if not wire.lost:
                wire.transport.abort()
        if hasattr(self, "worker"):
            await self.worker.close()
            await until(lambda: self.idle, "the worker to let go of everything")
        if hasattr(self, "sock"):
            self.sock.close()
        await self.legacy.stop()
        await self.new.stop()
        await until(lambda: all(w.lost for w in [*self.clients, *self.legacy.wires, *self.new.wires]), "ends")

    def snapshot(self, version: int) -> Snapshot:
        return compile_snapshot(self.routes, version, self.flags)

    async def client(self, *, tls: ssl.SSLContext | None = None, name: str = "a.test") -> Wire:
        """A new client connection; with `tls` the handshake is done."""
        loop = asyncio.get_running_loop()
        _, wire = await loop.create_connection(
            Wire, "127.0.0.1", self.port, ssl=tls, server_hostname=name if tls else None
        )
        self.clients.append(wire)
        return wire

    async def ask(self, request: bytes, method: bytes = b"GET") -> Answer:
        """One request over a connection of its own, and its answer."""
        wire = await self.client()
        wire.send(request)
        answer = await wire.answer(method)
        wire.close()
        return answer

    @property
    def idle(self) -> bool:
        """Whether the worker serves nobody and uses no connection to a target."""
        return not (
            self.count("crossfade_client_connections")
            or self.count("crossfade_requests_in_flight")
            or self.count("crossfade_requests_waiting")
            or self.count("crossfade_upstream_connections", state="busy")
        )

    def count(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples whose labels are as given (a histogram counts its entries)."""
        total = 0.0
        known = labels_of(name)
        for sample in self.worker.samples():
            if sample.metric != name:
                continue
            found = dict(zip(known, sample.labels, strict=True))
            if all(found[key] == value for key, value in labels.items()):
                total += sum(sample.value.buckets) if isinstance(sample.value, Histogram) else sample.value
        return total

    async def counted(self, name: str, value: float, **labels: str) -> None:
        """Wait until a metric has reached `value`."""
        await until(lambda: self.count(name, **labels) >= value, f"{name} {labels} to reach {value}")


def labels_of(name: str) -> tuple[str, ...]:
    return next(metric.labels for metric in WORKER_METRICS if metric.name == name)


async def until(true: Callable[[], Any], what: str, patience: float = PATIENCE) -> None:
    """Wait until `true()` holds, looking at each turn of the event loop."""
    loop = asyncio.get_running_loop()
    late = loop.time() + patience
    while not true():
        if loop.time() > late:
            raise TimeoutError(f"waited for {what}")
        await asyncio.sleep(0.001)


async def reconfigured(world: World) -> None:
    """Point the legacy target at `world.legacy.port` as it is now."""
    targets = dict(world.config.targets)
    targets[Side.LEGACY] = replace(targets[Side.LEGACY], port=world.legacy.port)
    world.config = replace(world.config, targets=targets)
    await world.worker.reconfigure(world.config, world.snapshot(2))


def segments(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    """`data` cut at the given indices, without empty pieces."""
    at = [0, *sorted(cut for cut in cuts if 0 < cut < len(data)), len(data)]
    return [data[a:b] for a, b in pairwise(at) if a < b]
