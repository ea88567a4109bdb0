"""The backend for large bodies: a thread per connection, zeros out, bytes counted in.

`GET /bulk/N` answers N bytes. `POST /bulk/fast` takes a body as fast as it comes, `POST /bulk/slow` takes
64 KiB each 20 ms; both answer with the number of bytes taken. Anything else is answered 200 with `{}`.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import sys
import threading
from time import sleep

_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)
_CHUNK = bytes(1 << 18)
SLOW_PIECE, SLOW_PAUSE = 1 << 16, 0.02


def _converse(connection: socket.socket) -> None:
    with connection, contextlib.suppress(ConnectionError):
        buffer = bytearray(1 << 18)
        data = b""
        while True:
            while b"\r\n\r\n" not in data:
                more = connection.recv(16384)
                if not more:
                    return
                data += more
            head, _, data = data.partition(b"\r\n\r\n")
            method, target = head.split(b" ", 2)[:2]
            if method == b"GET" and target.startswith(b"/bulk/"):
                size = int(target.rpartition(b"/")[2])
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
                while size:
                    piece = min(size, len(_CHUNK))
                    connection.sendall(memoryview(_CHUNK)[:piece])
                    size -= piece
                continue
            length = _LENGTH.search(head)
            expected = int(length[1]) if length else 0
            taken, data = len(data[:expected]), data[expected:]
            view = memoryview(buffer)[: SLOW_PIECE if target == b"/bulk/slow" else len(buffer)]
            while taken < expected:
                count = connection.recv_into(view[: expected - taken])
                if not count:
                    return
                taken += count
                if target == b"/bulk/slow":
                    sleep(SLOW_PAUSE)
            body = b'{"taken": %d}' % taken
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


def main() -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    port = listener.getsockname()[1]
    sys.stdout.write(json.dumps({"legacy": port, "new": port}) + "\n")
    sys.stdout.flush()
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_converse, args=(connection,), daemon=True).start()


if __name__ == "__main__":
    main()
