"""HTTP messages as the rooms hand them to each other.

Bytes stay bytes: a transparent proxy that decodes a field has already lost something. `fields` is
the raw field section as it arrived, every line ended by CRLF; nothing is ever put into a dict,
because order, case and repetition belong to the message.

The two heads are built once per message on the hot path, so they are slotted and not frozen; after
the parser has returned one, nobody writes to it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

UNKNOWN_LENGTH = -1
"""`content_length` of a message that carries no Content-Length."""

SAFE_METHODS = frozenset({b"GET", b"HEAD", b"OPTIONS"})
"""Methods that may be sent again when the target cannot have seen them (RFC 9110, 9.2.1)."""


@dataclass(slots=True)
class RequestHead:
    """One request without its body.

    `path` is the target up to its query; `host` is the Host field's value, empty when there is
    none (HTTP/1.0). `cuts` are the spans of `fields` that belong to this hop only and are not
    forwarded, in order.
    """

    method: bytes
    target: bytes
    path: bytes
    minor: int
    fields: bytes
    size: int
    host: bytes = b""
    content_length: int = UNKNOWN_LENGTH
    chunked: bool = False
    keep_alive: bool = True
    upgrade: bool = False
    expect_continue: bool = False
    te_trailers: bool = False
    cuts: list[tuple[int, int]] | None = None
    forwarded: list[tuple[bytes, bytes, int, int]] | None = None
    """X-Forwarded-* and Forwarded as the client sent them: name in lower case, value, span."""

    @property
    def has_body(self) -> bool:
        return self.chunked or self.content_length > 0


@dataclass(slots=True)
class ResponseHead:
    """One answer without its body. `start` is the status line with its CRLF, as it will be sent on."""

    status: int
    start: bytes
    minor: int
    fields: bytes
    size: int
    content_length: int = UNKNOWN_LENGTH
    chunked: bool = False
    keep_alive: bool = True
    upgrade: bool = False
    keep_alive_timeout: float | None = None
    """Seconds for which the target promises to keep the connection (`Keep-Alive: timeout=5`)."""
    cuts: list[tuple[int, int]] | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """A message that is not passed on: the status that answers it, and the reason in one word."""

    status: int
    reason: str


_FIELD = re.compile(rb"([^:\r\n]+):[ \t]*([^\r]*)\r\n")


def field_lines(fields: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Name (as sent) and value (outer blanks removed) of each field of a checked field section."""
    for name, value in _FIELD.findall(fields):
        yield name, value.rstrip(b" \t")


def field_values(fields: bytes, name: bytes) -> list[bytes]:
    """All values of one field; `name` in lower case."""
    return [value for found, value in field_lines(fields) if found.lower() == name]
