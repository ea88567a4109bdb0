"""Every client asks every backend everything, directly and through Crossfade, and gets the same."""

from __future__ import annotations

import hashlib
import json

import pytest

from tests.clients.backends.script import ETAG, PACKED, PAYLOAD, TEXT
from tests.clients.conftest import CLIENTS, Place
from tests.clients.people import Ask, CurlError, Person, ask_all

SCENES = {
    "a known length": Ask("/bytes/70000"),
    "an empty body": Ask("/bytes/0"),
    "an unknown length": Ask("/stream/300000"),
    "head of a known length": Ask("/bytes/70000", "HEAD"),
    "head of an unknown length": Ask("/stream/300000", "HEAD"),
    "head of a range": Ask("/range", "HEAD"),
    "gzip": Ask("/packed/gzip", fields=(("Accept-Encoding", "gzip"),)),
    "brotli": Ask("/packed/br", fields=(("Accept-Encoding", "br"),)),
    "odd fields of an answer": Ask("/fields"),
    "odd fields of a request": Ask(
        "/echo",
        fields=(
            ("X-Long", "long " * 1000 + "end"),
            ("X-Quoted", 'a, "b, c"; d="\\""'),
            ("X-Latin", "caf\xe9".encode().decode("latin-1")),
            ("Authorization", "Bearer abc.def-_~+/=="),
            ("Cookie", 'a=1; b="x y"; c='),
            ("If-Match", 'W/"x", "y"'),
            ("Max-Forwards", "5"),
            ("Accept-Language", "de;q=0.8, *;q=0.1"),
            ("Accept-Encoding", "identity;q=0"),
            ("X_Under.score!#$%&'*+-^`|~", "tokens"),
            ("Via", "1.1 somebody"),
            ("Proxy-Connection", "keep-alive"),
            ("DNT", "1"),
        ),
    ),
    "an odd target": Ask("/echo/a%2Fb/%C3%A9/~x/;p=1/@:/$&'()*+,=?x=1&y=%20&z=a+b&&q=%3F&e=/?:@"),
    "a long target": Ask("/echo/" + "long/" * 800 + "?" + "x=1&" * 800),
    "a redirect within": Ask("/redirect/302"),
    "a redirect that keeps the method": Ask("/redirect/307", "POST", body=b"again"),
    "a redirect to the host it was asked by": Ask("/elsewhere"),
    "cookies": Ask("/cookies"),
    "created": Ask("/status/201", "POST", body=b"new"),
    "no content": Ask("/status/204", "DELETE"),
    "not modified": Ask("/range", fields=(("If-None-Match", ETAG),)),
    "not modified without more": Ask("/status/304"),
    "not found": Ask("/status/404"),
    "a teapot": Ask("/status/418", "POST", body=b"tea"),
    "a failure": Ask("/status/500"),
    "unavailable": Ask("/status/503"),
    "a status nobody knows": Ask("/status/599"),
    "a range": Ask("/range", fields=(("Range", "bytes=100-199"), ("If-Range", ETAG))),
    "the rest": Ask("/range", fields=(("Range", "bytes=-77"),)),
    "a range out of reach": Ask("/range", fields=(("Range", "bytes=999999999-"),)),
    "post": Ask("/echo", "POST", (("Content-Type", "application/json"),), b'{"a": 1}'),
    "post nothing": Ask("/echo", "POST", body=b""),
    "put": Ask("/echo", "PUT", (("Content-Type", "application/octet-stream"),), PAYLOAD[:200_000]),
    "patch": Ask("/echo", "PATCH", (("Content-Type", "text/plain"),), b"patch"),
    "delete with a body": Ask("/echo", "DELETE", (("Content-Type", "text/plain"),), b"why"),
    "get with a body": Ask("/echo", "GET", (("Content-Type", "text/plain"),), b"query"),
    "options": Ask("/echo", "OPTIONS", (("Access-Control-Request-Method", "PUT"),)),
    "a method of one's own": Ask("/echo", "PURGE"),
    "chunks": Ask(
        "/upload", "POST", (("Content-Type", "text/plain"),), pieces=(b"a", b"b" * 9000, PAYLOAD[:99_999])
    ),
    "an upgrade that nobody takes": Ask(
        "/bytes/1000",
        fields=(
            ("Connection", "Upgrade"),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ),
    ),
    "forwarded by oneself": Ask("/echo", fields=(("X-Forwarded-For", "6.6.6.6"), ("Forwarded-By", "me"))),
}


