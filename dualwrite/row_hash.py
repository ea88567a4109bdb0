"""A row as one number of 64 bits, computed by the database itself: sums of them tell where two tables differ.

Two forms. *Typed* takes the hash functions that PostgreSQL has for each type: quick, but the same only
within a major version, an encoding and a kind of processor. *Portable* is md5 over a text of the whole row,
which any two servers can compute alike. In both, rows that are written differently have different numbers:

- NULL is no value: the typed form has a NULL of its own for each column, the portable one an empty length.
- No two columns run together or change places unseen: each has a seed; lengths stand before the texts.
- PostgreSQL's own hashes take -0 for 0, 1.0 for 1.00, a numeric's NaN for its Infinity, what a collation
  calls equal for equal, and fold 64 bits to 32 (so that 1 and 2^32 are one). Here all are told apart.

They are summed up, never combined by XOR: two equal faults would cancel each other out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, Final, NamedTuple

import psycopg
from psycopg import sql

from dualwrite.pg_source import PLAIN_TYPES, WHOLE_TYPES, bare_type

Connection = psycopg.AsyncConnection[Any]


class Form(StrEnum):
    TYPED = "typed"
    PORTABLE = "portable"


class Column(NamedTuple):
    name: str
    type: str
    """As format_type writes it; of both sides one that holds what either does."""


_TEXT: Final = 'hashtextextended({0} COLLATE "C", {1})'
_AS_TEXT: Final = 'hashtextextended({0}::text COLLATE "C", {1})'
_ANY: Final = "hash_record_extended(ROW({0}), {1})"
_MOMENT: Final = (
    "CASE WHEN {0} BETWEEN '1700-01-01' AND '2200-01-01'"
    " THEN hashfloat8extended(date_part('epoch', {0}), {1}) ELSE " + _AS_TEXT + " END"
)
"""A moment's own hash folds; its seconds as a float hold every microsecond between these years."""
_TYPED: Final[Mapping[str, str]] = {
    "smallint": "hashint2extended({0}, {1})",
    "integer": "hashint4extended({0}, {1})",
    "bigint": "hashint8extended({0}, {1}) # hashint4extended(({0} >> 32)::int, -{1})",
    "numeric": "CASE WHEN scale({0}) IS NULL THEN " + _AS_TEXT + " ELSE"
    " hash_numeric_extended({0}, {1}) # hashint4extended(scale({0}), -{1}) END",
    "real": "CASE WHEN {0} = 0 THEN " + _AS_TEXT + " ELSE hashfloat4extended({0}, {1}) END",
    "double precision": "CASE WHEN {0} = 0 THEN " + _AS_TEXT + " ELSE hashfloat8extended({0}, {1}) END",
    "boolean": "hashint4extended({0}::int, {1})",
    "text": _TEXT,
    "character varying": _TEXT,
    "character": 'hashbpcharextended({0} COLLATE "C", {1})',
    "timestamp without time zone": _MOMENT,
    "timestamp with time zone": _MOMENT,
    "uuid": "uuid_hash_extended({0}, {1})",
    "date": _ANY,
    "bytea": _ANY,
}
"""By the type, of a value and a seed; other types by their text."""
_OF_ONE_SCALE: Final = "hash_numeric_extended({0}, {1})"
_NULL: Final = -4_000_000
_NEVER_EMPTY: Final = PLAIN_TYPES - {"text", "character varying", "character"}
"""Types of which no value is written as an empty text, or with a comma in it."""
_ARGUMENTS: Final = 80
"""A function of PostgreSQL takes 100."""


def row_hash(form: Form, columns: Sequence[Column], *, utf8: bool = True) -> sql.Composed:
    """An expression over the row `t`, of type bigint. `utf8`: so the database keeps its texts."""
    return _typed(columns) if form is Form.TYPED else _portable(columns, utf8=utf8)


def common_type(one: str | None, other: str | None) -> str | None:
    """A type of which both write equal values alike; None where there is none."""
    if one is None or other is None:
        return None
    if one == other:
        return one
    bare = {bare_type(one), bare_type(other)}
    if bare <= WHOLE_TYPES:
        return "bigint"
    return "text" if bare <= {"text", "character varying"} else None


async def form_for(ours: Connection, theirs: Connection) -> Form:
    """The quickest that both servers compute alike."""
    probe = (
        "SELECT current_setting('server_version_num')::int / 10000, current_setting('server_encoding'),"
        " hashtextextended('crossfade', 1), hash_numeric_extended(1.5, 2)"
    )
    one, other = [await (await each.execute(probe)).fetchone() for each in (ours, theirs)]
    return Form.TYPED if one == other else Form.PORTABLE


def _typed(columns: Sequence[Column]) -> sql.Composed:
    parts = []
    for seed, column in enumerate(columns, 1):
        bare = bare_type(column.type)
        how = _TYPED.get(bare, _AS_TEXT)
        if bare == "numeric" and column.type != bare:
            how = _OF_ONE_SCALE
        value = sql.SQL("t.{}").format(sql.Identifier(column.name))
        if bare in WHOLE_TYPES:
            value = sql.SQL("{}::{}").format(value, sql.SQL(bare))
        hashed = sql.SQL(how).format(value, sql.SQL(str(seed)))
        parts.append(sql.SQL("coalesce({}, {})").format(hashed, sql.SQL(str(_NULL - seed))))
    return sql.SQL("({})").format(sql.SQL(" # ").join(parts))


def _portable(columns: Sequence[Column], *, utf8: bool) -> sql.Composed:
    """Values that need no more than a comma behind them, then of all others the lengths, then these."""
    plain: list[sql.Composable] = []
    lengths: list[sql.Composable] = []
    values: list[sql.Composable] = []
    comma = sql.SQL("','")
    for column in columns:
        bare = bare_type(column.type)
        value = sql.SQL("t.{}").format(sql.Identifier(column.name))
        if bare in _NEVER_EMPTY:
            plain += (value, comma)
            continue
        if bare not in PLAIN_TYPES:
            value = sql.SQL("{}::text").format(value)
        counted = value if utf8 else sql.SQL("convert_to({}, 'UTF8')").format(value)
        lengths += (sql.SQL("octet_length({})").format(counted), comma)
        values.append(value)
    parts = [*plain, *lengths, *values]
    while len(parts) > 1:
        parts = [
            sql.SQL("concat({})").format(sql.SQL(", ").join(parts[start : start + _ARGUMENTS]))
            for start in range(0, len(parts), _ARGUMENTS)
        ]
    whole = parts[0] if utf8 else sql.SQL("convert_to({}, 'UTF8')").format(parts[0])
    return sql.SQL("('x' || left(md5({}), 16))::bit(64)::bigint").format(whole)
