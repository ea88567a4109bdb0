"""Two rows have the same number if, and only if, they are written alike; in both forms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from psycopg import sql

from dualwrite.pg_connect import READABLE
from dualwrite.row_hash import Column, Form, common_type, row_hash

TYPES = {
    "small": "smallint", "whole": "integer", "big": "bigint", "other": "bigint", "free": "numeric",
    "fixed": "numeric(12,2)", "single": "real", "double": "double precision", "yes": "boolean",
    "one": "text", "two": "text", "short": "character varying(9)", "padded": "character(4)",
    "day": "date", "local": "timestamp without time zone", "moment": "timestamp with time zone",
    "id": "uuid", "raw": "bytea", "doc": "jsonb", "many": "text[]", "span": "interval",
}  # fmt: skip
COLUMNS = [Column(name, kind) for name, kind in TYPES.items()]
_WORDS = st.sampled_from(
    ["", "~", ",", "1", "1,", ",1", ",,", "-1", "N", "NULL", "a", "A", "ä", " ", "a b", "\n", '"']
)
_TEXT = _WORDS | st.text("a,~1", max_size=4)
_BIG = st.sampled_from([0, 1, -1, 1 << 32, (1 << 32) + 1, -(1 << 32), (7 << 32) + 9, (9 << 32) + 7, 1 << 62])
_FLOAT = st.sampled_from(["0", "-0", "1", "-1", "0.1", "NaN", "Infinity", "-Infinity", "1e-5", "16777216"])
_MOMENT = st.sampled_from(
    ["infinity", "-infinity", "epoch", "2026-01-01", "2026-01-01 01:11:34.967296",
     "2026-01-01 00:00:00.000001", "0001-01-01", "4714-12-01 BC",
     "9999-12-31 23:59:59.999999", "9999-12-31 23:59:59.999998"]
)  # fmt: skip
_OF: dict[str, st.SearchStrategy[Any]] = {
    "small": st.sampled_from([0, 1, -1]), "whole": st.sampled_from([0, 1, -1, 2**31 - 1, -(2**31)]),
    "big": _BIG, "other": _BIG | st.integers(-(2**63), 2**63 - 1),
    "free": st.sampled_from(["0", "0.0", "0.00", "1", "1.0", "1.00", "NaN", "Infinity", "-Infinity", "1e30"]),
    "fixed": st.sampled_from(["0", "1.5", "-1.5", "NaN"]), "single": _FLOAT, "double": _FLOAT,
    "yes": st.booleans(), "one": _TEXT, "two": _TEXT, "short": _TEXT.map(lambda text: text[:9]),
    "padded": st.sampled_from(["", "a", "ab", "a b"]),
    "day": st.sampled_from(["infinity", "-infinity", "2026-01-01", "5874897-12-31", "4713-01-01 BC"]),
    "local": _MOMENT, "moment": _MOMENT,
    "id": st.sampled_from(["00000000-0000-0000-0000-000000000000", "00000000-0000-0000-0000-000000000001"]),
    "raw": st.sampled_from([b"", b"\0", b",", b"\0\0"]),
    "doc": st.sampled_from(["{}", "[]", '""', '{"a": 1}', '{"a": 1.0}', "null"]),
    "many": st.sampled_from([[], [""], [None], ["a", "b"], ["a,b"], ["NULL"]]),
    "span": st.sampled_from(["0", "1 day", "24 hours", "1 mon", "30 days"]),
}  # fmt: skip
_ROW = st.tuples(*(st.none() | _OF[name] for name in TYPES))
_NOTHING: tuple[Any, ...] = (None,) * len(TYPES)


def row(**values: Any) -> tuple[Any, ...]:
    return tuple(values.get(name) for name in TYPES)


@pytest.fixture
def asked(database_url: str) -> Any:
    with psycopg.connect(database_url, autocommit=True, options=READABLE) as connection:
        kinds = ", ".join(f"{name} {kind}" for name, kind in TYPES.items())
        connection.execute(f"CREATE TEMP TABLE rows (number serial, {kinds})")
        yield connection


def numbers(asked: psycopg.Connection[Any], rows: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Of each row its text, and its number in both forms."""
    asked.execute("TRUNCATE rows")
    values = ", ".join("%s" for _ in TYPES)
    with asked.cursor() as cursor:
        cursor.executemany(f"INSERT INTO rows ({', '.join(TYPES)}) VALUES ({values})", rows)
    query = sql.SQL("SELECT ROW({})::text, {}, {} FROM rows t ORDER BY number").format(
        sql.SQL(", ").join(sql.SQL("t.{}").format(sql.Identifier(name)) for name in TYPES),
        row_hash(Form.TYPED, COLUMNS),
        row_hash(Form.PORTABLE, COLUMNS),
    )
    return asked.execute(query).fetchall()


