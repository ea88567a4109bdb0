"""What a service says that it can be asked: the operations of its OpenAPI document. Pure.

A report counts the compared pairs of each, so that a release does not rest on the half of an API that
happened to be called.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias
from urllib.parse import unquote, urlsplit

from flags.match import InvalidRouteError, Matcher
from flags.model import Route

METHODS: Final = ("get", "head", "options", "post", "put", "patch", "delete")
MOST: Final = 2000
Operation: TypeAlias = tuple[str, str]
"""Method and path template, with the path of the first server before it."""


class InvalidDocumentError(ValueError):
    """It is no OpenAPI document that can be used; the message says why."""


def operations(document: Any) -> tuple[Operation, ...]:
    """The operations of an OpenAPI 3 (or Swagger 2) document, in its order. Raises InvalidDocumentError."""
    if not isinstance(document, Mapping) or not ({"openapi", "swagger"} & document.keys()):
        raise InvalidDocumentError("openapi, with its version, is missing")
    paths = document.get("paths")
    if not isinstance(paths, Mapping):
        raise InvalidDocumentError("it has no paths")
    base = _base(document)
    found = tuple(
        (method.upper(), base + str(path))
        for path, item in paths.items()
        if isinstance(item, Mapping)
        for method in METHODS
        if method in item
    )
    if not found:
        raise InvalidDocumentError("it has no operations")
    if len(found) > MOST:
        raise InvalidDocumentError(f"it has {len(found):,} operations; at most {MOST:,} can be counted")
    Operations(found)
    return found


def _base(document: Mapping[str, Any]) -> str:
    servers = document.get("servers")
    if isinstance(servers, list) and servers and isinstance(servers[0], Mapping):
        base = urlsplit(str(servers[0].get("url", ""))).path
    else:
        base = str(document.get("basePath", ""))
    return base.rstrip("/")


class Operations:
    """Which operation a request is. As the standard says, a path without names goes before one with some."""

    def __init__(self, known: Sequence[Operation]) -> None:
        """Raises InvalidDocumentError."""
        self._known = sorted(known, key=lambda one: [_is_named(part) for part in one[1].split("/")])
        try:
            self._matcher = Matcher(
                [Route(name_of(one), _template(one[1]), frozenset({one[0]})) for one in self._known]
            )
        except InvalidRouteError as error:
            raise InvalidDocumentError(str(error)) from None

    def of(self, method: str, target: bytes) -> Operation | None:
        """`target` is path and query as they were sent."""
        path = target.partition(b"?")[0]
        order = self._matcher.match(method.encode("latin-1"), b"", path)
        return None if order is None else self._known[order]


def name_of(operation: Operation) -> str:
    return " ".join(operation)


def example_path(operation: Operation) -> bytes:
    """A path that the operation has."""
    return re.sub(r"\{[^{}/]*\}", "0", operation[1]).encode()


def _template(path: str) -> str:
    return "/".join("{name}" if _is_named(part) else unquote(part) for part in path.split("/"))


def _is_named(part: str) -> bool:
    """Also `{id}.json` and `{from}-{to}`: a segment is one name here, or none."""
    return "{" in part
