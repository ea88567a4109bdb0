"""The head parser: what it accepts, what it refuses and why, what others make of the same bytes."""

from __future__ import annotations

import time
from collections.abc import Callable

import h11
import httptools
import pytest
from hypothesis import example, given

from core.http import Refusal, RequestHead, ResponseHead, field_lines
from proxy import head as subject
from proxy.head import parse_request, parse_response, without
from tests.proxy.heads import ascii_targets, dirty_request_heads, request_heads, response_heads


def parse(data: bytes, **limits: int) -> RequestHead | Refusal | None:
    limits = {"max_head": 32_768, "max_target": 16_384, "max_fields": 200} | limits
    return parse_request(data, **limits)


def request(*lines: bytes, start: bytes = b"GET / HTTP/1.1", host: bytes = b"Host: a\r\n") -> bytes:
    return start + b"\r\n" + host + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


def accepted(data: bytes) -> RequestHead:
    head = parse(data)
    assert isinstance(head, RequestHead), head
    return head


def forwarded(head: RequestHead | ResponseHead) -> bytes:
    """The fields that are sent on."""
    raw = head.raw
    kept = raw if not head.cuts else without(raw, head.cuts, len(raw))
    return kept.partition(b"\r\n")[2][:-2]


# Tables ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "status", "reason"),
    [
        (b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_request_line"),
        (b" GET / HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_request_line"),
        (b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n", 400, "bad_request_line"),
        (b"GET /\r\n\r\n", 400, "bad_request_line"),
        (b"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_request_line"),
        (b"\x16\x03\x01\x02\x00", 400, "bad_request_line"),
        (b"GET / http/1.1\r\nHost: a\r\n\r\n", 400, "bad_request_line"),
        (b"GET / HTTP/1.1\nHost: a\n\n", 400, "bare_line_feed"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "http_version"),
        (request(start=b"GET / HTTP/1.2"), 505, "http_version"),
        (request(start=b"GET / HTTP/0.9"), 505, "http_version"),
        (request(start=b"GET a HTTP/1.1"), 400, "bad_target"),
        (request(start=b"GET /#f HTTP/1.1"), 400, "bad_target"),
        (request(start=b"GET * HTTP/1.1"), 400, "bad_target"),
        (request(start=b"CONNECT a:443 HTTP/1.1"), 405, "connect_refused"),
        (request(start=b"GET http://b/ HTTP/1.1"), 400, "target_and_host_differ"),
        (request(start=b"GET http://u@a/ HTTP/1.1"), 400, "target_and_host_differ"),
        (request(start=b"GET ftp://a/ HTTP/1.1"), 400, "bad_target"),
        (request(b"A: b\nC: d"), 400, "bare_line_feed"),
        (request(b"A: b\n"), 400, "bare_line_feed"),
        (request(b"A: b\r"), 400, "bad_field_value"),
        (request(b"A: b\0"), 400, "bad_field_value"),
        (request(b"A: b\x7f"), 400, "bad_field_value"),
        (request(b"A: b\r\rX"), 400, "bad_field_value"),
        (request(b"A : b"), 400, "bad_field_name"),
        (request(b"A"), 400, "bad_field_name"),
        (request(b": b"), 400, "bad_field_name"),
        (request(b"\xe9: b"), 400, "bad_field_name"),
        (request(b"A\0: b"), 400, "bad_field_name"),
        (request(b"A: b", b" c"), 400, "folded_field"),
        (request(b"A: b", b"\tc: d"), 400, "folded_field"),
        (request(b"Content-Length: 1", b"Content-Length: 1"), 400, "bad_content_length"),
        (request(b"Content-Length: 1, 1"), 400, "bad_content_length"),
        (request(b"Content-Length: +1"), 400, "bad_content_length"),
        (request(b"Content-Length: -1"), 400, "bad_content_length"),
        (request(b"Content-Length: 0x1"), 400, "bad_content_length"),
        (request(b"Content-Length: 1_0"), 400, "bad_content_length"),
        (request(b"Content-Length:"), 400, "bad_content_length"),
        (request(b"Content-Length: 1 1"), 400, "bad_content_length"),
        (request(b"Content-Length: \xc2\xb2"), 400, "bad_content_length"),
        (request(b"Content-Length: " + b"1" * 19), 400, "bad_content_length"),
        (request(b"Content-Length: 1", b"Transfer-Encoding: chunked"), 400,
         "content_length_and_transfer_encoding"),
        (request(b"Transfer-Encoding: chunked", b"content-length: 0"), 400,
         "content_length_and_transfer_encoding"),
        (request(b"Transfer-Encoding: gzip, chunked"), 501, "unknown_transfer_coding"),
        (request(b"Transfer-Encoding: chunked, chunked"), 501, "unknown_transfer_coding"),
        (request(b"Transfer-Encoding: ,chunked"), 501, "unknown_transfer_coding"),
        (request(b"Transfer-Encoding: \x0bchunked"), 400, "bad_field_value"),
        (request(b"Transfer-Encoding: chunked;q=1"), 501, "unknown_transfer_coding"),
        (request(b"Transfer-Encoding: identity"), 501, "unknown_transfer_coding"),
        (request(b"Transfer-Encoding:"), 400, "bad_transfer_encoding"),
        (request(b"Transfer-Encoding: chunked", b"TRANSFER-ENCODING: chunked"), 400, "bad_transfer_encoding"),
        (request(b"Transfer-Encoding: chunked", start=b"GET / HTTP/1.0"), 400,
         "transfer_encoding_in_http_1_0"),
        (request(b"Expect: 200-ok"), 417, "unknown_expectation"),
        (request(b"Connection: host"), 400, "bad_connection"),
        (request(b"Connection: close, Content-Length", b"Content-Length: 5"), 400, "bad_connection"),
        (request(host=b""), 400, "bad_host"),
        (request(b"Host: a"), 400, "bad_host"),
        (request(b"host: b"), 400, "bad_host"),
        (request(host=b"Host: a b\r\n"), 400, "bad_host"),
        (request(host=b"Host: a/b\r\n"), 400, "bad_host"),
        (request(host=b"Host: u@a\r\n"), 400, "bad_host"),
        (request(host=b"Host: a, b\r\n"), 400, "bad_host"),
        (request(host=b"Host: a:8o\r\n"), 400, "bad_host"),
        (request(host=b"Host: \xe9\r\n"), 400, "bad_host"),
        (request(b"Host: a", start=b"GET / HTTP/1.0"), 400, "bad_host"),
    ],
)  # fmt: skip
def test_what_is_refused_and_why(data: bytes, status: int, reason: str) -> None:
    assert parse(data) == Refusal(status, reason)


@pytest.mark.parametrize(
    ("start", "host", "target"),
    [
        (b"GET http://a/x?y HTTP/1.1", b"a", b"/x?y"),
        (b"GET HTTP://A:80/x HTTP/1.1", b"a:80", b"/x"),
        (b"GET http://a HTTP/1.1", b"a", b"/"),
        (b"GET http://a?x HTTP/1.1", b"a", b"/?x"),
        (b"OPTIONS http://a HTTP/1.1", b"a", b"*"),
        (b"OPTIONS * HTTP/1.1", b"a", b"*"),
        (b"GET //a/b HTTP/1.1", b"a", b"//a/b"),
        (b"GET /?http://b/ HTTP/1.1", b"a", b"/?http://b/"),
        (b"GET /{x}|\"<>^`\\ HTTP/1.1", b"a", b"/{x}|\"<>^`\\"),
    ],
)  # fmt: skip
def test_target_forms(start: bytes, host: bytes, target: bytes) -> None:
    head = accepted(request(start=start, host=b"Host: " + host + b"\r\n"))
    assert head.sent_target == target
    assert head.path == target.partition(b"?")[0]


def test_http_1_0_needs_no_host_and_does_not_stay() -> None:
    head = accepted(b"GET / HTTP/1.0\r\n\r\n")
    assert (head.host, head.keep_alive, head.plain) == (b"", False, False)
    assert accepted(b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n").keep_alive
    assert not accepted(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\nConnection: close\r\n\r\n").keep_alive
    assert not accepted(b"GET / HTTP/1.0\r\nConnection: close\r\nConnection: keep-alive\r\n\r\n").keep_alive


def test_one_empty_line_in_front_is_tolerated_and_two_are_not() -> None:
    assert accepted(b"\r\n" + request()).size == len(request()) + 2
    assert parse(b"\r\n") is None
    assert parse(b"\r\n\r\n" + request()) == Refusal(400, "bad_request_line")
    assert parse(b"\r\n" * 20_000) == Refusal(400, "bad_request_line")


@pytest.mark.parametrize("method", [b"CONNECT", b"TRACE"])
def test_connect_and_trace_are_never_plain(method: bytes) -> None:
    for more in ([], [b"Content-Length: 3"]):
        assert not accepted(request(*more, start=method + b" / HTTP/1.1")).plain


@pytest.mark.parametrize(
    ("lines", "kept"),
    [
        ([b"Connection: close", b"A: 1"], b"A: 1\r\n"),
        ([b"Connection: x-a , X-B", b"X-A: 1", b"x-b: 2", b"X-AB: 3", b"X-A: 4"], b"X-AB: 3\r\n"),
        ([b"Connection: x-a", b"Connection: keep-alive", b"X-A: 1"], b""),
        ([b"TE: trailers", b"Tea: 1"], b"Tea: 1\r\n"),
        ([b"Keep-Alive: timeout=5", b"Proxy-Connection: x", b"Proxy-Authorization: y", b"A: 1"], b"A: 1\r\n"),
        ([b"Upgrade: foo", b"A: 1", b"Upgrade: bar"], b"A: 1\r\n"),
        ([b"Upgrade: h2c", b"Connection: upgrade, http2-settings", b"HTTP2-Settings: x"], b""),
        ([b"Upgrade: websocket", b"Upgrade: h2c", b"Connection: upgrade"], b""),
        ([b"Upgrade: websocket", b"Connection: upgrade"], b"Upgrade: websocket\r\n"),
        ([b"Connection: close, cookie", b"Cookie: 1"], b""),
    ],
)
def test_fields_of_this_hop_are_cut(lines: list[bytes], kept: bytes) -> None:
    assert forwarded(accepted(request(*lines))) == b"Host: a\r\n" + kept


def test_a_host_longer_than_any_name_is_refused() -> None:
    assert accepted(request(host=b"Host: " + b"a" * 255 + b":65535\r\n")).host.startswith(b"aaa")
    assert parse(request(host=b"Host: " + b"a" * 300 + b"\r\n", start=b"GET /a HTTP/1.0")) == Refusal(
        400, "bad_host"
    )
    assert parse(request(host=b"Host: " + b"a" * 300 + b"\r\n")) == Refusal(400, "bad_host")


def test_limits_hold_for_plain_and_other_heads() -> None:
    for more in (b"X: y", b"Connection: close"):
        long = request(b"A: " + b"x" * 600, more)
        assert parse(long, max_head=500) == Refusal(431, "head_too_large")
        assert parse(request(*[b"A:"] * 300, more)) == Refusal(431, "too_many_fields")
        assert isinstance(parse(request(*[b"A:"] * 198, more)), RequestHead)
        aimed = request(more, start=b"GET /" + b"x" * 500 + b" HTTP/1.1")
        assert parse(aimed, max_target=500) == Refusal(414, "target_too_long")
        assert isinstance(parse(aimed, max_target=501), RequestHead)
    assert parse(b"GET /" + b"x" * 20_000) == Refusal(414, "target_too_long")
    assert parse(request(b"A: b")[:-2] + b"A: " + b"x" * 33_000) == Refusal(431, "head_too_large")


@pytest.mark.parametrize(
    "data",
    [
        request(),
        request(b"A: b", b"Connection: close"),
        request(start=b"GET http://a/ HTTP/1.1"),
        b"\r\n" + request(),
    ],
)
def test_every_prefix_is_incomplete(data: bytes) -> None:
    for end in range(len(data)):
        assert parse(data[:end]) is None, data[:end]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"HTTP/2 200 OK\r\n\r\n", "bad_status_line"),
        (b"HTTP/1.1 2000 OK\r\n\r\n", "bad_status_line"),
        (b"HTTP/1.1 099 OK\r\n\r\n", "bad_status_line"),
        (b"HTTP/1.1  200 OK\r\n\r\n", "bad_status_line"),
        (b"HTTP/1.1 200 O\0K\r\n\r\n", "bad_status_line"),
        (b"HTTP/1.1 200 O\rK\r\n\r\n", "bad_status_line"),
        (b"garbage", "bad_status_line"),
        (b"HTTP/1.1 200 OK\nA: b\n\n", "bare_line_feed"),
        (b"HTTP/1.1 200 OK\r\nA : b\r\n\r\n", "bad_field_name"),
        (b"HTTP/1.1 200 OK\r\nA: b\rc\r\n\r\n", "bad_field_value"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "bad_content_length"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", "bad_content_length"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
         "content_length_and_transfer_encoding"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", "unknown_transfer_coding"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
         "bad_transfer_encoding"),
        (b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "bad_transfer_encoding"),
    ],
)  # fmt: skip
def test_answers_that_are_refused(data: bytes, reason: str) -> None:
    assert parse_response(data, max_head=32_768) == Refusal(502, reason)


