"""Rows as `COPY … FROM STDIN` wants them in text. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

from dualwrite.change import Row

_SPECIAL = re.compile(rb"[\\\t\n\r]")
_ESCAPED = {b"\\": b"\\\\", b"\t": b"\\t", b"\n": b"\\n", b"\r": b"\\r"}


def copy_text(rows: Iterable[Row]) -> bytes:
    """One line a row. No value may be ABSENT: raises TypeError, since it must not become NULL."""
    lines = []
    for row in rows:
        fields = [b"\\N" if value is None else value for value in row]
        # Raises TypeError for ABSENT, which is no bytes.
        together = b"".join(fields)  # type: ignore[arg-type]
        if _SPECIAL.search(together):
            fields = [b"\\N" if value is None else _escaped(value) for value in row]
        lines.append(b"\t".join(fields))  # type: ignore[arg-type]
    lines.append(b"")
    return b"\n".join(lines)


def _escaped(value: object) -> bytes:
    assert isinstance(value, bytes)
    return _SPECIAL.sub(lambda found: _ESCAPED[found.group()], value)
