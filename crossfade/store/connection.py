"""The way to the store: one small pool, and a bound on how long anything may take there.

Whatever is wrong with the store comes out as one `StoreError` that says where and why, without the
password. Nothing here waits for long, because a server can be there and silent (stopped, or behind a
network that drops everything), and the control process has other things to do.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from enum import StrEnum

import psycopg
from psycopg import errors
from sqlalchemy import URL, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from dualwrite.pg_connect import hang_up

ANSWER_WITHIN = 8.0
"""Seconds for a whole transaction, the way there included."""
CONNECT_TIMEOUT = 4
POOL_SIZE = 4

_LIMITS = text(
    "SELECT set_config('lock_timeout', '4s', true), set_config('statement_timeout', '6s', true),"
    " set_config('idle_in_transaction_session_timeout', '10s', true)"
)
"""Asked at the start of each transaction (startup options do not pass every pooler). The last one frees
the locks of a process that stands still in the middle of a change."""


class StoreReason(StrEnum):
    """Why the store did not do what it was asked."""

    UNREACHABLE = "unreachable"
    BUSY = "busy"
    """Others hold the lock for longer than a change can take."""
    UNKNOWN_OUTCOME = "unknown_outcome"
    """The connection broke during the commit: it is done or not done, as a whole."""
    FORBIDDEN = "forbidden"
    NOT_MIGRATED = "not_migrated"
    NEWER = "newer"
    """A newer Crossfade has migrated it."""
    UNREADABLE = "unreadable"
    """It holds a flag that this Crossfade does not understand."""


class StoreError(Exception):
    """The store cannot do it now; the message names the place and what to do next."""

    def __init__(self, reason: StoreReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class StoreUrlError(ValueError):
    """This is not the URL of a PostgreSQL database."""


class Database:
    """Transactions on the store. Opens no connection before the first one."""

    def __init__(self, url: str) -> None:
        address = _driver_url(url)
        self.place = _place(address)
        """Host, port and database, for people: no user, no password."""
        self._engine = create_async_engine(
            address,
            pool_size=POOL_SIZE,
            max_overflow=0,
            pool_timeout=CONNECT_TIMEOUT,
            pool_recycle=1800,
            hide_parameters=True,
            connect_args={
                "application_name": "crossfade",
                "connect_timeout": CONNECT_TIMEOUT,
                "prepare_threshold": None,  # a pooler may change the connection between transactions
            },
        )

    async def close(self) -> None:
        await self._engine.dispose()

    @contextlib.asynccontextmanager
    async def transaction(self, within: float = ANSWER_WITHIN) -> AsyncIterator[AsyncConnection]:
        """One transaction, committed at the end; after `within` seconds the connection is cut.

        It is cut and not cancelled: psycopg answers a cancellation by asking the server to stop, and a
        silent server does not stop.
        """
        deadline = asyncio.get_running_loop().time() + within
        try:
            async with self._connection(deadline) as connection:
                yield connection
                try:
                    await connection.commit()
                except DBAPIError as error:
                    if not _lost(error):
                        raise
                    raise StoreError(
                        StoreReason.UNKNOWN_OUTCOME,
                        f"the connection to the store at {self.place} broke while a change was being "
                        "written; look whether it is there before you try again",
                    ) from error
        except DBAPIError as error:
            if (named := self._named(error)) is None:
                raise
            raise named from error

    @contextlib.asynccontextmanager
    async def _connection(self, deadline: float) -> AsyncIterator[AsyncConnection]:
        """A connection that has just answered: one from the pool may have died in the meantime."""
        loop = asyncio.get_running_loop()
        for last_try in (False, True):
            try:
                async with asyncio.timeout_at(deadline):
                    connection = await self._engine.connect()
                    raw = (await connection.get_raw_connection()).driver_connection
            except (TimeoutError, PoolTimeoutError) as error:
                raise self._unreachable("it does not answer") from error
            assert isinstance(raw, psycopg.AsyncConnection)
            cut = loop.call_at(deadline, hang_up, raw)
            try:
                try:
                    await connection.execute(_LIMITS)
                except DBAPIError as error:
                    if last_try or not error.connection_invalidated:
                        raise
                    continue  # the whole pool is emptied; the next connection is new
                yield connection
                return
            finally:
                try:
                    await connection.close()
                finally:
                    cut.cancel()

    def _unreachable(self, why: str) -> StoreError:
        return StoreError(
            StoreReason.UNREACHABLE,
            f"cannot reach the store at {self.place}: {why}. Traffic goes on by the last flags that each "
            "worker has; start the store, or correct `store:` in the configuration",
        )

    def _named(self, error: DBAPIError) -> StoreError | None:
        """What is wrong with the store; None for what is wrong with our statement."""
        fault = error.orig
        said = str(fault).strip().split("\n")[0]
        match fault:
            case errors.LockNotAvailable() | errors.QueryCanceled() | errors.DeadlockDetected():
                return StoreError(
                    StoreReason.BUSY,
                    f"the store at {self.place} is busy with another change ({said}); try again",
                )
            case errors.InsufficientPrivilege() | errors.ReadOnlySqlTransaction():
                return StoreError(
                    StoreReason.FORBIDDEN,
                    f"the store at {self.place} refuses: {said}; `store:` must name a database that its user "
                    "owns and may write to",
                )
            case errors.UndefinedTable() | errors.InvalidSchemaName() | errors.UndefinedColumn():
                return StoreError(
                    StoreReason.NOT_MIGRATED,
                    f"the store at {self.place} has not been migrated to this version ({said}); "
                    "`crossfade up` does it at its start",
                )
        return self._unreachable(said or type(fault).__name__) if _lost(error) else None


def _lost(error: DBAPIError) -> bool:
    return error.connection_invalidated or isinstance(
        error.orig, (psycopg.OperationalError, psycopg.InterfaceError)
    )


def _driver_url(url: str) -> URL:
    try:
        address = make_url(url)
    except (ArgumentError, ValueError):
        address = None
    if address is None or address.get_backend_name() not in {"postgresql", "postgres"}:
        raise StoreUrlError("the store must be a URL such as postgresql://user:password@host:5432/crossfade")
    return address.set(drivername="postgresql+psycopg")


def _place(address: URL) -> str:
    query = address.query.get("host", ())
    hosts = [address.host] if address.host else [query] if isinstance(query, str) else list(query)
    port = f":{address.port}" if address.port else ""
    return f"{', '.join(hosts) or 'this host'}{port}/{address.database or address.username or ''}"
