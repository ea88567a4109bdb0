"""The way to PostgreSQL: one bounded pool, and limits on how long anything may take there."""

from __future__ import annotations

from sqlalchemy import URL, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

POOL_SIZE = 10
"""Connections of one process. A request that waits longer than POOL_TIMEOUT for one is answered 503."""
POOL_TIMEOUT = 3.0
SETTINGS = (
    "-c statement_timeout=5s -c lock_timeout=3s -c idle_in_transaction_session_timeout=10s -c timezone=UTC"
)


def create_engine(url: str) -> AsyncEngine:
    """The pool for the database at `url` (postgresql://…). Opens nothing yet."""
    return create_async_engine(
        driver_url(url),
        pool_size=POOL_SIZE,
        max_overflow=0,
        pool_timeout=POOL_TIMEOUT,
        pool_pre_ping=True,
        pool_recycle=1800,
        connect_args={"options": SETTINGS, "application_name": "new_backend", "connect_timeout": 5},
    )


def driver_url(url: str) -> URL:
    """The same address for SQLAlchemy, which wants to be told the driver."""
    return make_url(url).set(drivername="postgresql+psycopg")
