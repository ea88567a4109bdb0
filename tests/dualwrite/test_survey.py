"""Which types are too narrow for which."""

from __future__ import annotations

import pytest

from dualwrite.survey import narrower


@pytest.mark.parametrize(("one", "other", "lossy"), [
    ("integer", "bigint", False), ("bigint", "integer", True), ("text", "character varying(80)", True),
    ("character varying(80)", "text", False), ("character varying(80)", "character varying(32)", True),
    ("character varying(32)", "character varying(80)", False), ("integer", "character varying(3)", False),
    ("timestamp without time zone", "timestamp with time zone", True),
    ("timestamp with time zone", "timestamp without time zone", True), ("numeric", "bigint", True),
    ("double precision", "real", True), ("uuid", "text", False),
])  # fmt: skip
def test_what_may_not_fit_is_told(one: str, other: str, lossy: bool) -> None:
    assert (narrower(one, other) is not None) == lossy
