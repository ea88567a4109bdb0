"""Values that a column may hold: those that go wrong in mappings, and some by chance.

More than the column takes: whoever asks for them has the database refuse those that are not for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from random import Random
from types import MappingProxyType
from typing import Final

BY_CHANCE: Final = 8
"""Values of each column, beside those that are known to go wrong."""
LONG: Final = 5_000
"""Characters of the longest value of a text without a limit; more than a row keeps in line."""

_NASTY: Final = (
    "", " ", "a", "Z", "0", "007", "NULL", "null", "\\N", "a b", " leading", "trailing ",
    "line\nbreak", "tab\tstop", "cr\r\nlf", "back\\slash", "quo'te", 'dou"ble', "comma,comma", "{}", "%s",
    "äöüß", "ÄÖÜ", "e\u0301", "\u00e9", "İı",
    "日本語", "👩‍👩‍👧", "\u200b", "\u202eabc", "\ufeffbom", "\U0010ffff", "a@b.example", "<b>&amp;</b>",
)  # fmt: skip
_WHOLE: Final = MappingProxyType({"smallint": 15, "integer": 31, "bigint": 63})
_MOMENTS: Final = (
    "1970-01-01 00:00:00", "1900-01-01 00:00:00", "0001-01-01 00:00:00", "9999-12-31 23:59:59.999999",
    "2000-02-29 12:00:00", "1999-12-31 23:59:59.000001", "2026-03-29 02:30:00", "2026-03-29 03:00:00",
    "2026-10-25 02:30:00", "2026-10-25 01:59:59.5", "2026-03-08 02:30:00", "2026-11-01 01:30:00",
    "4713-01-01 00:00:00 BC", "294276-12-31 23:59:59", "infinity", "-infinity",
)  # fmt: skip
"""Among them hours that the summer time of Europe and of America leaves out, and those that it repeats."""
_DATES: Final = tuple(
    dict.fromkeys(one if "infinity" in one else re.sub(r" \d\d:[\d:.]+", "", one) for one in _MOMENTS)
)
_PLAIN: Final[Mapping[str, Sequence[str]]] = MappingProxyType(
    {
        "boolean": ("t", "f"),
        "real": ("0", "-0", "1.5", "0.1", "3.4028235e+38", "1e-45", "NaN", "Infinity", "-Infinity"),
        "double precision": (
            "0", "-0", "0.1", "1e300", "1.7976931348623157e+308", "5e-324", "9007199254740993", "NaN",
            "Infinity", "-Infinity",
        ),
        "date": _DATES,
        "timestamp without time zone": _MOMENTS,
        "timestamp with time zone": (*_MOMENTS, "2026-06-01 12:00:00+05:45", "2026-01-01 00:00:00-12"),
        "time without time zone": ("00:00:00", "23:59:59.999999", "24:00:00", "12:34:56.5"),
        "time with time zone": ("00:00:00+00", "23:59:59.999999-12", "12:00:00+05:45"),
        "interval": (
            "0", "1 mon", "-1 day", "838:59:59", "1 year 2 mons 3 days 04:05:06.000007", "-00:00:01",
        ),
        "uuid": (
            "00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff",
            "9a1f3c2e-0b1d-4e5f-8a7b-6c5d4e3f2a1b",
        ),
        "bytea": ("\\x", "\\x00", "\\xff00ff", "\\x" + "5c78" * 40),
        "json": (
            "null", "{}", "[]", '"text"', '{"b": 1, "a": 2}', '{"a": 1, "a": 2}',
            '{"n": 1.10, "big": 123456789012345678901}',
            '{"u": "\\u00e9"}', '[1,  2]', "1e400",
        ),
        "inet": ("127.0.0.1", "10.0.0.0/8", "::1", "2001:db8::/32"),
        "cidr": ("10.0.0.0/8", "2001:db8::/32"),
        "macaddr": ("08:00:2b:01:02:03",),
    }
)  # fmt: skip
_NUMERIC: Final = re.compile(r"numeric(?:\((\d+),(-?\d+)\))?")
_TEXT: Final = re.compile(r"(?:text|citext|name|character(?: varying)?(?:\((\d+)\))?)")
_IN_BRACKETS: Final = re.compile(r"\(\d+(?:,-?\d+)?\)")
_QUOTED: Final = re.compile(r"'((?:[^']|'')*)'")
_NUMBER: Final = re.compile(r"(?<![\w.'])-?\d+(?:\.\d+)?(?![\w.'])")


def values_for(type_: str, labels: Sequence[str], checks: Sequence[str], chance: Random) -> list[str]:
    """Candidates for a column of this type (as `format_type` writes it), with these labels if it is an enum.

    `checks` are its constraints' definitions: what they name is tried, too.
    """
    found: list[str] = [*labels, *_named(checks)]
    if not labels:
        found += _of_type(type_, chance)
    return list(dict.fromkeys(found))


def _of_type(type_: str, chance: Random) -> Iterator[str]:
    if type_.endswith("[]"):
        yield "{}"
        yield "{NULL}"
        for one in list(_of_type(type_.removesuffix("[]"), chance))[:12]:
            yield '{"' + one.replace("\\", "\\\\").replace('"', '\\"') + '"}'
        return
    bare = _IN_BRACKETS.sub("", type_)
    if bare in _WHOLE:
        yield from _whole(_WHOLE[bare], chance)
    elif (numeric := _NUMERIC.fullmatch(type_)) is not None:
        yield from _numeric(numeric, chance)
    elif (text := _TEXT.fullmatch(type_)) is not None:
        limit = int(text[1]) if text[1] else 1 if bare == "character" else None
        yield from _text(limit, chance)
    else:
        yield from _PLAIN.get("json" if bare == "jsonb" else bare, ())


def _whole(bits: int, chance: Random) -> Iterator[str]:
    most = 2**bits - 1
    yield from map(str, (0, 1, -1, 127, 128, 255, 256, most, -most - 1))
    for size in range(1, BY_CHANCE + 1):
        yield str(chance.randint(-most - 1, most) >> (bits * (BY_CHANCE - size) // BY_CHANCE))


def _numeric(said: re.Match[str], chance: Random) -> Iterator[str]:
    digits, scale = (int(said[1]), int(said[2])) if said[1] else (30, 6)
    before, after = max(digits - max(scale, 0), 0), max(scale, 0)
    yield from ("0", "1", "-1", "NaN", "Infinity")
    for sign in ("", "-"):
        yield f"{sign}{'9' * before or '0'}.{'9' * after or '0'}"
        yield f"{sign}0.{'0' * max(after - 1, 0)}1"
    yield "1.10"
    for _ in range(BY_CHANCE):
        number = "".join(chance.choices("0123456789", k=chance.randint(1, max(before, 1))))
        yield f"{number}.{''.join(chance.choices('0123456789', k=after)) or '0'}"


def _text(limit: int | None, chance: Random) -> Iterator[str]:
    for one in _NASTY:
        yield one if limit is None else one[:limit]
    longest = LONG if limit is None else limit
    yield "x" * longest
    yield "𐍈" * longest
    for _ in range(BY_CHANCE):
        length = chance.randint(1, min(longest, 40))
        yield "".join(
            chr(chance.choice((chance.randint(32, 126), chance.randint(160, 0x24F)))) for _ in range(length)
        )


def _named(checks: Sequence[str]) -> Iterator[str]:
    for check in checks:
        for quoted in _QUOTED.findall(check):
            yield quoted.replace("''", "'")
        for number in _NUMBER.findall(_QUOTED.sub("", check)):
            yield number
            if "." not in number:
                yield str(int(number) - 1)
                yield str(int(number) + 1)
