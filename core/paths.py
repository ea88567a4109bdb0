"""When two paths are one: what routes match by, and adapters too, so that both mean the same requests."""

from __future__ import annotations

import re

_ESCAPED = re.compile(rb"%([0-9A-Fa-f]{2})")
_BEYOND_ASCII = re.compile(rb"[\x80-\xff]")
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


def equivalent_path(path: bytes) -> bytes:
    """`path` with needless escapes undone and dot segments removed (RFC 3986, 6.2.2 and 5.2.4).

    Bytes beyond ASCII are escaped: clients send `/caf%C3%A9`, people write `/café`.
    """
    path = _ESCAPED.sub(_unescape, path)
    if not path.isascii():
        path = _BEYOND_ASCII.sub(lambda byte: b"%%%02X" % byte[0][0], path)
    if b"/." not in path:
        return path
    kept: list[bytes] = []
    segments = path[1:].split(b"/")
    for segment in segments:
        if segment == b"..":
            if kept:
                kept.pop()
        elif segment != b".":
            kept.append(segment)
    if segments[-1] in (b".", b".."):
        kept.append(b"")
    return b"/" + b"/".join(kept)


def _unescape(escape: re.Match[bytes]) -> bytes:
    byte = int(escape[1], 16)
    return bytes((byte,)) if byte in _UNRESERVED else escape[0].upper()