def test_rows_have_the_same_number_if_and_only_if_they_are_written_alike(
    asked: psycopg.Connection[Any],
) -> None:
    @settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(_ROW, min_size=2, max_size=12))
    @example([row(one="~"), _NOTHING, row(one="")])
    @example([row(one="a", two=None), row(one=None, two="a")])
    @example([row(one="1,", two="1"), row(one="1", two=",1"), row(one="1,1", two="")])
    @example([row(big=1), row(big=1 << 32), row(other=1)])
    @example([row(big=(7 << 32) + 9, other=(9 << 32) + 7), row(big=(9 << 32) + 7, other=(7 << 32) + 9)])
    @example([row(double="-0"), row(double="0"), row(single="-0"), row(single="0")])
    @example([row(free="1.0"), row(free="1.00"), row(free="NaN"), row(free="Infinity"), _NOTHING])
    @example([row(moment="2026-01-01"), row(moment="2026-01-01 01:11:34.967296"), row(local="2026-01-01")])
    @example([row(day="infinity"), row(moment="infinity"), row(local="infinity"), row(day="-infinity")])
    @example([row(yes=False), row(yes=True), row(small=0), row(whole=0), row(small=1)])
    @example([row(raw=b""), row(many=[]), row(many=[""]), row(many=[None]), row(doc='""')])
    def hold(rows: list[tuple[Any, ...]]) -> None:
        found = numbers(asked, rows)
        texts = len({text for text, _, _ in found})
        for at, form in ((1, "typed"), (2, "portable")):
            assert len({one[at] for one in found}) == texts, (form, [one[0] for one in found])
            assert len({(one[0], one[at]) for one in found}) == texts, form

    hold()


def test_columns_of_two_types_have_one_number_where_they_say_the_same(asked: psycopg.Connection[Any]) -> None:
    assert common_type("integer", "bigint") == "bigint"
    assert common_type("character varying(20)", "text") == "text"
    assert common_type("text", "integer") is None
    asked.execute("CREATE TEMP TABLE narrow (n smallint, s varchar(5))")
    asked.execute("CREATE TEMP TABLE wide (n bigint, s text)")
    for table in ("narrow", "wide"):
        asked.execute(f"INSERT INTO {table} VALUES (-3, 'abc'), (NULL, ''), (7, NULL)")
    for form in Form:
        hashed = row_hash(form, [Column("n", "bigint"), Column("s", "text")])
        one, other = (
            asked.execute(sql.SQL("SELECT {} FROM {} t").format(hashed, sql.Identifier(table))).fetchall()
            for table in ("narrow", "wide")
        )
        assert one == other
        assert len(set(one)) == 3


def test_a_row_of_many_columns_has_a_number(asked: psycopg.Connection[Any]) -> None:
    """No function of PostgreSQL takes more than 100 arguments."""
    names = [f"c{at}" for at in range(300)]
    asked.execute(f"CREATE TEMP TABLE broad ({', '.join(f'{name} text' for name in names)})")
    asked.execute("INSERT INTO broad (c0, c299) VALUES ('a', NULL), (NULL, 'a')")
    for form in Form:
        hashed = row_hash(form, [Column(name, "text") for name in names])
        assert len(set(asked.execute(sql.SQL("SELECT {} FROM broad t").format(hashed)).fetchall())) == 2


def test_equal_faults_do_not_cancel_each_other_out(asked: psycopg.Connection[Any]) -> None:
    """They would in an XOR: two rows that are there twice too often look like none."""
    (_, typed, portable), *_ = numbers(asked, [row(whole=1, one="a")])
    for number in (typed, portable):
        assert number ^ number == 0
        (total,) = asked.execute(
            "SELECT sum(n)::text FROM unnest(ARRAY[%s, %s]::bigint[]) n", (number, number)
        ).fetchall()
        assert int(total[0]) == 2 * number != 0
