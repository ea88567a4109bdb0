"""Listening sockets: one with SO_REUSEPORT per worker and address, owned by the supervisor.

The kernel spreads new connections over the sockets of an address, and each socket has its own queue
of connections that nobody has accepted yet. Closing a socket resets what waits in its queue, so a
socket lives as long as its address is configured: it survives its worker, and when the workers
become fewer it is given to another one. (One shared socket would be simpler, but then the worker
that wakes first takes nearly everything.)

For the same reason a socket that is added to an address is bound and does not listen yet: from the
first moment on the kernel would give it its share of the connections. The worker that accepts from
it makes it listen.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

BACKLOG = 4096
"""Connections that may wait in each queue; the kernel's `somaxconn` may lower it."""


class AddressError(Exception):
    """An address cannot be listened on; the message is one line for a person."""


@dataclass(slots=True)
class Listener:
    """One configured address and its sockets."""

    host: str
    port: int
    sockets: list[socket.socket] = field(default_factory=list)

    def __str__(self) -> str:
        """The real address, which differs from the configured one when that has port 0."""
        return address_text(self.sockets[0])

    def widen(self, count: int) -> None:
        """Have at least `count` sockets; those that are added do not listen yet. Raises AddressError."""
        first = self.sockets[0]
        try:
            while len(self.sockets) < count:
                added = _bind(first.family, first.getsockname(), reuse_port=True, backlog=None)
                self.sockets.append(added)
        except OSError as error:
            raise AddressError(f"cannot listen on {self} once more: {_reason(error, self.port)}") from error

    def narrow(self, count: int) -> None:
        """Give up all but the first `count` sockets, and reset what waits in their queues."""
        for sock in self.sockets[count:]:
            _stop_listening(sock)
            sock.close()
        del self.sockets[count:]

    def stop_listening(self) -> None:
        """Refuse new connections at once, whoever else holds a copy of the sockets."""
        for sock in self.sockets:
            _stop_listening(sock)

    def to_wire(self) -> dict[str, Any]:
        return {"host": self.host, "port": self.port, "sockets": [sock.fileno() for sock in self.sockets]}

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()


def listen(host: str, port: int, count: int) -> Listener:
    """Listen with `count` sockets on one address. Port 0 takes any free port.

    Raises AddressError, with nothing left bound.
    """
    listener = Listener(host, port)
    try:
        family, address = _resolve(host, port)
        if port != 0:
            # SO_REUSEPORT would let us join another program of the same user without a word and take half of
            # its connections; a socket without it finds out.
            _bind(family, address, reuse_port=False, backlog=None).close()
        for _ in range(count):
            listener.sockets.append(_bind(family, address, reuse_port=True))
            address = listener.sockets[0].getsockname()
    except OSError as error:
        listener.close()
        raise AddressError(f"cannot listen on {_text(host, port)}: {_reason(error, port)}") from error
    return listener


def listen_admin(host: str, port: int) -> Listener:
    """The admin address has one socket. Raises AddressError."""
    try:
        return Listener(host, port, [_bind(*_resolve(host, port), reuse_port=False)])
    except OSError as error:
        raise AddressError(f"cannot listen on {_text(host, port)} (admin): {_reason(error, port)}") from error


@contextmanager
def widened(listeners: Sequence[Listener], count: int) -> Iterator[None]:
    """Have at least `count` sockets in each; if the block fails, those that were added are gone again.

    Raises AddressError.
    """
    before = [len(listener.sockets) for listener in listeners]
    try:
        for listener in listeners:
            listener.widen(count)
        yield
    except BaseException:
        for listener, had in zip(listeners, before, strict=True):
            listener.narrow(had)
        raise


def shares(listeners: Sequence[Listener], workers: int) -> list[list[socket.socket]]:
    """Which sockets each of `workers` accepts from: round robin on each address, none left out."""
    found: list[list[socket.socket]] = [[] for _ in range(workers)]
    for listener in listeners:
        for order, sock in enumerate(listener.sockets):
            found[order % workers].append(sock)
    return found


def address_text(sock: socket.socket) -> str:
    """`host:port` of a bound socket, as it stands in a URL."""
    host, port = sock.getsockname()[:2]
    return _text(host, port)


def _resolve(host: str, port: int) -> tuple[int, tuple[Any, ...]]:
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    return int(family), address


def _bind(
    family: int, address: tuple[Any, ...], *, reuse_port: bool, backlog: int | None = BACKLOG
) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            # `[::]` means IPv6 only, as in nginx; whoever wants both lists both.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        if backlog is not None:
            sock.listen(backlog)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


def _stop_listening(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError as error:
        if error.errno != errno.ENOTCONN:
            raise


def _text(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _reason(error: OSError, port: int) -> str:
    if isinstance(error, socket.gaierror):
        return "the host name cannot be resolved"
    if error.errno == errno.EADDRINUSE:
        return "the port is in use by another program"
    if error.errno == errno.EADDRNOTAVAIL:
        return "this machine has no such address"
    if error.errno in (errno.EACCES, errno.EPERM) and port < 1024:
        return "permission denied (a port below 1024 needs root or CAP_NET_BIND_SERVICE)"
    return os.strerror(error.errno) if error.errno else str(error)
