"""The sample product's two databases: legacy's with the sample data, and new's without any.

Both are made once for a server, and each scene gets copies of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import psycopg

import new_backend.schema
from crossfade.embedded.postgres import EmbeddedPostgres
from examples.legacy import database, seed
from tests.sample.backends import SEED
from tests.support.databases import fresh_database

_LEGACY = "sample_legacy"
_NEW = "sample_new"


@contextlib.contextmanager
def legacy_database(postgres: EmbeddedPostgres) -> Iterator[str]:
    if _is_missing(postgres, _LEGACY):
        with contextlib.closing(database.connect(postgres.url(_LEGACY))) as connection:
            database.create_schema(connection)
            seed.plant(connection, SEED)
            connection.execute((SEED.parent / "copies.sql").read_text())
    with fresh_database(postgres, _LEGACY) as url:
        try:
            yield url
        finally:
            forget(url, "crossfade_to_new")


@contextlib.contextmanager
def new_database(postgres: EmbeddedPostgres) -> Iterator[str]:
    if _is_missing(postgres, _NEW):
        new_backend.schema.upgrade(postgres.url(_NEW))
    with fresh_database(postgres, _NEW) as url:
        try:
            yield url
        finally:
            forget(url, "crossfade_to_legacy")


def _is_missing(postgres: EmbeddedPostgres, name: str) -> bool:
    """It is there from now on, and empty if it was missing."""
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        known = connection.execute("SELECT FROM pg_database WHERE datname = %s", (name,)).fetchone()
        if known is None:
            connection.execute(f"CREATE DATABASE {name}")
        return known is None


def forget(url: str, slot: str) -> None:
    """What a stream leaves behind in the cluster: its slot, and its origin."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE application_name = %s OR pid IN"
            " (SELECT active_pid FROM pg_replication_slots WHERE slot_name = %s)",
            (f"crossfade apply {slot.removeprefix('crossfade_')}", slot),
        )
        connection.execute(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s",
            (slot,),
        )
        connection.execute(
            "SELECT pg_replication_origin_drop(roname) FROM pg_replication_origin WHERE roname = %s", (slot,)
        )
