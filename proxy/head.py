"""Read message heads: start line and fields, strictly, in one pass of the regex engine.

Why not llhttp: it calls back into Python for every field, parses several messages in one call, has
no notion of HEAD, and its verdict is not ours (`docs/decisions/0002-own-head-parser.md` has the
list and the measurements). Two expressions describe everything that is accepted; whatever they do
not match is refused, and only then looked at again to say why. All repetitions are possessive
(`*+`, `++`), so a hostile head costs linear time.

A head that passes is split at no field: what this hop must understand is found by name, and what it
must not pass on is remembered as spans (`cuts`).
"""

from __future__ import annotations

import re

from core.http import Refusal, RequestHead, ResponseHead

TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
_VALUE = rb"[\t\x20-\x7e\x80-\xff]"
_FIELDS = rb"((?:" + TOKEN + rb"++:" + _VALUE + rb"*+\r\n)*+)\r\n"

_REQUEST = re.compile(
    rb"(?:\r\n)?(" + TOKEN + rb"++) ([\x21\x22\x24-\x7e\x80-\xff]++) HTTP/1\.([01])\r\n" + _FIELDS
)
_RESPONSE = re.compile(rb"(HTTP/1\.([01]) ([1-9][0-9]{2})(?: " + _VALUE + rb"*+)?)\r\n" + _FIELDS)

# Found by "\n" and the first letter before the alternatives are tried: that is what makes the
# search cheap on fields that are none of our business.
_REQUEST_SPECIAL = re.compile(
    rb"\n(?=[chteukpxfCHTEUKPXF])"
    rb"(connection|content-length|host|transfer-encoding|te|expect|upgrade|keep-alive"
    rb"|proxy-connection|proxy-authorization|x-forwarded-[a-z]+|forwarded|http2-settings)"
    rb":([^\r]*)\r",
    re.IGNORECASE,
)
_RESPONSE_SPECIAL = re.compile(
    rb"\n(?=[ctkupCTKUP])"
    rb"(connection|content-length|transfer-encoding|keep-alive|upgrade|proxy-connection):([^\r]*)\r",
    re.IGNORECASE,
)

_HOST = re.compile(
    rb"(?:[A-Za-z0-9\-._~!$&'()*+,;=]|%[0-9A-Fa-f]{2})*+(?::[0-9]*+)?"
    rb"|\[[0-9A-Fa-f:.]++\](?::[0-9]*+)?"
)
_ABSOLUTE = re.compile(rb"[Hh][Tt][Tt][Pp][Ss]?://([^/?]*+)([/?].*+)?", re.DOTALL)
_DIGITS = re.compile(rb"[0-9]{1,18}")
_REQUEST_LINE = re.compile(rb"(" + TOKEN + rb"++) ([^ ]++) HTTP/([0-9])\.([0-9])")
_FIELD_LINE = re.compile(TOKEN + rb"++:" + _VALUE + rb"*+")
_FOLD = re.compile(rb"[ \t]*\r\n[ \t]+")
_TIMEOUT = re.compile(rb"timeout=([0-9]{1,9})", re.IGNORECASE)

_ESSENTIAL = frozenset({b"host", b"content-length", b"transfer-encoding", b"trailer", b"content-type"})
"""Fields that a Connection field cannot declare to be of this hop only."""
_OF_THIS_HOP = frozenset({b"close", b"keep-alive", b"upgrade", b"te", b"http2-settings", b"proxy-connection"})
"""What Connection nominates and this module handles by name anyway."""


def parse_request(
    data: bytes, *, max_head: int, max_target: int, max_fields: int
) -> RequestHead | Refusal | None:
    """The head at the start of `data`, a refusal, or None while the head is incomplete.

    One empty line before the request line is tolerated (RFC 9112, 2.2). `size` of the result is the
    number of bytes that the head takes up in `data`.
    """
    match = _REQUEST.match(data)
    if match is None:
        return _explain_request(data, max_head, max_target)
    method, target, minor, fields = match.groups()
    size = match.end()
    if size > max_head:
        return Refusal(431, "head_too_large")
    if len(target) > max_target:
        return Refusal(414, "target_too_long")
    if fields.count(b"\n") > max_fields:
        return Refusal(431, "too_many_fields")
    query = target.find(b"?")
    head = RequestHead(
        method, target, target if query < 0 else target[:query], 1 if minor == b"1" else 0, fields, size
    )
    refusal = _read_request_fields(head, data, match.start(4) - 1, size - 2)
    if refusal is not None:
        return refusal
    first = target[0]
    if first == 0x2F:  # "/"
        return head
    return _other_target_form(head)


