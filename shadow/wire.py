"""Exhibits as bytes, for the way from proxy workers to compare workers. Pure."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

from shadow.exhibit import Answer, Asked, Body, Exhibit, Kind

LAYOUT = 1
LONGEST = 4 * 1024 * 1024
"""Bytes of one message; bodies of a longer one stay behind."""


class OtherLayoutError(ValueError):
    """It was written by another version of this program, or by somebody else."""


def to_bytes(exhibit: Exhibit) -> bytes:
    written = _written(exhibit)
    if len(written) > LONGEST:
        written = _written(_without_bodies(exhibit))
    return written


def from_bytes(data: bytes) -> Exhibit:
    """Raises OtherLayoutError."""
    try:
        found = json.loads(data)
        if found.pop("layout") != LAYOUT:
            raise OtherLayoutError("it has another layout")
        answers = ("legacy", "new", "legacy_again", "new_again")
        return Exhibit(
            **{
                **found,
                "asked": _message(Asked, found["asked"]),
                **{name: found[name] and _message(Answer, found[name]) for name in answers},
            }
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OtherLayoutError(f"it cannot be read: {error}") from error


def _written(exhibit: Exhibit) -> bytes:
    text = json.dumps({"layout": LAYOUT, **asdict(exhibit)}, separators=(",", ":"))
    return text.encode()


def _message(kind: type[Any], found: dict[str, Any]) -> Any:
    body = found["body"]
    headers = tuple((name, value) for name, value in found["headers"])
    return kind(**{**found, "headers": headers, "body": Body(**{**body, "kind": Kind(body["kind"])})})


def _without_bodies(exhibit: Exhibit) -> Exhibit:
    def bare(answer: Answer) -> Answer:
        return replace(
            answer, body=replace(answer.body, kind=Kind.UNREADABLE, text="", trouble="too_long"), headers=()
        )

    asked = replace(exhibit.asked, body=replace(exhibit.asked.body, kind=Kind.UNREADABLE, text=""))
    return replace(
        exhibit,
        asked=replace(asked, headers=()),
        legacy=bare(exhibit.legacy),
        new=bare(exhibit.new),
        legacy_again=exhibit.legacy_again and bare(exhibit.legacy_again),
        new_again=exhibit.new_again and bare(exhibit.new_again),
    )
