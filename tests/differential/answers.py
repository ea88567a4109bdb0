"""The answers: what a backend may say, must not say, and says at the wrong moment, as raw bytes.

A body that contains `EVIL` belongs to no answer of the case: no client may ever read it.
"""

from __future__ import annotations

from tests.differential.case import ASK, ASKED, HOST, Case, get, passes, post, relayed, unusable
from tests.differential.requests import CONTINUE, LONG, SWITCH, WEBSOCKET
from tests.differential.wire import SENTINEL, ClientHas, Do, Until

X = b"X-From: backend\r\n"


def ok(fields: bytes = b"", body: bytes = b"ok", line: bytes = b"HTTP/1.1 200 OK") -> bytes:
    return line + b"\r\n" + X + b"Content-Length: %d\r\n" % len(body) + fields + b"\r\n" + body


def bare(fields: bytes = b"", body: bytes = b"", line: bytes = b"HTTP/1.1 200 OK") -> bytes:
    """Without a length of its own."""
    return line + b"\r\n" + X + fields + b"\r\n" + body


EVIL_ANSWER = ok(body=b"EVIL")

STATUS_LINES = (
    relayed("plain answer", ok(), "RFC 9112 §4"),
    *(
        relayed(f"status {status}", ok(line=b"HTTP/1.1 %d Odd" % status), "RFC 9110 §15")
        for status in (201, 206, 299, 302, 404, 418, 451, 500, 599, 999)
    ),
    relayed("reason empty", ok(line=b"HTTP/1.1 200 "), "RFC 9112 §4"),
    relayed("reason missing with its space", ok(line=b"HTTP/1.1 200"), "RFC 9112 §4"),
    relayed("reason of its own", ok(line=b"HTTP/1.1 200 Va  bene (99%)!"), "RFC 9112 §4"),
    relayed("reason in UTF-8", ok(line="HTTP/1.1 200 Tr\xe8s bien".encode()), "RFC 9112 §4"),
    relayed(
        "HTTP/1.0 with length",
        ok(line=b"HTTP/1.0 200 OK"),
        "RFC 9112 §2.3",
        answer=ok(),
    ),
    *(
        unusable(f"status line {name}", ok(line=line), "RFC 9112 §4")
        for name, line in {
            "with status 99": b"HTTP/1.1 99 Low",
            "with status 099": b"HTTP/1.1 099 Low",
            "with status 1000": b"HTTP/1.1 1000 High",
            "with status 2x0": b"HTTP/1.1 2x0 OK",
            "with status +20": b"HTTP/1.1 +20 OK",
            "without status": b"HTTP/1.1 OK",
            "with two spaces": b"HTTP/1.1  200 OK",
            "with tab": b"HTTP/1.1\t200 OK",
            "with CR in reason": b"HTTP/1.1 200 O\rK",
            "with NUL in reason": b"HTTP/1.1 200 O\x00K",
            "of HTTP/2": b"HTTP/2 200 OK",
            "of HTTP/2.0": b"HTTP/2.0 200 OK",
            "of HTTP/1.2": b"HTTP/1.2 200 OK",
            "of ICY": b"ICY 200 OK",
            "in lower case": b"http/1.1 200 OK",
        }.items()
    ),
    unusable("no status line at all", (b"<html>hello</html>", Do.CLOSE), "RFC 9112 §2.3"),
    unusable("empty line before the status line", b"\r\n" + ok(), "RFC 9112 §2.2"),
    unusable("space before the status line", b" " + ok(), "RFC 9112 §4"),
    unusable("answer with LF everywhere", ok().replace(b"\r\n", b"\n"), "RFC 9112 §2.2"),
    unusable("status line ends in LF", ok().replace(b"OK\r\n", b"OK\n", 1), "RFC 9112 §2.2"),
    unusable("answer is a request", get(b"/evil"), "RFC 9112 §4"),
)