def test_a_folded_answer_is_unfolded() -> None:
    head = parse_response(b"HTTP/1.1 200 OK\r\nA: b  \r\n\t c\r\nD: e\r\n\r\nrest", max_head=32_768)
    assert isinstance(head, ResponseHead)
    assert head.fields == b"A: b c\r\nD: e\r\n"
    assert head.raw == b"HTTP/1.1 200 OK\r\nA: b c\r\nD: e\r\n\r\n"
    assert head.size == len(b"HTTP/1.1 200 OK\r\nA: b  \r\n\t c\r\nD: e\r\n\r\n")


def test_equal_lengths_of_an_answer_become_one() -> None:
    head = parse_response(
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nA: b\r\ncontent-length: 5\r\n\r\n", max_head=999
    )
    assert isinstance(head, ResponseHead)
    assert forwarded(head) == b"Content-Length: 5\r\nA: b\r\n"


# Generated heads, and other parsers as oracles --------------------------------------------------------


def naive(data: bytes) -> tuple[bytes, bytes, bytes, list[tuple[bytes, bytes]]]:
    """Method, target, version and fields of a head that is known to be good, by splitting."""
    start, *lines = data.removesuffix(b"\r\n\r\n").split(b"\r\n")
    method, target, version = start.split(b" ")
    pairs = [(n, v.strip(b" \t")) for n, _, v in (line.partition(b":") for line in lines)]
    return method, target, version, plainly(pairs)


