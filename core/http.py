"""HTTP messages as the rooms hand them to each other.

Bytes stay bytes: a transparent proxy that decodes a field has already lost something. `fields` is
the raw field section as it arrived, every line ended by CRLF; nothing is ever put into a dict,
because order, case and repetition belong to the message.

A head keeps its bytes (`raw`) and says where its fields begin; what this hop must understand has
been read from them, and what it must not pass on is remembered as spans of `raw` (`cuts`). The two
heads are made once per message on the hot path, so they are slotted and not frozen; after the parser
has returned one, nobody writes to it but the exchange that takes back `keep_alive`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

UNKNOWN_LENGTH = -1
"""`content_length` of a message that carries no Content-Length."""

SAFE_METHODS = frozenset({b"GET", b"HEAD", b"OPTIONS"})
"""Methods that may be sent again when the target cannot have seen them (RFC 9110, 9.2.1)."""


class RequestHead:
    """One request without its body.

    `path` is the target up to its query; `host` is the Host field's value in lower case, empty when
    there is none (HTTP/1.0); `size` is what the head took up of the received bytes; `target` is the
    target in origin form where it differs from what was sent (absolute form). `forwarded` holds
    X-Forwarded-* and Forwarded as the client sent them: name in lower case, value, span. A `plain`
    request is HTTP/1.1 in origin form, is no HEAD, has no body, keeps its connection and asks for
    nothing that needs a second look; it is sent on as it came, but for its cuts. A `marked` one says that
    it was asked for comparison (`proxy.mirror`).
    """

    __slots__ = (
        "_folded", "chunked", "content_length", "cuts", "expect_continue", "fields_start", "forwarded",
        "has_body", "host", "keep_alive", "marked", "method", "minor", "path", "plain", "raw", "size",
        "target", "te_trailers", "upgrade",
    )  # fmt: skip

    def __init__(self, raw: bytes, method: bytes, path: bytes, minor: int, start: int, size: int) -> None:
        self.raw = raw
        self.method = method
        self.path = path
        self.minor = minor
        self.fields_start = start
        self.size = size
        self.plain = False
        self.target: bytes | None = None
        self.host = b""
        self.content_length = UNKNOWN_LENGTH
        self.chunked = False
        self.has_body = False
        self.keep_alive = minor == 1
        self.upgrade = False
        self.expect_continue = False
        self.te_trailers = False
        self.marked = False
        self.cuts: list[tuple[int, int]] | None = None
        self.forwarded: list[tuple[bytes, bytes, int, int]] | None = None
        self._folded: bytes | None = None

    @property
    def folded(self) -> bytes:
        """`raw` in lower case, in which fields are found by their names."""
        if self._folded is None:
            self._folded = self.raw.lower()
        return self._folded

    def __repr__(self) -> str:
        return f"<RequestHead {self.method!r} {self.sent_target!r} {self.fields!r}>"

    @property
    def fields(self) -> bytes:
        """The field section, every line ended by CRLF."""
        return self.raw[self.fields_start : -2]

    @property
    def sent_target(self) -> bytes:
        """The request target that is sent on."""
        if self.target is not None:
            return self.target
        return self.raw[len(self.method) + 1 : self.fields_start - 11]


class ResponseHead:
    """One answer without its body. `raw` is the head as it is sent on, but for its `cuts`.

    `keep_alive_timeout` is the number of seconds for which the target promises to keep the
    connection (`Keep-Alive: timeout=5`). A `plain` answer is HTTP/1.1, has a length, and its
    connection goes on.
    """

    __slots__ = (
        "chunked", "content_length", "cuts", "fields_start", "keep_alive", "keep_alive_timeout", "minor",
        "plain", "raw", "size", "status", "upgrade",
    )  # fmt: skip

    def __init__(self, raw: bytes, status: int, minor: int, start: int, size: int) -> None:
        self.raw = raw
        self.status = status
        self.minor = minor
        self.fields_start = start
        self.size = size
        self.plain = False
        self.content_length = UNKNOWN_LENGTH
        self.chunked = False
        self.keep_alive = minor == 1
        self.upgrade = False
        self.keep_alive_timeout: float | None = None
        self.cuts: list[tuple[int, int]] | None = None

    def __repr__(self) -> str:
        return f"<ResponseHead {self.status} {self.fields!r}>"

    @property
    def fields(self) -> bytes:
        """The field section, every line ended by CRLF."""
        return self.raw[self.fields_start : -2]


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
