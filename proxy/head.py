"""Read message heads: start line and fields, strictly, in one pass of the regex engine.

Why not llhttp: it calls back into Python for every field, parses several messages in one call, has
no notion of HEAD, and its verdict is not ours (`docs/decisions/0002-own-head-parser.md` has the
list and the measurements). Two expressions describe everything that is accepted; whatever they do
not match is refused, and only then looked at again to say why. All repetitions are possessive
(`*+`, `++`), so a hostile head costs linear time.

A head that passes is split at no field: what this hop must understand is found by name, and what it
must not pass on is remembered as spans (`cuts`). This is the hottest code of the house; the plain
case runs straight through, and everything unusual is a function of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

from core.http import Refusal, RequestHead, ResponseHead

TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
_VALUE = rb"[\t\x20-\x7e\x80-\xff]"
_FIELDS = rb"((?:" + TOKEN + rb"++:" + _VALUE + rb"*+\r\n)*+)\r\n"

_REQUEST = re.compile(
    rb"(" + TOKEN + rb"++) (/[\x21\x22\x24-\x3e\x40-\x7e\x80-\xff]*+)(?:\?[\x21\x22\x24-\x7e\x80-\xff]*+)?"
    rb" HTTP/1\.([01])\r\n" + _FIELDS
)
_OTHER_TARGET = re.compile(
    rb"(" + TOKEN + rb"++) ([\x21\x22\x24-\x2e\x30-\x7e\x80-\xff][\x21\x22\x24-\x7e\x80-\xff]*+)"
    rb" HTTP/1\.([01])\r\n" + _FIELDS
)
_RESPONSE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: " + _VALUE + rb"*+)?\r\n" + _FIELDS)

# The plain case, which is nearly all traffic, in one expression each: besides fields that are none of
# our business, a plain request has one Host and perhaps `Connection: keep-alive` and a Content-Length,
# a plain answer has one Content-Length and perhaps the same Connection. The first letter decides whether
# a name has to be looked at.
_KEEP_ALIVE = rb"(?:([Cc]onnection: [Kk]eep-[Aa]live\r\n)%b)?+"
_REQUEST_OTHERS = (
    rb"(?:(?:[!#$%&'*+\-.^_`|~0-9ABDGIJLMNOQRSVWYZabdgijlmnoqrsvwyz]"
    rb"|[Cc](?!(?i:onnection|ontent-length):)|[Uu](?!(?i:pgrade):)|[Hh](?!(?i:ost|ttp2-settings):)"
    rb"|[Tt](?!(?i:e|ransfer-encoding):)|[Xx](?!(?i:[-_](?:forwarded|crossfade)[-_]))|[Ee](?!(?i:xpect):)"
    rb"|[Kk](?!(?i:eep-alive):)|[Pp](?!(?i:roxy-))|[Ff](?!(?i:orwarded):))"
    + TOKEN + rb"*+:" + _VALUE + rb"*+\r\n)*+"
)  # fmt: skip
_PLAIN_REQUEST = re.compile(
    rb"(?!HEAD |TRACE |CONNECT )(" + TOKEN + rb"++) (/[\x21\x22\x24-\x3e\x40-\x7e\x80-\xff]*+)"
    rb"(?:\?[\x21\x22\x24-\x7e\x80-\xff]*+)? HTTP/1\.1\r\n()"
    + _REQUEST_OTHERS + _KEEP_ALIVE % _REQUEST_OTHERS
    + rb"[Hh]ost: ([0-9A-Za-z.\-]{1,255}+(?::[0-9]{0,5}+)?)\r\n"
    + _REQUEST_OTHERS + _KEEP_ALIVE % _REQUEST_OTHERS
    + rb"(?:[Cc]ontent-[Ll]ength: (0|[1-9][0-9]{0,17})\r\n" + _REQUEST_OTHERS + rb")?+\r\n"
)  # fmt: skip
_RESPONSE_OTHERS = (
    rb"(?:(?:[!#$%&'*+\-.^_`|~0-9ABDE-JL-OQRSV-Zabde-jl-oqrsv-z]"
    rb"|[Cc](?!(?i:onnection|ontent-length):)|[Tt](?!(?i:ransfer-encoding):)|[Kk](?!(?i:eep-alive):)"
    rb"|[Uu](?!(?i:pgrade):)|[Pp](?!(?i:roxy-connection):))"
    + TOKEN + rb"*+:" + _VALUE + rb"*+\r\n)*+"
)  # fmt: skip
_PLAIN_RESPONSE = re.compile(
    rb"HTTP/1\.1 (?!204|304)([2345][0-9]{2})(?: " + _VALUE + rb"*+)?\r\n()"
    + _RESPONSE_OTHERS + _KEEP_ALIVE % _RESPONSE_OTHERS
    + rb"[Cc]ontent-[Ll]ength: (0|[1-9][0-9]{0,17})\r\n"
    + _RESPONSE_OTHERS + _KEEP_ALIVE % _RESPONSE_OTHERS + rb"\r\n"
)  # fmt: skip

# Looked for in a lower-case copy of the head: ignoring case in the expression costs more. "\n" and the
# first letter are tried before the names, which makes the fields that are none of our business cheap.
_REQUEST_SPECIAL = re.compile(
    rb"\n(?=[chteukpxf])"
    rb"(connection|content-length|host|transfer-encoding|te|expect|upgrade|keep-alive"
    rb"|proxy-connection|proxy-authorization|x[-_]forwarded[-_][^:]++|x[-_]crossfade[-_]mirror|forwarded|http2-settings)"
    rb":[ \t]*+([^\r]*)\r"
)
_RESPONSE_SPECIAL = re.compile(
    rb"\n(?=[ctkup])"
    rb"(connection|content-length|transfer-encoding|keep-alive|upgrade|proxy-connection):[ \t]*+([^\r]*)\r"
)

_HOST = re.compile(
    rb"(?:[A-Za-z0-9\-._~!$&'()*+,;=]|%[0-9A-Fa-f]{2})*+(?::[0-9]*+)?"
    rb"|\[[0-9A-Fa-f:.]++\](?::[0-9]*+)?"
)
_ABSOLUTE = re.compile(rb"[Hh][Tt][Tt][Pp][Ss]?://([^/?]*+)([/?].*+)?", re.DOTALL)
_REQUEST_LINE = re.compile(rb"(" + TOKEN + rb"++) ([^ ]++) HTTP/([0-9])\.([0-9])")
_FIELD_LINE = re.compile(TOKEN + rb"++:" + _VALUE + rb"*+")
_FOLD = re.compile(rb"(?<![ \t])[ \t]*+\r\n[ \t]++")
_TIMEOUT = re.compile(rb"timeout=([0-9]{1,9})")

_LONGEST_HOST = 261
"""Bytes of a Host: the longest DNS name, a colon and a port."""
_LONGEST_LENGTH = 18
"""Digits of a Content-Length: what fits into 63 bits."""
_ESSENTIAL = frozenset({b"host", b"content-length", b"transfer-encoding", b"trailer", b"content-type"})
"""Fields that a Connection field cannot declare to be of this hop only."""
_OF_THIS_HOP = frozenset(
    {b"", b"close", b"keep-alive", b"upgrade", b"te", b"http2-settings", b"proxy-connection"}
)
"""What Connection nominates and this module handles by name anyway."""


def parse_request(
    data: bytes, *, max_head: int, max_target: int, max_fields: int
) -> RequestHead | Refusal | None:
    """The head at the start of `data`, a refusal, or None while the head is incomplete.

    One empty line before the request line is tolerated (RFC 9112, 2.2); it counts in `size`.
    """
    match = _PLAIN_REQUEST.match(data)
    if match is None:
        return _parse_any_request(data, max_head, max_target, max_fields)
    size = match.end()
    if size > max_target or size > max_head or (size >> 2) > max_fields:  # a field takes four bytes at least
        return _parse_any_request(data, max_head, max_target, max_fields)
    raw = data if len(data) == size else data[:size]
    method, path, _, before, host, after, length = match.groups()
    head = RequestHead(raw, method, path, 1, match.start(3), size)
    head.host = host.lower()
    head.plain = True
    if length is not None:
        head.content_length = int(length)
        head.has_body = head.content_length > 0
    if before is None:
        if after is not None:
            head.cuts = [match.span(6)]
    elif after is None:
        head.cuts = [match.span(4)]
    else:
        head.cuts = [match.span(4), match.span(6)]
    return head


def _parse_any_request(
    data: bytes, max_head: int, max_target: int, max_fields: int
) -> RequestHead | Refusal | None:
    """The same for every request."""
    match = _REQUEST.match(data)
    if match is None:
        return _parse_other_request(data, max_head, max_target, max_fields)
    method, path, minor = match.group(1, 2, 3)
    start = match.start(4)
    size = match.end()
    if size > max_target and start - len(method) - 12 > max_target:
        return Refusal(414, "target_too_long")
    if size > max_head:
        return Refusal(431, "head_too_large")
    head = RequestHead(data[:size], method, path, 1 if minor == b"1" else 0, start, size)
    return _read_request_fields(head, max_fields) or head


def _read_request_fields(head: RequestHead, max_fields: int) -> Refusal | None:
    """Fill `head` from the fields that this hop must understand."""
    low = head.raw.lower()
    http_1_0 = head.minor == 0
    hosts = 0
    offer: bytes | None = None
    upgrade_asked = closes = False
    ends_here: list[bytes] = []
    for name, value in _REQUEST_SPECIAL.findall(low, head.fields_start - 1):
        value = value.rstrip(b" \t")
        if name == b"host":
            hosts += 1
            head.host = value
        elif name == b"connection":
            ends_here.append(name)
            if value == b"keep-alive":
                if http_1_0 and not closes:
                    head.keep_alive = True
                continue
            for option in value.split(b","):
                option = option.strip(b" \t")
                if option == b"close":
                    head.keep_alive = False
                    closes = True
                elif option == b"keep-alive":
                    if http_1_0 and not closes:
                        head.keep_alive = True
                elif option == b"upgrade":
                    upgrade_asked = True
                elif option in _ESSENTIAL:
                    return Refusal(400, "bad_connection")
                elif option not in _OF_THIS_HOP:
                    ends_here.append(option)
        elif name == b"content-length":
            if head.content_length >= 0 or not (value.isdigit() and len(value) <= _LONGEST_LENGTH):
                return Refusal(400, "bad_content_length")
            head.content_length = int(value)
            head.has_body = head.content_length > 0
        elif name == b"transfer-encoding":
            if http_1_0:
                return Refusal(400, "transfer_encoding_in_http_1_0")
            if head.chunked or not value:
                return Refusal(400, "bad_transfer_encoding")
            if value != b"chunked":
                return Refusal(501, "unknown_transfer_coding")
            head.chunked = head.has_body = True
        elif name == b"expect":
            if http_1_0:
                ends_here.append(name)  # an HTTP/1.0 client cannot expect anything (RFC 9110, 10.1.1)
            elif value != b"100-continue":
                return Refusal(417, "unknown_expectation")
            else:
                head.expect_continue = True
        elif name == b"te":
            ends_here.append(name)
            head.te_trailers = any(coding.strip(b" \t") == b"trailers" for coding in value.split(b","))
        elif name == b"upgrade":
            if offer is not None:
                ends_here.append(b"")  # more than one field to look for, should it end here
            offer = value if offer is None else offer + b"," + value
        elif name.startswith(b"x") and name.endswith(b"mirror"):
            head.marked = True
        elif name == b"forwarded" or name.startswith(b"x"):
            head.forwarded = []
        else:  # keep-alive, proxy-connection, proxy-authorization, http2-settings
            ends_here.append(name)
    if hosts != 1 and (hosts or not http_1_0):
        return Refusal(400, "bad_host")
    if not _is_host(head.host):
        return Refusal(400, "bad_host")
    if head.chunked and head.content_length >= 0:
        return Refusal(400, "content_length_and_transfer_encoding")
    if low.count(b"\n", head.fields_start) > max_fields + 1:
        return Refusal(431, "too_many_fields")
    if offer is not None:
        head.upgrade = upgrade_asked and not http_1_0 and not _is_h2c(offer)
        if not head.upgrade:
            ends_here.append(b"upgrade")
    if head.has_body:
        low = _restate_framing(head, low)
    if head.forwarded is not None:
        # WSGI and CGI read `X_Forwarded_For` as the same field, so it is the same field here.
        head.forwarded = [
            (name, head.raw[colon + 1 : end].strip(b" \t\r\n"), start, end)
            for start, colon, end in _field_spans(low, head.fields_start)
            if (name := low[start:colon].replace(b"_", b"-")) == b"forwarded"
            or name.startswith(b"x-forwarded-")
        ]
    if ends_here:
        head.cuts = _cuts(low, head.fields_start, ends_here)
    return None


@lru_cache(maxsize=1024)
def _is_host(value: bytes) -> bool:
    """Whether `value` is a host with or without a port (RFC 9110, 7.2). Services have few hosts."""
    return len(value) <= _LONGEST_HOST and _HOST.fullmatch(value) is not None


def _is_h2c(offer: bytes) -> bool:
    return any(protocol.strip(b" \t").startswith(b"h2") for protocol in offer.split(b","))


def _parse_other_request(
    data: bytes, max_head: int, max_target: int, max_fields: int
) -> RequestHead | Refusal | None:
    """What does not begin like a plain request: an empty line, another form of target, or a fault."""
    if data.startswith(b"\r\n") and not data.startswith(b"\r\n", 2):
        head = parse_request(data[2:], max_head=max_head, max_target=max_target, max_fields=max_fields)
        if isinstance(head, RequestHead):
            head.size += 2
        return head
    match = _OTHER_TARGET.match(data)
    if match is None:
        return _explain_request(data, max_head, max_target)
    method, target, minor = match.group(1, 2, 3)
    size = match.end()
    if len(target) > max_target:
        return Refusal(414, "target_too_long")
    if size > max_head:
        return Refusal(431, "head_too_large")
    head = RequestHead(data[:size], method, target, 1 if minor == b"1" else 0, match.start(4), size)
    return _read_request_fields(head, max_fields) or _other_target_form(head, target)


def _other_target_form(head: RequestHead, target: bytes) -> RequestHead | Refusal:
    """Absolute form becomes origin form, `OPTIONS *` stays; everything else is refused."""
    if head.method == b"CONNECT":
        return Refusal(405, "connect_refused")
    if target == b"*":
        return head if head.method == b"OPTIONS" else Refusal(400, "bad_target")
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None:
        return Refusal(400, "bad_target")
    authority, rest = absolute.groups(b"")
    # The authority of the target overrides Host (RFC 9112, 3.2.2). Two different ones are a request
    # that two parties would route differently, so it is refused instead of repaired.
    if not authority or authority.lower() != (head.host or authority.lower()):
        return Refusal(400, "target_and_host_differ")
    if not _is_host(authority.lower()):
        return Refusal(400, "bad_target")
    head.host = authority.lower()  # HTTP/1.0 may have sent no Host beside it
    if head.method == b"OPTIONS" and not rest:
        head.target = b"*"
    else:
        head.target = rest if rest.startswith(b"/") else b"/" + rest
    head.path = head.target.partition(b"?")[0]
    return head


def _restate_framing(head: RequestHead | ResponseHead, low: bytes) -> bytes:
    """Spell the field that frames the body plainly; returns the head in lower case as it is then.

    `CHUNKED`, `003` or a tab are understood here, but the next parser may see another body in them.
    """
    if head.chunked:
        name, plain = b"transfer-encoding", b"chunked"
    else:
        name, plain = b"content-length", b"%d" % head.content_length
    at = low.index(b"\n" + name + b":", head.fields_start - 1) + 1
    colon = at + len(name)
    end = low.index(b"\r", colon)
    if head.raw[colon:end] in (b": " + plain, b":" + plain):
        return low
    head.raw = head.raw[:colon] + b": " + plain + head.raw[end:]
    return head.raw.lower()


def _field_spans(raw: bytes, start: int) -> Iterator[tuple[int, int, int]]:
    """Start, colon and end of each field line of a checked head."""
    last = len(raw) - 2
    while start < last:
        end = raw.index(b"\n", start) + 1
        yield start, raw.index(b":", start), end
        start = end


def _cuts(low: bytes, start: int, names: list[bytes]) -> list[tuple[int, int]] | None:
    """Spans of the fields called `names` (RFC 9110, 7.6.1) in a head in lower case."""
    if len(names) == 1:
        # By far the commonest: one field, usually `Connection: keep-alive`.
        at = low.index(b"\n" + names[0] + b":", start - 1) + 1
        return [(at, low.index(b"\n", at) + 1)]
    wanted = frozenset(names)  # a client may nominate thousands
    return [(at, end) for at, colon, end in _field_spans(low, start) if low[at:colon] in wanted] or None


def without(raw: bytes, cuts: list[tuple[int, int]], end: int) -> bytes:
    """`raw` up to `end`, without the spans `cuts`, which are ordered and do not overlap."""
    if len(cuts) == 1:
        first, last = cuts[0]
        return raw[:first] + raw[last:end]
    kept = []
    at = 0
    for first, last in cuts:
        kept.append(raw[at:first])
        at = last
    kept.append(raw[at:end])
    return b"".join(kept)


def _explain_request(data: bytes, max_head: int, max_target: int) -> Refusal | None:
    """Why `data` is no request head, or None when it may still become one."""
    if not data or data == b"\r":
        return None
    if not re.match(TOKEN, data):
        return Refusal(400, "bad_request_line")
    line_end = data.find(b"\n")
    line = data if line_end < 0 else data[:line_end]
    if len(line) > max_target + 64:
        return Refusal(414, "target_too_long")
    if line_end < 0:
        return None
    if not line.endswith(b"\r"):
        return Refusal(400, "bare_line_feed")
    parts = _REQUEST_LINE.fullmatch(line[:-1])
    if parts is None:
        return Refusal(400, "bad_request_line")
    if parts[3] != b"1" or parts[4] not in (b"0", b"1"):
        return Refusal(505, "http_version")
    end = data.find(b"\r\n\r\n", line_end - 1)
    if end < 0:
        if b"\n\n" in data or b"\n\r\n" in data:
            return Refusal(400, "bare_line_feed")
        return Refusal(431, "head_too_large") if len(data) > max_head else None
    if end > max_head:
        return Refusal(431, "head_too_large")
    return Refusal(400, _bad_fields(data[line_end + 1 : end]) or "bad_target")


def _bad_fields(section: bytes) -> str | None:
    """The first fault of a field section (without its last line end), in one word."""
    for line in section.split(b"\r\n") if section else ():
        if not _FIELD_LINE.fullmatch(line):
            if b"\n" in line:
                return "bare_line_feed"
            if line[:1] in (b" ", b"\t"):
                return "folded_field"
            name, colon, _ = line.partition(b":")
            return "bad_field_value" if colon and re.fullmatch(TOKEN + rb"+", name) else "bad_field_name"
    return None


def parse_response(data: bytes, *, max_head: int) -> ResponseHead | Refusal | None:
    """The head of an answer at the start of `data`, a refusal (always 502), or None while incomplete."""
    match = _PLAIN_RESPONSE.match(data)
    if match is None or match.end() > max_head:
        return _parse_any_response(data, max_head)
    size = match.end()
    raw = data if len(data) == size else data[:size]
    status, _, before, length, after = match.groups()
    head = ResponseHead(raw, int(status), 1, match.start(2), size)
    head.content_length = int(length)
    head.plain = True
    if before is None:
        if after is not None:
            head.cuts = [match.span(5)]
    elif after is None:
        head.cuts = [match.span(3)]
    else:
        head.cuts = [match.span(3), match.span(5)]
    return head


def _parse_any_response(data: bytes, max_head: int) -> ResponseHead | Refusal | None:
    """The same for every answer."""
    match = _RESPONSE.match(data)
    if match is None:
        return _parse_folded_response(data, max_head)
    minor, status = match.group(1, 2)
    size = match.end()
    if size > max_head:
        return Refusal(502, "head_too_large")
    head = ResponseHead(data[:size], int(status), 1 if minor == b"1" else 0, match.start(3), size)
    return _read_response_fields(head) or head


def _parse_folded_response(data: bytes, max_head: int) -> ResponseHead | Refusal | None:
    """A folded field, which old servers still send, is unfolded into a blank (RFC 9112, 5.2)."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return _explain_response(data, max_head)
    if end + 4 > max_head:
        return Refusal(502, "head_too_large")
    unfolded = _FOLD.sub(b" ", data[: end + 2]) + b"\r\n"
    match = _RESPONSE.fullmatch(unfolded)
    if match is None:
        return Refusal(502, _bad_fields(unfolded.partition(b"\r\n")[2][:-4]) or "bad_status_line")
    head = ResponseHead(unfolded, int(match[2]), 1 if match[1] == b"1" else 0, match.start(3), end + 4)
    return _read_response_fields(head) or head


