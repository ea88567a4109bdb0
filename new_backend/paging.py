"""Cursor pagination: a page says after which id the next one starts, in a text that hides it."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from typing import Annotated, Any, Generic, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

LARGEST_ID = 2**63 - 1


def write_cursor(last: int) -> str:
    return base64.urlsafe_b64encode(str(last).encode()).decode().rstrip("=")


def read_cursor(text: str) -> int:
    """The id in a cursor of ours. Raises ValueError for every other text."""
    decoded = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode("ascii")
    last = read_id(decoded)
    if last is None or write_cursor(last) != text:
        raise ValueError("not a cursor")
    return last


def read_id(text: str) -> int | None:
    """An id as paths spell it, or None for what no id can be."""
    if re.fullmatch(r"[1-9][0-9]{0,18}", text) and int(text) <= LARGEST_ID:
        return int(text)
    return None


def read_whole(text: str) -> int:
    """Digits only: neither ` 5`, nor `5.0`, nor `5_0`, which int() or pydantic would take."""
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise ValueError("not a whole number")
    return int(text)


def may_be_missing(schema: dict[str, Any]) -> None:
    """Documents a parameter that may be left out, rather than one that may be null."""
    schema.pop("default")
    schema.update(schema.pop("anyOf", [{}])[0])


Limit = Annotated[
    int,
    BeforeValidator(read_whole),
    Field(ge=1, le=100),
    WithJsonSchema({"type": "integer", "minimum": 1, "maximum": 100}),
]
WholeId = Annotated[
    int,
    BeforeValidator(read_whole),
    Field(ge=1, le=LARGEST_ID),
    WithJsonSchema({"type": "integer", "minimum": 1}),
]
Cursor = Annotated[int, BeforeValidator(read_cursor), WithJsonSchema({"type": "string"})]


class Paging(BaseModel):
    """The query of every list."""

    model_config = ConfigDict(frozen=True)

    limit: Limit = 20
    cursor: Cursor | None = Field(None, json_schema_extra=may_be_missing)


class Item(BaseModel):
    """Anything a list may hold."""

    model_config = ConfigDict(frozen=True, serialize_by_alias=True)

    id: int


ItemT = TypeVar("ItemT", bound=Item)


class Page(BaseModel, Generic[ItemT]):
    """One page of a list; no cursor on the last one."""

    model_config = ConfigDict(frozen=True)

    items: list[ItemT]
    next_cursor: str | None

    @classmethod
    def cut(cls, found: Sequence[ItemT], limit: int) -> Self:
        """The page from up to `limit + 1` items; the one too many only says that there are more."""
        page = list(found[:limit])
        return cls(items=page, next_cursor=write_cursor(page[-1].id) if len(found) > limit else None)
