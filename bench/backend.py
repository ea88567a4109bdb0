"""A backend that costs next to nothing and never varies: one epoll loop, two ports, constant answers.

It is written on bare sockets because it shares two cores with the proxy under test and with the load
generator: what it spends, they lack. It reads a whole request (head and Content-Length body) before
it answers. Prints one line of JSON with its two ports, then serves until it is ended.
"""

from __future__ import annotations

import gc
import json
import re
import select
import socket
import sys

from bench.traffic import LARGE_ANSWER, LARGE_MARK, SMALL_ANSWER

_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)


def listen() -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", 0))
    listener.listen(4096)
    listener.setblocking(False)
    return listener


def missing_bytes(data: bytes) -> int:
    """How many bytes the request that begins `data` still lacks; 1 when its head is not complete."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return 1
    length = _LENGTH.search(data, 0, end)
    return end + 4 + (int(length[1]) if length else 0) - len(data)


def serve(listeners: list[socket.socket]) -> None:
    epoll = select.epoll()
    by_fd = {listener.fileno(): listener for listener in listeners}
    for fd in by_fd:
        epoll.register(fd, select.EPOLLIN)
    connections: dict[int, socket.socket] = {}
    partial: dict[int, bytes] = {}
    while True:
        for fd, _ in epoll.poll():
            if fd in by_fd:
                connection, _peer = by_fd[fd].accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.setblocking(False)
                connections[connection.fileno()] = connection
                epoll.register(connection.fileno(), select.EPOLLIN)
                continue
            connection = connections[fd]
            try:
                data = connection.recv(16384)
            except ConnectionError:
                data = b""
            if not data:
                epoll.unregister(fd)
                partial.pop(fd, None)
                connections.pop(fd).close()
                continue
            if fd in partial:
                data = partial.pop(fd) + data
            if missing_bytes(data) > 0:
                partial[fd] = data
                continue
            try:
                connection.send(LARGE_ANSWER if LARGE_MARK in data[:80] else SMALL_ANSWER)
            except ConnectionError:
                continue  # the next event on this socket is its end


def main() -> None:
    listeners = [listen(), listen()]
    legacy, new = (listener.getsockname()[1] for listener in listeners)
    sys.stdout.write(json.dumps({"legacy": legacy, "new": new}) + "\n")
    sys.stdout.flush()
    gc.freeze()
    serve(listeners)


if __name__ == "__main__":
    main()
