"""A request that was kept, to be asked once more: what can be, since its secrets were taken out. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from shadow.exhibit import Asked, Fields, Kind

TAKEN_OUT: Final = "<secret:"
"""How what was taken out begins (`shadow.redact`)."""
_OF_ITS_WAY: Final = frozenset(
    {"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "proxy-connection",
     "content-length", "expect", "baggage", "via", "forwarded", "x-forwarded-for", "x-forwarded-proto",
     "x-crossfade-mirror"}
)  # fmt: skip
"""Fields that belong to the way on which it came."""


class CannotAskError(ValueError):
    """It cannot be asked again; the message says why."""


def request_again(asked: Asked, more: Fields) -> tuple[str, tuple[str, ...]]:
    """The head of the request, and the names of fields that are left out because they were secret.

    `more` are fields to send instead of any of their name. Raises CannotAskError.
    """
    if asked.body.kind is not Kind.NONE:
        raise CannotAskError("it had a body, and might change something")
    if TAKEN_OUT in asked.target:
        raise CannotAskError("its target had a secret in it, which is not kept")
    for name, value in more:
        if not _is_field(name, value):
            raise CannotAskError(f"{name!r} is no field that can be sent")
        if name.lower() in _OF_ITS_WAY:
            raise CannotAskError(f"{name} belongs to the way, and is written by whoever sends the request")
    instead = {name.lower() for name, _ in more}
    kept: list[tuple[str, str]] = []
    left_out: list[str] = []
    for name, value in asked.headers:
        if name in instead or name in _OF_ITS_WAY:
            continue
        if TAKEN_OUT in value:
            left_out.append(name)
        else:
            kept.append((name, value))
    lines = [f"{asked.method} {asked.target} HTTP/1.1", *_lines([*kept, *more])]
    return "\r\n".join(lines) + "\r\n\r\n", tuple(dict.fromkeys(left_out))


def _is_field(name: str, value: str) -> bool:
    plain = name.isascii() and name.isprintable() and not any(c in name for c in ": ")
    return bool(name) and plain and value.isprintable() and all(ord(c) < 256 for c in value)


def _lines(fields: Sequence[tuple[str, str]]) -> list[str]:
    return [f"{name}: {value}" for name, value in fields]
