"""From raw answers to an exhibit: decoded and redacted. Pure, it raises for nothing that a peer may send."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from core.http import field_lines
from core.mirrored import Leg, Mirrored
from shadow.decode import kind_of, text_of, unpacked
from shadow.exhibit import Answer, Asked, Body, Exhibit, Fields, Kind
from shadow.json_text import Json, UnreadableJsonError, read, write
from shadow.multipart import UnreadableMultipartError, parts_of
from shadow.redact import Known, Redactor

_BY_DIGEST = frozenset({Kind.NONE, Kind.BINARY, Kind.UNREADABLE})
_VALUES = frozenset({Kind.JSON, Kind.MULTIPART})
"""What is read into values, with places of their own."""


@dataclass(slots=True)
class _Message:
    """A message that is decoded and not redacted yet."""

    fields: Fields
    decoded: bytes
    kind: Kind
    text: str = ""
    json: Json = None
    trouble: str = ""


def exhibit(pair: Mirrored, name: str, redactor: Redactor, longest: int) -> Exhibit:
    """`name` becomes its id; `longest` is the most bytes that a decoded body may have."""
    asked = _decoded(pair.fields, pair.body, longest, redactor)
    legs = (*pair.legs, *pair.again)
    answers = [_decoded(leg.fields, leg.body, longest, redactor, cut=leg.cut) for leg in legs]
    target = pair.target.decode("latin-1")
    known = Known(redactor, _secrets(redactor, target, asked, answers))
    shown = [_answer(leg, message, redactor, known) for leg, message in zip(legs, answers, strict=True)]
    by_side = {answer.side: answer for answer in shown[:2]}
    again = {answer.side: answer for answer in shown[2:]}
    return Exhibit(
        name, pair.flag, pair.route, pair.stage, pair.version,
        Asked(
            pair.method, redactor.in_target(target, known), redactor.in_fields(asked.fields, known),
            _body(asked, redactor, known),
        ),
        by_side["legacy"], by_side["new"], again.get("legacy"), again.get("new"), pair.sampled,
    )  # fmt: skip


def _secrets(redactor: Redactor, target: str, asked: _Message, answers: list[_Message]) -> Iterator[str]:
    yield from redactor.of_form(target.partition("?")[2])
    for message in (asked, *answers):
        yield from redactor.of_fields(message.fields)
        if message.kind in _VALUES:
            yield from redactor.of_json(message.json)
        elif message.kind is Kind.FORM:
            yield from redactor.of_form(message.text)


def _decoded(raw: bytes, body: bytes, longest: int, redactor: Redactor, *, cut: bool = False) -> _Message:
    fields = tuple(
        (name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in field_lines(raw)
    )
    values = dict(reversed(fields))
    if cut:
        return _Message(fields, body, Kind.UNREADABLE, trouble="too_long")
    decoded, trouble = unpacked(body, values.get("content-encoding", ""), longest)
    if trouble:
        return _Message(fields, body, Kind.UNREADABLE, trouble=trouble)
    content_type = values.get("content-type", "")
    kind = kind_of(content_type, decoded)
    if kind in _BY_DIGEST:
        return _Message(fields, decoded, kind)
    if kind is Kind.MULTIPART:
        try:
            return _Message(fields, decoded, kind, json=parts_of(decoded, content_type, redactor.digest))
        except UnreadableMultipartError as error:
            return _Message(fields, decoded, Kind.BINARY, trouble=str(error))
    text = text_of(decoded, content_type)
    if kind is not Kind.JSON:
        return _Message(fields, decoded, kind, text)
    try:
        return _Message(fields, decoded, kind, text, read(text))
    except UnreadableJsonError as error:
        return _Message(fields, decoded, Kind.TEXT, text, trouble=str(error))


def _answer(leg: Leg, message: _Message, redactor: Redactor, known: Known) -> Answer:
    return Answer(
        leg.side, leg.status, redactor.in_fields(message.fields, known), _body(message, redactor, known),
        leg.began, leg.seconds, leg.trouble or "",
    )  # fmt: skip


def _body(message: _Message, redactor: Redactor, known: Known) -> Body:
    text = ""
    if message.kind in _VALUES:
        text = write(redactor.in_json(message.json, known))
    elif message.kind is Kind.FORM:
        text = redactor.in_form(message.text, known)
    elif message.kind not in _BY_DIGEST:
        text = redactor.in_text(message.text, known)
    digest = redactor.digest(message.decoded) if message.decoded else ""
    return Body(message.kind, text, len(message.decoded), digest, message.trouble)
