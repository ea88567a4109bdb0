"""A way to PostgreSQL that a scene can break: it falls silent, hangs up, or loses the commit."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from sqlalchemy import make_url


class Relay:
    """A folder with a socket in it; `url` is the store's, through here."""

    def __init__(self, folder: Path, url: str) -> None:
        address = make_url(url)
        self._behind = Path(str(address.query["host"]), ".s.PGSQL.5432")
        self._path = folder / ".s.PGSQL.5432"
        self.url = address.set(query={"host": str(folder)}).render_as_string(hide_password=False)
        self.speaks = asyncio.Event()
        """Cleared, nothing passes any more and nobody is told."""
        self.speaks.set()
        self.lose: bytes | None = None
        """Where the client's bytes hold this, the connection ends, before or after they were passed on."""
        self.lose_after_passing = False
        self._lost = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @staticmethod
    @contextlib.asynccontextmanager
    async def to(url: str) -> AsyncIterator[Relay]:
        with tempfile.TemporaryDirectory() as folder:
            relay = Relay(Path(folder), url)
            server = await asyncio.start_unix_server(relay._meet, relay._path)
            try:
                yield relay
            finally:
                server.close()
                relay.speaks.set()
                relay.hang_up()
                await asyncio.gather(*relay._tasks, return_exceptions=True)

    def hang_up(self) -> None:
        """End every connection, as a restart of the server does."""
        for writer in self._writers:
            writer.transport.abort()

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        behind_reader, behind = await asyncio.open_unix_connection(self._behind)
        self._writers |= {writer, behind}
        await asyncio.gather(
            self._pass(reader, behind, watched=True), self._pass(behind_reader, writer, watched=False)
        )

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, watched: bool) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(65536):
                await self.speaks.wait()
                if watched and self.lose is not None and self.lose in data:
                    self._lost = True
                    if self.lose_after_passing:
                        sink.write(data)
                    break
                if self._lost:
                    break
                sink.write(data)
                await sink.drain()
        sink.close()