ANSWER_FIELDS = (
    relayed(
        "answer fields keep order, case and duplicates",
        ok(b"X-b: 1\r\nSet-Cookie: a=1; Expires=Sat, 29 Oct 1994\r\nx-A: 2\r\nset-cookie: b=2\r\nX-b: 3\r\n"),
        "RFC 9110 §5.3; RFC 6265 §3",
    ),
    relayed("nothing is invented in an answer", ok(), "RFC 9110 §6.6.1, §8.3"),
    relayed(
        "Date, Server and Via are kept",
        ok(b"Date: Sat, 29 Oct 1994 19:43:31 GMT\r\nServer: old/1\r\nVia: 1.1 x\r\nAge: 3\r\n"),
        "RFC 9110 §6.6.1",
    ),
    relayed(
        "Location is kept",
        ok(b"Location: http://127.0.0.1/x?\r\n", line=b"HTTP/1.1 302 Found"),
        "RFC 9110 §10.2.2",
    ),
    relayed(
        "caching fields are kept",
        ok(b'ETag: W/"a"\r\nVary: *\r\nCache-Control: private\r\nExpires: 0\r\n'),
        "RFC 9111",
    ),
    relayed("answer value empty", ok(b"X-A:\r\nX-B: \r\n"), "RFC 9112 §5"),
    relayed("answer value in latin-1", ok(b"X-A: caf\xe9\r\n"), "RFC 9110 §5.5"),
    relayed("answer value in UTF-8", ok("X-A: caf\xe9\r\n".encode()), "RFC 9110 §5.5"),
    relayed("answer value of 9000 bytes", ok(b"X-A: " + LONG + b"\r\n"), "RFC 9110 §5.4"),
    relayed(
        "answer with 100 fields", ok(b"".join(b"X-%d: %d\r\n" % (n, n) for n in range(99))), "RFC 9110 §5.4"
    ),
    relayed("answer name with underscore", ok(b"X_A: 1\r\n"), "RFC 9110 §5.1"),
    relayed(
        "answer field folded",
        ok(b"X-A: 1\r\n  2\r\n\t3\r\n"),
        "RFC 9112 §5.2",
        answer=ok(b"X-A: 1 2 3\r\n"),
    ),
    unusable("answer head of 100 kB", ok(b"X-A: " + LONG * 11 + b"\r\n"), "RFC 9110 §5.4"),
    *(
        unusable(f"answer field {name}", ok(line), rule)
        for name, line, rule in (
            ("name empty", b": 1\r\n", "RFC 9112 §5; CVE-2023-25725"),
            ("without colon", b"X-A\r\n", "RFC 9112 §5"),
            ("name with space", b"X A: 1\r\n", "RFC 9110 §5.1"),
            ("name with NUL", b"X\x00A: 1\r\n", "RFC 9110 §5.1"),
            ("name with a0", b"X-A\xa0: 1\r\n", "RFC 9110 §5.1"),
            ("value with NUL", b"X-A: a\x00b\r\n", "CVE-2026-34520"),
            ("value with 01", b"X-A: a\x01b\r\n", "CVE-2026-34520"),
            ("value with DEL", b"X-A: a\x7fb\r\n", "RFC 9110 §5.5"),
            ("value with CR", b"X-A: a\rSet-Cookie: b=1\r\n", "RFC 9112 §11.1"),
            ("value with LF", b"X-A: a\nSet-Cookie: b=1\r\n", "RFC 9112 §11.1"),
            ("block ends in CR X", b"X-A: a\r\n\rX: 1\r\n", "CVE-2025-23167"),
            ("block ends in LF", b"X-A: a\r\n\nEVIL\r\n", "RFC 9112 §2.2"),
        )
    ),
    unusable("answer field with space before colon", ok(b"X-A : 1\r\n"), "RFC 9112 §5.1"),
    unusable(
        "answer length with space before colon", bare(b"Content-Length : 2\r\n", b"ok"), "RFC 9112 §5.1"
    ),
    relayed(
        "answer's hop-by-hop fields",
        ok(
            b"Connection: X-Secret, keep-alive\r\nX-Secret: 1\r\nKeep-Alive: max=5\r\nProxy-Connection: a\r\n"
        ),
        "RFC 9110 §7.6.1",
        answer=ok(),
    ),
    relayed(
        "answer nominates Content-Length and Set-Cookie",
        ok(b"Connection: Content-Length, Set-Cookie\r\nSet-Cookie: a=1\r\n"),
        "RFC 9110 §7.6.1",
        answer=ok(),
    ),
    relayed(
        "answer offers an upgrade",
        ok(b"Connection: Upgrade\r\nUpgrade: h2,h2c\r\n"),
        "RFC 9110 §7.8",
        answer=ok(),
    ),
    relayed(
        "426 names the upgrade",
        ok(b"Connection: Upgrade\r\nUpgrade: websocket\r\n", line=b"HTTP/1.1 426 Upgrade Required"),
        "RFC 9110 §15.5.22",
    ),
    relayed(
        "Proxy-Authenticate",
        ok(b"Proxy-Authenticate: Basic\r\n", line=b"HTTP/1.1 407 Odd"),
        "RFC 9110 §11.7.1",
    ),
    relayed(
        "gzip body stays as it is",
        ok(b"Content-Encoding: gzip\r\n", b"\x1f\x8b\x08\x00junk"),
        "RFC 9110 §8.4",
    ),
    relayed(
        "Accept-Ranges and Content-Range",
        ok(b"Content-Range: bytes 0-1/9\r\n", line=b"HTTP/1.1 206 P"),
        "RFC 9110 §14",
    ),
)

