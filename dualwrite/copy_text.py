"""Rows as `COPY` reads and writes them in text. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from operator import methodcaller
from typing import Final

from dualwrite.change import Row

_SPECIAL = re.compile(rb"[\\\t\n\r]")
_ESCAPE = re.compile(rb"\\([0-7]{1,3}|x[0-9A-Fa-f]{1,2}|.)", re.DOTALL)
_MEANT = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"v": b"\v"}
_nulls = methodcaller("count", None)
_ASKED_AT_ONCE: Final = 32
"""Rows; where one of them has something to escape, all of them are looked at value by value."""
_ESCAPED = {b"\\": b"\\\\", b"\t": b"\\t", b"\n": b"\\n", b"\r": b"\\r"}


def copy_text(rows: Iterable[Row]) -> bytes:
    """One line a row. No value may be ABSENT: raises TypeError, since it must not become NULL.

    Most rows have nothing to escape. Whether that is so is asked of many at once: no more signs of each
    kind than there are columns, rows and NULLs.
    """
    made, rows = [], list(rows)
    for first in range(0, len(rows), _ASKED_AT_ONCE):
        some = rows[first : first + _ASKED_AT_ONCE]
        # Raises TypeError for ABSENT, which is no bytes.
        lines = [b"\t".join([b"\\N" if value is None else value for value in row]) for row in some]  # type: ignore[misc]
        block = b"\n".join(lines)
        if (
            block.count(b"\\") != sum(map(_nulls, some))
            or block.count(b"\t") != sum(map(len, some)) - len(some)
            or block.count(b"\n") != len(some) - 1
            or b"\r" in block
        ):
            block = b"\n".join(map(_escaped_line, some))
        made.append(block)
    made.append(b"")
    return b"\n".join(made)


def _escaped_line(row: Row) -> bytes:
    return b"\t".join([b"\\N" if value is None else _escaped(value) for value in row])


def _escaped(value: object) -> bytes:
    assert isinstance(value, bytes)
    return _SPECIAL.sub(lambda found: _ESCAPED[found.group()], value)


def read_copy_text(line: bytes) -> tuple[bytes | None, ...]:
    """One line, with or without its end."""
    fields = line.removesuffix(b"\n").split(b"\t")
    if b"\\" not in line:
        return tuple(fields)
    return tuple(None if field == b"\\N" else _ESCAPE.sub(_meant, field) for field in fields)


def _meant(found: re.Match[bytes]) -> bytes:
    sign = found[1]
    if sign[:1] in b"01234567":
        return bytes([int(sign, 8) & 0xFF])
    if sign[:1] == b"x" and len(sign) > 1:
        return bytes([int(sign[1:], 16)])
    return _MEANT.get(sign, sign)
