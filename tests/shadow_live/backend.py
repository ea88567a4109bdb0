"""A backend that speaks JSON, and may be told to hang, to refuse or to be wrong."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

Says = Callable[[str, dict[str, str]], tuple[int, Any]]


class JsonBackend:
    """`says` gets a target and the header fields, and returns a status and what is said."""

    def __init__(self, says: Says) -> None:
        self.says = says
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, EOFError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                line, *lines = head.strip().split("\r\n")
                fields = {
                    name.lower(): value.strip() for name, _, value in (one.partition(":") for one in lines)
                }
                await reader.readexactly(int(fields.get("content-length", 0)))
                target = line.split(" ")[1]
                self.asked.append((target, fields))
                status, said = self.says(target, fields)
                body = json.dumps(said).encode()
                writer.write(
                    b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
                    % (status, len(body), body)
                )
        writer.close()


@contextlib.asynccontextmanager
async def json_backend(says: Says) -> AsyncIterator[JsonBackend]:
    found = JsonBackend(says)
    server = await asyncio.start_server(found.serve, "127.0.0.1", 0)
    found.port = server.sockets[0].getsockname()[1]
    try:
        yield found
    finally:
        server.close()
