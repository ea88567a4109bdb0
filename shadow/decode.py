"""What a body is: its content coding taken off, its kind and its text found. Never raises.

Everything is bounded: a few bytes that unfold to gigabytes cost neither the memory nor the time.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Mapping
from types import MappingProxyType

import brotli
import zstandard

from shadow.exhibit import Kind

_CODINGS_AT_MOST = 3

_JSON = ("application/json", "text/json")
_XML = ("application/xml", "text/xml")


class _TroubleError(Exception):
    """Why a body cannot be decoded, in one word."""


def unpacked(body: bytes, coding: str, longest: int) -> tuple[bytes, str]:
    """`body` without its content codings, and what is wrong with it, in one word ("": nothing)."""
    codings = [one.strip().lower() for one in coding.split(",") if one.strip()]
    if len(codings) > _CODINGS_AT_MOST:
        return body, "unknown_coding"
    try:
        for one in reversed(codings):
            if one == "identity" or not body:
                continue
            reader = _READERS.get(one)
            if reader is None:
                return body, "unknown_coding"
            body = reader(body, longest)
    except _TroubleError as trouble:
        return b"", str(trouble)
    return body, ""


def kind_of(content_type: str, body: bytes) -> Kind:
    """What a decoded body is, by what it says of itself and, where that says little, by a look."""
    media = content_type.partition(";")[0].strip().lower()
    if not body:
        return Kind.NONE
    if media in _JSON or media.endswith("+json"):
        return Kind.JSON
    if media == "application/x-www-form-urlencoded":
        return Kind.FORM
    if media.startswith("multipart/"):
        return Kind.MULTIPART
    if media in ("text/html", "application/xhtml+xml"):
        return Kind.HTML
    if media in _XML or media.endswith("+xml"):
        return Kind.XML
    if media in ("text/event-stream", "application/x-ndjson", "application/jsonl"):
        return Kind.EVENTS
    if media.startswith("text/") or media == "application/javascript":
        return Kind.TEXT
    if media in ("", "application/octet-stream"):
        start = body[:1024].lstrip()
        return Kind.JSON if start[:1] in (b"{", b"[") else Kind.BINARY
    return Kind.BINARY


def text_of(body: bytes, content_type: str) -> str:
    """The text of a body by its charset, else UTF-8, else byte for byte (Latin-1)."""
    charset = ""
    for part in content_type.split(";")[1:]:
        name, _, value = part.partition("=")
        if name.strip().lower() == "charset":
            charset = value.strip().strip('"')
    for encoding in (charset, "utf-8"):
        try:
            if encoding:
                return body.decode(encoding)
        except (LookupError, ValueError):
            continue
    return body.decode("latin-1")


def _bounded(found: bytes, longest: int) -> bytes:
    if len(found) > longest:
        raise _TroubleError("too_long")
    return found


def _inflate(name: str, *window_bits: int) -> Callable[[bytes, int], bytes]:
    def read(body: bytes, longest: int) -> bytes:
        for bits in window_bits:
            stream = zlib.decompressobj(bits)
            try:
                found = _bounded(stream.decompress(body, longest + 1), longest)
            except zlib.error:
                continue
            if not stream.eof:
                raise _TroubleError(f"cut_{name}")
            return found
        raise _TroubleError(f"bad_{name}")

    return read


def _brotli(body: bytes, longest: int) -> bytes:
    stream = brotli.Decompressor()
    try:
        found = stream.process(body, output_buffer_limit=longest + 1)
        while len(found) <= longest and not stream.is_finished():
            more = stream.process(b"", output_buffer_limit=longest + 1 - len(found))
            if not more:
                raise _TroubleError("cut_br")
            found += more
    except brotli.error:
        raise _TroubleError("bad_br") from None
    return _bounded(found, longest)


def _zstd(body: bytes, longest: int) -> bytes:
    try:
        with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(body)) as stream:
            return _bounded(stream.read(longest + 1), longest)
    except zstandard.ZstdError:
        raise _TroubleError("bad_zstd") from None


_GZIP = _inflate("gzip", 16 + zlib.MAX_WBITS)
_READERS: Mapping[str, Callable[[bytes, int], bytes]] = MappingProxyType(
    {
        "gzip": _GZIP,
        "x-gzip": _GZIP,
        "deflate": _inflate("deflate", zlib.MAX_WBITS, -zlib.MAX_WBITS),
        "br": _brotli,
        "zstd": _zstd,
    }
)
