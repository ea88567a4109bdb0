"""What a flag can ask of a request, by spelling: `header:x-tenant`, `cookie:sid`, `claim:sub`, `client`, …

    header:NAME   the first field of that name     method   as it was sent
    cookie:NAME   the first cookie of that name    host     lower case, without port
    query:NAME    the first parameter, decoded     path     without query
    claim:NAME    of the token that came along     client   the client's address
    attr:NAME     of the users' own code

An attribute that a request does not have is None, which is not the empty text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Protocol, TypeAlias
from urllib.parse import unquote_plus

from core.http import RequestHead


class Facts(Protocol):
    """What a decision may want to know beyond the request's head. Nothing of it is asked without need."""

    def client_address(self) -> str:
        """The client's IP address: the peer's, or what a trusted peer says of it."""
        ...

    def now(self) -> float:
        """Seconds of Unix time."""
        ...

    def claims(self) -> Mapping[str, object]:
        """The claims of the request's token; empty when it has none, or none that can be believed."""
        ...

    def attributes(self) -> Mapping[str, str]:
        """What the users' own code says of this request."""
        ...

    def assigned_identity(self, cookie: str) -> str:
        """A new random identity for a client that has none; the answer will set it as `cookie`."""
        ...

    def is_behind(self, cutover: str) -> bool:
        """Whether new may lack what this session has written of the data of `cutover`."""
        ...

    def is_late(self, cutover: str, most_ms: int) -> bool:
        """Whether new may lack what was written to the data of `cutover` longer ago than that."""
        ...


Reader: TypeAlias = Callable[[RequestHead, Facts], "str | None"]

NAMED = ("header", "cookie", "query", "claim", "attr")
PLAIN = ("method", "host", "path", "client")
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")
FORM = "one of method, host, path, client, or header:NAME, cookie:NAME, query:NAME, claim:NAME, attr:NAME"


def is_attribute(spelling: str) -> bool:
    kind, colon, name = spelling.partition(":")
    return kind in NAMED and _NAME.fullmatch(name) is not None if colon else spelling in PLAIN


def reader(spelling: str) -> Reader:
    """The function that reads one attribute; `spelling` must be one (`is_attribute`)."""
    kind, _, name = spelling.partition(":")
    match kind:
        case "header":
            return _header(name.lower().encode())
        case "cookie":
            return _cookie(name)
        case "query":
            return _query(name)
        case "claim":
            return lambda _, facts: _text_of(facts.claims().get(name))
        case "attr":
            return lambda _, facts: _text_of(facts.attributes().get(name))
        case "method":
            return lambda head, _: head.method.decode("latin-1")
        case "host":
            return lambda head, _: _host_name(head.host)
        case "path":
            return lambda head, _: head.path.decode("latin-1")
        case "client":
            return lambda _, facts: facts.client_address()
    raise ValueError(f"{spelling!r} is no attribute: expected {FORM}")


def _header(name: bytes) -> Reader:
    line = b"\r\n" + name + b":"
    skip = len(line)

    def read(head: RequestHead, _: Facts) -> str | None:
        # A checked field section has no line that is not a field, so a search over the bytes is enough.
        at = head.folded.find(line, head.fields_start - 2)
        if at < 0:
            return None
        raw = head.raw
        at += skip
        return raw[at : raw.find(b"\r\n", at)].strip(b" \t").decode("utf-8", "surrogateescape")

    return read


def _cookie(name: str) -> Reader:
    wanted = name.encode() + b"="
    skip = len(wanted)

    def read(head: RequestHead, _: Facts) -> str | None:
        raw = head.raw
        folded = head.folded
        at = folded.find(b"\r\ncookie:", head.fields_start - 2)
        while at >= 0:
            end = raw.find(b"\r\n", at + 9)
            found = raw.find(wanted, at + 9, end)
            while found >= 0:
                # The name's own beginning: after the colon or a semicolon, and blanks.
                before = raw[at + 9 : found].rstrip(b" \t")
                if not before or before.endswith(b";"):
                    stop = raw.find(b";", found, end)
                    value = raw[found + skip : end if stop < 0 else stop]
                    return value.strip(b' \t"').decode("utf-8", "surrogateescape")
                found = raw.find(wanted, found + skip, end)
            at = folded.find(b"\r\ncookie:", end)
        return None

    return read


def _query(name: str) -> Reader:
    def read(head: RequestHead, _: Facts) -> str | None:
        mark, query = head.sent_target.partition(b"?")[1:]
        if not mark:
            return None
        for pair in query.split(b"&"):
            key, value = pair.partition(b"=")[::2]
            if unquote_plus(key.decode("latin-1")) == name:
                return unquote_plus(value.decode("latin-1"), errors="surrogateescape")
        return None

    return read


def _text_of(value: object) -> str | None:
    """What is no single value has no text to compare, nor has a text that UTF-8 cannot hold."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return None  # half a surrogate pair, which JSON can spell
        return value
    return str(value) if isinstance(value, int | float) else None


def _host_name(host: bytes) -> str:
    name, colon, port = host.rpartition(b":")
    name = name if colon and not port.endswith(b"]") else host
    return name.removesuffix(b".").decode("latin-1")