def _read_response_fields(head: ResponseHead) -> Refusal | None:
    """Fill `head` from the fields that this hop must understand."""
    low = head.raw.lower()
    if head.minor == 0:
        head.raw = b"HTTP/1.1" + head.raw[8:]
    ends_here: list[bytes] = []
    closes = repeated_length = False
    for name, value in _RESPONSE_SPECIAL.findall(low, head.fields_start - 1):
        value = value.rstrip(b" \t")
        if name == b"content-length":
            if not (value.isdigit() and len(value) <= _LONGEST_LENGTH):
                return Refusal(502, "bad_content_length")
            length = int(value)
            if head.content_length >= 0:
                if head.content_length != length:
                    return Refusal(502, "bad_content_length")
                repeated_length = True
            head.content_length = length
        elif name == b"connection":
            ends_here.append(name)
            if value == b"keep-alive":
                head.keep_alive = True
                continue
            for option in value.split(b","):
                option = option.strip(b" \t")
                if option == b"close":
                    closes = True
                elif option == b"keep-alive":
                    head.keep_alive = True
                elif option == b"upgrade":
                    head.upgrade = True
                elif option not in _ESSENTIAL and option not in _OF_THIS_HOP:
                    ends_here.append(option)
        elif name == b"transfer-encoding":
            if head.minor == 0 or head.chunked:
                return Refusal(502, "bad_transfer_encoding")
            if value != b"chunked":
                return Refusal(502, "unknown_transfer_coding")
            head.chunked = True
        elif name == b"upgrade":
            if head.status not in (101, 426):
                ends_here.append(name)
        else:  # keep-alive, proxy-connection
            ends_here.append(name)
            promised = _TIMEOUT.search(value)
            if promised is not None and name == b"keep-alive":
                head.keep_alive_timeout = float(promised[1])
    if head.chunked and head.content_length >= 0:
        return Refusal(502, "content_length_and_transfer_encoding")
    if closes:
        head.keep_alive = False
    if head.chunked or head.content_length >= 0:
        low = _restate_framing(head, low)
    if ends_here:
        head.cuts = _cuts(low, head.fields_start, ends_here)
    if repeated_length:
        spans = [
            (at, end)
            for at, colon, end in _field_spans(low, head.fields_start)
            if low[at:colon] == b"content-length"
        ]
        head.cuts = sorted([*(head.cuts or ()), *spans[1:]])
    return None


def _explain_response(data: bytes, max_head: int) -> Refusal | None:
    """Why `data`, which has no end of head yet, cannot become an answer."""
    start = b"HTTP/1."
    if data[: len(start)] != start[: len(data)]:
        return Refusal(502, "bad_status_line")
    if b"\n\n" in data or b"\n\r\n" in data:
        return Refusal(502, "bare_line_feed")
    return Refusal(502, "head_too_large") if len(data) > max_head else None
