"""Posts with tags, and their comments."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import RowMapping, Select, bindparam, delete, func, insert, literal, select, update
from sqlalchemy.dialects import postgresql

from new_backend.models import (
    Author,
    Comment,
    CommentDraft,
    CommentPage,
    Nothing,
    Post,
    PostChange,
    PostDraft,
    PostPage,
    PostQuery,
)
from new_backend.operations import Answer, Call
from new_backend.permissions import may_edit, may_remove
from new_backend.refusals import Reason, Refusal
from new_backend.tables import NOW, accounts, comments, post_tags, posts, tags

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from new_backend.paging import Paging


NAMES = (
    select(func.array_agg(tags.c.name))
    .join(post_tags, post_tags.c.tag_id == tags.c.id)
    .where(post_tags.c.post_id == posts.c.id)
    .scalar_subquery()
)
COUNTED = select(func.count()).where(comments.c.post_id == posts.c.id).scalar_subquery()
POSTS = select(
    posts.c.id,
    posts.c.title,
    posts.c.body,
    NAMES.label("tags"),
    posts.c.author_id,
    accounts.c.username,
    accounts.c.display_name,
    COUNTED.label("comment_count"),
    posts.c.created_at,
    posts.c.updated_at,
).join(accounts, accounts.c.id == posts.c.author_id)
"""All that the API says of posts, in one statement of index lookups."""
ONE_POST = POSTS.where(posts.c.id == bindparam("post_id"))

COMMENTS = select(
    comments.c.id,
    comments.c.post_id,
    comments.c.author_id,
    accounts.c.username,
    accounts.c.display_name,
    comments.c.body,
    comments.c.created_at,
).join(accounts, accounts.c.id == comments.c.author_id)


async def list_posts(call: Call[Nothing, PostQuery]) -> Answer:
    query = call.query
    wanted = POSTS.order_by(posts.c.id.desc()).limit(query.limit + 1)
    if query.cursor is not None:
        wanted = wanted.where(posts.c.id < query.cursor)
    if query.author is not None:
        wanted = wanted.where(posts.c.author_id == query.author)
    if query.tag is not None:
        wanted = wanted.join(post_tags, post_tags.c.post_id == posts.c.id).where(
            post_tags.c.tag_id == select(tags.c.id).where(tags.c.name == query.tag).scalar_subquery()
        )
    async with call.database.reading() as db:
        rows = await db.execute(wanted)
    return Answer(PostPage.cut([post(row) for row in rows.mappings()], query.limit))


async def write_post(call: Call[PostDraft, Nothing]) -> Answer:
    draft = call.body
    async with call.database.writing() as db:
        post_id = await db.scalar(
            insert(posts)
            .values(author_id=call.actor.id, title=draft.title, body=draft.body)
            .returning(posts.c.id)
        )
        await tag_post(db, post_id, draft.tags)
        written = await read_post(db, post_id)
    return Answer(written, {"Location": f"/api/posts/{post_id}"})


async def show_post(call: Call[Nothing, Nothing]) -> Answer:
    async with call.database.reading() as db:
        return Answer(await read_post(db, call.ids["post_id"]))


async def change_post(call: Call[PostChange, Nothing]) -> Answer:
    changes = call.body.model_dump(exclude_unset=True)
    new_tags = changes.pop("tags", None)
    post_id = call.ids["post_id"]
    this = posts.c.id == post_id
    async with call.database.writing() as db:
        if not may_edit(call.actor, await lock_author(db, select(posts.c.author_id).where(this))):
            raise Refusal(Reason.FORBIDDEN)
        if changes or new_tags is not None:
            await db.execute(update(posts).where(this).values(**changes, updated_at=NOW))
        if new_tags is not None:
            await db.execute(delete(post_tags).where(post_tags.c.post_id == post_id))
            await tag_post(db, post_id, new_tags)
        return Answer(await read_post(db, post_id))


async def remove_post(call: Call[Nothing, Nothing]) -> Answer:
    this = posts.c.id == call.ids["post_id"]
    async with call.database.writing() as db:
        if not may_remove(call.actor, await lock_author(db, select(posts.c.author_id).where(this))):
            raise Refusal(Reason.FORBIDDEN)
        await db.execute(delete(posts).where(this))
    return Answer(None)


async def list_comments(call: Call[Nothing, Paging]) -> Answer:
    post_id = call.ids["post_id"]
    async with call.database.reading() as db:
        if await db.scalar(select(posts.c.id).where(posts.c.id == post_id)) is None:
            raise Refusal(Reason.NOT_FOUND)
        rows = await db.execute(
            COMMENTS.where(comments.c.post_id == post_id, comments.c.id > (call.query.cursor or 0))
            .order_by(comments.c.id)
            .limit(call.query.limit + 1)
        )
    return Answer(CommentPage.cut([comment(row) for row in rows.mappings()], call.query.limit))


async def write_comment(call: Call[CommentDraft, Nothing]) -> Answer:
    post_id = call.ids["post_id"]
    async with call.database.writing() as db:
        # Locked, so that nobody removes the post under its new comment.
        found = select(posts.c.id).where(posts.c.id == post_id).with_for_update(key_share=True, read=True)
        if await db.scalar(found) is None:
            raise Refusal(Reason.NOT_FOUND)
        comment_id = await db.scalar(
            insert(comments)
            .values(post_id=post_id, author_id=call.actor.id, body=call.body.body)
            .returning(comments.c.id)
        )
        written = await db.execute(COMMENTS.where(comments.c.id == comment_id))
        return Answer(comment(written.mappings().one()))


async def remove_comment(call: Call[Nothing, Nothing]) -> Answer:
    this = comments.c.id == call.ids["comment_id"]
    async with call.database.writing() as db:
        found = select(comments.c.author_id).where(this, comments.c.post_id == call.ids["post_id"])
        if not may_remove(call.actor, await lock_author(db, found)):
            raise Refusal(Reason.FORBIDDEN)
        await db.execute(delete(comments).where(this))
    return Answer(None)


async def read_post(db: AsyncConnection, post_id: int) -> Post:
    """The post. Refuses with 404 if there is none."""
    row = (await db.execute(ONE_POST, {"post_id": post_id})).mappings().one_or_none()
    if row is None:
        raise Refusal(Reason.NOT_FOUND)
    return post(row)


async def lock_author(db: AsyncConnection, author_ids: Select[int]) -> int:
    """Locks the one row that is asked for and says whose it is. Refuses with 404 if there is none."""
    author_id = await db.scalar(author_ids.with_for_update())
    if author_id is None:
        raise Refusal(Reason.NOT_FOUND)
    return author_id


async def tag_post(db: AsyncConnection, post_id: int, names: list[str]) -> None:
    """Gives the post its tags. Their names come sorted: two posts with the same new tags cannot deadlock."""
    if not names:
        return
    await db.execute(
        postgresql.insert(tags).values([{"name": name} for name in names]).on_conflict_do_nothing()
    )
    chosen = select(literal(post_id), tags.c.id).where(tags.c.name.in_(names))
    await db.execute(insert(post_tags).from_select(["post_id", "tag_id"], chosen))


def post(row: RowMapping) -> Post:
    return Post(
        id=row["id"],
        title=row["title"],
        body=row["body"],
        tags=sorted(row["tags"] or ()),
        author=author(row),
        comment_count=row["comment_count"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )


def comment(row: RowMapping) -> Comment:
    return Comment(
        id=row["id"],
        post_id=row["post_id"],
        author=author(row),
        body=row["body"],
        created_at=row["created_at"],
    )


def author(row: RowMapping) -> Author:
    return Author(id=row["author_id"], username=row["username"], display_name=row["display_name"])
