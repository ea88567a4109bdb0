"""Checks of what a client sent: a body's fields, a query's parameters, ids and cursors.

Every problem is one word, and the first problem of each field is reported, in the order in which
the fields are asked for; fields that nobody asked for come last.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Any

from examples.legacy.refusals import Refusal, invalid

LARGEST_ID = 2**63 - 1
MOST_TAGS = 8
USERNAME = re.compile(r"[a-z0-9_]{3,32}")
EMAIL = re.compile(r"[!-?A-~]{1,64}@[A-Za-z0-9.-]{1,120}")
TAG = re.compile(r"[a-z0-9][a-z0-9-]{0,29}")
IDEMPOTENCY_KEY = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


class Fields:
    """The fields of a JSON object, taken one by one. `finish` raises if anything was wrong."""

    def __init__(self, body: object) -> None:
        if not isinstance(body, dict):
            raise invalid({"": "wrong_type"})
        self._body: dict[str, Any] = body
        self._asked: set[str] = set()
        self._problems: dict[str, str] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._body

    def text(
        self,
        name: str,
        least: int,
        most: int,
        pattern: re.Pattern[str] | None = None,
        default: str | None = None,
    ) -> str:
        """A text of `least` to `most` characters; required unless there is a default."""
        value = self._take(name, default)
        if not isinstance(value, str):
            return self._problem(name, "wrong_type")
        if not _is_unicode(value):
            return self._problem(name, "invalid")
        if len(value) < least:
            return self._problem(name, "too_short")
        if len(value) > most:
            return self._problem(name, "too_long")
        if "\x00" in value or (pattern and not pattern.fullmatch(value)):
            return self._problem(name, "invalid")
        return value

    def email(self, name: str) -> str | None:
        """An address, or None where there is none."""
        if self._body.get(name) is None:
            self._asked.add(name)
            return None
        return self.text(name, 3, 200, EMAIL)

    def whole(self, name: str, least: int, most: int) -> int:
        value = self._take(name, None)
        if type(value) is not int:  # a bool is an int to isinstance
            self._problem(name, "wrong_type")
            return least
        if value < least:
            self._problem(name, "too_small")
        elif value > most:
            self._problem(name, "too_large")
        return value

    def tags(self, name: str) -> list[str]:
        """Tags, sorted and each once; none if the field is missing."""
        value = self._take(name, [])
        if not isinstance(value, list):
            self._problem(name, "wrong_type")
            return []
        for tag in value:
            if not isinstance(tag, str):
                self._problem(name, "wrong_type")
            elif not _is_unicode(tag):
                self._problem(name, "invalid")
        if name in self._problems:
            return []
        if len(value) > MOST_TAGS or not all(TAG.fullmatch(tag) for tag in value):
            self._problem(name, "invalid")
        return sorted(set(value))

    def finish(self) -> None:
        for name in self._body:
            if name not in self._asked:
                self._problem(name, "unknown")
        if self._problems:
            raise invalid(self._problems)

    def _take(self, name: str, default: object) -> object:
        self._asked.add(name)
        if name not in self._body and default is None:
            self._problem(name, "missing")
        return self._body.get(name, default)

    def _problem(self, name: str, problem: str) -> str:
        self._problems.setdefault(name, problem)
        return ""


class Page:
    """What a list's query asks for: how many items, and after which one the page starts."""

    def __init__(self, query: Mapping[str, str], filtered: bool = False) -> None:
        self._query = query
        self._problems: dict[str, str] = {}
        self.limit = self._whole("limit", 100) or 20
        self.cursor = self._cursor()
        self.tag = self._tag() if filtered else None
        self.author = self._whole("author", LARGEST_ID) if filtered else None
        if self._problems:
            raise invalid(self._problems)

    def cut(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        """The page's JSON from up to `limit + 1` items; the one too many says that there are more."""
        page = items[: self.limit]
        more = len(items) > self.limit
        return {"items": page, "next_cursor": write_cursor(page[-1]["id"]) if more else None}

    def _tag(self) -> str | None:
        tag = self._query.get("tag")
        if tag is not None and not TAG.fullmatch(tag):
            self._problems["tag"] = "invalid"
        return tag

    def _whole(self, name: str, most: int) -> int | None:
        text = self._query.get(name)
        if text is None:
            return None
        if not re.fullmatch(r"[0-9]{1,18}", text):
            self._problems[name] = "invalid"
        elif int(text) < 1:
            self._problems[name] = "too_small"
        elif int(text) > most:
            self._problems[name] = "too_large"
        else:
            return int(text)
        return None

    def _cursor(self) -> int | None:
        text = self._query.get("cursor")
        if text is None:
            return None
        cursor = read_cursor(text)
        if cursor is None:
            self._problems["cursor"] = "invalid"
        return cursor


def write_cursor(last: int) -> str:
    return base64.urlsafe_b64encode(str(last).encode()).decode().rstrip("=")


def read_cursor(text: str) -> int | None:
    """The id that a cursor of ours hides; None for every other text."""
    try:
        decoded = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode("ascii")
    except ValueError:
        return None
    if not _is_id(decoded) or write_cursor(int(decoded)) != text:
        return None
    return int(decoded)


def path_id(text: str) -> int:
    """The id in a path. Raises the refusal 404 for what no id can be."""
    if not _is_id(text):
        raise Refusal("not_found")
    return int(text)


def _is_id(text: str) -> bool:
    return re.fullmatch(r"[1-9][0-9]{0,18}", text) is not None and int(text) <= LARGEST_ID


def _is_unicode(text: str) -> bool:
    """False for half of a surrogate pair, which JSON can spell and UTF-8 cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in text)
