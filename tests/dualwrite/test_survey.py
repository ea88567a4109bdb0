"""Which types are too narrow for which."""

from __future__ import annotations

import pytest

from crossfade.commands.doctor_data import of_the_plan
from dualwrite.preflight import Finding, Weight
from dualwrite.survey import ColumnFacts, foreign, narrower
from flags.model import Side


@pytest.mark.parametrize(("one", "other", "lossy"), [
    ("integer", "bigint", False), ("bigint", "integer", True), ("text", "character varying(80)", True),
    ("character varying(80)", "text", False), ("character varying(80)", "character varying(32)", True),
    ("character varying(32)", "character varying(80)", False), ("integer", "character varying(3)", False),
    ("timestamp without time zone", "timestamp with time zone", True),
    ("timestamp with time zone", "timestamp without time zone", True), ("numeric", "bigint", True),
    ("double precision", "real", True), ("uuid", "text", False), ("numeric", "numeric(10,2)", True),
    ("numeric(10,2)", "numeric(12,2)", False), ("numeric(10,3)", "numeric(12,2)", True),
])  # fmt: skip
def test_what_may_not_fit_is_told(one: str, other: str, lossy: bool) -> None:
    assert (narrower(one, other) is not None) == lossy


def column(type_: str, category: str) -> ColumnFacts:
    return ColumnFacts("a", type_, False, False, "x", False, category)


@pytest.mark.parametrize(("one", "other", "weight"), [
    (("uuid", "U"), ("integer", "N"), Weight.STOPS), (("boolean", "B"), ("integer", "N"), Weight.STOPS),
    (("text", "S"), ("bigint", "N"), Weight.WARNS), (("smallint", "N"), ("boolean", "B"), Weight.WARNS),
    (("jsonb", "U"), ("integer[]", "A"), Weight.STOPS), (("oid", "N"), ("bigint", "N"), Weight.WARNS),
    (("time without time zone", "D"), ("date", "D"), Weight.STOPS), (("json", "U"), ("jsonb", "U"), None),
    (("character varying(3)", "S"), ("text", "S"), None), (("integer", "N"), ("numeric(9,0)", "N"), None),
    (("mood", "E"), ("temper", "E"), Weight.WARNS),
    (("date", "D"), ("timestamp with time zone", "D"), None), (("uuid", "U"), ("text", "S"), None),
])  # fmt: skip
def test_a_type_that_no_text_of_the_other_reads_as_is_told(
    one: tuple[str, str], other: tuple[str, str], weight: Weight | None
) -> None:
    found = foreign(column(*one), column(*other))
    assert (None if found is None else found[0]) == weight


def test_the_doctor_has_one_line_for_all_columns_that_may_be_too_narrow() -> None:
    found = [Finding(Weight.WARNS, "lossy", f"column {number}", "widen it") for number in range(19)]
    told = list(
        of_the_plan([*found, Finding(Weight.STOPS, "no_key", "of t", "create one")], "s", Side.LEGACY)
    )
    assert [one.what.partition(" may")[0] for one in told] == ["lossy: 19 columns", "no_key: of t"]
    assert told[0].todo == "crossfade data plan --towards legacy"