LEFT_TO_TEST_CURL = frozenset(
    {
        *("head of a known length", "head of an unknown length", "head of a range", "gzip", "brotli"),
        *("a redirect within", "a redirect that keeps the method", "a redirect to the host it was asked by"),
        *("not modified", "a range", "the rest", "unavailable", "post", "put", "chunks", "patch"),
        *("created", "not found", "a teapot", "a method of one's own"),
    }
)
"""What curl does in `test_curl` in its own ways. Starting it costs more than asking."""

PLAYED = [
    (client, scene)
    for client in CLIENTS
    for scene in SCENES
    if not (client == "curl" and scene in LEFT_TO_TEST_CURL)
]


@pytest.mark.parametrize(("person", "scene"), PLAYED, indirect=["person"])
def test_the_same_as_directly(scene: str, person: Person, place: Place) -> None:
    direct, plain, secure = ask_all(person, [place.direct, *place.fronts], SCENES[scene])
    assert plain == direct
    assert secure == direct


def test_who_asks_is_for_crossfade_to_say(person: Person, place: Place) -> None:
    """What a stranger says of the way its request has come is replaced; what only sounds like it is not."""
    said = (
        ("X-Forwarded-For", "6.6.6.6"),
        ("X-Forwarded-Proto", "gopher"),
        ("X-Forwarded-Client-Cert", "Subject=admin"),
        ("Forwarded", "for=6.6.6.6"),
        ("Forwarded-By", "me"),
        ("X-Forwarded", "yes"),
    )
    for front in place.fronts:
        heard = json.loads(person.ask(front, Ask("/forwarding", fields=said)).body)
        assert heard == {
            "x-forwarded-for": "127.0.0.1",
            "x-forwarded-proto": front.partition(":")[0],
            "forwarded-by": "me",
            "x-forwarded": "yes",
        }


def test_what_is_compared_is_what_was_meant(person: Person, place: Place) -> None:
    """The scenes show what they claim, so that two equal failures cannot pass for an answer."""
    for origin in (place.direct, *place.fronts):
        assert person.ask(origin, SCENES["an unknown length"]).body == PAYLOAD[:300_000]
        assert person.ask(origin, SCENES["gzip"]).body == PACKED["gzip"]
        assert person.ask(origin, SCENES["brotli"]).body == PACKED["br"]
        assert person.ask(origin, SCENES["a range"]).body == TEXT[100:200]
        head = person.ask(origin, SCENES["head of a known length"])
        assert ("Content-Length", "70000") in head.fields
        assert head.body == b""
        put = json.loads(person.ask(origin, SCENES["put"]).body)
        assert put["sha256"] == hashlib.sha256(PAYLOAD[:200_000]).hexdigest()
        chunks = json.loads(person.ask(origin, SCENES["chunks"]).body)
        assert chunks["length"] == 1 + 9000 + 99_999
        assert person.ask(origin, SCENES["a failure"]).status == 500


def test_a_large_form(person: Person, place: Place) -> None:
    file = PAYLOAD * 3
    direct = person.form(place.direct, "/upload", file)
    assert json.loads(direct.body)["length"] > len(file)
    for front in place.fronts:
        assert person.form(front, "/upload", file) == direct


def test_leaving_in_the_middle(person: Person, place: Place) -> None:
    """The backend hears that its reader has left, and the client goes on as if nothing had happened."""
    for number, origin in enumerate((place.direct, *place.fronts)):
        name = f"{type(person).__name__}-{place.name}-{number}"
        assert person.sip(origin, f"/endless/{name}", 65_536)[:65_536] == PAYLOAD[:65_536]
        assert place.diary.left(name).wait(10), f"nobody told the backend: {origin}"
        assert person.ask(origin, Ask("/bytes/10")).body == PAYLOAD[:10]


@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_an_answer_that_is_cut_fails_in_the_same_way(framing: str, person: Person, place: Place) -> None:
    direct, *through = (_failure(person, origin, framing) for origin in (place.direct, *place.fronts))
    assert through == [direct, direct]


def _failure(person: Person, origin: str, framing: str) -> object:
    """What the client makes of a cut answer. HTTP/1.0 has no chunks: there the cut body looks whole."""
    try:
        return person.ask(origin, Ask(f"/cut/{framing}"))
    except CurlError as failure:
        return failure.args
    except Exception as failure:
        return type(failure)
