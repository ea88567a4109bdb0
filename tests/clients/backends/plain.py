"""The backend on Python's `http.server`: HTTP/1.0, a thread and a connection for each request."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.clients.backends.script import METHODS, Asked, CutError, Diary, play


@contextlib.contextmanager
def plain_backend(diary: Diary) -> Iterator[int]:
    """Serves until the block is left; gives the port."""

    class Handler(_Handler):
        pass

    Handler.diary = diary
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="plain backend")
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    diary: Diary

    def serve(self) -> None:
        fields = tuple((name, value) for name, value in self.headers.items())
        asked = Asked(self.command, self.path, fields, self._read_body(), self.client_address)
        told = play(asked, self.diary)
        self.send_response(told.status)
        for name, value in told.fields:
            self.send_header(name, value)
        if isinstance(told.body, bytes):
            if told.status not in (204, 304):
                self.send_header("Content-Length", str(len(told.body)))
            pieces: Iterator[bytes] = iter([told.body])
        else:
            pieces = told.body
        self.end_headers()
        if self.command == "HEAD":
            return
        # A reader that has left, or an answer that is meant to be cut: the connection ends either way.
        with contextlib.suppress(CutError, ConnectionError):
            for piece in pieces:
                self.wfile.write(piece)
        if not isinstance(told.body, bytes):
            told.body.close()  # type: ignore[attr-defined]

    def _read_body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = bytearray()
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return bytes(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


for _method in METHODS:
    setattr(_Handler, f"do_{_method}", _Handler.serve)
