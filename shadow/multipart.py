"""A multipart body, part by part, as values that are compared and redacted like JSON. Pure.

A form (`multipart/form-data`) becomes an object: its fields are named and their order is the client's. Any
other kind becomes an array. What a part holds is read as a body of its own type would be; of a file, only its
length and a keyed hash are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from email.message import Message
from email.utils import collapse_rfc2231_value
from typing import Final

from shadow.decode import kind_of, text_of
from shadow.exhibit import Kind
from shadow.json_text import Json, UnreadableJsonError, read

MOST_PARTS: Final = 100
LONGEST_BOUNDARY: Final = 70
"""Characters (RFC 2046)."""
_BY_HASH: Final = frozenset({Kind.BINARY, Kind.MULTIPART})


class UnreadableMultipartError(ValueError):
    """This is no multipart body that can be compared; the text is one word."""


def parts_of(body: bytes, content_type: str, digest: Callable[[bytes], str]) -> Json:
    """Raises UnreadableMultipartError."""
    said = _parameters("content-type", content_type)
    boundary = said.get_param("boundary", header="content-type")
    if not isinstance(boundary, str) or not 0 < len(boundary) <= LONGEST_BOUNDARY:
        raise UnreadableMultipartError("no_boundary")
    parts = [_part(one, digest) for one in _split(body, boundary.encode("latin-1", "replace"))]
    if said.get_content_type() != "multipart/form-data":
        return [part for _, part in parts]
    fields: dict[str, list[Json]] = {}
    for name, part in parts:
        fields.setdefault(name, []).append(part)
    return {name: values[0] if len(values) == 1 else values for name, values in fields.items()}


def _split(body: bytes, boundary: bytes) -> list[bytes]:
    pieces = (b"\r\n" + body).split(b"\r\n--" + boundary, MOST_PARTS + 2)
    if len(pieces) > MOST_PARTS + 2:
        raise UnreadableMultipartError("too_many_parts")
    if len(pieces) < 3 or not pieces[-1].startswith(b"--"):
        raise UnreadableMultipartError("cut_multipart")
    found = []
    # Before the first boundary and behind the last one stands what no reader shows.
    for piece in pieces[1:-1]:
        padding, line_end, part = piece.partition(b"\r\n")
        if padding.strip(b" \t") or not line_end:
            raise UnreadableMultipartError("bad_multipart")
        found.append(part)
    return found


def _part(raw: bytes, digest: Callable[[bytes], str]) -> tuple[str, Json]:
    """The part's name, if it has one, and what it is."""
    if raw.startswith(b"\r\n"):
        head, content = b"", raw[2:]
    else:
        head, end, content = raw.partition(b"\r\n\r\n")
        if not end:
            raise UnreadableMultipartError("bad_multipart")
    fields: dict[str, str] = {}
    for line in head.decode("utf-8", "replace").split("\r\n"):
        name, _, value = line.partition(":")
        if name.strip():
            fields[name.strip().lower()] = value.strip()
    disposition = _parameters("content-disposition", fields.pop("content-disposition", ""))
    named = disposition.get_param("name", header="content-disposition")
    filename = disposition.get_param("filename", header="content-disposition")
    fields.pop("content-length", None)
    content_type = fields.get("content-type", "" if filename is not None else "text/plain")
    found: dict[str, Json] = {"headers": fields} if fields else {}
    if filename is not None:
        found["filename"] = collapse_rfc2231_value(filename)
    found["content"] = _content(content, content_type, digest)
    name = "" if named is None else collapse_rfc2231_value(named)
    # A field of a form that says nothing but its value is its value.
    return name, found["content"] if name and list(found) == ["content"] else found


def _content(content: bytes, content_type: str, digest: Callable[[bytes], str]) -> Json:
    kind = kind_of(content_type, content)
    if kind in _BY_HASH:
        return {"bytes": len(content), "hash": digest(content)}
    text = text_of(content, content_type)
    if kind is Kind.JSON:
        try:
            return read(text)
        except UnreadableJsonError:
            return text
    return text


def _parameters(name: str, value: str) -> Message:
    """A field with parameters, which may be quoted or encoded (RFC 2231)."""
    message = Message()
    message[name] = value.replace("\r", " ").replace("\n", " ")
    return message