def _read_request_fields(head: RequestHead, data: bytes, start: int, end: int) -> Refusal | None:
    """Fill `head` from the fields that this hop must understand; `start` is the "\n" before them."""
    hosts = 0
    cuts: list[tuple[int, int]] = []
    nominated: list[bytes] = []
    upgrade_asked = upgrade_offered = h2c = False
    upgrade_spans: list[tuple[int, int]] = []
    http_1_0 = head.minor == 0
    if http_1_0:
        head.keep_alive = False
    base = start + 1
    for found in _REQUEST_SPECIAL.finditer(data, start, end):
        name, value = found.groups()
        name = name.lower()
        value = value.strip(b" \t")
        span = (found.start() + 1 - base, found.end() + 1 - base)
        if name == b"host":
            hosts += 1
            head.host = value
        elif name == b"connection":
            cuts.append(span)
            for option in value.lower().split(b","):
                option = option.strip(b" \t")
                if option == b"close":
                    head.keep_alive = False
                    nominated.append(option)
                elif option == b"keep-alive":
                    if http_1_0 and b"close" not in nominated:
                        head.keep_alive = True
                elif option == b"upgrade":
                    upgrade_asked = True
                elif option in _ESSENTIAL:
                    return Refusal(400, "bad_connection")
                elif option and option not in _OF_THIS_HOP:
                    nominated.append(option)
        elif name == b"content-length":
            if head.content_length >= 0 or not _DIGITS.fullmatch(value):
                return Refusal(400, "bad_content_length")
            head.content_length = int(value)
        elif name == b"transfer-encoding":
            if http_1_0:
                return Refusal(400, "transfer_encoding_in_http_1_0")
            if head.chunked or not value:
                return Refusal(400, "bad_transfer_encoding")
            if value.lower() != b"chunked":
                return Refusal(501, "unknown_transfer_coding")
            head.chunked = True
        elif name == b"expect":
            if not http_1_0:
                if value.lower() != b"100-continue":
                    return Refusal(417, "unknown_expectation")
                head.expect_continue = True
        elif name == b"te":
            cuts.append(span)
            head.te_trailers = any(
                coding.strip(b" \t") == b"trailers" for coding in value.lower().split(b",")
            )
        elif name == b"upgrade":
            upgrade_spans.append(span)
            upgrade_offered = True
            h2c = h2c or any(p.strip(b" \t").startswith((b"h2c", b"h2")) for p in value.lower().split(b","))
        elif name.startswith((b"x-forwarded-", b"forwarded")):
            if head.forwarded is None:
                head.forwarded = []
            head.forwarded.append((name, value, *span))
        else:  # keep-alive, proxy-connection, proxy-authorization, http2-settings
            cuts.append(span)
    if head.chunked and head.content_length >= 0:
        return Refusal(400, "content_length_and_transfer_encoding")
    if hosts != 1 and (hosts or not http_1_0):
        return Refusal(400, "bad_host")
    if not _HOST.fullmatch(head.host):
        return Refusal(400, "bad_host")
    head.upgrade = upgrade_asked and upgrade_offered and not h2c and not http_1_0
    if not head.upgrade:
        cuts += upgrade_spans
    if nominated:
        cuts += _nominated_spans(head.fields, nominated)
    if cuts:
        head.cuts = _in_order(cuts)
    return None


def _other_target_form(head: RequestHead) -> RequestHead | Refusal:
    """Absolute form becomes origin form, `OPTIONS *` stays; everything else is refused."""
    if head.method == b"CONNECT":
        return Refusal(405, "connect_refused")
    if head.target == b"*":
        return head if head.method == b"OPTIONS" else Refusal(400, "bad_target")
    absolute = _ABSOLUTE.fullmatch(head.target)
    if absolute is None:
        return Refusal(400, "bad_target")
    authority, rest = absolute.groups(b"")
    # The authority of the target overrides Host (RFC 9112, 3.2.2). Two different ones are a request
    # that two parties would route differently, so it is refused instead of repaired.
    if not authority or authority.lower() != head.host.lower():
        return Refusal(400, "target_and_host_differ")
    head.target = rest if rest.startswith(b"/") else b"/" + rest
    if head.method == b"OPTIONS" and not rest:
        head.target = b"*"
    head.path = head.target.partition(b"?")[0]
    return head


def _nominated_spans(fields: bytes, names: list[bytes]) -> list[tuple[int, int]]:
    """Spans of the fields that Connection declared to be of this hop only (RFC 9110, 7.6.1)."""
    spans = []
    start = 0
    while start < len(fields):
        end = fields.index(b"\n", start) + 1
        if fields[start : fields.index(b":", start)].lower() in names:
            spans.append((start, end))
        start = end
    return spans


