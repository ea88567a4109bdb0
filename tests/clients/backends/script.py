"""What every backend answers: one script, played by three servers that differ in everything else.

`play` takes a request as the application saw it and returns an answer; the servers only translate.
What tests must know of the application's inner life (who left, who came over which connection) is
written into the `Diary`, which tests and servers share, because the servers are threads.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import re
import threading
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any
from urllib.parse import parse_qs

import brotli  # type: ignore[import-untyped]

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PURGE")
NAMED_BY_THE_HOP = frozenset(
    {"connection", "keep-alive", "proxy-connection", "x-forwarded-for", "x-forwarded-proto"}
)
"""Request fields that may differ between asking directly and asking through Crossfade."""

PAYLOAD = random.Random(7).randbytes(1_000_000)
TEXT = b"".join(b"line %d: the quick brown fox\n" % number for number in range(4000))
PACKED = {"gzip": gzip.compress(TEXT, mtime=0), "br": brotli.compress(TEXT)}
ETAG = '"seven"'


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as the application got it; `target` undecoded where the server knows it."""

    method: str
    target: str
    fields: tuple[tuple[str, str], ...]
    body: bytes
    peer: tuple[str, int]

    def value(self, name: str) -> str | None:
        """The first value of a field; `name` in lower case."""
        return next((value for found, value in self.fields if found.lower() == name), None)


@dataclass(frozen=True, slots=True)
class Told:
    """A body of bytes has a Content-Length unless `fields` says otherwise; an iterator has none."""

    status: int = 200
    fields: tuple[tuple[str, str], ...] = (("Content-Type", "application/octet-stream"),)
    body: bytes | Iterator[bytes] = b""


class CutError(Exception):
    """Raised by a body: the connection is to be cut at this point."""


@dataclass(slots=True)
class Diary:
    """What a backend lived through."""

    peers: dict[str, list[tuple[str, int]]] = field(default_factory=lambda: defaultdict(list))
    """Peer addresses of the requests for `/counted/NAME`, by name."""
    faults: list[str] = field(default_factory=list)
    """What went wrong in the application itself; a scene that was answered with it proves nothing."""
    _closings: dict[str, SimpleQueue[tuple[int, str]]] = field(default_factory=dict)

    _leavings: dict[str, threading.Event] = field(default_factory=dict)

    def left(self, name: str) -> threading.Event:
        """Set when the reader of `/endless/NAME` was found to be gone."""
        return self._leavings.setdefault(name, threading.Event())

    def closing(self, name: str) -> SimpleQueue[tuple[int, str]]:
        """Close code and reason of a WebSocket as the server heard them, by the name it came with."""
        return self._closings.setdefault(name, SimpleQueue())


def play(asked: Asked, diary: Diary) -> Told:
    """The answer to one request."""
    try:
        return _play(asked, diary)
    except Exception as fault:
        diary.faults.append(f"{asked.method} {asked.target}: {fault!r}")
        raise


def _play(asked: Asked, diary: Diary) -> Told:
    path, _, query = asked.target.partition("?")
    step, *rest = path.strip("/").split("/")
    match step:
        case "bytes":
            return Told(body=PAYLOAD[: int(rest[0])])
        case "stream":
            return Told(body=_pieces(PAYLOAD[: int(rest[0])]))
        case "packed":
            packed = (
                ("Content-Type", "text/plain"),
                ("Content-Encoding", rest[0]),
                ("Vary", "Accept-Encoding"),
            )
            return Told(fields=packed, body=PACKED[rest[0]])
        case "fields":
            return Told(fields=_ODD_FIELDS, body=b"odd")
        case "status":
            status = int(rest[0])
            return Told(
                status, (("X-Story", "told"),), b"" if status in (204, 304) else b"status " + rest[0].encode()
            )
        case "unmodified":
            return Told(304, (("ETag", ETAG), ("Content-Length", "5000")))
        case "cookies":
            cookies = (
                ("Set-Cookie", "a=1; Path=/"),
                ("Set-Cookie", 'b="x y"; Path=/; HttpOnly; SameSite=Lax'),
            )
            return Told(fields=cookies, body=b"baked")
        case "whoami":
            return _whoami(asked, parse_qs(query))
        case "redirect":
            return Told(int(rest[0]), (("Location", "/echo/after?from=redirect"),))
        case "elsewhere":
            scheme = asked.value("x-forwarded-proto") or "http"
            return Told(302, (("Location", f"{scheme}://{asked.value('host')}/echo/after"),))
        case "range":
            return _range(asked)
        case "upload":
            return _told_of_upload(asked)
        case "endless":
            return Told(body=_endless(diary.left(rest[0])))
        case "cut":
            return _cut(rest[0])
        case "counted":
            diary.peers[rest[0]].append(asked.peer)
            return Told(body=b"counted")
        case "forwarding":
            names = [name for name, _ in asked.fields if "forwarded" in name.lower()]
            return _told({name.lower(): asked.value(name.lower()) for name in names})
        case _:
            return _echo(asked)


