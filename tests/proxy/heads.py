"""Generated request and answer heads: well-formed ones, and the mutations that attackers try."""

from __future__ import annotations

from hypothesis import strategies as st

TCHARS = "!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

tokens = st.text(TCHARS, min_size=1, max_size=12).map(str.encode)
values = st.lists(
    st.sampled_from([b"a", b"B", b"7", b" ", b"\t", b",", b":", b"\xe9", b"\xff", b'"', b";", b"%00"]),
    max_size=8,
).map(b"".join)
methods = st.sampled_from([b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"TRACE"])

_segments = st.lists(
    st.sampled_from([b"a", b"items", b"%2F", b"%7e", b"..", b".", b"", b"\xc3\xa9", b"x;y", b"~", b"@"]),
    max_size=4,
).map(b"/".join)
_queries = st.sampled_from([b"", b"", b"?", b"?a=b", b"?/../x", b"?q=\xff&&?"])
targets = st.builds(lambda path, query: b"/" + path + query, _segments, _queries)
ascii_targets = targets.filter(bytes.isascii)


def _cased(name: bytes) -> st.SearchStrategy[bytes]:
    return st.sampled_from([name, name.lower(), name.upper(), name.swapcase()])


_blanks = st.sampled_from([b"", b" ", b"\t", b"  "])


def _line(name: bytes, value: bytes, before: bytes, after: bytes) -> bytes:
    return name + b":" + before + value + after + b"\r\n"


def line(name: bytes, value: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """A field line with odd case and blanks."""
    return st.builds(_line, _cased(name), value, _blanks, _blanks)


hosts = st.sampled_from([b"a.test", b"A.Test:80", b"[::1]:8080", b"127.0.0.1", b"x", b"a.test:"])
other_lines = st.builds(_line, tokens, values, _blanks, _blanks).filter(
    lambda one: one.partition(b":")[0].lower()
    not in {
        b"host", b"content-length", b"transfer-encoding", b"connection", b"expect", b"te", b"upgrade",
        b"keep-alive", b"trailer", b"proxy-connection",
    }
)  # fmt: skip
hop_lines = st.one_of(
    line(
        b"Connection",
        st.sampled_from([b"close", b"keep-alive", b"Keep-Alive", b"x-a, close", b"te,,", b"upgrade"]),
    ),
    line(b"TE", st.sampled_from([b"trailers", b"gzip", b"trailers, deflate;q=0.5"])),
    line(b"Keep-Alive", st.just(b"timeout=5")),
    line(b"Proxy-Connection", st.just(b"keep-alive")),
    line(b"X-A", st.just(b"1")),
    line(b"X-Forwarded-For", st.just(b"192.0.2.1")),
    line(b"X-Forwarded-Proto", st.just(b"https")),
    line(b"Forwarded", st.just(b"for=192.0.2.1")),
    line(b"Upgrade", st.sampled_from([b"websocket", b"h2c", b"foo"])),
    line(b"Expect", st.just(b"100-continue")),
    line(b"Tea", st.just(b"x")),
    line(b"Hosts", st.just(b"x")),
)
framing_lines = st.one_of(
    st.just(b""),
    line(b"Content-Length", st.integers(0, 99).map(lambda n: b"%d" % n)),
    st.sampled_from([b"Content-Length: 5\r\n", b"content-length: 0\r\n", b"Content-Length: 05\r\n"]),
    line(b"Transfer-Encoding", st.sampled_from([b"chunked", b"Chunked"])),
)


@st.composite
def request_heads(draw: st.DrawFn, targets: st.SearchStrategy[bytes] = targets) -> bytes:
    """A request head that is to be accepted, as bytes."""
    host = st.one_of(st.just(b"Host: a.test\r\n"), line(b"Host", hosts))
    lines = [draw(host), draw(framing_lines)]
    if draw(st.integers(0, 9)) == 0:
        lines.append(draw(framing_lines))  # one too many
    lines += draw(st.lists(st.one_of(other_lines, hop_lines), max_size=5))
    lines = draw(st.permutations(lines))
    return b"%b %b HTTP/1.1\r\n%b\r\n" % (draw(methods), draw(targets), b"".join(lines))


_DIRT = (
    b"\r", b"\n", b"\r\n", b"\0", b" ", b"\t", b":", b"\x7f", b"\x80", b"\r\n ", b"\n\n", b"\r\n\r\n",
    b"Content-Length: 3\r\n", b"Content-Length: +3\r\n", b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: x\r\n", b"Transfer-Encoding : chunked\r\n", b"Host: b\r\n", b"HTTP/1.0", b"HTTP/2.0",
    b"http://b", b"#", b"\x0b", b"\x85", b"\xa0", b",", b"0x", b"Connection: close\r\n",
)  # fmt: skip


@st.composite
def dirty_request_heads(draw: st.DrawFn) -> bytes:
    """A request head with a few wounds; some of them still leave it valid."""
    head = draw(request_heads())
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(head)))
        until = min(len(head), at + draw(st.integers(0, 4)))
        head = head[:at] + draw(st.sampled_from(_DIRT)) + head[draw(st.sampled_from([at, until])) :]
    return head


statuses = st.sampled_from(
    [b"200 OK", b"204 No Content", b"304 Not Modified", b"404 ", b"500", b"599 Odd\tOne"]
)


@st.composite
def response_heads(draw: st.DrawFn) -> bytes:
    """An answer's head that is to be accepted, as bytes."""
    lines = [draw(framing_lines), *draw(st.lists(st.one_of(other_lines, hop_lines), max_size=5))]
    minor = draw(st.sampled_from([b"1", b"1", b"0"])) if b"ransfer" not in lines[0].lower() else b"1"
    lines = draw(st.permutations(lines))
    return b"HTTP/1.%b %b\r\n%b\r\n" % (minor, draw(statuses), b"".join(lines))
