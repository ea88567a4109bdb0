"""JSON read without loss: numbers as they are written, repeated names seen, depth bounded.

Python's own reader makes `1.0` and `1.00` the same float and keeps the last of two equal names.
"""

from __future__ import annotations

import json
from decimal import Decimal, InvalidOperation
from json.encoder import encode_basestring
from typing import Any, TypeAlias

Json: TypeAlias = Any
"""None, bool, int, `Fraction`, str, list, dict."""
DEEPEST = 200


class UnreadableJsonError(ValueError):
    """This is no JSON that can be compared; the text is one word."""


class Fraction(Decimal):
    """A number with a point or an exponent, equal by value; `str` is what was written."""

    written: str

    def __new__(cls, text: str) -> Fraction:
        found = super().__new__(cls, text)
        found.written = text
        return found

    def __str__(self) -> str:
        return self.written


def read(text: str) -> Json:
    """Raises UnreadableJsonError. The second `a` of an object is named `a (2)`, and so on."""
    try:
        found = _DECODER.decode(text.removeprefix("\ufeff"))
    except RecursionError:
        raise UnreadableJsonError("too_deep") from None
    except (ValueError, InvalidOperation):
        raise UnreadableJsonError("bad_json") from None
    if text.count("{") + text.count("[") > DEEPEST and _is_too_deep(found):
        raise UnreadableJsonError("too_deep")
    return found


def write(value: Json) -> str:
    """In one line, names in the order in which they stand."""
    if isinstance(value, str):
        return encode_basestring(value)
    if isinstance(value, dict):
        inner = (f"{encode_basestring(name)}: {write(part)}" for name, part in value.items())
        return "{" + ", ".join(inner) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(write, value)) + "]"
    if value is None:
        return "null"
    if value is True or value is False:
        return "true" if value else "false"
    return str(value)


def _object(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    found = {}
    for name, value in pairs:
        again, number = name, 1
        while again in found:
            number += 1
            again = f"{name} ({number})"
        found[again] = value
    return found


def _constant(text: str) -> Json:
    raise ValueError(text)  # NaN and Infinity are no JSON


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_float=Fraction, parse_constant=_constant)


def _is_too_deep(value: Json) -> bool:
    level: list[Json] = [value]
    for _ in range(DEEPEST):
        level = [
            part
            for one in level
            if isinstance(one, dict | list)
            for part in (one.values() if isinstance(one, dict) else one)
            if isinstance(part, dict | list)
        ]
        if not level:
            return False
    return True