CHUNKED = b"Transfer-Encoding: chunked\r\n"
ABC = b"3\r\nabc\r\n0\r\n\r\n"
BAD_CHUNKS = (
    ("chunk size 0x3", b"0x3\r\ndef\r\n0\r\n\r\n", "RFC 9112 §7.1"),
    ("chunk size +3", b"+3\r\ndef\r\n0\r\n\r\n", "RFC 9112 §7.1"),
    ("chunk size -3", b"-3\r\ndef\r\n0\r\n\r\n", "RFC 9112 §7.1"),
    ("chunk size 3_", b"3_\r\ndef\r\n0\r\n\r\n", "RFC 9112 §7.1"),
    ("chunk size empty", b"\r\ndef\r\n0\r\n\r\n", "RFC 9112 §7.1"),
    ("chunk size of 17 digits", b"00000000000000003\r\ndef\r\n0\r\n\r\n", "RFC 9112 §7.1"),
    ("chunk size line ends in LF", b"3\ndef\r\n0\r\n\r\n", "RFC 9112 §7.1"),
    ("chunk size line ends in CR", b"3\rdef\r\n0\r\n\r\n", "RFC 9112 §7.1"),
    ("chunk extension ends in LF", b"3;a\ndef\r\n0\r\n\r\n", "RFC 9112 §7.1.1"),
    ("chunk data ends in LF", b"3\r\ndef\n0\r\n\r\n", "RFC 9112 §7.1"),
    ("chunk data ends in XX", b"3\r\ndefXX0\r\n\r\n", "CVE-2025-43859"),
    ("chunk data too long", b"3\r\ndefg\r\n0\r\n\r\n", "RFC 9112 §7.1"),
    ("last chunk ends in LF", b"0\n\r\n", "RFC 9112 §7.1"),
    ("chunks end in LF", b"0\r\n\n", "RFC 9112 §7.1"),
    ("chunks end in CR X", b"0\r\n\rX", "RFC 9112 §7.1"),
    ("trailer Content-Length", b"0\r\nContent-Length: 5\r\n\r\n", "RFC 9110 §6.5.1"),
    ("trailer Set-Cookie", b"0\r\nSet-Cookie: a=1\r\n\r\n", "RFC 9110 §6.5.1"),
    ("trailer without colon", b"0\r\nEVIL\r\n\r\n", "RFC 9112 §5"),
    ("trailer with NUL", b"0\r\nX-A: \x00\r\n\r\n", "RFC 9110 §5.5"),
    ("trailer of 100 kB", b"0\r\nX-A: " + LONG * 11 + b"\r\n\r\n", "CVE-2026-22815"),
)
BODIES = (
    relayed("body of all bytes back", ok(body=bytes(range(256))), "RFC 9110 §6.4"),
    relayed("body of 1 MB", ok(body=b"0123456789" * 100_000), "RFC 9112 §6.2"),
    relayed("answer length 0", ok(body=b""), "RFC 9112 §6.2"),
    relayed("answer chunked", bare(CHUNKED, ABC), "RFC 9112 §7.1"),
    relayed("answer chunked, empty", bare(CHUNKED, b"0\r\n\r\n"), "RFC 9112 §7.1"),
    relayed(
        "answer chunked in capitals",
        bare(b"transfer-encoding:  CHUNKED \r\n", ABC),
        "RFC 9112 §7",
        answer=bare(CHUNKED, ABC),
    ),
    relayed(
        "answer length behind a tab", bare(b"Content-Length:\t2\r\n", b"ok"), "RFC 9112 §5.1", answer=ok()
    ),
    relayed(
        "answer length with leading zeros",
        bare(b"Content-Length: 002\r\n", b"ok"),
        "RFC 9110 §8.6",
        answer=ok(),
    ),
    relayed(
        "answer chunk extension",
        bare(CHUNKED, b"0003;a=b\r\nabc\r\n00;c\r\n\r\n"),
        "RFC 9112 §7.1.1",
        answer=bare(CHUNKED, ABC),
    ),
    relayed(
        "answer trailers",
        bare(CHUNKED + b"Trailer: X-Sum\r\n", b"3\r\nabc\r\n0\r\nX-Sum: 1\r\nx-sum: 2\r\n\r\n"),
        "RFC 9112 §7.1.2",
    ),
    relayed(
        "answer in three segments of chunks",
        (bare(CHUNKED), b"3\r\nab", b"c\r\n4\r", b"\ndefg\r\n0\r\n", b"\r\n"),
        "RFC 9112 §7.1",
    ),
    relayed(
        "events one by one",
        (
            bare(CHUNKED + b"Content-Type: text/event-stream\r\n"),
            ClientHas(b"\r\n\r\n"),
            b"8\r\ndata: 1\n\r\n",
            ClientHas(b"data: 1"),
            b"8\r\ndata: 2\n\r\n",
            ClientHas(b"data: 2"),
            b"0\r\n\r\n",
        ),
        "HTML §9.2",
    ),
    relayed("until close", (bare(body=b"abc"), Do.CLOSE), "RFC 9112 §6.3"),
    relayed("until close, empty", (bare(), Do.CLOSE), "RFC 9112 §6.3"),
    relayed(
        "until close, declared",
        (bare(b"Connection: close\r\n", b"abc"), Do.CLOSE),
        "RFC 9112 §6.3",
        answer=bare(body=b"abc"),
    ),
    relayed(
        "until close, HTTP/1.0",
        (bare(body=b"abc", line=b"HTTP/1.0 200 OK"), Do.CLOSE),
        "RFC 9112 §6.3",
        answer=bare(body=b"abc"),
    ),
    relayed(
        "HTTP/1.0 keep-alive answer",
        ok(b"Connection: keep-alive\r\n", line=b"HTTP/1.0 200 OK"),
        "RFC 9112 §9.3",
        answer=ok(),
    ),
    relayed("answer length twice, equal", ok(b"Content-Length: 2\r\n"), "RFC 9112 §6.3", answer=ok()),
    *(
        unusable(
            f"answer length {name}", bare(b"Content-Length:" + value + b"\r\n", b"okEVIL"), "RFC 9112 §6.3"
        )
        for name, value in {
            "twice, different": b" 2\r\nContent-Length: 6",
            "2, 2": b" 2, 2",
            "2, 6": b" 2, 6",
            "+2": b" +2",
            "-2": b" -2",
            "0x2": b" 0x2",
            "2_": b" 2_",
            "2.0": b" 2.0",
            "empty": b"",
            "with a0": b" 2\xa0",
            "in Arabic digits": " \u0662".encode(),
            "of 2^64 + 2": b" 18446744073709551618",
        }.items()
    ),
    unusable("answer length and coding", ok(CHUNKED, b"0\r\n\r\n"), "RFC 9112 §6.1, §11.1"),
    *(
        unusable(f"answer coding {name}", bare(b"Transfer-Encoding:" + value + b"\r\n", ABC), "RFC 9112 §6.1")
        for name, value in {
            "gzip, chunked": b" gzip, chunked",
            "chunked, gzip": b" chunked, gzip",
            "gzip": b" gzip",
            "identity": b" identity",
            "chunked, chunked": b" chunked, chunked",
            "chunked twice": b" chunked\r\nTransfer-Encoding: chunked",
            "comma chunked": b" ,chunked",
            "xchunked": b" xchunked",
            "empty": b"",
            "VT chunked": b" \x0bchunked",
            "chunked a0": b" chunked\xa0",
        }.items()
    ),
    unusable("answer coding in HTTP/1.0", bare(CHUNKED, ABC, b"HTTP/1.0 200 OK"), "RFC 9112 §6.1"),
    *(
        relayed(
            f"answer {name}",
            (bare(CHUNKED, b"3\r\nabc\r\n"), ClientHas(b"abc"), rest, Do.AFTER_CLIENT),
            rule,
            answer=bare(CHUNKED, b"3\r\nabc\r\n"),
            cut=True,
        )
        for name, rest, rule in BAD_CHUNKS
    ),
    *(
        unusable(f"answer {name}, in the head's segment", bare(CHUNKED, b"3\r\nabc\r\n" + rest), rule)
        for name, rest, rule in BAD_CHUNKS[::4]
    ),
)

