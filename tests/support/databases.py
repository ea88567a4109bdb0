"""Databases of one scene alone, in the server that all tests share."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator

import psycopg

from crossfade.embedded.postgres import EmbeddedPostgres

_numbers = itertools.count(1)


@contextlib.contextmanager
def fresh_database(postgres: EmbeddedPostgres, like: str = "template1") -> Iterator[str]:
    """The URL of a database that is a copy of another one, and is gone afterwards."""
    name = f"scene_{next(_numbers)}"
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {like}")
    yield postgres.url(name)
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