def _in_order(cuts: list[tuple[int, int]]) -> list[tuple[int, int]]:
    return cuts if len(cuts) == 1 else sorted(set(cuts))


def without(fields: bytes, cuts: list[tuple[int, int]]) -> bytes:
    """`fields` without the spans `cuts`, which are ordered and do not overlap."""
    if len(cuts) == 1:
        start, end = cuts[0]
        return fields[:start] + fields[end:]
    kept = []
    at = 0
    for start, end in cuts:
        kept.append(fields[at:start])
        at = end
    kept.append(fields[at:])
    return b"".join(kept)


def _explain_request(data: bytes, max_head: int, max_target: int) -> Refusal | None:
    """Why `data` is no request head, or None when it may still become one."""
    if data.startswith(b"\r\n"):
        data = data[2:]
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
    """The head of an answer at the start of `data`, a refusal (always 502), or None while incomplete.

    A folded field, which old servers still send, is unfolded into a blank (RFC 9112, 5.2).
    """
    match = _RESPONSE.match(data)
    if match is None:
        end = data.find(b"\r\n\r\n")
        if end < 0:
            return _explain_response(data, max_head)
        unfolded = _FOLD.sub(b" ", data[: end + 2]) + b"\r\n"
        match = _RESPONSE.fullmatch(unfolded)
        if match is None:
            section = unfolded.partition(b"\r\n")[2]
            return Refusal(502, _bad_fields(section[:-4]) or "bad_status_line")
        data, size = unfolded, end + 4
    else:
        size = match.end()
    if size > max_head:
        return Refusal(502, "head_too_large")
    line, minor, status, fields = match.groups()
    head = ResponseHead(int(status), line + b"\r\n", 1 if minor == b"1" else 0, fields, size)
    return _read_response_fields(head, data, match.start(4) - 1, match.end() - 2) or head


def _read_response_fields(head: ResponseHead, data: bytes, start: int, end: int) -> Refusal | None:
    cuts: list[tuple[int, int]] = []
    nominated: list[bytes] = []
    upgrade_spans: list[tuple[int, int]] = []
    if head.minor == 0:
        head.keep_alive = False
        head.start = b"HTTP/1.1" + head.start[8:]
    base = start + 1
    closes = False
    for found in _RESPONSE_SPECIAL.finditer(data, start, end):
        name, value = found.groups()
        name = name.lower()
        value = value.strip(b" \t")
        span = (found.start() + 1 - base, found.end() + 1 - base)
        if name == b"content-length":
            if not _DIGITS.fullmatch(value):
                return Refusal(502, "bad_content_length")
            if head.content_length >= 0:
                if head.content_length != int(value):
                    return Refusal(502, "bad_content_length")
                cuts.append(span)
            head.content_length = int(value)
        elif name == b"connection":
            cuts.append(span)
            for option in value.lower().split(b","):
                option = option.strip(b" \t")
                if option == b"close":
                    closes = True
                elif option == b"keep-alive":
                    head.keep_alive = True
                elif option == b"upgrade":
                    head.upgrade = True
                elif option and option not in _ESSENTIAL and option not in _OF_THIS_HOP:
                    nominated.append(option)
        elif name == b"transfer-encoding":
            if head.minor == 0 or head.chunked:
                return Refusal(502, "bad_transfer_encoding")
            if value.lower() != b"chunked":
                return Refusal(502, "unknown_transfer_coding")
            head.chunked = True
        elif name == b"upgrade":
            upgrade_spans.append(span)
        else:  # keep-alive, proxy-connection
            cuts.append(span)
            promised = _TIMEOUT.search(value)
            if promised is not None and name == b"keep-alive":
                head.keep_alive_timeout = float(promised[1])
    if head.chunked and head.content_length >= 0:
        return Refusal(502, "content_length_and_transfer_encoding")
    if closes:
        head.keep_alive = False
    if upgrade_spans and head.status not in (101, 426):
        cuts += upgrade_spans
    if nominated:
        cuts += _nominated_spans(head.fields, nominated)
    if cuts:
        head.cuts = _in_order(cuts)
    return None


def _explain_response(data: bytes, max_head: int) -> Refusal | None:
    """Why `data`, which has no end of head yet, cannot become an answer."""
    start = b"HTTP/1."
    if data[: len(start)] != start[: len(data)]:
        return Refusal(502, "bad_status_line")
    if b"\n\n" in data or b"\n\r\n" in data:
        return Refusal(502, "bare_line_feed")
    return Refusal(502, "head_too_large") if len(data) > max_head else None
