"""All that one COPY … TO STDOUT says, read as fast as it comes.

psycopg's own reader awaits each row; for millions of them that is most of the time.
"""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
from psycopg import pq


async def copy_out(connection: psycopg.AsyncConnection[Any], query: str) -> list[bytes]:
    """One entry a row (in binary, one more before and behind). Raises psycopg.Error."""
    pg = connection.pgconn
    try:
        pg.send_query(query.encode())
        while pg.flush():
            await _ready(pg.socket, asyncio.get_running_loop().add_writer, _no_more_writing)
        await _some(pg)
        _must_be(pg, pg.get_result(), pq.ExecStatus.COPY_OUT)
        rows: list[bytes] = []
        take, keep = pg.get_copy_data, rows.append
        while True:
            size, data = take(1)
            if size > 0:
                keep(bytes(data))
            elif size == 0:
                await _ready(pg.socket, asyncio.get_running_loop().add_reader, _no_more_reading)
                pg.consume_input()
            else:
                break
        await _some(pg)
        _must_be(pg, pg.get_result(), pq.ExecStatus.COMMAND_OK)
        while pg.get_result() is not None:
            pass
    except asyncio.CancelledError:
        # In the middle of an answer nothing else can be asked on this connection.
        await connection.close()
        raise
    return rows


async def _some(pg: Any) -> None:
    """Until there is a result."""
    while pg.is_busy():
        await _ready(pg.socket, asyncio.get_running_loop().add_reader, _no_more_reading)
        pg.consume_input()


async def _ready(socket: int, begin: Any, end: Any) -> None:
    come = asyncio.get_running_loop().create_future()

    def ready() -> None:
        if not come.done():
            come.set_result(None)

    begin(socket, ready)
    try:
        await come
    finally:
        end(socket)


def _no_more_reading(socket: int) -> None:
    asyncio.get_running_loop().remove_reader(socket)


def _no_more_writing(socket: int) -> None:
    asyncio.get_running_loop().remove_writer(socket)


def _must_be(pg: Any, result: Any, status: pq.ExecStatus) -> None:
    if result is None or result.status != status:
        raise (
            psycopg.errors.error_from_result(result)
            if result is not None
            else psycopg.OperationalError(pg.get_error_message())
        )
