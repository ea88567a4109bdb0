"""Accept client connections from the listening sockets that the supervisor owns.

Usually the event loop accepts by itself. With the PROXY protocol the header must be taken off the
socket first, byte-exactly, because TLS may begin right behind it: the socket is looked into
(MSG_PEEK) until the header is whole, and then exactly its bytes are read.

Closing an acceptor stops accepting and leaves the listening sockets open: their queues belong to
whoever accepts next.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import ssl
from collections.abc import Callable, Sequence

from proxy.proxy_protocol import LONGEST, Header, Invalid, read_header

_PEEK_PAUSE = 0.02
"""Seconds between two looks at a header that is still incomplete: the socket stays readable, so
readiness alone would spin."""

_BACKLOG = 2048


class Acceptor:
    """Accepts on `sockets` and makes a protocol with `factory` for each connection."""

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        factory: Callable[[], asyncio.Protocol],
        *,
        tls: ssl.SSLContext | None,
        proxy_protocol: bool,
        header_timeout: float,
        on_refused: Callable[[str], None],
    ) -> None:
        self._sockets = sockets
        self._factory = factory
        self._tls = tls
        self._proxy_protocol = proxy_protocol
        self._header_timeout = header_timeout
        self._on_refused = on_refused
        self._loop = asyncio.get_running_loop()
        self._servers: list[asyncio.AbstractServer] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.sources: dict[tuple[object, ...], str] = {}
        """Client address by the peer name of a connection that the PROXY protocol introduced."""

    async def start(self) -> None:
        for listening in self._sockets:
            listening.setblocking(False)
            if self._proxy_protocol:
                listening.listen(_BACKLOG)
                self._loop.add_reader(listening.fileno(), self._accept, listening)
            else:
                # A duplicate, because the loop closes what it was given.
                server = await self._loop.create_server(
                    self._factory, sock=listening.dup(), ssl=self._tls, backlog=_BACKLOG
                )
                self._servers.append(server)

    def stop(self) -> None:
        """Accept no more. Connections that were accepted go on."""
        for server in self._servers:
            server.close()
        self._servers.clear()
        if self._proxy_protocol:
            for listening in self._sockets:
                self._loop.remove_reader(listening.fileno())

    def _accept(self, listening: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError, InterruptedError, ConnectionAbortedError):
            connection, _ = listening.accept()
            connection.setblocking(False)
            task = self._loop.create_task(self._introduce(connection))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _introduce(self, connection: socket.socket) -> None:
        try:
            async with asyncio.timeout(self._header_timeout):
                header = await self._read_header(connection)
        except (TimeoutError, OSError):
            header = Invalid("proxy_header_timeout")
        if isinstance(header, Invalid):
            self._on_refused(header.reason)
            connection.close()
            return
        name = None
        try:
            if header.source is not None:
                name = tuple(connection.getpeername())
                self.sources[name] = header.source[0]
            await self._loop.connect_accepted_socket(self._factory, connection, ssl=self._tls)
        except OSError:
            connection.close()
        finally:
            if name is not None:
                self.sources.pop(name, None)

    async def _read_header(self, connection: socket.socket) -> Header | Invalid:
        seen = 0
        poll = select.poll()
        poll.register(connection.fileno(), select.POLLIN | select.POLLRDHUP)
        while True:
            while not poll.poll(0):
                await self._readable(connection)
            data = connection.recv(LONGEST, socket.MSG_PEEK)
            header = read_header(data)
            if isinstance(header, Header):
                connection.recv(header.size)
                return header
            if isinstance(header, Invalid):
                return header
            if not data or any(event & select.POLLRDHUP for _, event in poll.poll(0)):
                return Invalid("proxy_header_incomplete")
            if len(data) == seen:
                await asyncio.sleep(_PEEK_PAUSE)
            seen = len(data)

    async def _readable(self, connection: socket.socket) -> None:
        ready = asyncio.Event()
        self._loop.add_reader(connection.fileno(), ready.set)
        try:
            await ready.wait()
        finally:
            self._loop.remove_reader(connection.fileno())
