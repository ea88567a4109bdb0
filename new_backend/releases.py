"""Releases of this service that are wrong on purpose, for demonstrations: `--release NAME`.

Each is the whole service but for one operation or two, with a mistake that somebody could have made. Nothing
of this is served without that option.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final

from sqlalchemy import func, select

from new_backend import posts
from new_backend.models import Nothing, Post, PostPage, PostQuery
from new_backend.operations import Answer, Call, Operation
from new_backend.routes import OPERATIONS
from new_backend.tables import comments

GOOD: Final = "1.0"
MISCOUNTS: Final = "1.0-rc1"
"""Says how many people have commented on a post, and not how many comments there are."""
FAILS: Final = "1.1-rc1"
"""Answers 500 for each post that has a tag."""

_TITLES_OF_TAGS: dict[str, str] = {}
"""Of FAILS: should be read from the database at the start, and nobody does."""


async def _list_posts(call: Call[Nothing, PostQuery]) -> Answer:
    answer = await posts.list_posts(call)
    page = answer.content
    assert isinstance(page, PostPage)
    return Answer(page.model_copy(update={"items": await _miscounted(call, page.items)}), answer.headers)


async def _show_post(call: Call[Nothing, Nothing]) -> Answer:
    answer = await posts.show_post(call)
    post = answer.content
    assert isinstance(post, Post)
    return Answer((await _miscounted(call, [post]))[0], answer.headers)


async def _miscounted(call: Call[Any, Any], found: Sequence[Post]) -> list[Post]:
    people = (
        select(comments.c.post_id, func.count(comments.c.author_id.distinct()).label("people"))
        .where(comments.c.post_id.in_([post.id for post in found]))
        .group_by(comments.c.post_id)
    )
    async with call.database.reading() as db:
        counted = {row.post_id: row.people for row in await db.execute(people)}
    return [post.model_copy(update={"comment_count": counted.get(post.id, 0)}) for post in found]


async def _show_post_with_titles(call: Call[Nothing, Nothing]) -> Answer:
    answer = await posts.show_post(call)
    post = answer.content
    assert isinstance(post, Post)
    titles = [_TITLES_OF_TAGS[tag] for tag in post.tags]
    return Answer(post.model_copy(update={"tags": titles}), answer.headers)


def _but(handlers: Mapping[tuple[str, str], Any]) -> tuple[Operation[Any, Any], ...]:
    """All operations, some of them with another handler."""
    return tuple(
        replace(one, handler=handlers.get((one.method, one.path), one.handler)) for one in OPERATIONS
    )


RELEASES: Final[Mapping[str, tuple[Operation[Any, Any], ...]]] = MappingProxyType(
    {
        GOOD: OPERATIONS,
        MISCOUNTS: _but({("GET", "/api/posts"): _list_posts, ("GET", "/api/posts/{post_id}"): _show_post}),
        FAILS: _but({("GET", "/api/posts/{post_id}"): _show_post_with_titles}),
    }
)