ENDS = (
    # The pooled connection may have died before the request came, so a safe request is sent once more.
    unusable("no answer to GET, close", (Do.CLOSE,), "RFC 9110 §9.2.2, §15.6.3", backend=ASKED * 2),
    unusable("no answer to GET, reset", (Do.RESET,), "RFC 9110 §9.2.2, §15.6.3", backend=ASKED * 2),
    *(
        unusable(
            f"no answer to {method.decode()}{' with body' if body else ''}, {end.name.lower()}",
            (end,),
            "RFC 9110 §9.2.2",
            ask=get(b"/case", fields + b"Connection: close\r\n", method) + body,
            backend=get(b"/case", fields, method) + body,
        )
        for method, fields, body, end in (
            (b"DELETE", b"", b"", Do.CLOSE),
            (b"PURGE", b"", b"", Do.RESET),
            (b"PUT", b"Content-Length: 1\r\n", b"x", Do.CLOSE),
            (b"POST", b"Content-Length: 0\r\n", b"", Do.RESET),
            (b"GET", b"Content-Length: 1\r\n", b"x", Do.CLOSE),
        )
    ),
    unusable("no answer, silence", (Do.AFTER_CLIENT,), "RFC 9110 §15.6.5", 504),
    unusable("head cut off", (b"HTTP/1.1 200 OK\r\nX-A: ", Do.CLOSE), "RFC 9112 §8"),
    unusable("head cut off before its last line end", (ok(body=b"")[:-2], Do.CLOSE), "RFC 9112 §8"),
    relayed(
        "length cut off",
        (bare(b"Content-Length: 10\r\n", b"abc"), Do.CLOSE),
        "RFC 9112 §8",
        cut=True,
    ),
    relayed(
        "length cut off by reset",
        (bare(b"Content-Length: 10\r\n"), Do.RESET),
        "RFC 9112 §8",
        cut=True,
    ),
    relayed("chunks cut off", (bare(CHUNKED, b"3\r\nabc\r\n"), Do.CLOSE), "RFC 9112 §8", cut=True),
    relayed(
        "chunks cut off before the last line",
        (bare(CHUNKED, b"3\r\nabc\r\n0\r\n"), Do.CLOSE),
        "RFC 9112 §8",
        cut=True,
        answer=bare(CHUNKED, b"3\r\nabc\r\n"),
    ),
    relayed("chunk cut off", (bare(CHUNKED, b"5\r\nabc"), Do.CLOSE), "RFC 9112 §8", cut=True),
    relayed(
        "length, then silence", bare(b"Content-Length: 10\r\n", b"abc"), "RFC 9112 §8", cut=True, ends=False
    ),
)

