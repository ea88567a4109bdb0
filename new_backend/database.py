"""The way to PostgreSQL: one bounded pool, and limits on how long anything may take there."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from sqlalchemy import URL, event, exc, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

if TYPE_CHECKING:
    from sqlalchemy.engine.interfaces import DBAPIConnection
    from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

POOL_SIZE = 10
"""Connections of one process. A request that waits longer than POOL_TIMEOUT for one is answered 503."""
POOL_TIMEOUT = 3.0
ASK_AFTER_IDLE = 1.0
"""Seconds that a connection may have been idle before it is asked whether it still lives."""
SETTINGS = (
    "-c statement_timeout=5s -c lock_timeout=3s -c idle_in_transaction_session_timeout=10s -c timezone=UTC"
)


def create_engine(url: str) -> AsyncEngine:
    """The pool for the database at `url` (postgresql://…). Opens nothing yet."""
    engine = create_async_engine(
        driver_url(url),
        pool_size=POOL_SIZE,
        max_overflow=0,
        pool_timeout=POOL_TIMEOUT,
        pool_recycle=1800,
        connect_args={"options": SETTINGS, "application_name": "new_backend", "connect_timeout": 5},
    )
    ask_after_idle(engine)
    return engine


def driver_url(url: str) -> URL:
    """The same address for SQLAlchemy, which wants to be told the driver."""
    return make_url(url).set(drivername="postgresql+psycopg")


def ask_after_idle(engine: AsyncEngine) -> None:
    """Replaces dead connections before they are used.

    `pool_pre_ping` would ask every time, which costs a busy service a third of its time for nothing.
    """
    dialect = engine.sync_engine.dialect

    @event.listens_for(engine.sync_engine, "checkin")
    def note(_: DBAPIConnection | None, entry: ConnectionPoolEntry) -> None:
        entry.info["idle_since"] = time.monotonic()

    @event.listens_for(engine.sync_engine, "checkout")
    def ask(connection: DBAPIConnection, entry: ConnectionPoolEntry, _: PoolProxiedConnection) -> None:
        now = time.monotonic()
        if now - entry.info.get("idle_since", now) > ASK_AFTER_IDLE:
            try:
                dialect.do_ping(connection)
            except dialect.loaded_dbapi.Error as error:
                raise exc.DisconnectionError from error  # the pool opens another one
