"""Every connection to either database: the same form of text, and a peer that is silent is found out."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Any, Final

import psycopg

CONNECT_WITHIN: Final = 10
"""Seconds."""
READABLE: Final = (
    "-c datestyle=ISO -c intervalstyle=postgres -c timezone=UTC -c extra_float_digits=3 -c bytea_output=hex"
    " -c row_security=off"
)
"""Whatever the source's database or user prefers: its text has to mean the same at the target. And rows that
a policy hides are refused instead of left out."""
LASTING: Final = (
    "set_config('synchronous_commit', CASE current_setting('synchronous_commit')"
    " WHEN 'off' THEN 'local' ELSE current_setting('synchronous_commit') END, true)"
)
"""Of a transaction: what it commits outlives a crash of the server, whatever that or its user prefers."""
_TOLD: Final = (("DateStyle", "ISO"), ("TimeZone", "UTC"), ("IntervalStyle", "postgres"))
"""Of these a server tells what holds, without being asked."""
_ALIVE: Final[dict[str, Any]] = {
    "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 30_000,
}  # fmt: skip
"""A host that went without a word is given up after half a minute."""


def hang_up(connection: psycopg.AsyncConnection[Any]) -> None:
    """End it on our side: whoever waits for an answer stops waiting, which a silent server would not do."""
    with (
        contextlib.suppress(OSError, psycopg.Error),
        socket.socket(fileno=os.dup(connection.fileno())) as line,
    ):
        line.shutdown(socket.SHUT_RDWR)


async def let_it_last(connection: psycopg.AsyncConnection[Any]) -> None:
    """As LASTING, from now on."""
    await connection.execute(
        "SELECT set_config('synchronous_commit', 'local', false)"
        " WHERE current_setting('synchronous_commit') = 'off'"
    )


async def connect(url: str, name: str = "crossfade", **more: Any) -> psycopg.AsyncConnection[Any]:
    """In autocommit mode; `name` is how the server knows the session. Raises psycopg.Error."""
    connection = await psycopg.AsyncConnection.connect(
        url,
        autocommit=True,
        connect_timeout=CONNECT_WITHIN,
        application_name=name,
        client_encoding="UTF8",
        options=READABLE,
        **_ALIVE,
        **more,
    )
    for setting, wanted in _TOLD:
        holds = connection.info.parameter_status(setting) or ""
        if not holds.startswith(wanted):
            await connection.close()
            raise psycopg.OperationalError(
                f"{setting} is {holds!r}, and not {wanted}, which this session asked for: does a pooler drop"
                " a session's options? Have it pass them, or name the database without it"
            )
    return connection
