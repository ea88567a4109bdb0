"""Rows as `COPY` reads and writes them in text. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

from dualwrite.change import Row

_SPECIAL = re.compile(rb"[\\\t\n\r]")
_ESCAPE = re.compile(rb"\\([0-7]{1,3}|x[0-9A-Fa-f]{1,2}|.)", re.DOTALL)
_MEANT = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"v": b"\v"}
_ESCAPED = {b"\\": b"\\\\", b"\t": b"\\t", b"\n": b"\\n", b"\r": b"\\r"}


def copy_text(rows: Iterable[Row]) -> bytes:
    """One line a row. No value may be ABSENT: raises TypeError, since it must not become NULL."""
    lines = []
    for row in rows:
        # Raises TypeError for ABSENT, which is no bytes.
        line = b"\t".join([b"\\N" if value is None else value for value in row])  # type: ignore[misc]
        if (
            line.count(b"\\") != row.count(None)
            or line.count(b"\t") != len(row) - 1
            or b"\n" in line
            or b"\r" in line
        ):
            line = b"\t".join([b"\\N" if value is None else _escaped(value) for value in row])
        lines.append(line)
    lines.append(b"")
    return b"\n".join(lines)


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
