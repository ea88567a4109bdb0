"""A pooler between that drops what a session has asked for."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator

import psycopg
import pytest

from dualwrite.pg_connect import connect


@contextlib.asynccontextmanager
async def dropping_options(url: str) -> AsyncIterator[str]:
    """A way to the same database on which `options` never arrive, as behind some poolers."""
    known = psycopg.conninfo.conninfo_to_dict(url)
    tasks: list[asyncio.Task[None]] = []
    writers: list[asyncio.StreamWriter] = []

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while block := await reader.read(65536):
                writer.write(block)
                await writer.drain()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        (length,) = struct.unpack("!I", await reader.readexactly(4))
        body = await reader.readexactly(length - 4)
        words = body[4:].rstrip(b"\0").split(b"\0")
        kept = [
            word
            for name, value in zip(words[::2], words[1::2], strict=True)
            if name != b"options"
            for word in (name, value)
        ]
        there, back = await asyncio.open_unix_connection(f"{known['host']}/.s.PGSQL.5432")
        writers.extend((writer, back))
        begin = body[:4] + b"\0".join(kept) + b"\0\0"
        back.write(struct.pack("!I", len(begin) + 4) + begin)
        tasks.append(asyncio.create_task(pipe(there, writer)))
        tasks.append(asyncio.create_task(pipe(reader, back)))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield psycopg.conninfo.make_conninfo(
            url, host="127.0.0.1", port=port, sslmode="disable", gssencmode="disable"
        )
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in writers:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        await server.wait_closed()


async def test_a_session_whose_settings_do_not_hold_is_refused(database_url: str) -> None:
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as admin:
        name = admin.info.dbname
        await admin.execute(f"ALTER DATABASE {name} SET timezone = 'Europe/Berlin'".encode())
    async with await connect(database_url) as asked:
        assert asked.info.parameter_status("TimeZone") == "UTC"
    async with dropping_options(database_url) as url:
        with pytest.raises(psycopg.OperationalError, match=r"TimeZone is 'Europe/Berlin'.*pooler"):
            await connect(url)
