"""A pair of answers as it leaves the proxy worker: decoded, redacted, and still comparable.

What was secret in it is a token that is the same for the same secret (`shadow.redact`), so two answers that
were equal are equal here, and two that were not are not.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

Fields = tuple[tuple[str, str], ...]
"""Names in lower case, in the order of the message, repetitions kept."""


class Kind(StrEnum):
    """What a body is, and so how it is compared."""

    NONE = "none"
    """No body at all."""
    JSON = "json"
    FORM = "form"
    MULTIPART = "multipart"
    HTML = "html"
    XML = "xml"
    TEXT = "text"
    EVENTS = "events"
    """The first events of a stream (`text/event-stream`, JSON lines)."""
    BINARY = "binary"
    UNREADABLE = "unreadable"
    """It could not be decoded; `trouble` says why."""


@dataclass(frozen=True, slots=True)
class Body:
    """`text` is empty for what is compared by its digest only."""

    kind: Kind
    text: str = ""
    length: int = 0
    """Bytes of the decoded body, before redaction."""
    digest: str = ""
    """Keyed hash of the decoded body, before redaction."""
    trouble: str = ""
    """In one word: `too_long`, `bad_gzip`, `unknown_coding`, `bad_json`, ..."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One side's answer. `status` is 0 and `trouble` says why where there is none."""

    side: str
    status: int
    headers: Fields
    body: Body
    began: float
    """Unix time in seconds."""
    seconds: float
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Asked:
    """The request that both sides got."""

    method: str
    target: str
    headers: Fields
    body: Body


@dataclass(frozen=True, slots=True)
class Exhibit:
    """Both answers to one request. `again` answers are those of the same side, asked a moment later."""

    id: str
    flag: str
    route: str
    """The route's path template."""
    stage: str
    version: int
    """Of the flags that decided."""
    asked: Asked
    legacy: Answer
    new: Answer
    legacy_again: Answer | None = None
    new_again: Answer | None = None
    sampled: bool = False
    """Legacy was asked again by lot, whatever the answers were: only such pairs say how often it differs."""
