"""The kinds of values that are made anew for each answer, told from those that are not."""

from __future__ import annotations

from typing import Any

import pytest

from shadow.classes import VOLATILE, ValueClass, class_of
from shadow.json_text import read


@pytest.mark.parametrize(("value", "expected"), [
    ("2026-11-24T00:00:00Z", ValueClass.TIMESTAMP), ("2026-11-24 00:00:00.123+01:00", ValueClass.TIMESTAMP),
    ("2026-11-24", ValueClass.TIMESTAMP), ("Tue, 24 Nov 2026 00:00:00 GMT", ValueClass.TIMESTAMP),
    (1795500000, ValueClass.TIMESTAMP), (1795500000123, ValueClass.TIMESTAMP),
    ("7b0e4b3e-0000-4000-8000-000000000001", ValueClass.UUID),
    ("9f86d081884c7d65", ValueClass.NONCE), ("aGVsbG8gd29ybGQ0", ValueClass.NONCE),
    ("<secret:value:0123456789abcdef>", ValueClass.REDACTED),
    ("hello world", ValueClass.TEXT), ("", ValueClass.TEXT), ("OPEN", ValueClass.TEXT),
    ("internationalization", ValueClass.TEXT),
    ("4 of 12", ValueClass.TEXT), ("<p>hallo</p>", ValueClass.TEXT),
    (7, ValueClass.INTEGER), (True, ValueClass.TRUTH), (None, ValueClass.NULL), ({}, ValueClass.OBJECT),
    ([], ValueClass.ARRAY),
])  # fmt: skip
def test_the_class_of_a_value(value: Any, expected: ValueClass) -> None:
    assert class_of(value) is expected


def test_fractions_and_those_that_are_times() -> None:
    assert class_of(read("1.5")) is ValueClass.FRACTION
    assert class_of(read("1795500000.25")) is ValueClass.TIMESTAMP


def test_text_and_plain_numbers_are_never_taken_for_volatile() -> None:
    assert not VOLATILE & {ValueClass.TEXT, ValueClass.INTEGER, ValueClass.FRACTION, ValueClass.TRUTH}
