"""Messages as adapters see them, and what adapters return as messages on the wire.

What an adapter returns is built into bytes and read again by the parser that reads everybody's, so an
adapter can send nothing that a client could not. Framing is written here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from itertools import chain

from core.http import Refusal, RequestHead, ResponseHead, field_lines
from legacy_adapter.messages import Answer, Fields, Request
from proxy.config import Limits
from proxy.head import parse_request, parse_response, without

_OF_FRAMING = frozenset({"content-length", "transfer-encoding", "trailer", "expect"})
_OF_OTHER_BYTES = frozenset({"accept-encoding", "range", "if-range"})
"""Fields that ask for a part or a packed form of a body, which could not be translated."""
_OF_THE_BODY = frozenset({"content-md5", "digest", "content-digest", "repr-digest", "accept-ranges"})
"""Fields of an answer that are wrong once its body is another."""
_WITHOUT_BODY = frozenset({204, 304})


class UnfitError(Exception):
    """What an adapter returned is no message that can be sent; the text says why."""


def request_of(head: RequestHead, body: bytes) -> Request:
    """The client's request for an adapter."""
    return Request(
        head.method.decode("latin-1"),
        head.sent_target.decode("latin-1"),
        headers=_shown(head, _OF_FRAMING | _OF_OTHER_BYTES),
        body=body,
    )


def answer_of(head: ResponseHead, body: bytes) -> Answer:
    """The target's answer for an adapter."""
    return Answer(head.status, headers=_shown(head, _OF_FRAMING), body=body)


def outgoing_request(
    request: object, came: RequestHead, authority: bytes, limits: Limits
) -> tuple[RequestHead, bytes]:
    """The head that a translated request has, and its body. Raises UnfitError.

    `came` is the client's head, `authority` what Host says when nobody said anything.
    """
    if not isinstance(request, Request):
        raise UnfitError(f"expected a Request, not {type(request).__name__}")
    body = _bytes(request.body)
    lines = [f"{request.method} {request.target} HTTP/1.1"]
    if request.header("host") is None:
        lines.append(f"Host: {(came.host or authority).decode('latin-1')}")
    lines += _lines(request.headers)
    if request.header("accept-encoding") is None:
        lines.append("Accept-Encoding: identity")
    if came.upgrade:
        lines.append("Connection: upgrade")
    if body or came.content_length >= 0 or came.chunked:
        lines.append(f"Content-Length: {len(body)}")
    raw = _raw(lines)
    head = parse_request(
        raw, max_head=limits.head_bytes, max_target=limits.target_bytes, max_fields=limits.headers
    )
    if not isinstance(head, RequestHead):
        raise UnfitError(_why(head))
    if head.method in (b"CONNECT", b"TRACE") or (came.upgrade and body):
        raise UnfitError("such a request is not sent")
    return head, body


def outgoing_answer(answer: object, came: ResponseHead, asked: RequestHead, limits: Limits) -> bytes:
    """A translated answer, whole, to the client that has `asked`. Raises UnfitError.

    `came` is the target's head.
    """
    if not isinstance(answer, Answer):
        raise UnfitError(f"expected an Answer, not {type(answer).__name__}")
    status = answer.status
    if not isinstance(status, int) or not 200 <= status <= 599:
        raise UnfitError(f"{status!r} is no final status")
    lines = [f"HTTP/1.1 {status} {_phrase(status, came)}", *_lines(answer.headers)]
    body = b"" if status in _WITHOUT_BODY or asked.method == b"HEAD" else _bytes(answer.body)
    if status not in _WITHOUT_BODY and asked.method != b"HEAD":
        lines.append(f"Content-Length: {len(body)}")
    raw = _raw(lines)
    head = parse_response(raw, max_head=limits.head_bytes)
    if not isinstance(head, ResponseHead):
        raise UnfitError(_why(head))
    return raw + body


def checked_attributes(attributes: object) -> Mapping[str, str]:
    """What users' code said of a request. Raises UnfitError."""
    if not isinstance(attributes, Mapping):
        raise UnfitError(f"expected a mapping of attributes, not {type(attributes).__name__}")
    odd = next((name for name, value in attributes.items() if not isinstance(value, str)), None)
    if odd is not None:
        raise UnfitError(f"the attribute {odd!r} is no text")
    return attributes


def without_other_body(before: Answer, after: Answer) -> Answer:
    """`after` without fields that describe the body of `before`, should it be another one."""
    if not isinstance(after, Answer) or after.body == before.body:
        return after
    stale = {name for name, value in before.headers if name.lower() in _OF_THE_BODY}
    for name in stale:
        if after.header_values(name) == before.header_values(name):
            after = after.without_header(name)
    return after


def _shown(head: RequestHead | ResponseHead, hidden: frozenset[str]) -> Fields:
    raw, cuts = head.raw, head.cuts or []
    fields = without(raw, [(0, head.fields_start), *cuts], len(raw) - 2)
    decoded = ((name.decode("latin-1"), value.decode("latin-1")) for name, value in field_lines(fields))
    return tuple((name, value) for name, value in decoded if name.lower() not in hidden)


def _lines(headers: Fields) -> list[str]:
    return [f"{name}: {value}" for name, value in headers if name.lower() not in _OF_FRAMING]


def _bytes(body: object) -> bytes:
    if not isinstance(body, bytes):
        raise UnfitError(f"a body must be bytes, not {type(body).__name__}")
    return body


def _raw(lines: list[str]) -> bytes:
    # A line break within a value would begin a field, or a message, that nobody meant to send.
    broken = next((line for line in lines if "\r" in line or "\n" in line), None)
    if broken is not None:
        raise UnfitError(f"a line break in {broken.partition(':')[0]!r}")
    try:
        return "\r\n".join(chain(lines, ("", ""))).encode("latin-1")
    except UnicodeEncodeError as error:
        raise UnfitError("a field that is not Latin-1; percent-encode it") from error


def _phrase(status: int, came: ResponseHead) -> str:
    if status == came.status:
        return came.raw[13 : came.fields_start - 2].decode("latin-1")
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


def _why(refusal: Refusal | None) -> str:
    return "an unfinished head" if refusal is None else refusal.reason