def plainly(fields: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Fields with the one that frames the body spelled as we send it on."""
    return [(name, plain_value(name.lower(), value)) for name, value in fields]


def plain_value(name: bytes, value: bytes) -> bytes:
    if name == b"transfer-encoding":
        return value.lower()
    if name == b"content-length" and value.isdigit() and int(value):
        return b"%d" % int(value)
    return value


def meaning(head: RequestHead) -> dict[str, object]:
    return {
        name: getattr(head, name)
        for name in (
            "method", "path", "minor", "size", "content_length", "chunked", "has_body", "keep_alive",
            "upgrade", "expect_continue", "te_trailers", "raw", "sent_target", "fields",
        )
    } | {"host": head.host.lower(), "cuts": head.cuts or None, "forwarded": head.forwarded}  # fmt: skip


@given(request_heads())
@example(request(b"Upgrade: a", b"A: b", b"Upgrade: c"))
def test_generated_heads_are_accepted_as_they_are(data: bytes) -> None:
    head = parse(data + b"next")
    if isinstance(head, Refusal):  # two framings are too many
        assert head.reason in {
            "content_length_and_transfer_encoding",
            "bad_content_length",
            "bad_transfer_encoding",
        }
        return
    assert head is not None
    method, target, _, fields = naive(data)
    assert (head.method, head.sent_target, head.size) == (method, target, len(data))
    assert [(n, v) for n, v in field_lines(head.fields)] == fields
    options = {
        o.strip(b" \t") for n, v in fields if n.lower() == b"connection" for o in v.lower().split(b",")
    }
    gone = {
        b"connection",
        b"te",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authorization",
        b"http2-settings",
    }
    gone |= options - {b"upgrade"} | (set() if head.upgrade else {b"upgrade"})
    assert [(n, v) for n, v in field_lines(forwarded(head))] == [
        f for f in fields if f[0].lower() not in gone
    ]


@given(request_heads())
def test_what_is_forwarded_means_the_same_again(data: bytes) -> None:
    first = parse(data)
    if not isinstance(first, RequestHead):
        return
    again = accepted(b"%b %b HTTP/1.1\r\n%b\r\n" % (first.method, first.sent_target, forwarded(first)))
    same = ("method", "path", "content_length", "chunked", "has_body", "expect_continue")
    assert [getattr(again, name) for name in same] == [getattr(first, name) for name in same]
    assert again.sent_target == first.sent_target
    assert forwarded(again) in {forwarded(first), without_upgrade(forwarded(first))}


def without_upgrade(fields: bytes) -> bytes:
    """An Upgrade without its Connection, which the pipeline writes anew, is cut the second time."""
    lines = fields.split(b"\r\n")[:-1]
    return b"".join(line + b"\r\n" for line in lines if not line.lower().startswith(b"upgrade:"))


@given(request_heads() | dirty_request_heads())
def test_the_plain_way_and_the_other_way_agree(data: bytes) -> None:
    fast = parse(data)
    slow = subject._parse_any_request(data, 32_768, 16_384, 200)
    if isinstance(fast, RequestHead) and fast.plain:
        assert isinstance(slow, RequestHead)
        assert meaning(fast) == meaning(slow)
        assert not fast.upgrade
    else:
        assert type(fast) is type(slow)


@given(response_heads())
def test_the_plain_way_and_the_other_way_agree_on_answers(data: bytes) -> None:
    fast = parse_response(data, max_head=32_768)
    slow = subject._parse_any_response(data, 32_768)
    if isinstance(fast, ResponseHead) and fast.plain:
        assert isinstance(slow, ResponseHead)
        for name in ("status", "raw", "size", "content_length", "chunked", "keep_alive", "upgrade", "minor"):
            assert getattr(fast, name) == getattr(slow, name), name
        assert (fast.cuts or None) == (slow.cuts or None)
        assert fast.status >= 200
        assert fast.content_length >= 0
        assert fast.keep_alive
    else:
        assert type(fast) is type(slow)


@given(dirty_request_heads())
def test_what_we_accept_h11_reads_the_same_way(data: bytes) -> None:
    head = parse(data)
    if not isinstance(head, RequestHead) or head.target is not None:
        return
    theirs = by_h11(data.removeprefix(b"\r\n"))
    ours = (head.method, head.sent_target, fields_of(head))
    if isinstance(theirs, str):
        assert any(theirs.startswith(known) and true(head) for known, true in H11_REFUSES.items()), theirs
    else:
        assert theirs == ours


H11_REFUSES: dict[str, Callable[[RequestHead], bool]] = {
    "illegal request line": lambda head: not head.sent_target.isascii(),
    "illegal header line": lambda head: any(c in head.raw for c in b"\x80\x85\xa0\xe9\xff\xc3"),
}
"""What h11 refuses and we pass on, as RFC 9110 lets us: bytes of 0x80 and above, untouched."""


def fields_of(head: RequestHead) -> list[tuple[bytes, bytes]]:
    return [(name.lower(), value) for name, value in field_lines(head.fields)]


def by_h11(data: bytes) -> tuple[bytes, bytes, list[tuple[bytes, bytes]]] | str:
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    connection.receive_data(data)
    try:
        event = connection.next_event()
    except h11.RemoteProtocolError as problem:
        return str(problem)
    if not isinstance(event, h11.Request):
        return "incomplete"
    return event.method, event.target, plainly([(bytes(n), bytes(v)) for n, v in event.headers])


class Heard:
    """What llhttp, through httptools, makes of some bytes."""

    def __init__(self) -> None:
        self.target = b""
        self.fields: list[tuple[bytes, bytes]] = []
        self.heads = 0
        self.messages = 0

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name, value))

    def on_headers_complete(self) -> None:
        self.heads += 1

    def on_message_complete(self) -> None:
        self.messages += 1


def by_httptools(data: bytes) -> tuple[bytes, bytes, list[tuple[bytes, bytes]]] | str:
    heard = Heard()
    parser = httptools.HttpRequestParser(heard)
    try:
        parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        pass
    except httptools.HttpParserError as problem:
        if not heard.heads:
            return str(problem)
    fields = plainly([(name.lower(), value.rstrip(b" \t")) for name, value in heard.fields])
    return parser.get_method(), heard.target, fields


KNOWN_METHODS = {b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"TRACE"}
HTTPTOOLS_REFUSES: dict[str, Callable[[RequestHead], bool]] = {
    "Invalid char in url path": lambda head: not head.sent_target.isascii(),
    "Invalid char in url query": lambda head: not head.sent_target.isascii(),
    "Invalid characters in url": lambda head: not head.sent_target.isascii(),
    "Invalid method encountered": lambda head: head.method not in KNOWN_METHODS,
    "Expected space after method": lambda head: head.method not in KNOWN_METHODS,
    "Invalid character in method": lambda head: head.method not in KNOWN_METHODS,
    "Empty Content-Length": lambda head: False,
}


@given(dirty_request_heads())
def test_what_we_accept_httptools_reads_the_same_way(data: bytes) -> None:
    head = parse(data)
    if not isinstance(head, RequestHead) or head.target is not None:
        return
    theirs = by_httptools(data)
    if isinstance(theirs, str):
        assert any(theirs.startswith(known) and true(head) for known, true in HTTPTOOLS_REFUSES.items()), (
            theirs
        )
    else:
        assert theirs == (head.method, head.sent_target, fields_of(head))


@given(request_heads(ascii_targets))
def test_generated_ascii_heads_are_accepted_by_all_three(data: bytes) -> None:
    head = parse(data)
    if isinstance(head, RequestHead):
        assert by_httptools(data) == (head.method, head.sent_target, fields_of(head))


# httptools' verdict is not ours ----------------------------------------------------------------------


def httptools_answers(data: bytes) -> tuple[int, int]:
    """Heads and whole messages that httptools finds in the bytes of answers."""
    heard = Heard()
    parser = httptools.HttpResponseParser(heard)
    parser.feed_data(data)
    return heard.heads, heard.messages


def test_httptools_has_no_head_mode() -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
    assert httptools_answers(answer) == (1, 0)  # waits for a body that HEAD never brings
    ours = parse_response(answer, max_head=999)
    assert isinstance(ours, ResponseHead)
    assert ours.size == len(answer)  # the head is the head; the exchange knows its method


def test_httptools_accepts_transfer_encoding_in_http_1_0() -> None:
    data = b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert not isinstance(by_httptools(data), str)
    assert parse(data) == Refusal(400, "transfer_encoding_in_http_1_0")


def test_httptools_accepts_gzip_chunked() -> None:
    data = request(b"Transfer-Encoding: gzip, chunked", start=b"POST / HTTP/1.1")
    assert not isinstance(by_httptools(data), str)
    assert parse(data) == Refusal(501, "unknown_transfer_coding")


def test_httptools_accepts_http_2_0() -> None:
    data = request(start=b"GET / HTTP/2.0")
    assert not isinstance(by_httptools(data), str)
    assert parse(data) == Refusal(505, "http_version")


def test_httptools_accepts_an_unsolicited_second_response() -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    assert httptools_answers(answer * 2) == (2, 2)
    ours = parse_response(answer * 2, max_head=999)
    assert isinstance(ours, ResponseHead)
    assert ours.size == len(answer)  # what lies behind it stays visible


def test_httptools_parses_several_messages_in_one_call() -> None:
    heard = Heard()
    httptools.HttpRequestParser(heard).feed_data(request() * 3)
    assert heard.messages == 3
    assert accepted(request() * 3).size == len(request())


def test_httptools_rejects_utf_8_targets() -> None:
    data = request(start="GET /é HTTP/1.1".encode())
    assert isinstance(by_httptools(data), str)
    assert accepted(data).sent_target == "/é".encode()


def test_httptools_rejects_unknown_methods() -> None:
    data = request(start=b"FROBNICATE / HTTP/1.1")
    assert isinstance(by_httptools(data), str)
    assert accepted(data).method == b"FROBNICATE"


# Cost ------------------------------------------------------------------------------------------------

HOSTILE: dict[str, Callable[[int], bytes]] = {
    "many fields": lambda n: request(*[b"A: b"] * (n // 6)),
    "one long value": lambda n: request(b"A: " + b"x" * n),
    "one long value that fails": lambda n: request(b"A: " + b"x" * n + b"\0"),
    "one long name that fails": lambda n: request(b"A" * n),
    "a long target that fails": lambda n: request(start=b"GET /" + b"x" * n + b"# HTTP/1.1"),
    "near misses": lambda n: request(*[b"Content-Lengt: 1", b"Hos: x", b"Connectio: x"] * (n // 40)),
    "many connection fields": lambda n: request(*[b"Connection: keep-alive"] * (n // 24)),
    "many connection options": lambda n: request(b"Connection: " + b"x," * (n // 2)),
    "many options and many fields": lambda n: request(
        b"Connection: " + b"x," * (n // 4), *[b"A: b"] * (n // 12)
    ),
    "many options of 1.0": lambda n: request(
        b"Connection: " + b"x,keep-alive," * (n // 13), start=b"GET / HTTP/1.0"
    ),
    "many te fields": lambda n: request(*[b"TE: x"] * (n // 7)),
    "many forwarded fields": lambda n: request(*[b"X-Forwarded-For: x"] * (n // 20)),
    "blanks": lambda n: request(b"A:" + b" " * n),
    "blanks before a length": lambda n: request(b"Content-Length:" + b" " * n + b"1"),
    "blanks after a length": lambda n: request(b"Content-Length: 1" + b" " * n + b"x"),
    "a long host": lambda n: request(host=b"Host: " + b"a" * n + b"!" + b"\r\n"),
    "empty lines": lambda n: b"\r\n" * (n // 2),
    "no end": lambda n: request(b"A: " + b"x" * n)[:-3],
}
HOSTILE_ANSWERS: dict[str, Callable[[int], bytes]] = {
    "many fields": lambda n: b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * (n // 6) + b"\r\n",
    "a long value that fails": lambda n: b"HTTP/1.1 200 OK\r\nA: " + b"x" * n + b"\0\r\n\r\n",
    "blanks and a fault": lambda n: b"HTTP/1.1 200 OK\r\nA: " + b" " * n + b"\0\r\n\r\n",
    "folds": lambda n: b"HTTP/1.1 200 OK\r\nA: b" + b"\r\n " * (n // 3) + b"\r\n\r\n",
    "many lengths": lambda n: b"HTTP/1.1 200 OK\r\n" + b"Content-Length: 1\r\n" * (n // 19) + b"\r\n",
}  # fmt: skip


def fastest(call: Callable[[], object]) -> float:
    best = 1e9
    for _ in range(5):
        began = time.thread_time()
        call()
        best = min(best, time.thread_time() - began)
    return best


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_heads_cost_linear_time(kind: str) -> None:
    small, large = HOSTILE[kind](20_000), HOSTILE[kind](160_000)
    limits = {"max_head": 1 << 20, "max_target": 1 << 20, "max_fields": 1 << 20}
    before, after = fastest(lambda: parse(small, **limits)), fastest(lambda: parse(large, **limits))
    assert after < 30 * before + 0.0005, f"8 times the bytes took {after / before:.0f} times as long"


@pytest.mark.parametrize("kind", HOSTILE_ANSWERS)
def test_hostile_answers_cost_linear_time(kind: str) -> None:
    small, large = HOSTILE_ANSWERS[kind](20_000), HOSTILE_ANSWERS[kind](160_000)
    before = fastest(lambda: parse_response(small, max_head=1 << 20))
    after = fastest(lambda: parse_response(large, max_head=1 << 20))
    assert after < 30 * before + 0.0005, f"8 times the bytes took {after / before:.0f} times as long"
