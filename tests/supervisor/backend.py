"""A backend that says its name, and holds an answer back until the test lets it go."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator


class Backend:
    """Answers every request with its name; `/hold…` only after `release` is set."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.port = 0
        self.holding = asyncio.Event()
        """A held request has arrived."""
        self.release = asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if head.split(b" ", 2)[1].startswith(b"/hold"):
                    self.holding.set()
                    await self.release.wait()
                body = self.name.encode()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        except (OSError, EOFError):
            return
        finally:
            self._writers.discard(writer)
            writer.close()

    def cut(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()


@contextlib.asynccontextmanager
async def backend(name: str) -> AsyncIterator[Backend]:
    found = Backend(name)
    server = await asyncio.start_server(found.serve, "127.0.0.1", 0)
    found.port = server.sockets[0].getsockname()[1]
    try:
        yield found
    finally:
        server.close()
        found.release.set()
        found.cut()
