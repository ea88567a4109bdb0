"""The requests: every class of request smuggling and every liberty a proxy could take, as raw bytes.

A target that begins with `/evil` is never a request of the client: no backend may ever see one.
`RFC 9112` is HTTP/1.1, `RFC 9110` its semantics; advisories are named where a case comes from one.
"""

from __future__ import annotations

from tests.differential.case import HOST, Case, chunked, get, passes, post, refused
from tests.differential.proxies import LIMIT_BODY
from tests.differential.wire import SENTINEL, Do, Until

EVIL = b"GET /evil HTTP/1.1\r\nHost: a.test\r\n\r\n"
LONG = b"a" * 9000
BASE64_FRAME = bytes(range(1, 10))

START_LINE = (
    passes("plain", get(), "RFC 9112 §3"),
    passes("one empty line before", b"\r\n" + get(), "RFC 9112 §2.2", backend=get()),
    refused("LF before", b"\n" + get(), "RFC 9112 §2.2"),
    refused("CR before", b"\r" + get(), "RFC 9112 §2.2"),
    refused("space before", b" " + get(), "RFC 9112 §2.2"),
    refused("two spaces after method", get().replace(b"GET ", b"GET  "), "RFC 9112 §3"),
    refused("two spaces before version", get().replace(b" HTTP", b"  HTTP"), "RFC 9112 §3"),
    refused("tab after method", get().replace(b"GET ", b"GET\t"), "RFC 9112 §3"),
    refused("space after version", get().replace(b"HTTP/1.1", b"HTTP/1.1 ", 1), "RFC 9112 §3"),
    refused("vertical tab before version", get().replace(b" HTTP", b"\x0bHTTP", 1), "RFC 9112 §3"),
    refused("LF ends the line", get().replace(b"1.1\r\n", b"1.1\n", 1), "RFC 9112 §2.2; CVE-2022-32214"),
    refused("CR ends the line", get().replace(b"1.1\r\n", b"1.1\r", 1), "RFC 9112 §2.2"),
    refused("CR CR LF ends the line", get().replace(b"1.1\r\n", b"1.1\r\r\n", 1), "RFC 9112 §2.2"),
    refused("LF everywhere", get().replace(b"\r\n", b"\n"), "RFC 9112 §2.2"),
    refused("HTTP/0.9", b"GET /x\r\n", "RFC 9112 §2.3"),
    refused("HTTP/0.9 with fields", b"GET /x\r\n" + HOST + b"\r\n", "RFC 9112 §2.3"),
    refused("version 1.2", get(version=b"HTTP/1.2"), "RFC 9112 §2.3", 505),
    refused("version 2.0", get(version=b"HTTP/2.0"), "RFC 9110 §15.6.6", 505),
    refused("version 0.9", get(version=b"HTTP/0.9"), "RFC 9110 §15.6.6", 505),
    refused("version 1.10", get(version=b"HTTP/1.10"), "RFC 9112 §2.3"),
    refused("version 01.1", get(version=b"HTTP/01.1"), "RFC 9112 §2.3"),
    refused("version 1", get(version=b"HTTP/1"), "RFC 9112 §2.3"),
    refused("version 1.", get(version=b"HTTP/1."), "RFC 9112 §2.3"),
    refused("version in lower case", get(version=b"http/1.1"), "RFC 9112 §2.3"),
    refused("another protocol", get(version=b"SIP/2.0"), "RFC 9112 §2.3"),
    refused("HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "RFC 9113 §3.4", 505),
    refused("no request line", HOST + b"\r\n", "RFC 9112 §3"),
    refused("garbage", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", "RFC 9112 §3"),
)

METHODS = (
    *(
        passes(f"method {name.decode()}", get(method=name), "RFC 9110 §9.1", methods=(name,))
        for name in (b"FOO", b"get", b"PURGE", b"PROPFIND", b"M-SEARCH", b"QUERY", b"!#$%&'*+-.^_`|~1")
    ),
    passes("method HEAD", get(method=b"HEAD"), "RFC 9110 §9.3.2", methods=(b"HEAD",)),
    passes("method DELETE without body", get(method=b"DELETE"), "RFC 9110 §9.3.5"),
    passes("method POST without length", get(method=b"POST"), "RFC 9112 §6.3"),
    passes("method of 60 letters", get(method=b"M" * 60), "RFC 9110 §9.1"),
    refused("method with NUL", get(method=b"G\x00T"), "RFC 9110 §5.6.2"),
    refused("method with obs-text", get(method=b"G\xc3\xa9T"), "RFC 9110 §5.6.2"),
    refused("method with (", get(method=b"G(T"), "RFC 9110 §5.6.2"),
    refused("method with CR", get(method=b"G\rT"), "RFC 9110 §5.6.2; CVE-2023-49082"),
    refused("method missing", b" /x HTTP/1.1\r\n" + HOST + b"\r\n", "RFC 9112 §3"),
    refused(
        "HEAD refused",
        get(method=b"HEAD", fields=b"Expect: tea\r\n"),
        "RFC 9110 §9.3.2",
        417,
        methods=(b"HEAD",),
    ),
    refused("CONNECT", b"CONNECT a.test:443 HTTP/1.1\r\n" + HOST + b"\r\n", "RFC 9110 §9.3.6", 405),
    refused("TRACE", get(method=b"TRACE"), "RFC 9110 §9.3.8", 405),
)

VERBATIM_TARGETS = {
    "%2F": b"/a%2Fb",
    "%2f": b"/a%2fb",
    "//": b"//a//b//",
    "//other.test/": b"//other.test/x",
    "..": b"/a/../b",
    ".": b"/./a/.",
    "..;": b"/a/..;/b",
    "%2e%2e": b"/a/%2e%2e/b",
    ".. above the root": b"/../../x",
    "%zz": b"/%zz",
    "lone %": b"/a%",
    "%00": b"/a%00b",
    "%0d%0a": b"/a%0d%0aX:%20b",
    "empty query": b"/x?",
    "two question marks": b"/x??a=b?c",
    "query with odd bytes": b"/x?a[]={b}|c\\d^`e\"<>'",
    ";p=1": b"/x;p=1;q",
    "raw UTF-8": "/caf\xe9/\u6f22".encode(),
    "raw latin-1": b"/caf\xe9",
    "byte 80": b"/\x80",
    "byte ff": b"/\xff?\xff",
    "colon and at": b"/a:b@c",
    "9000 bytes": b"/" + LONG,
}

TARGETS = (
    *(
        passes(f"target {name}", get(target), "RFC 9112 §3.2; RFC 3986 §6")
        for name, target in VERBATIM_TARGETS.items()
    ),
    refused("target with fragment", get(b"/x#frag"), "RFC 9112 §3.2"),
    refused("target with space", get(b"/a b"), "RFC 9112 §3.2"),
    refused("target with tab", get(b"/a\tb"), "RFC 9112 §3.2"),
    refused("target with NUL", get(b"/a\x00b"), "RFC 9112 §3.2"),
    refused("target with DEL", get(b"/a\x7fb"), "RFC 9112 §3.2"),
    refused("target with byte 01", get(b"/a\x01b"), "RFC 9112 §3.2"),
    refused("target with CR", get(b"/a\rb"), "RFC 9112 §3.2"),
    refused("target without slash", get(b"x"), "RFC 9112 §3.2.1"),
    refused("target is a query", get(b"?q"), "RFC 9112 §3.2.1"),
    refused("target empty", get(b""), "RFC 9112 §3"),
    passes("absolute-form", get(b"http://a.test/x?y"), "RFC 9112 §3.2.2", backend=get(b"/x?y")),
    passes("absolute-form without path", get(b"http://a.test"), "RFC 9112 §3.2.2", backend=get(b"/")),
    passes("absolute-form, query only", get(b"http://a.test?q"), "RFC 9112 §3.2.2", backend=get(b"/?q")),
    passes(
        "absolute-form, HTTP:// and A.TEST", get(b"HTTP://A.TEST/x"), "RFC 3986 §6.2.2", backend=get(b"/x")
    ),
    refused("absolute-form, other host", get(b"http://other.test/x"), "RFC 9112 §3.2.2"),
    refused("absolute-form, other port", get(b"http://a.test:81/x"), "RFC 9112 §3.2.2"),
    refused("absolute-form with user", get(b"http://u@a.test/x"), "RFC 9110 §4.2.4"),
    refused("absolute-form, empty host", get(b"http:///x"), "RFC 9110 §4.2.1"),
    refused("absolute-form, ftp", get(b"ftp://a.test/x"), "RFC 9112 §3.2.2"),
    refused("authority-form with GET", get(b"a.test:80"), "RFC 9112 §3.2.3"),
    passes("OPTIONS *", get(b"*", method=b"OPTIONS"), "RFC 9112 §3.2.4"),
    refused("GET *", get(b"*"), "RFC 9112 §3.2.4"),
    passes(
        "OPTIONS absolute-form without path",
        get(b"http://a.test", method=b"OPTIONS"),
        "RFC 9112 §3.2.4",
        backend=get(b"*", method=b"OPTIONS"),
    ),
    refused("target too long", get(b"/" + b"a" * 20_000), "RFC 9112 §3", 414),
)

HOSTS = (
    refused("Host missing", b"GET /x HTTP/1.1\r\n\r\n", "RFC 9112 §3.2"),
    refused("Host twice, equal", get(fields=HOST), "RFC 9112 §3.2; CVE-2026-34525"),
    refused("Host twice, different", get(fields=b"Host: b.test\r\n"), "RFC 9112 §3.2"),
    refused("Host twice, other case", get(fields=b"hOST: b.test\r\n"), "RFC 9112 §3.2"),
    *(
        refused(f"Host {name}", get().replace(b"a.test", value, 1), "RFC 9112 §3.2; RFC 3986 §3.2.2")
        for name, value in {
            "with user": b"u@a.test",
            "with path": b"a.test/evil",
            "with space": b"a.test b",
            "with comma": b"a.test, b.test",
            "with letters as port": b"a.test:8a",
            "with two ports": b"a.test:80:81",
            "with open bracket": b"[::1",
            "with query": b"a.test?x",
            "with fragment": b"a.test#x",
            "with backslash": b"a.test\\x",
            "in UTF-8": "\xe9.test".encode(),
        }.items()
    ),
    *(
        passes(f"Host {name}", get().replace(b"a.test", value, 1), "RFC 9110 §7.2")
        for name, value in {
            "with port": b"a.test:8080",
            "IPv6": b"[::1]:8080",
            "IPv4": b"127.0.0.1",
            "with underscore": b"a_b.test",
            "in upper case": b"A.TEST",
            "with empty port": b"a.test:",
            "with percent": b"%61.test",
            "with sub-delims": b"a.test,b!c",
            "empty": b"",
        }.items()
    ),
    passes(
        "Host last",
        b"GET /x HTTP/1.1\r\nX-First: 1\r\nHost: a.test\r\n\r\n",
        "RFC 9110 §5.3",
    ),
    passes(
        "HTTP/1.0 with Host",
        get(version=b"HTTP/1.0"),
        "RFC 9112 §2.5",
        backend=get(),
        last=True,
    ),
    passes(
        "HTTP/1.0 without Host",
        b"GET /x HTTP/1.0\r\n\r\n",
        "RFC 9112 §3.2",
        backend=b"GET /x HTTP/1.1\r\n\r\n",
        last=True,
        hosts_default=True,
    ),
    refused("HTTP/1.0, Host twice", get(fields=HOST, version=b"HTTP/1.0"), "RFC 9112 §3.2"),
    passes(
        "HTTP/1.0 keep-alive",
        get(fields=b"Connection: keep-alive\r\n", version=b"HTTP/1.0"),
        "RFC 9112 §9.3, Appendix C.2.2",
        backend=get(),
    ),
    passes(
        "HTTP/1.0 absolute-form without Host",
        b"GET http://a.test/x HTTP/1.0\r\n\r\n",
        "RFC 9112 §3.2.2",
        backend=get(),
        last=True,
    ),
)

FIELDS = (
    passes(
        "fields keep order, case and duplicates",
        get(fields=b"X-b: 1\r\nx-A: 2\r\nX-B: 3\r\nACCEPT: a/b\r\nCookie: a=1\r\nCookie: b=2\r\nX-b: 1\r\n"),
        "RFC 9110 §5.3",
    ),
    passes("nothing is invented", get(fields=b"Accept-Encoding: br\r\n"), "RFC 9110 §7.7"),
    passes("empty value", get(fields=b"X-A:\r\nX-B: \r\n"), "RFC 9112 §5"),
    passes("blanks around value", get(fields=b"X-A:  \t a b \t\r\nX-B:c\r\n"), "RFC 9112 §5.1"),
    passes("tab inside value", get(fields=b"X-A: a\tb\r\n"), "RFC 9110 §5.5"),
    passes("value in latin-1", get(fields=b"X-A: caf\xe9\r\n"), "RFC 9110 §5.5"),
    passes("value in UTF-8", get(fields="X-A: caf\xe9 \u6f22\r\n".encode()), "RFC 9110 §5.5"),
    passes("value ends in a0 and 85", get(fields=b"X-A: \xa0a\x85\xa0\r\n"), "RFC 9110 §5.5"),
    passes("name with underscore", get(fields=b"X_A: 1\r\nContent_Length: 9\r\n"), "RFC 9110 §5.1"),
    passes("name of odd token bytes", get(fields=b"!#$%&'*+-.^_`|~1: 1\r\n"), "RFC 9110 §5.1"),
    passes("100 fields", get(fields=b"".join(b"X-%d: %d\r\n" % (n, n) for n in range(99))), "RFC 9110 §5.4"),
    passes("value of 9000 bytes", get(fields=b"X-A: " + LONG + b"\r\n"), "RFC 9110 §5.4"),
    refused(
        "300 fields", get(fields=b"".join(b"X-%d: %d\r\n" % (n, n) for n in range(300))), "RFC 6585 §5", 431
    ),
    refused("head of 100 kB", get(fields=b"X-A: " + LONG * 11 + b"\r\n"), "RFC 6585 §5", 431),
    *(
        refused(f"field {name}", get(fields=line), rule)
        for name, line, rule in (
            ("space before colon", b"X-A : 1\r\n", "RFC 9112 §5.1; CVE-2021-22959"),
            ("tab before colon", b"X-A\t: 1\r\n", "RFC 9112 §5.1"),
            (
                "space before colon, Content-Length",
                b"Content-Length : 5\r\n",
                "RFC 9112 §5.1; CVE-2024-27982",
            ),
            ("space before colon, Transfer-Encoding", b"Transfer-Encoding : chunked\r\n", "RFC 9112 §5.1"),
            ("folded with space", b"X-A: 1\r\n 2\r\n", "RFC 9112 §5.2"),
            ("folded with tab", b"X-A: 1\r\n\t2\r\n", "RFC 9112 §5.2"),
            (
                "folded, Transfer-Encoding",
                b"Transfer-Encoding:\r\n chunked\r\n",
                "RFC 9112 §5.2; CVE-2022-32215",
            ),
            ("folded, blank line", b"X-A: 1\r\n \r\n", "RFC 9112 §5.2"),
            ("name empty", b": 1\r\n", "RFC 9112 §5; CVE-2023-25725"),
            ("without colon", b"X-A\r\n", "RFC 9112 §5"),
            ("name with space", b"X A: 1\r\n", "RFC 9110 §5.1"),
            ("name with NUL", b"X\x00A: 1\r\n", "RFC 9110 §5.1"),
            ("name with (", b"X(A: 1\r\n", "RFC 9110 §5.1"),
            ("name with a0", b"X-A\xa0: 1\r\n", "RFC 9110 §5.1"),
            ("name begins with 85", b"\x85X-A: 1\r\n", "RFC 9110 §5.1"),
            ("name in UTF-8", b"X-\xc3\xa9: 1\r\n", "RFC 9110 §5.1"),
            ("value with NUL", b"X-A: a\x00b\r\n", "RFC 9110 §5.5; CVE-2023-37276"),
            ("value with 01", b"X-A: a\x01b\r\n", "RFC 9110 §5.5"),
            ("value with DEL", b"X-A: a\x7fb\r\n", "RFC 9110 §5.5"),
            ("value with vertical tab", b"X-A: \x0ba\r\n", "RFC 9110 §5.5"),
            ("value with CR", b"X-A: a\rX-B: b\r\n", "RFC 9112 §2.2; CVE-2023-30589"),
            ("value with LF", b"X-A: a\nX-B: b\r\n", "RFC 9112 §2.2; CVE-2022-32214"),
            ("ends in CR CR LF", b"X-A: a\r\r\n", "RFC 9112 §2.2"),
            ("block ends in LF", b"X-A: a\r\n\nGET /evil HTTP/1.1\r\n", "RFC 9112 §2.2"),
            ("block ends in CR X", b"X-A: a\r\n\rX: 1\r\n", "RFC 9112 §2.2; CVE-2025-23167"),
            ("block ends in LF LF", b"X-A: a\n\nGET /evil HTTP/1.1\r\n", "RFC 9112 §2.2"),
        )
    ),
    refused(
        "first field begins with a space",
        b"GET /x HTTP/1.1\r\n Host: a.test\r\n\r\n",
        "RFC 9112 §2.2",
    ),
)

LENGTHS = (
    passes("length", post(b"Content-Length: 3\r\n", b"abc"), "RFC 9112 §6.2"),
    passes("length 0", post(b"Content-Length: 0\r\n", b""), "RFC 9112 §6.2"),
    passes("length 0 on GET", get(fields=b"Content-Length: 0\r\n"), "RFC 9110 §8.6"),
    passes(
        "length with leading zeros",
        post(b"Content-Length: 003\r\n", b"abc"),
        "RFC 9110 §8.6",
        backend=post(b"Content-Length: 3\r\n", b"abc"),
    ),
    passes("length behind a tab", post(b"Content-Length:\t3\r\n", b"abc"), "RFC 9112 §5.1"),
    passes("length without a blank", post(b"Content-Length:3\r\n", b"abc"), "RFC 9112 §5.1"),
    passes("length in odd case", post(b"cOnTeNt-LeNgTh: 3\r\n", b"abc"), "RFC 9110 §5.1"),
    passes("GET with body", get(fields=b"Content-Length: 3\r\n") + b"abc", "RFC 9110 §9.3.1"),
    passes(
        "DELETE with body", get(method=b"DELETE", fields=b"Content-Length: 3\r\n") + b"abc", "RFC 9110 §9.3.5"
    ),
    passes("body looks like a request", post(b"Content-Length: %d\r\n" % len(EVIL), EVIL), "RFC 9112 §6.2"),
    passes("body of all bytes", post(b"Content-Length: 256\r\n", bytes(range(256))), "RFC 9110 §6.4"),
    passes("body of 300 kB", post(b"Content-Length: 300000\r\n", b"0123456789" * 30_000), "RFC 9112 §6.2"),
    passes(
        "gzip body",
        post(b"Content-Encoding: gzip\r\nContent-Length: 4\r\n", b"\x1f\x8b\x08\x00"),
        "RFC 9110 §8.4",
    ),
    *(
        refused(f"length {name}", post(b"Content-Length:" + value + b"\r\n", b"abc"), rule)
        for name, value, rule in (
            ("+3", b" +3", "RFC 9110 §8.6; CVE-2023-47627"),
            ("-3", b" -3", "RFC 9110 §8.6"),
            ("0x3", b" 0x3", "RFC 9110 §8.6; CVE-2023-38697"),
            ("1_0", b" 1_0", "RFC 9110 §8.6; CVE-2023-47627"),
            ("3.0", b" 3.0", "RFC 9110 §8.6"),
            ("3e0", b" 3e0", "RFC 9110 §8.6"),
            ("3 3", b" 3 3", "RFC 9110 §8.6"),
            ("3;a", b" 3;a", "RFC 9110 §8.6"),
            ('"3"', b' "3"', "RFC 9110 §8.6"),
            ("empty", b"", "RFC 9110 §8.6; CVE-2023-40225"),
            ("3, 3", b" 3, 3", "RFC 9112 §6.3"),
            ("3, 4", b" 3, 4", "RFC 9112 §6.3"),
            ("comma 3", b" ,3", "RFC 9112 §6.3"),
            ("twice, equal", b" 3\r\nContent-Length: 3", "RFC 9112 §6.3"),
            ("twice, different", b" 3\r\nContent-Length: 40", "RFC 9112 §6.3"),
            ("twice, second empty", b" 3\r\nContent-Length:", "RFC 9112 §6.3"),
            ("in Arabic digits", " \u0663".encode(), "RFC 9110 §8.6; CVE-2025-69224"),
            ("in superscript latin-1", b" \xb3", "RFC 9110 §8.6; CVE-2025-69224"),
            ("with a0", b" 3\xa0", "RFC 9110 §8.6"),
            ("with 85", b" \x853", "RFC 9110 §8.6"),
            ("with vertical tab", b" 3\x0b", "RFC 9110 §5.5"),
            ("with NUL", b" 3\x00", "RFC 9110 §5.5"),
            ("of 2^64 + 3", b" 18446744073709551619", "RFC 9112 §6.3"),
            ("of 40 digits", b" " + b"0" * 39 + b"3", "RFC 9112 §6.3"),
        )
    ),
)

CODINGS = (
    passes("chunked", chunked(b"3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n"), "RFC 9112 §7.1"),
    passes("chunked, empty", chunked(b"0\r\n\r\n"), "RFC 9112 §7.1"),
    passes(
        "chunked on GET",
        get(fields=b"Transfer-Encoding: chunked\r\n") + b"1\r\na\r\n0\r\n\r\n",
        "RFC 9112 §6.3",
    ),
    passes(
        "Chunked in capitals",
        post(b"Transfer-Encoding: CHUNKED\r\n", b"3\r\nabc\r\n0\r\n\r\n"),
        "RFC 9112 §7",
        backend=chunked(b"3\r\nabc\r\n0\r\n\r\n"),
    ),
    passes(
        "blanks around chunked",
        post(b"Transfer-Encoding: \t chunked \t\r\n", b"3\r\nabc\r\n0\r\n\r\n"),
        "RFC 9112 §5.1",
        backend=chunked(b"3\r\nabc\r\n0\r\n\r\n"),
    ),
    passes("Transfer_Encoding is no coding", get(fields=b"Transfer_Encoding: chunked\r\n"), "RFC 9110 §5.1"),
    *(
        refused(f"coding {name}", post(b"Transfer-Encoding:" + value + b"\r\n", b"0\r\n\r\n"), rule, status)
        for name, value, rule, status in (
            ("chunked, chunked", b" chunked, chunked", "RFC 9112 §6.1", 501),
            ("chunked twice", b" chunked\r\nTransfer-Encoding: chunked", "RFC 9112 §6.1", 400),
            ("chunked then identity", b" chunked\r\nTransfer-Encoding: identity", "RFC 9112 §6.1", 400),
            ("comma chunked", b" ,chunked", "RFC 9112 §6.1", 501),
            ("chunked comma", b" chunked,", "RFC 9112 §6.1", 501),
            ("gzip, chunked", b" gzip, chunked", "RFC 9112 §6.1", 501),
            ("chunked, gzip", b" chunked, gzip", "RFC 9112 §6.1", 501),
            ("gzip", b" gzip", "RFC 9112 §6.1", 501),
            ("identity", b" identity", "RFC 9112 §6.1", 501),
            ("xchunked", b" xchunked", "RFC 9112 §6.1; CVE-2022-32213", 501),
            ("chunkedx", b" chunkedx", "RFC 9112 §6.1", 501),
            ("chunked;q=1", b" chunked;q=1", "RFC 9112 §7", 501),
            ('"chunked"', b' "chunked"', "RFC 9112 §7", 501),
            ("empty", b"", "RFC 9112 §6.1", 400),
            ("a0 chunked", b" \xa0chunked", "RFC 9112 §6.1", 501),
            ("chunked 85", b" chunked\x85", "RFC 9112 §6.1", 501),
            ("chunked NUL", b" chunked\x00", "RFC 9110 §5.5", 400),
            ("VT chunked", b" \x0bchunked", "RFC 9110 §5.5", 400),
        )
    ),
    refused(
        "length and coding", chunked(b"0\r\n\r\n" + EVIL, b"Content-Length: 5\r\n"), "RFC 9112 §6.1, §11.2"
    ),
    refused(
        "coding after length",
        post(b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n" + EVIL),
        "RFC 9112 §6.1, §11.2",
    ),
    refused(
        "length and unknown coding",
        post(b"Content-Length: 3\r\nTransfer-Encoding: identity\r\n", b"abc"),
        "RFC 9112 §6.1",
        501,
    ),
    refused(
        "coding in HTTP/1.0",
        get(method=b"POST", fields=b"Transfer-Encoding: chunked\r\n", version=b"HTTP/1.0") + b"0\r\n\r\n",
        "RFC 9112 §6.1",
    ),
    refused(
        "coding and keep-alive in HTTP/1.0",
        get(
            method=b"POST",
            fields=b"Connection: keep-alive\r\nTransfer-Encoding: chunked\r\n",
            version=b"HTTP/1.0",
        )
        + b"0\r\n\r\n"
        + EVIL,
        "RFC 9112 §6.1",
    ),
)

HUGE_CHUNK = chunked(b"ffffffffffffffff\r\nabc")
GOOD_CHUNKS = chunked(b"3\r\nabc\r\n0\r\n\r\n")
CHUNKS = (
    passes("chunk size in capitals", chunked(b"A\r\n0123456789\r\n0\r\n\r\n"), "RFC 9112 §7.1"),
    passes("chunk size with leading zeros", chunked(b"0003\r\nabc\r\n000\r\n\r\n"), "RFC 9112 §7.1"),
    passes("many small chunks", chunked(b"1\r\nx\r\n" * 500 + b"0\r\n\r\n"), "RFC 9112 §7.1; CVE-2025-69229"),
    passes("chunk data looks like an end", chunked(b"5\r\n0\r\n\r\n\r\n0\r\n\r\n"), "RFC 9112 §7.1"),
    passes(
        "chunk extension",
        chunked(b'3;a=b;c="d"\r\nabc\r\n0;e\r\n\r\n'),
        "RFC 9112 §7.1.1",
        backend=GOOD_CHUNKS,
    ),
    *(
        refused(f"chunk {name}", chunked(body), rule, partial=True)
        for name, body, rule in (
            ("size 0x3", b"0x3\r\nabc\r\n0\r\n\r\n", "RFC 9112 §7.1; CVE-2023-38697"),
            ("size +3", b"+3\r\nabc\r\n0\r\n\r\n", "RFC 9112 §7.1; CVE-2023-47627"),
            ("size -3", b"-3\r\nabc\r\n0\r\n\r\n", "RFC 9112 §7.1"),
            ("size 3_", b"3_\r\nabc\r\n0\r\n\r\n", "RFC 9112 §7.1"),
            ("size g", b"g\r\nabc\r\n0\r\n\r\n", "RFC 9112 §7.1"),
            ("size empty", b"\r\nabc\r\n0\r\n\r\n", "RFC 9112 §7.1"),
            ("size ;", b";\r\nabc\r\n0\r\n\r\n", "RFC 9112 §7.1"),
            ("size after space", b" 3\r\nabc\r\n0\r\n\r\n", "RFC 9112 §7.1"),
            ("size of 17 digits", b"00000000000000003\r\nabc\r\n0\r\n\r\n", "RFC 9112 §7.1"),
            ("size of 2^64 + 3", b"10000000000000003\r\nabc\r\n0\r\n\r\n", "RFC 9112 §7.1"),
            ("size in fullwidth digits", "\uff13\r\nabc\r\n0\r\n\r\n".encode(), "CVE-2025-69224"),
            ("size line ends in LF", b"3\nabc\r\n0\r\n\r\n", "RFC 9112 §7.1"),
            ("size line ends in CR", b"3\rabc\r\n0\r\n\r\n", "RFC 9112 §7.1"),
            ("size line ends in CR CR LF", b"3\r\r\nabc\r\n0\r\n\r\n", "RFC 9112 §7.1"),
            ("extension ends in LF", b"3;a\nabc\r\n0\r\n\r\n", "RFC 9112 §7.1.1; CVE-2024-52304"),
            ("extension with CR", b"3;a\rb\r\nabc\r\n0\r\n\r\n", "RFC 9112 §7.1.1; CVE-2021-22960"),
            ("extension with quoted LF", b'3;a="\n"\r\nabc\r\n0\r\n\r\n', "RFC 9112 §7.1.1; CVE-2024-52304"),
            ("extension with NUL", b"3;a\x00\r\nabc\r\n0\r\n\r\n", "RFC 9112 §7.1.1"),
            ("extension of 100 kB", b"3;a=" + LONG * 11 + b"\r\nabc\r\n0\r\n\r\n", "RFC 9112 §7.1.1"),
            ("data ends in XX", b"3\r\nabcXX0\r\n\r\n", "RFC 9112 §7.1; CVE-2025-43859"),
            ("data ends in LF", b"3\r\nabc\n0\r\n\r\n", "RFC 9112 §7.1"),
            ("data ends in CR", b"3\r\nabc\r0\r\n\r\n", "RFC 9112 §7.1"),
            ("data too long", b"3\r\nabcd\r\n0\r\n\r\n", "RFC 9112 §7.1"),
            ("data too short", b"4\r\nabc\r\n0\r\n\r\n", "RFC 9112 §7.1"),
            ("last line ends in LF", b"3\r\nabc\r\n0\n\r\n", "RFC 9112 §7.1"),
            ("body ends in LF", b"3\r\nabc\r\n0\r\n\n", "RFC 9112 §7.1"),
            ("body ends in CR X", b"3\r\nabc\r\n0\r\n\rX", "RFC 9112 §7.1"),
        )
    ),
    Case("chunk size of 2^64 - 1", "RFC 9112 §7.1", (HUGE_CHUNK,), b"", (400,), partial=True),
)

TRAILERS = (
    passes(
        "trailers",
        chunked(b"3\r\nabc\r\n0\r\nX-Sum: 1\r\nx-sum: \xe9\r\n\r\n", b"Trailer: X-Sum\r\n"),
        "RFC 9112 §7.1.2",
    ),
    *(
        refused(f"trailer {name}", chunked(b"3\r\nabc\r\n0\r\n" + line + b"\r\n"), rule, status, partial=True)
        for name, line, rule, status in (
            ("Content-Length", b"Content-Length: 5\r\n", "RFC 9110 §6.5.1; CVE-2025-53643", 400),
            ("Transfer-Encoding", b"Transfer-Encoding: chunked\r\n", "RFC 9110 §6.5.1", 400),
            ("Host", b"Host: b.test\r\n", "RFC 9110 §6.5.1", 400),
            ("Authorization", b"Authorization: x\r\n", "RFC 9110 §6.5.1", 400),
            ("Cookie", b"Cookie: a=1\r\n", "RFC 9110 §6.5.1", 400),
            ("Connection", b"Connection: close\r\n", "RFC 9110 §6.5.1", 400),
            ("ends in LF", b"X-A: 1\n", "RFC 9112 §7.1.2", 400),
            ("with CR", b"X-A: 1\rX: 2\r\n", "RFC 9112 §7.1.2", 400),
            ("folded", b"X-A: 1\r\n 2\r\n", "RFC 9112 §5.2", 400),
            ("with space before colon", b"X-A : 1\r\n", "RFC 9112 §5.1", 400),
            ("without colon", b"GET /evil HTTP/1.1\r\n", "RFC 9112 §5; CVE-2025-53643", 400),
            ("with NUL", b"X-A: \x00\r\n", "RFC 9110 §5.5", 400),
            ("with empty name", b": 1\r\n", "RFC 9112 §5", 400),
            ("of 100 kB", b"X-A: " + LONG * 11 + b"\r\n", "CVE-2026-22815", 400),
        )
    ),
)

CLOSE = b"Connection: close\r\n"
BAD = b"GET /evil HTTP/1.1\r\nHost: a.test\r\nX-A : 1\r\n\r\n"
PIPELINES = (
    passes("two in a row", get(b"/1") + get(b"/2"), "RFC 9112 §9.3.2", client=(200, 200)),
    passes(
        "five in a row, with bodies",
        get(b"/1")
        + post(b"Content-Length: 3\r\n", b"abc", b"/2")
        + chunked(b"1\r\nx\r\n0\r\n\r\n", target=b"/3")
        + get(b"/4")
        + post(b"Content-Length: 0\r\n", b"", b"/5"),
        "RFC 9112 §9.3.2",
        client=(200,) * 5,
    ),
    passes(
        "HEAD then GET",
        get(b"/1", method=b"HEAD") + get(b"/2"),
        "RFC 9112 §9.3.2",
        client=(200, 200),
        methods=(b"HEAD", b"GET"),
    ),
    passes(
        "empty line between two",
        get(b"/1") + b"\r\n" + get(b"/2"),
        "RFC 9112 §2.2",
        backend=get(b"/1") + get(b"/2"),
        client=(200, 200),
    ),
    refused("second is bad", get(b"/1") + BAD, "RFC 9112 §9.3.2", after=get(b"/1")),
    refused("after a bad one", BAD + EVIL, "RFC 9112 §11.2; CVE-2019-20372"),
    refused(
        "after an unknown coding", post(b"Transfer-Encoding: gzip\r\n", b"") + EVIL, "RFC 9112 §11.2", 501
    ),
    refused("after 405", get(method=b"TRACE") + EVIL, "RFC 9112 §9.6", 405),
    refused("after 431", get(fields=b"X-A: " + LONG * 11 + b"\r\n") + EVIL, "RFC 6585 §5", 431),
    refused(
        "after 413",
        post(b"Content-Length: %d\r\n" % (LIMIT_BODY + 1), b"") + EVIL * 3,
        "RFC 9110 §15.5.14",
        413,
    ),
    refused(
        "413 in chunks",
        chunked(b"%x\r\n%s\r\n0\r\n\r\n" % (LIMIT_BODY + 1, b"x" * (LIMIT_BODY + 1))) + EVIL,
        "RFC 9110 §15.5.14",
        413,
        partial=True,
    ),
    passes("after Connection: close", get(fields=CLOSE) + EVIL, "RFC 9112 §9.6", backend=get(), last=True),
    passes("bad after Connection: close", get(fields=CLOSE) + BAD, "RFC 9112 §9.6", backend=get(), last=True),
    passes(
        "after HTTP/1.0",
        get(version=b"HTTP/1.0") + EVIL,
        "RFC 9112 §9.3",
        backend=get(),
        last=True,
    ),
    passes(
        "after a close among options",
        get(fields=b"Connection: x-a, CLOSE\r\n") + EVIL,
        "RFC 9112 §9.6",
        backend=get(),
        last=True,
    ),
)


def upgrade(fields: bytes) -> bytes:
    return get(b"/case", fields)


SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
WEBSOCKET = (
    b"Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
HOPS = (
    passes(
        "Connection nominates a field",
        get(fields=b"X-Secret: 1\r\nConnection: X-Secret\r\nX-Kept: 2\r\n"),
        "RFC 9110 §7.6.1",
        backend=get(fields=b"X-Kept: 2\r\n"),
    ),
    passes(
        "Connection nominates in two fields, other case",
        get(fields=b"connection: keep-alive\r\nx-a: 1\r\nX-B: 2\r\nCONNECTION: X-A , ,x-B\r\n"),
        "RFC 9110 §7.6.1",
        backend=get(),
    ),
    refused(
        "Connection nominates Content-Length",
        post(b"Connection: Content-Length\r\nContent-Length: 3\r\n", b"abc"),
        "RFC 9110 §7.6.1",
    ),
    refused("Connection nominates Host", get(fields=b"Connection: x-a, HOST\r\n"), "RFC 9110 §7.6.1"),
    passes(
        "Connection nominates Authorization and Cookie",
        get(fields=b"Connection: Authorization, Cookie\r\nAuthorization: Basic eA==\r\nCookie: a=1\r\n"),
        "RFC 9110 §7.6.1",
        backend=get(),
    ),
    refused(
        "Connection nominates Transfer-Encoding",
        chunked(b"3\r\nabc\r\n0\r\n\r\n", b"Connection: Transfer-Encoding\r\n"),
        "RFC 9110 §7.6.1",
    ),
    passes(
        "Keep-Alive and Proxy-Connection",
        get(fields=b"Keep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\n"),
        "RFC 9110 §7.6.1",
        backend=get(),
    ),
    passes(
        "TE: trailers",
        get(fields=b"TE: trailers\r\nConnection: TE\r\n"),
        "RFC 9110 §10.1.4",
        backend=get(fields=b"TE: trailers\r\n"),
    ),
    passes("TE: gzip", get(fields=b"TE: gzip;q=1\r\nConnection: TE\r\n"), "RFC 9110 §10.1.4", backend=get()),
    passes(
        "Proxy-Authorization",
        get(fields=b"Proxy-Authorization: Basic eA==\r\n"),
        "RFC 9110 §11.7.2",
        backend=get(),
    ),
    passes(
        "Upgrade without Connection", get(fields=b"Upgrade: websocket\r\n"), "RFC 9110 §7.8", backend=get()
    ),
    passes(
        "h2c upgrade",
        get(fields=b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQ\r\n"),
        "RFC 9113 §3.1",
        backend=get(),
    ),
    passes(
        "h2c among upgrades",
        get(fields=b"Connection: Upgrade\r\nUpgrade: h2c, H2C\r\nHTTP2-Settings: AAMA\r\n"),
        "RFC 9113 §3.1",
        backend=get(),
    ),
    Case(
        "upgrade accepted",
        "RFC 9110 §7.8; RFC 6455",
        (upgrade(WEBSOCKET), Until(b"\r\n\r\n"), BASE64_FRAME, Until(b"pong"), Do.HALF_CLOSE),
        upgrade(WEBSOCKET),
        (101,),
        script=(SWITCH, Until(BASE64_FRAME), b"pong", Do.CLOSE),
        answer=SWITCH + b"pong",
    ),
    Case(
        "upgrade accepted, first frame in the head's segment",
        "RFC 9110 §7.8",
        (upgrade(WEBSOCKET), Until(b"ping"), BASE64_FRAME, Until(b"pong"), Do.HALF_CLOSE),
        upgrade(WEBSOCKET),
        (101,),
        script=(SWITCH + b"ping", Until(BASE64_FRAME), b"pong", Do.CLOSE),
        answer=SWITCH + b"pingpong",
    ),
    passes("upgrade declined", get(fields=WEBSOCKET), "RFC 9110 §7.8"),
    passes(
        "upgrade declined, request behind it",
        get(b"/1", WEBSOCKET) + get(b"/2"),
        "RFC 9110 §7.8",
        client=(200, 200),
    ),
    passes("Trailer without trailers", get(fields=b"Trailer: X-Sum\r\n"), "RFC 9110 §6.6.2"),
    passes("Via is kept", get(fields=b"Via: 1.1 cdn\r\n"), "RFC 9110 §7.6.3"),
    passes("Max-Forwards", get(fields=b"Max-Forwards: 5\r\n"), "RFC 9110 §7.6.2"),
    passes(
        "conditional and range fields",
        get(fields=b'If-None-Match: "a", W/"b"\r\nRange: bytes=0-\r\nIf-Range: "a"\r\n'),
        "RFC 9110 §13, §14",
    ),
)

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nX-From: backend\r\nContent-Length: 2\r\n\r\nok"
EXPECTING = post(b"Expect: 100-continue\r\nContent-Length: 3\r\n", b"", b"/case")
EXPECT = (
    Case(
        "Expect, backend continues",
        "RFC 9110 §10.1.1",
        (EXPECTING, Until(b"100 "), b"abc", SENTINEL),
        EXPECTING + b"abc",
        (100, 200),
        script=(Do.AT_HEAD, CONTINUE, Do.BODY, OK),
        answer=CONTINUE + OK,
        sentinel=True,
    ),
    Case(
        "Expect, backend is silent",
        "RFC 9110 §10.1.1",
        (EXPECTING, Until(b"100 "), b"abc", SENTINEL),
        EXPECTING + b"abc",
        (100, 200),
        script=(Do.BODY, OK),
        answer=CONTINUE + OK,
        sentinel=True,
    ),
    Case(
        "Expect, backend refuses",
        "RFC 9110 §10.1.1",
        (EXPECTING, Until(b"no\r\n")),
        EXPECTING,
        (403,),
        script=(
            Do.AT_HEAD,
            b"HTTP/1.1 403 Forbidden\r\nX-From: backend\r\nContent-Length: 4\r\n\r\nno\r\n",
            Do.CLOSE,
        ),
        answer=b"HTTP/1.1 403 Forbidden\r\nX-From: backend\r\nContent-Length: 4\r\n\r\nno\r\n",
        partial=True,
        deadline=1.0,
    ),
    Case(
        "Expect, backend continues, then fails",
        "RFC 9110 §10.1.1",
        (EXPECTING, Until(b"100 "), b"abc", Until(b"boom")),
        EXPECTING + b"abc",
        (100, 500),
        script=(
            Do.AT_HEAD,
            CONTINUE,
            Do.BODY,
            b"HTTP/1.1 500 Oops\r\nX-From: backend\r\nConnection: close\r\n\r\nboom",
            Do.CLOSE,
        ),
        answer=CONTINUE + b"HTTP/1.1 500 Oops\r\nX-From: backend\r\n\r\nboom",
    ),
    Case(
        "Expect, body sent at once",
        "RFC 9110 §10.1.1",
        (EXPECTING + b"abc" + SENTINEL,),
        EXPECTING + b"abc",
        (100, 200),
        script=(Do.AT_HEAD, CONTINUE, Do.BODY, OK),
        answer=CONTINUE + OK,
        sentinel=True,
    ),
    refused("Expect something else", get(fields=b"Expect: tea\r\n"), "RFC 9110 §10.1.1", 417),
    passes(
        "Expect without body",
        get(fields=b"Expect: 100-continue\r\n"),
        "RFC 9110 §10.1.1",
    ),
    passes(
        "Expect in HTTP/1.0",
        get(method=b"POST", fields=b"Expect: 100-continue\r\nContent-Length: 3\r\n", version=b"HTTP/1.0")
        + b"abc",
        "RFC 9110 §10.1.1",
        backend=post(b"Content-Length: 3\r\n", b"abc"),
        last=True,
    ),
)

ENDINGS = (
    Case("half-close after a request", "RFC 9112 §9.6", (get(), Do.HALF_CLOSE), get(), (200,)),
    Case(
        "half-close after a body",
        "RFC 9112 §9.6",
        (post(b"Content-Length: 3\r\n", b"abc"), Do.HALF_CLOSE),
        post(b"Content-Length: 3\r\n", b"abc"),
        (200,),
    ),
    Case(
        "half-close reaches the backend",
        "RFC 9112 §9.6",
        (get(b"/case"), Do.HALF_CLOSE),
        get(b"/case"),
        (200,),
        script=(Do.PEER_EOF, OK),
        answer=OK,
    ),
    Case(
        "half-close after two requests",
        "RFC 9112 §9.6",
        (get(b"/1") + get(b"/2"), Do.HALF_CLOSE),
        get(b"/1") + get(b"/2"),
        (200, 200),
    ),
    Case(
        "head cut off by half-close",
        "RFC 9112 §8",
        (get()[:-6], Do.HALF_CLOSE),
        b"",
        (),
    ),
    Case("nothing but half-close", "RFC 9112 §8", (Do.HALF_CLOSE,), b"", ()),
    Case(
        "body cut off by half-close",
        "RFC 9112 §8",
        (post(b"Content-Length: 10\r\n", b"abc"), Do.HALF_CLOSE),
        b"",
        (),
        partial=True,
    ),
    Case(
        "chunked body cut off by half-close",
        "RFC 9112 §8",
        (chunked(b"3\r\nabc\r\n"), Do.HALF_CLOSE),
        b"",
        (),
        partial=True,
    ),
    Case(
        "chunked body cut off before its last line",
        "RFC 9112 §8",
        (chunked(b"3\r\nabc\r\n0\r\n"), Do.HALF_CLOSE),
        b"",
        (),
        partial=True,
    ),
    Case(
        "body cut off by reset",
        "RFC 9112 §8",
        (post(b"Content-Length: 10\r\n", b"abc"), Do.RESET),
        b"",
        (),
        partial=True,
    ),
    Case("head never ends", "RFC 9110 §15.5.9", (get()[:-4],), b"", (408,)),
    Case(
        "body never ends",
        "RFC 9110 §15.5.9",
        (post(b"Content-Length: 10\r\n", b"abc"),),
        b"",
        (408,),
        partial=True,
    ),
    Case("silence", "RFC 9112 §9.5", (), b"", ()),
)

REQUESTS: tuple[Case, ...] = (
    *START_LINE,
    *METHODS,
    *TARGETS,
    *HOSTS,
    *FIELDS,
    *LENGTHS,
    *CODINGS,
    *CHUNKS,
    *TRAILERS,
    *PIPELINES,
    *HOPS,
    *EXPECT,
    *ENDINGS,
)
