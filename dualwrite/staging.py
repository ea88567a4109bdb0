"""Temporary tables in which rows wait for a statement that joins them with a table of any size."""

from __future__ import annotations

from typing import Any, Final

import psycopg
from psycopg import errors, sql

A_PAGE: Final = 10
"""Rows that the planner shall expect of each page."""


async def expected_to_be_small(connection: psycopg.AsyncConnection[Any], table: sql.Identifier) -> None:
    """Have the planner expect of an empty table few rows while it is small, and more when it has grown.

    One that nobody has ever looked at is taken for ten pages full of rows; then a handful of rows is joined
    by reading the whole other table instead of its index. What ANALYZE says of a table's size outlives the
    rollback of what it has seen; TRUNCATE forgets it, unless the table is as new as its transaction.
    """
    look = sql.SQL("ANALYZE {}").format(table)
    rows = sql.SQL("INSERT INTO {} SELECT FROM generate_series(1, {})").format(table, sql.Literal(A_PAGE))
    try:
        async with connection.transaction(force_rollback=True):
            await connection.execute(rows)
            await connection.execute(look)
    except errors.NotNullViolation:
        await connection.execute(look)  # it is taken for as full as its columns are wide
