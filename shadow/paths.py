"""Where in an answer something stands, and the small language in which rules name such places.

    $.items[3].price    one place          $.items[*].price    in each element
    $.users.*.mail      under each name    $..updated_at       at any depth
    $["a.b"]            a name with signs  headers.etag  status  body

Names are compared whole: `date` is not `candidate_id`. A place covers everything below it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Final, TypeAlias

Place: TypeAlias = tuple[str | int, ...]
"""`("$", "items", 3, "price")`, `("headers", "etag")`, `("status",)` or `("body",)`."""


class InvalidPathError(ValueError):
    """This names no place; the message says what does."""


class Wild(Enum):
    ELEMENT = "[*]"
    NAME = ".*"
    ANY_DEPTH = ".."


Part: TypeAlias = str | int | Wild

_FORM: Final = 'expected one such as $.items[*].price, $..updated_at, $["a.b"], headers.etag, status, body'
_STEP = re.compile(
    r"(?P<depth>\.\.)(?P<deep>[^\s.\[\]*\"]+)"
    r"|\.(?P<name>[^\s.\[\]*\"]+)"
    r"|(?P<every>\.\*)"
    r"|\[(?P<index>[0-9]{1,9})\]"
    r"|(?P<elements>\[\*\])"
    r"|\[(?P<quoted>\"(?:[^\"\\]|\\.)*\")\]"
)
_HEADER = re.compile(r"headers\.([!#$%&'*+\-.^_`|~0-9A-Za-z]+)")
_PLAIN = re.compile(r"[^\s.\[\]*\"#]+")
_ID = re.compile(r"[0-9]+|[0-9a-fA-F-]{8,}|.*[0-9]{4,}.*")


@dataclass(frozen=True, slots=True)
class Path:
    """What a rule names. `text` is as it was written."""

    text: str
    parts: tuple[Part, ...]

    def covers(self, place: Place) -> bool:
        """Whether `place` is named, or lies below what is named."""
        return _covers(self.parts, place, False)

    def names(self, place: Place) -> bool:
        """Whether exactly `place` is named."""
        return _covers(self.parts, place, True)


def parse(text: str) -> Path:
    """Raises InvalidPathError."""
    if text in ("status", "body"):
        return Path(text, (text,))
    if header := _HEADER.fullmatch(text):
        return Path(text, ("headers", header[1].lower()))
    if not text.startswith("$"):
        raise InvalidPathError(f"{text!r}: {_FORM}")
    parts: list[Part] = ["$"]
    at = 1
    while at < len(text):
        step = _STEP.match(text, at)
        if step is None:
            raise InvalidPathError(f"{text!r}, at {text[at:][:20]!r}: {_FORM}")
        at = step.end()
        if step["deep"]:
            parts += [Wild.ANY_DEPTH, step["deep"]]
        elif step["name"]:
            parts.append(step["name"])
        elif step["every"]:
            parts.append(Wild.NAME)
        elif step["index"]:
            parts.append(int(step["index"]))
        elif step["elements"]:
            parts.append(Wild.ELEMENT)
        else:
            parts.append(json.loads(step["quoted"]))
    return Path(text, tuple(parts))


def spelled(place: Place) -> str:
    """A place in the language above."""
    head, *rest = place
    if head == "headers":
        return ".".join(map(str, place))
    text = str(head)
    for part in rest:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part in ("[*]", ".*"):
            text += part
        elif _PLAIN.fullmatch(part):
            text += f".{part}"
        else:
            text += f"[{json.dumps(part, ensure_ascii=False)}]"
    return text


@lru_cache(maxsize=65536)
def template(place: Place) -> str:
    """The place without what is of one answer only: `$.items[*].price`, and `.*` for names that are ids."""
    if place[0] != "$":
        return spelled(place)
    parts: list[str | int] = ["$"]
    for part in place[1:]:
        if isinstance(part, int):
            parts.append("[*]")
        else:
            parts.append(".*" if _ID.fullmatch(part) else part)
    return spelled(tuple(parts))


@lru_cache(maxsize=65536)
def _covers(parts: tuple[Part, ...], place: Place, whole: bool) -> bool:
    # Places come again with each answer of a route.
    if not parts:
        return not (whole and place)
    if not place:
        return False
    part, rest = parts[0], parts[1:]
    if part is Wild.ANY_DEPTH:
        return any(_covers(rest, place[depth:], whole) for depth in range(len(place)))
    found = place[0]
    if part is Wild.ELEMENT:
        fits = isinstance(found, int)
    elif part is Wild.NAME:
        fits = isinstance(found, str)
    else:
        fits = type(found) is type(part) and found == part
    return fits and _covers(rest, place[1:], whole)
