"""What kind of value a text or number is, so that one that must change can be checked by its shape."""

from __future__ import annotations

import re
from enum import StrEnum

from shadow.json_text import Fraction, Json

_SANE_SECONDS = (946_684_800, 4_102_444_800)
"""Years 2000 to 2100 as Unix time."""
_UUID = re.compile(r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}")
_TIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
    r"(?:[T ][0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:[.,][0-9]{1,9})?)?(?:Z|[+-][0-9]{2}:?[0-9]{2})?)?"
    r"|(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), [0-9]{2} [A-Z][a-z]{2} [0-9]{4} [0-9:]{8} GMT"
)
_NONCE = re.compile(r"(?=.*[0-9])(?=.*[A-Za-z])[A-Za-z0-9_~+/=-]{12,}|[0-9a-f]{16,}")
_REDACTED = re.compile(r"<secret:[a-z]+:[0-9a-f]{16}>")


class ValueClass(StrEnum):
    NULL = "null"
    TRUTH = "truth"
    TIMESTAMP = "timestamp"
    UUID = "uuid"
    NONCE = "nonce"
    REDACTED = "redacted"
    INTEGER = "integer"
    FRACTION = "fraction"
    TEXT = "text"
    OBJECT = "object"
    ARRAY = "array"


VOLATILE = frozenset({ValueClass.TIMESTAMP, ValueClass.UUID, ValueClass.NONCE, ValueClass.REDACTED})
"""Classes of values that are made anew for each answer."""


def class_of(value: Json) -> ValueClass:
    match value:
        case None:
            return ValueClass.NULL
        case bool():
            return ValueClass.TRUTH
        case int():
            low, high = _SANE_SECONDS
            is_time = low <= value <= high or low <= value / 1000 <= high
            return ValueClass.TIMESTAMP if is_time else ValueClass.INTEGER
        case Fraction():
            low, high = _SANE_SECONDS
            return ValueClass.TIMESTAMP if low <= value <= high else ValueClass.FRACTION
        case dict():
            return ValueClass.OBJECT
        case list():
            return ValueClass.ARRAY
    return _class_of_text(str(value))


def _class_of_text(text: str) -> ValueClass:
    # A look at length and signs first: it is asked for each value that differs.
    size = len(text)
    if size < 10:
        return ValueClass.TEXT
    if text[0] == "<":
        return ValueClass.REDACTED if _REDACTED.fullmatch(text) else ValueClass.TEXT
    if (text[4] == "-" or text[3] == ",") and _TIME.fullmatch(text):
        return ValueClass.TIMESTAMP
    if size == 36 and _UUID.fullmatch(text):
        return ValueClass.UUID
    return ValueClass.NONCE if size >= 12 and _NONCE.fullmatch(text) else ValueClass.TEXT