_ODD_FIELDS = (
    ("Content-Type", "text/plain; charset=utf-8"),
    ("X-Many", "one"),
    ("x-many", "two"),
    ("X-Empty", ""),
    ("X-Comma", 'a, "b, c", d'),
    ("X-Long", "long " * 800 + "end"),
    ("Set-Cookie", "first=1; Expires=Wed, 09 Jun 2100 10:18:14 GMT"),
    ("Set-Cookie", "second=2"),
    ("WWW-Authenticate", 'Basic realm="a"'),
    ("WWW-Authenticate", 'Bearer realm="b", error="invalid_token"'),
    ("Link", "</a>; rel=preload, </b>; rel=next"),
    ("Warning", '110 anderson/1.3.37 "Response is stale"'),
    ("Via", "1.0 fred"),
    ("Age", "12"),
    ("Server", "odd/1"),
)


def _echo(asked: Asked) -> Told:
    kept = [[name, value] for name, value in asked.fields if name.lower() not in NAMED_BY_THE_HOP]
    digest = hashlib.sha256(asked.body).hexdigest()
    seen = {"method": asked.method, "target": asked.target, "fields": kept}
    return _told({**seen, "length": len(asked.body), "sha256": digest})


def _whoami(asked: Asked, query: dict[str, list[str]]) -> Told:
    """Who the cookie says; with `?as=NAME` the name is put into the cookie first."""
    named = query.get("as")
    cookies = (("Set-Cookie", f"user={named[0]}; Path=/; HttpOnly"),) if named else ()
    return Told(
        fields=(("Content-Type", "text/plain"), *cookies), body=(asked.value("cookie") or "nobody").encode()
    )


def _range(asked: Asked) -> Told:
    known = (("ETag", ETAG), ("Last-Modified", "Wed, 01 Jan 2020 00:00:00 GMT"), ("Accept-Ranges", "bytes"))
    if asked.value("if-none-match") == ETAG:
        return Told(304, known)
    wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", asked.value("range") or "")
    if wanted is None or asked.value("if-range") not in (None, ETAG):
        return Told(fields=known, body=TEXT)
    size = len(TEXT)
    if wanted[1]:
        first, last = int(wanted[1]), min(int(wanted[2] or size - 1), size - 1)
    else:
        first, last = size - int(wanted[2]), size - 1
    if first >= size:
        return Told(416, (*known, ("Content-Range", f"bytes */{size}")))
    return Told(206, (*known, ("Content-Range", f"bytes {first}-{last}/{size}")), TEXT[first : last + 1])


def _told_of_upload(asked: Asked) -> Told:
    """Length and digest of a form, with its boundary (which the client drew by lot) blotted out."""
    kind = asked.value("content-type") or ""
    boundary = re.search(r'boundary="?([^";]+)"?', kind)
    body = asked.body
    if boundary is not None:
        body = body.replace(boundary[1].encode(), b"BOUNDARY")
        kind = kind.replace(boundary[1], "BOUNDARY")
    digest = hashlib.sha256(body).hexdigest()
    return _told({"method": asked.method, "type": kind, "length": len(asked.body), "sha256": digest})


def _cut(framing: str) -> Told:
    """An answer whose connection ends before its framing says so."""
    length = (("Content-Length", "100000"),) if framing == "length" else ()
    return Told(fields=(("Content-Type", "text/plain"), *length), body=_cut_pieces())


def _cut_pieces() -> Iterator[bytes]:
    yield PAYLOAD[:50_000]
    raise CutError


def _pieces(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), 10_007):
        yield data[start : start + 10_007]


def _endless(left: threading.Event) -> Iterator[bytes]:
    try:
        while True:
            yield PAYLOAD[:65_536]
    finally:
        left.set()


def _told(value: Any) -> Told:
    return Told(fields=(("Content-Type", "application/json"),), body=json.dumps(value, indent=1).encode())
