"""Accept client connections from the listening sockets that the supervisor owns.

Plain connections are accepted by the event loop. With TLS or the PROXY protocol a connection has to be
introduced before it is a client, and whoever only connects must cost no more than a client does: these
are accepted here, counted, and given a limited time. The PROXY header is taken off the socket first,
byte-exactly, because TLS may begin right behind it: the socket is looked into (MSG_PEEK) until the
header is whole, and then exactly its bytes are read.

Closing an acceptor stops accepting and leaves the listening sockets open: their queues belong to
whoever accepts next.
"""

from __future__ import annotations

import asyncio
import select
import socket
import ssl
from collections.abc import Callable, Sequence

from proxy.proxy_protocol import LONGEST, Header, Invalid, read_header

_PEEK_PAUSE = 0.02
"""Seconds between two looks at a header that is still incomplete: the socket stays readable, so
readiness alone would spin."""

_BACKLOG = 4096
"""Connections that may wait to be accepted; the kernel bounds it by net.core.somaxconn."""

_EXHAUSTED_PAUSE = 0.5
"""Seconds without accepting after the system had no descriptor or memory for another connection."""


class Acceptor:
    """Accepts on `sockets` and makes a protocol with `factory` for each connection.

    The factory is given the client's address that the PROXY protocol tells, or None. `header_timeout`
    (seconds, for the header and again for the handshake) and `may_come` are asked for each connection
    that has to be introduced.
    """

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        factory: Callable[[str | None], asyncio.Protocol],
        *,
        tls: ssl.SSLContext | None,
        proxy_protocol: bool,
        header_timeout: Callable[[], float],
        may_come: Callable[[], bool],
        on_refused: Callable[[str], None],
    ) -> None:
        self._sockets = sockets
        self._factory = factory
        self._tls = tls
        self._proxy_protocol = proxy_protocol
        self._introduces = proxy_protocol or tls is not None
        self._header_timeout = header_timeout
        self._may_come = may_come
        self._on_refused = on_refused
        self._loop = asyncio.get_running_loop()
        self._stopped = False
        self._servers: list[asyncio.AbstractServer] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        for listening in self._sockets:
            listening.setblocking(False)
            if self._introduces:
                listening.listen(_BACKLOG)
                self._loop.add_reader(listening.fileno(), self._accept, listening)
            else:
                # A duplicate, because the loop closes what it was given.
                server = await self._loop.create_server(
                    lambda: self._factory(None), sock=listening.dup(), backlog=_BACKLOG
                )
                self._servers.append(server)

    def stop(self) -> None:
        """Accept no more. Connections that were accepted go on."""
        self._stopped = True
        for server in self._servers:
            server.close()
        self._servers.clear()
        if self._introduces:
            for listening in self._sockets:
                self._loop.remove_reader(listening.fileno())

    def close(self) -> None:
        """Accept no more, and let go of those who have not been introduced yet."""
        self.stop()
        for task in self._tasks:
            task.cancel()

    @property
    def introducing(self) -> int:
        """Connections that were accepted and are no clients yet."""
        return len(self._tasks)

    def _accept(self, listening: socket.socket) -> None:
        try:
            connection, _ = listening.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError:  # no descriptors or no memory: the listener stays readable, and would spin
            self._on_refused("accept_failed")
            self._loop.remove_reader(listening.fileno())
            self._loop.call_later(_EXHAUSTED_PAUSE, self._accept_again, listening)
            return
        if not self._may_come():
            self._on_refused("too_many_connections")
            connection.close()
            return
        connection.setblocking(False)
        task = self._loop.create_task(self._introduce(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _accept_again(self, listening: socket.socket) -> None:
        if not self._stopped:
            self._loop.add_reader(listening.fileno(), self._accept, listening)

    async def _introduce(self, connection: socket.socket) -> None:
        try:
            address = None
            if self._proxy_protocol:
                header = await self._header_in_time(connection)
                if isinstance(header, Invalid):
                    self._on_refused(header.reason)
                    connection.close()
                    return
                address = None if header.source is None else header.source[0]
            await self._loop.connect_accepted_socket(
                lambda: self._factory(address),
                connection,
                ssl=self._tls,
                ssl_handshake_timeout=None if self._tls is None else self._header_timeout(),
            )
        except OSError:
            if self._tls is not None:
                self._on_refused("tls_handshake_failed")
            connection.close()
        except BaseException:
            connection.close()
            raise

    async def _header_in_time(self, connection: socket.socket) -> Header | Invalid:
        try:
            async with asyncio.timeout(self._header_timeout()):
                return await self._read_header(connection)
        except TimeoutError:
            return Invalid("proxy_header_timeout")
        except OSError:
            return Invalid("proxy_header_incomplete")

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
