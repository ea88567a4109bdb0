"""Requests and answers as adapters see them: whole, frozen, with text for names and values.

Fields keep their order, their case and their repetitions; their text is Latin-1, so that no byte of a
value is lost. Of the fields, those that belong to one connection or to the framing of the body are not
shown and not taken over: whoever sends the message writes them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any, Self

Fields = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What requests and answers have in common. Each method returns a changed copy."""

    headers: Fields = ()
    body: bytes = b""

    def header(self, name: str) -> str | None:
        """The value of the first field called `name`, in any case."""
        return next((value for value in self.header_values(name)), None)

    def header_values(self, name: str) -> list[str]:
        name = name.lower()
        return [value for found, value in self.headers if found.lower() == name]

    def with_header(self, name: str, value: str) -> Self:
        """One field `name` instead of any there were; it stays in the place of the first."""
        low = name.lower()
        places = [i for i, (found, _) in enumerate(self.headers) if found.lower() == low]
        if not places:
            return self.adding_header(name, value)
        headers = [
            (name, value) if i == places[0] else field
            for i, field in enumerate(self.headers)
            if i == places[0] or i not in places
        ]
        return replace(self, headers=tuple(headers))

    def adding_header(self, name: str, value: str) -> Self:
        return replace(self, headers=(*self.headers, (name, value)))

    def without_header(self, name: str) -> Self:
        low = name.lower()
        return replace(self, headers=tuple(field for field in self.headers if field[0].lower() != low))

    @property
    def is_json(self) -> bool:
        """Whether there is a body that says it is JSON."""
        kind = (self.header("content-type") or "").partition(";")[0].strip().lower()
        return bool(self.body) and (kind == "application/json" or kind.endswith("+json"))

    def json(self) -> Any:
        """The body, read as JSON. Raises ValueError."""
        return json.loads(self.body)

    def with_json(self, value: object) -> Self:
        """`value` as the body; the Content-Type is set where none speaks of JSON."""
        body = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
        changed = replace(self, body=body)
        return changed if changed.is_json else changed.with_header("Content-Type", "application/json")


@dataclass(frozen=True, slots=True)
class Request(Message):
    """A request. `target` is path and query as they are sent, percent-encoded."""

    method: str
    target: str

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def query(self) -> str:
        """What stands behind the question mark."""
        return self.target.partition("?")[2]

    def with_path(self, path: str) -> Self:
        mark, query = self.target.partition("?")[1:]
        return replace(self, target=path + mark + query)

    def with_query(self, query: str) -> Self:
        return replace(self, target=f"{self.path}?{query}" if query else self.path)

    def cookie(self, name: str) -> str | None:
        """The value of the first cookie called `name`."""
        return next((value for found, value in self._cookies() if found == name), None)

    def with_cookie(self, name: str, value: str) -> Self:
        """The cookie `name`, once; all cookies are in one field then."""
        others = [(found, kept) for found, kept in self._cookies() if found != name]
        return self._with_cookies([*others, (name, value)])

    def without_cookie(self, name: str) -> Self:
        cookies = self._cookies()
        kept = [(found, value) for found, value in cookies if found != name]
        return self if len(kept) == len(cookies) else self._with_cookies(kept)

    def _cookies(self) -> list[tuple[str, str]]:
        pairs = [pair.partition("=") for value in self.header_values("cookie") for pair in value.split(";")]
        return [(name.strip(), value.strip()) for name, mark, value in pairs if mark or name.strip()]

    def _with_cookies(self, cookies: list[tuple[str, str]]) -> Self:
        if not cookies:
            return self.without_header("Cookie")
        return self.with_header("Cookie", "; ".join(f"{name}={value}" for name, value in cookies))


@dataclass(frozen=True, slots=True)
class Answer(Message):
    """An answer."""

    status: int

    def set_cookie(self, name: str) -> str | None:
        """The value to which the answer sets the cookie `name`."""
        for value in self.header_values("set-cookie"):
            found, _, rest = value.partition("=")
            if found.strip() == name:
                return rest.partition(";")[0].strip()
        return None

    def without_set_cookie(self, name: str) -> Self:
        def is_meant(field: tuple[str, str]) -> bool:
            return field[0].lower() == "set-cookie" and field[1].partition("=")[0].strip() == name

        return replace(self, headers=tuple(field for field in self.headers if not is_meant(field)))