HEAD = get(b"/case", b"Connection: close\r\n", b"HEAD")
HEADED = get(b"/case", method=b"HEAD")


def bodiless(
    name: str, script: bytes | tuple[bytes | Do, ...], rule: str, answer: bytes | None = None
) -> Case:
    return relayed(
        name,
        script,
        rule,
        answer=answer,
        ask=HEAD,
        backend=HEADED,
        methods=(b"HEAD",),
        ends=isinstance(script, tuple),
    )


NOT_MODIFIED = b"HTTP/1.1 304 Not Modified\r\n" + X
NO_CONTENT = b"HTTP/1.1 204 No Content\r\n" + X
WITHOUT_BODY = (
    bodiless(
        "HEAD with length", b"HTTP/1.1 200 OK\r\n" + X + b"Content-Length: 123\r\n\r\n", "RFC 9110 §9.3.2"
    ),
    bodiless("HEAD without length", bare(), "RFC 9110 §9.3.2"),
    bodiless("HEAD with coding", bare(CHUNKED), "RFC 9110 §9.3.2"),
    bodiless(
        "HEAD with body bytes", (ok(body=b"EVIL"), Do.AFTER_CLIENT), "RFC 9112 §6.3", ok(body=b"EVIL")[:-4]
    ),
    bodiless("HEAD and 404", ok(body=b"", line=b"HTTP/1.1 404 N"), "RFC 9110 §9.3.2"),
    relayed("204", NO_CONTENT + b"\r\n", "RFC 9110 §15.3.5", ends=False),
    relayed("204 with length 0", NO_CONTENT + b"Content-Length: 0\r\n\r\n", "RFC 9110 §8.6", ends=False),
    relayed(
        "204 with length 5",
        NO_CONTENT + b"Content-Length: 4\r\n\r\nEVIL",
        "RFC 9110 §8.6",
        ends=False,
        answer=NO_CONTENT + b"Content-Length: 4\r\n\r\n",
    ),
    relayed(
        "204 with body bytes",
        NO_CONTENT + b"\r\nEVIL",
        "RFC 9110 §15.3.5",
        ends=False,
        answer=NO_CONTENT + b"\r\n",
    ),
    relayed(
        "204 with coding",
        NO_CONTENT + CHUNKED + b"\r\n4\r\nEVIL\r\n0\r\n\r\n",
        "RFC 9112 §6.1",
        ends=False,
        answer=NO_CONTENT + b"\r\n",
    ),
    relayed(
        "304 with length",
        NOT_MODIFIED + b"ETag: x\r\nContent-Length: 123\r\n\r\n",
        "RFC 9110 §15.4.5",
        ends=False,
    ),
    relayed("304 without length", NOT_MODIFIED + b"\r\n", "RFC 9110 §15.4.5", ends=False),
    relayed(
        "304 with body bytes",
        NOT_MODIFIED + b"Content-Length: 4\r\n\r\nEVIL",
        "RFC 9112 §6.3",
        ends=False,
        answer=NOT_MODIFIED + b"Content-Length: 4\r\n\r\n",
    ),
    relayed("205 with length 0", ok(body=b"", line=b"HTTP/1.1 205 Reset"), "RFC 9110 §15.3.6"),
)

HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n"
INTERIM = (
    relayed("103", HINTS + ok(), "RFC 8297 §2"),
    relayed("103 in its own segment", (HINTS, ok()), "RFC 8297 §2"),
    relayed("103 twice", HINTS + HINTS + ok(), "RFC 9110 §15.2"),
    relayed("102", b"HTTP/1.1 102 Processing\r\n\r\n" + ok(), "RFC 9110 §15.2"),
    relayed("199", b"HTTP/1.1 199 Odd\r\nX-A: 1\r\n\r\n" + ok(), "RFC 9110 §15.2"),
    relayed("100 without having asked", CONTINUE + ok(), "RFC 9110 §15.2"),
    relayed(
        "103 to HTTP/1.0",
        HINTS + ok(),
        "RFC 9110 §15.2",
        ask=get(b"/case", version=b"HTTP/1.0"),
        answer=ok(),
    ),
    unusable("101 without having asked", SWITCH + b"EVIL", "RFC 9110 §7.8"),
    relayed(
        "101 to another protocol",
        (b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: chat\r\n\r\nhello", Do.CLOSE),
        "RFC 9110 §7.8",
        ask=get(b"/case", WEBSOCKET),
        backend=get(b"/case", WEBSOCKET),
    ),
    unusable("103 with a bad field", b"HTTP/1.1 103 E\r\nX : 1\r\n\x00: 1\r\n\r\n" + ok(), "RFC 9112 §5.1"),
    Case(
        "103, then nothing",
        "RFC 9110 §15.2",
        (ASK,),
        ASKED,
        (103, 502),
        script=(HINTS, Do.CLOSE),
        answer=HINTS,
    ),
    relayed(
        "early answer, body not read",
        (Do.AT_HEAD, ok(b"Connection: close\r\n", line=b"HTTP/1.1 401 No"), Do.CLOSE),
        "RFC 9112 §9.3",
        answer=ok(line=b"HTTP/1.1 401 No"),
        ask=post(b"Content-Length: 10\r\n", b"abc", b"/case"),
        backend=post(b"Content-Length: 10\r\n", b"", b"/case"),
    ),
)

HIDDEN = get(b"/evil")
EARLY = post(b"Content-Length: %d\r\n" % (3 + len(HIDDEN)), b"", b"/case")
BROKEN_OFF = (
    Case(
        "early answer, the rest of the body looks like a request",
        "RFC 9112 §9.3",
        (EARLY + b"abc", Until(b"ok"), HIDDEN + SENTINEL),
        EARLY,
        (200,),
        script=(Do.AT_HEAD, ok(), Do.AFTER_CLIENT),
        answer=ok(),
    ),
    Case(
        "client resets in the middle of an answer",
        "RFC 9112 §9.5",
        (ASKED, Until(b"abc"), Do.RESET),
        ASKED,
        (200,),
        script=(bare(b"Content-Length: 10\r\n", b"abc"), Do.AFTER_CLIENT, b"EVILEVI"),
        answer=bare(b"Content-Length: 10\r\n", b"abc"),
        cut=True,
    ),
    Case(
        "client resets before the answer",
        "RFC 9112 §9.5",
        (ASKED, Do.SEEN, Do.RESET),
        ASKED,
        (),
        script=(Do.AFTER_CLIENT, ok(body=b"EVIL")),
        answer=b"",
    ),
)

LATE = (Do.AFTER_CLIENT, EVIL_ANSWER)
POOL = (
    relayed(
        "extra bytes in the same segment", (ok() + b"EVIL", Do.AFTER_CLIENT), "RFC 9112 §9.2", answer=ok()
    ),
    relayed(
        "whole extra answer in the same segment",
        (ok() + EVIL_ANSWER, Do.AFTER_CLIENT),
        "RFC 9112 §9.2",
        answer=ok(),
    ),
    relayed("extra answer while pooled", (ok(), *LATE), "RFC 9112 §9.2; aio-libs/aiohttp#13656", answer=ok()),
    relayed(
        "half an answer while pooled",
        (ok(), Do.AFTER_CLIENT, b"HTTP/1.1 200 OK\r\nX-A: EVIL"),
        "RFC 9112 §9.2",
        answer=ok(),
    ),
    relayed(
        "408 while pooled",
        (ok(), Do.AFTER_CLIENT, bare(b"Content-Length: 0\r\n", line=b"HTTP/1.1 408 T"), Do.CLOSE),
        "RFC 9110 §15.5.9",
        answer=ok(),
    ),
    relayed("close while pooled", (ok(), Do.AFTER_CLIENT, Do.CLOSE), "RFC 9112 §9.3.1", answer=ok()),
    relayed("reset while pooled", (ok(), Do.AFTER_CLIENT, Do.RESET), "RFC 9112 §9.3.1", answer=ok()),
    relayed(
        "extra answer after chunks",
        (bare(CHUNKED, ABC) + EVIL_ANSWER, Do.AFTER_CLIENT),
        "RFC 9112 §9.2",
        answer=bare(CHUNKED, ABC),
    ),
    relayed(
        "extra answer while pooled, after HEAD",
        (ok(body=b""), *LATE),
        "RFC 9112 §9.2",
        answer=ok(body=b""),
        ask=HEAD,
        backend=HEADED,
        methods=(b"HEAD",),
    ),
    relayed(
        "extra answer while pooled, after 304",
        (NOT_MODIFIED + b"\r\n", *LATE),
        "RFC 9112 §9.2",
        answer=NOT_MODIFIED + b"\r\n",
    ),
    relayed(
        "extra answer while pooled, after Connection: close",
        (ok(b"Connection: close\r\n"), *LATE),
        "RFC 9112 §9.6",
        answer=ok(),
    ),
)

KEPT = (
    Case(
        "client kept after a length",
        "RFC 9112 §9.3",
        (ASKED, Until(b"ok"), SENTINEL),
        ASKED,
        (200,),
        script=(ok(),),
        answer=ok(),
        sentinel=True,
    ),
    Case(
        "client kept after chunks",
        "RFC 9112 §9.3",
        (ASKED, Until(b"\r\n0\r\n\r\n"), SENTINEL),
        ASKED,
        (200,),
        script=(bare(CHUNKED, ABC),),
        answer=bare(CHUNKED, ABC),
        sentinel=True,
    ),
    Case(
        "client kept although the backend closes",
        "RFC 9112 §9.3",
        (ASKED, Until(b"ok"), SENTINEL),
        ASKED,
        (200,),
        script=(ok(b"Connection: close\r\n"), Do.CLOSE),
        answer=ok(),
        sentinel=True,
    ),
    Case(
        "client closed after an answer until close",
        "RFC 9112 §9.3",
        (ASKED,),
        ASKED,
        (200,),
        script=(bare(body=b"abc"), Do.CLOSE),
        answer=bare(body=b"abc"),
    ),
    Case(
        "pipelined behind an extra answer",
        "RFC 9112 §9.2",
        (ASKED + SENTINEL,),
        ASKED,
        (200,),
        script=(ok() + EVIL_ANSWER, Do.AFTER_CLIENT),
        answer=ok(),
        sentinel=True,
    ),
    Case(
        "pipelined behind a 204 with body bytes",
        "RFC 9112 §9.2",
        (ASKED + SENTINEL,),
        ASKED,
        (204,),
        script=(NO_CONTENT + b"\r\n" + EVIL_ANSWER, Do.AFTER_CLIENT),
        answer=NO_CONTENT + b"\r\n",
        sentinel=True,
    ),
    Case(
        "chunked answer to HTTP/1.0",
        "RFC 9112 §7.1",
        (get(b"/case", version=b"HTTP/1.0"),),
        ASKED,
        (200,),
        script=(bare(CHUNKED, ABC),),
        answer=bare(body=b"abc"),
    ),
    Case(
        "chunked answer to HTTP/1.0 keep-alive",
        "RFC 9112 §7.1",
        (get(b"/case", b"Connection: keep-alive\r\n", version=b"HTTP/1.0"),),
        ASKED,
        (200,),
        script=(bare(CHUNKED, ABC),),
        answer=bare(body=b"abc"),
    ),
    Case(
        "chunked answer to HTTP/1.0, cut off",
        "RFC 9112 §7.1",
        (get(b"/case", version=b"HTTP/1.0"),),
        ASKED,
        (200,),
        script=(bare(CHUNKED, b"3\r\nabc\r\n"), Do.CLOSE),
        answer=bare(body=b"abc"),
        cut=True,
    ),
    passes(
        "an answer names its request", get(b"/named?x=1", HOST.replace(b"Host", b"X-Host")), "RFC 9110 §9"
    ),
)

ANSWERS: tuple[Case, ...] = (
    *STATUS_LINES,
    *ANSWER_FIELDS,
    *BODIES,
    *ENDS,
    *WITHOUT_BODY,
    *INTERIM,
    *BROKEN_OFF,
    *POOL,
    *KEPT,
)
