"""JSON values reshaped by rules: move, remove, set and convert what stands at a path.

A path is `a.b.*.c`: names of an object, and `*` for each element of a list. A rule whose path is not
there does nothing. What was taken from its place and cannot be put into the new one is an error, because it
would be lost. Numbers that are not touched keep every digit they were written with.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

CONVERSIONS = ("number", "text", "boolean")
PATH = re.compile(r"(?:\*|[^.*\s]+)(?:\.(?:\*|[^.*\s]+))*")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")


@dataclass(frozen=True, slots=True)
class ShapeRules:
    """What is done to one JSON body, in this order."""

    rename: tuple[tuple[str, str], ...] = ()
    """From path to path, with as many `*` on both sides."""
    remove: tuple[str, ...] = ()
    convert: tuple[tuple[str, str], ...] = ()
    """Path and one of `CONVERSIONS`."""
    set: tuple[tuple[str, Any], ...] = field(default=(), repr=False)
    """Path without `*`, and a plain value. Not shown, because it may be a secret."""

    def __bool__(self) -> bool:
        return bool(self.rename or self.remove or self.convert or self.set)


class Number(str):
    """A number as it was written."""

    __slots__ = ()


def is_path(text: str) -> bool:
    return PATH.fullmatch(text) is not None


def reshape(body: bytes, rules: ShapeRules) -> bytes:
    """`body` after `rules`. Raises ValueError for what is no JSON or cannot be converted."""
    value = read(body)
    for source, destination in rules.rename:
        _move(value, source.split("."), destination.split("."))
    for path in rules.remove:
        for holder, key, _ in list(_found(value, path.split("."))):
            del holder[key]
    for path, kind in rules.convert:
        for holder, key, _ in list(_found(value, path.split("."))):
            holder[key] = _converted(holder[key], kind, path)
    for path, plain in rules.set:
        _can_put(value, path.split("."), plain)
    return write(value).encode()


def read(body: bytes) -> Any:
    return json.loads(body, parse_float=Number, parse_int=Number)


def write(value: Any) -> str:
    if isinstance(value, Number):
        return str(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{_text(key)}:{write(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(write, value)) + "]"
    return _text(value)


def value_at(value: Any, path: str) -> Any:
    """The first value at `path`, None if there is none."""
    return next((holder[key] for holder, key, _ in _found(value, path.split("."))), None)


def put_at(value: Any, path: str, plain: Any) -> None:
    """Raises ValueError where there is no object to put it into."""
    if not _can_put(value, path.split("."), plain):
        raise ValueError(f"{path}: there is no object to put it into")


def _text(plain: object) -> str:
    return json.dumps(plain, ensure_ascii=False)


def _found(
    value: Any, path: list[str], at: tuple[int, ...] = ()
) -> Iterator[tuple[Any, Any, tuple[int, ...]]]:
    """Holder, key, and the places in lists passed on the way, for all that stands at `path`."""
    name, rest = path[0], path[1:]
    if name == "*":
        keys: list[Any] = list(range(len(value))) if isinstance(value, list) else []
    else:
        keys = [name] if isinstance(value, dict) and name in value else []
    for key in keys:
        passed = (*at, key) if name == "*" else at
        if rest:
            yield from _found(value[key], rest, passed)
        else:
            yield value, key, passed


def _move(value: Any, source: list[str], destination: list[str]) -> None:
    moved = [(holder, key, places, holder[key]) for holder, key, places in _found(value, source)]
    for holder, key, _, _ in moved:
        del holder[key]
    for _, _, places, content in moved:
        left = iter(places)
        if not _can_put(value, [next(left) if name == "*" else name for name in destination], content):
            what, where = ".".join(source), ".".join(destination)
            raise ValueError(f"{what} cannot become {where}: there is no object to put it into")


def _can_put(value: Any, path: list[Any], content: Any) -> bool:
    """Set what stands at `path`; objects on the way are made, lists must be there. False where it cannot."""
    for name in path[:-1]:
        if isinstance(name, int) and isinstance(value, list) and name < len(value):
            value = value[name]
        elif isinstance(name, str) and isinstance(value, dict):
            value = value.setdefault(name, {})
        else:
            return False
    if not isinstance(value, dict) or not isinstance(path[-1], str):
        return False
    value[path[-1]] = content
    return True


def _converted(value: Any, kind: str, path: str) -> Any:
    if value is None:
        return None
    convert = _CONVERT[kind]
    converted = convert(value)
    if converted is None:
        raise ValueError(f"{path}: {value!r} cannot become a {kind}")
    return converted


def _to_number(value: Any) -> Number | None:
    if isinstance(value, bool):
        return Number(int(value))
    return Number(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else None


def _to_text(value: Any) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, str) else None  # a Number is written text, too


def _to_boolean(value: Any) -> bool | None:
    if isinstance(value, bool):
        return value
    return (
        {"1": True, "true": True, "0": False, "false": False}.get(value) if isinstance(value, str) else None
    )


_CONVERT: dict[str, Callable[[Any], Any]] = {
    "number": _to_number, "text": _to_text, "boolean": _to_boolean,
}  # fmt: skip
