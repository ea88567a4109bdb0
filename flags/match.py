"""Compile routes into a matcher whose cost does not grow with their number.

A definition is what a person wrote (`Route`); an instance is what requests run through. The
templates become one tree of path segments. A walk visits the literal child, the `{name}` child and
the `**` leaves of each node on its way, and keeps the matching route that was written first, so the
tree gives the same answer as trying every route in order.

Matching looks at an equivalent form of the path: `%7E` and `~` are one character (RFC 3986, 6.2.2),
and `/a/./b/../c` is `/a/c`. Otherwise a client could step around a flag by spelling a path
differently while both backends still understand it. What is forwarded is never the equivalent form
but the bytes that came in.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from core.paths import equivalent_path
from flags.model import Route

_PARAMETER = re.compile(r"\{[A-Za-z_][A-Za-z0-9_]*\}")
_LITERAL = re.compile(r"[^\s{}*?#]*")
_HOST = re.compile(r"(\*\.)?[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?|\[[0-9A-Fa-f:.]+\]")


class InvalidRouteError(ValueError):
    """A route that cannot be compiled; the message says what would be right."""


def check_path(template: str) -> None:
    """Raise `InvalidRouteError` unless `template` follows the grammar of `Route.path`."""
    if not template.startswith("/"):
        raise InvalidRouteError(f'"{template}" must start with "/"')
    *inner, last = template[1:].split("/")
    if last != "**":
        inner.append(last)
    for segment in inner:
        if "*" in segment:
            raise InvalidRouteError('"**" stands for any rest and may only be the last segment')
        if not (_PARAMETER.fullmatch(segment) or _LITERAL.fullmatch(segment)):
            raise InvalidRouteError(
                f'segment "{segment}" must be plain text or one name in braces, such as "{{id}}"'
            )


def check_host(host: str) -> None:
    """Raise `InvalidRouteError` unless `host` is a host name without port, or `*.` and a name."""
    if not _HOST.fullmatch(host):
        raise InvalidRouteError(f'"{host}" must be a host name without port, such as "api.example.com"')


@dataclass(slots=True, eq=False)
class _Node:
    depth: int = 0
    literals: dict[bytes, _Node] = field(default_factory=dict)
    parameter: _Node | None = None
    ends: tuple[_Instance, ...] | None = None
    rests: tuple[_Instance, ...] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Instance:
    order: int
    methods: frozenset[bytes]
    host: bytes | None
    subdomains: bytes | None
    bound_to_host: bool

    def admits_host(self, host: bytes) -> bool:
        if self.host is not None:
            return _name(host) == self.host
        return self.subdomains is None or _name(host).endswith(self.subdomains)


class Matcher:
    """Finds the first route that matches a request. Immutable once built."""

    __slots__ = ("_root",)

    def __init__(self, routes: Sequence[Route]) -> None:
        self._root = _Node()
        for order, route in enumerate(routes):
            self._insert(order, route)

    def match(self, method: bytes, host: bytes, path: bytes) -> int | None:
        """Index of the first matching route. `host` may carry a port; `path` carries no query."""
        # `find`, because `in` first tries a bytes operand as a number and throws an error away.
        if path.find(b"%") >= 0 or path.find(b"/.") >= 0 or not path.isascii():
            path = equivalent_path(path)
        segments = path.split(b"/")
        del segments[0]  # what stands before the first slash: nothing
        best = None
        node = self._root
        for segment in segments:
            if node.rests is not None:
                best = _first(node.rests, best, method, host)
            child = node.literals.get(segment)
            if child is None:
                child = node.parameter
                if child is None or not segment:
                    break
            elif node.parameter is not None and segment:
                # Two ways lead on: the literal one is walked to its end here, the other one below.
                best = _walk(node.parameter, segments, node.depth + 1, best, method, host)
            node = child
        else:
            if node.rests is not None:
                best = _first(node.rests, best, method, host)
            if node.ends is not None:
                best = _first(node.ends, best, method, host)
        return None if best is None else best.order

    def _insert(self, order: int, route: Route) -> None:
        check_path(route.path)
        if route.host is not None:
            check_host(route.host)
        host = None if route.host is None else route.host.lower().encode()
        wild = host is not None and host.startswith(b"*.")
        instance = _Instance(
            order=order,
            methods=frozenset(method.encode() for method in route.methods),
            host=None if wild else host,
            subdomains=host[1:] if wild and host is not None else None,
            bound_to_host=host is not None,
        )
        node = self._root
        *inner, last = equivalent_path(route.path.encode())[1:].split(b"/")
        open_ended = last == b"**"
        for segment in inner if open_ended else [*inner, last]:
            if segment.startswith(b"{"):
                node.parameter = node.parameter or _Node(node.depth + 1)
                node = node.parameter
            else:
                node = node.literals.setdefault(segment, _Node(node.depth + 1))
        if open_ended:
            node.rests = (*(node.rests or ()), instance)
        else:
            node.ends = (*(node.ends or ()), instance)


def _walk(
    node: _Node, segments: list[bytes], depth: int, best: _Instance | None, method: bytes, host: bytes
) -> _Instance | None:
    """The first admitting instance below `node`, `best` included, whichever way leads to it."""
    if node.rests is not None:
        best = _first(node.rests, best, method, host)
    if depth == len(segments):
        return best if node.ends is None else _first(node.ends, best, method, host)
    segment = segments[depth]
    literal = node.literals.get(segment)
    if literal is not None:
        best = _walk(literal, segments, depth + 1, best, method, host)
    if node.parameter is not None and segment:
        best = _walk(node.parameter, segments, depth + 1, best, method, host)
    return best


def _first(
    instances: tuple[_Instance, ...], best: _Instance | None, method: bytes, host: bytes
) -> _Instance | None:
    """The admitting instance that was written first, `best` included."""
    for instance in instances:
        if best is not None and best.order < instance.order:
            break  # instances of one node are in the order of their routes
        if instance.methods and method not in instance.methods:
            continue
        if instance.bound_to_host and not instance.admits_host(host):
            continue
        return instance
    return best


def _name(host: bytes) -> bytes:
    """The host name of a Host value, without port and in lower case."""
    name, colon, port = host.rpartition(b":")
    if colon and not port.endswith(b"]"):
        host = name
    # A dot at the end says that the name is whole (RFC 3986, 3.2.2); it is the same name.
    return host.removesuffix(b".").lower()
