"""One connection per server thread, opened when it is first needed."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import TypeAlias

import psycopg
from psycopg.rows import DictRow, dict_row

Connection: TypeAlias = psycopg.Connection[DictRow]

SETTINGS = (
    "-c statement_timeout=5s -c lock_timeout=3s -c idle_in_transaction_session_timeout=10s -c timezone=UTC"
)
ASK_AFTER_IDLE = 1.0
"""Seconds that a connection may have been idle before it is asked whether it still lives."""


class Database:
    """Hands each thread its own connection; the number of server threads bounds their number.

    Connections are in autocommit mode: a single statement is its own transaction, and whatever needs
    more says `with db.transaction():`.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._thread = threading.local()

    def connection(self) -> Connection:
        """The calling thread's connection. Raises psycopg.OperationalError if there is no database."""
        connection: Connection | None = getattr(self._thread, "connection", None)
        if connection is not None and not self._lives(connection):
            connection.close()
            connection = None
        if connection is None:
            connection = connect(self._url)
            self._thread.connection = connection
        self._thread.used = time.monotonic()
        return connection

    def _lives(self, connection: Connection) -> bool:
        if connection.closed:
            return False
        if time.monotonic() - self._thread.used < ASK_AFTER_IDLE:
            return True
        try:
            connection.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True


def connect(url: str) -> Connection:
    return psycopg.connect(
        url,
        autocommit=True,
        row_factory=dict_row,
        options=SETTINGS,
        application_name="legacy",
        connect_timeout=5,
    )


def create_schema(db: Connection) -> None:
    """Creates the tables unless they are there. Two programs may start at once."""
    with db.transaction():
        db.execute("SELECT pg_advisory_xact_lock(hashtext('examples.legacy'))")
        if db.execute("SELECT to_regclass('users') AS oid").fetchone() == {"oid": None}:
            db.execute(Path(__file__).with_name("schema.sql").read_bytes())
