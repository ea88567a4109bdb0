"""Where a message body ends: by length, by chunks, or when the connection closes.

Pure readers with one shape: `feed(data, start)` returns the payload found in `data` from `start` on
and the index behind the last byte that belongs to the message; `done` says whether the message has
ended. Chunk framing is taken off here and put on again by whoever sends, so that chunk extensions
and odd but legal spellings of a size never reach a second parser.
"""

from __future__ import annotations

import re
from typing import Protocol

from proxy.head import TOKEN

LAST_CHUNK = b"0\r\n\r\n"

# Blanks behind a size are wrong, but old servers pad with them; the size is written anew anyway.
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[\t\x20-\x7e\x80-\xff]*+)?\r\n")
_SIZE_PREFIX = re.compile(rb"(?:[0-9A-Fa-f]{1,15}[ \t]*(?:;[\t\x20-\x7e\x80-\xff]*+)?\r?)?")
_SIZE_LINE_LIMIT = 4096
_TRAILER_SECTION = re.compile(rb"(?:" + TOKEN + rb"++:[\t\x20-\x7e\x80-\xff]*+\r\n)++")
_FORBIDDEN_TRAILER = re.compile(
    rb"(?:\A|\n)(?:transfer-encoding|content-length|content-encoding|content-type|content-range|host|trailer"
    rb"|connection|te|upgrade|expect|cookie|set-cookie|authorization|proxy-[a-z-]+|x-forwarded-[a-z]+"
    rb"|forwarded|cache-control|max-forwards|range|location)[ \t]*:",
    re.IGNORECASE,
)


class BadFramingError(ValueError):
    """The peer's body does not follow the framing that its head declared. `reason` is one word."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Body(Protocol):
    """What a connection needs to know of a body that it is receiving."""

    done: bool

    def feed(self, data: bytes, start: int = 0) -> tuple[bytes, int]: ...


class LengthBody:
    """A body of a declared length."""

    __slots__ = ("done", "left")

    def __init__(self, length: int) -> None:
        self.left = length
        self.done = length == 0

    def feed(self, data: bytes, start: int = 0) -> tuple[bytes, int]:
        available = len(data) - start
        if available < self.left:
            self.left -= available
            return (data[start:] if start else data), len(data)
        end = start + self.left
        self.left = 0
        self.done = True
        return data[start:end], end


class UntilCloseBody:
    """A body that ends with the connection; nobody can tell whether it is complete."""

    __slots__ = ("done",)

    def __init__(self) -> None:
        self.done = False

    def feed(self, data: bytes, start: int = 0) -> tuple[bytes, int]:
        return (data[start:] if start else data), len(data)


class ChunkedBody:
    """A chunked body (RFC 9112, 7.1). Raises `BadFramingError` at the first byte that cannot be right."""

    __slots__ = ("_held", "_left", "_max_trailers", "_step", "done", "pieces", "trailers")

    def __init__(self, max_trailers: int) -> None:
        self._max_trailers = max_trailers
        self._held = b""
        self._left = 0
        self._step = "size"
        self.done = False
        self.pieces = 0
        """Pieces of payload in what was fed last: what it cost to read."""
        self.trailers = b""
        """The trailer section once `done`: field lines, each with its CRLF."""

    def feed(self, data: bytes, start: int = 0) -> tuple[bytes, int]:
        """Raises `BadFramingError`. The payload of all chunks in `data` comes back as one piece."""
        held = len(self._held)
        if held:
            data = self._held + data[start:]
            offset, start, self._held = start - held, 0, b""
        else:
            offset = 0
        payload: list[bytes] = []
        at = start
        end = len(data)
        while at < end and not self.done:
            if self._step == "data":
                take = min(self._left, end - at)
                payload.append(data[at : at + take])
                at += take
                self._left -= take
                if self._left == 0:
                    self._step = "data end"
            elif self._step == "data end":
                if data[at : at + 2] == b"\r\n":
                    at += 2
                    self._step = "size"
                elif data[at:] == b"\r":
                    break
                else:
                    raise BadFramingError("bad_chunk")
            elif self._step == "size":
                at = self._read_chunks(data, at, payload)
                if self._step == "size":
                    break
            else:
                after = self._read_trailers(data, at)
                if after is None:
                    break
                at = after
        if at < end and not self.done:
            self._held = data[at:]
            at = end
        self.pieces = len(payload)
        return b"".join(payload), at + offset

    def _read_chunks(self, data: bytes, at: int, payload: list[bytes]) -> int:
        """Take the chunks that lie whole in `data`; a tight loop, because a peer may send very many.

        Returns where it stopped: `_step` says at what, and remains "size" for an unfinished size.
        """
        while True:
            line = _SIZE.match(data, at)
            if line is None:
                self._check_unfinished_size(data, at)
                return at
            begin = line.end()
            if begin - at > _SIZE_LINE_LIMIT:
                raise BadFramingError("bad_chunk")
            size = int(line[1], 16)
            if size == 0:
                self._step = "trailers"
                return begin
            end = begin + size
            if data[end : end + 2] != b"\r\n":
                self._left = size
                self._step = "data"
                return begin
            payload.append(data[begin:end])
            at = end + 2

    def _check_unfinished_size(self, data: bytes, at: int) -> None:
        if len(data) - at > _SIZE_LINE_LIMIT or not _SIZE_PREFIX.fullmatch(data, at):
            raise BadFramingError("bad_chunk")

    def _read_trailers(self, data: bytes, at: int) -> int | None:
        """Index behind the trailer section, or None while it is incomplete."""
        if data[at : at + 2] == b"\r\n":
            self.done = True
            return at + 2
        end = data.find(b"\r\n\r\n", at)
        if end < 0:
            if len(data) - at > self._max_trailers:
                raise BadFramingError("trailers_too_large")
            if data.find(b"\n\n", at) >= 0 or data.find(b"\n\r\n", at) >= 0 or data[at : at + 1] == b"\n":
                raise BadFramingError("bad_trailer")
            return None
        section = data[at : end + 2]
        if len(section) > self._max_trailers:
            raise BadFramingError("trailers_too_large")
        if not _TRAILER_SECTION.fullmatch(section) or _FORBIDDEN_TRAILER.search(section):
            raise BadFramingError("bad_trailer")
        self.trailers = section
        self.done = True
        return end + 4


def chunk(payload: bytes) -> bytes:
    """`payload`, which must not be empty, as one chunk."""
    return b"%x\r\n%b\r\n" % (len(payload), payload)


def last_chunk(trailers: bytes) -> bytes:
    """The end of a chunked body with its trailer section."""
    return b"0\r\n" + trailers + b"\r\n" if trailers else LAST_CHUNK
