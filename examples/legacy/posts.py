"""Posts with tags, and their comments."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response, request

from examples.legacy.checks import Page, path_id
from examples.legacy.refusals import Refusal
from examples.legacy.web import answer, body_fields, database, logged_in, nothing, one

api = Blueprint("posts", __name__, url_prefix="/api")

POST = """
    post_id, user_id, author_login, author_name, title, body, tags, ncomments,
    api_time(created) AS created, api_time(coalesce(changed, created)) AS changed
"""
COMMENT = "comment_id, post_id, user_id, author_login, author_name, body, api_time(created) AS created"


@api.get("/posts")
def list_posts() -> Response:
    page = Page(request.args, filtered=True)
    rows = database().execute(
        f"""
        SELECT {POST} FROM posts
        WHERE deleted = 'N'
          AND (%(before)s::bigint IS NULL OR post_id < %(before)s)
          AND (%(author)s::bigint IS NULL OR user_id = %(author)s)
          AND (%(tag)s::text IS NULL OR tags LIKE '%%,' || %(tag)s || ',%%')
        ORDER BY post_id DESC LIMIT %(limit)s
        """,
        {"before": page.cursor, "author": page.author, "tag": page.tag, "limit": page.limit + 1},
    )
    return answer(page.cut([post_json(row) for row in rows]))


@api.post("/posts")
def write_post() -> Response:
    user = logged_in()
    fields = body_fields()
    title = fields.text("title", 1, 200)
    body = fields.text("body", 1, 20_000)
    tags = fields.tags("tags")
    fields.finish()
    row = database().execute(
        f"""
        INSERT INTO posts (user_id, author_login, author_name, title, body, tags)
        SELECT user_id, login, fullname, %s, %s, %s FROM users WHERE user_id = %s FOR SHARE
        RETURNING {POST}
        """,
        [title, body, join_tags(tags), user.id],
    )
    post = post_json(one(row.fetchone()))
    return answer(post, 201, {"Location": f"/api/posts/{post['id']}"})


@api.get("/posts/<post_id>")
def show_post(post_id: str) -> Response:
    row = database().execute(
        f"SELECT {POST} FROM posts WHERE post_id = %s AND deleted = 'N'", [path_id(post_id)]
    )
    return answer(post_json(one(row.fetchone())))


@api.patch("/posts/<post_id>")
def change_post(post_id: str) -> Response:
    user = logged_in()
    fields = body_fields()
    changes: dict[str, Any] = {}
    if "title" in fields:
        changes["title"] = fields.text("title", 1, 200)
    if "body" in fields:
        changes["body"] = fields.text("body", 1, 20_000)
    if "tags" in fields:
        changes["tags"] = join_tags(fields.tags("tags"))
    fields.finish()
    db, wanted = database(), path_id(post_id)
    with db.transaction():
        found = db.execute(
            f"SELECT {POST} FROM posts WHERE post_id = %s AND deleted = 'N' FOR UPDATE", [wanted]
        )
        row = one(found.fetchone())
        if row["user_id"] != user.id:
            raise Refusal("forbidden")
        if changes:
            changed = db.execute(
                f"UPDATE posts SET title = %s, body = %s, tags = %s, changed = wall_clock()"
                f" WHERE post_id = %s RETURNING {POST}",
                [*(changes.get(name, row[name]) for name in ("title", "body", "tags")), wanted],
            )
            row = one(changed.fetchone())
    return answer(post_json(row))


@api.delete("/posts/<post_id>")
def remove_post(post_id: str) -> Response:
    user, wanted = logged_in(), path_id(post_id)
    db = database()
    with db.transaction():
        found = db.execute(
            "SELECT user_id FROM posts WHERE post_id = %s AND deleted = 'N' FOR UPDATE", [wanted]
        )
        if not user.may_remove(one(found.fetchone())["user_id"]):
            raise Refusal("forbidden")
        db.execute("UPDATE posts SET deleted = 'Y' WHERE post_id = %s", [wanted])
        db.execute("UPDATE comments SET deleted = 'Y' WHERE post_id = %s", [wanted])
    return nothing()


@api.get("/posts/<post_id>/comments")
def list_comments(post_id: str) -> Response:
    page, wanted = Page(request.args), path_id(post_id)
    db = database()
    one(db.execute("SELECT 1 FROM posts WHERE post_id = %s AND deleted = 'N'", [wanted]).fetchone())
    rows = db.execute(
        f"""
        SELECT {COMMENT} FROM comments
        WHERE post_id = %s AND deleted = 'N' AND comment_id > %s ORDER BY comment_id LIMIT %s
        """,
        [wanted, page.cursor or 0, page.limit + 1],
    )
    return answer(page.cut([comment_json(row) for row in rows]))


@api.post("/posts/<post_id>/comments")
def write_comment(post_id: str) -> Response:
    user = logged_in()
    fields = body_fields()
    body = fields.text("body", 1, 5_000)
    fields.finish()
    db, wanted = database(), path_id(post_id)
    with db.transaction():
        # First the author, whose name is copied and must not change under us; then the post, so that
        # nobody removes it under its new comment.
        author = db.execute("SELECT login, fullname FROM users WHERE user_id = %s FOR SHARE", [user.id])
        names = one(author.fetchone())
        counted = db.execute(
            "UPDATE posts SET ncomments = ncomments + 1"
            " WHERE post_id = %s AND deleted = 'N' RETURNING post_id",
            [wanted],
        )
        one(counted.fetchone())
        row = db.execute(
            f"""
            INSERT INTO comments (post_id, user_id, author_login, author_name, body)
            VALUES (%s, %s, %s, %s, %s) RETURNING {COMMENT}
            """,
            [wanted, user.id, names["login"], names["fullname"], body],
        ).fetchone()
    return answer(comment_json(one(row)), 201)


@api.delete("/posts/<post_id>/comments/<comment_id>")
def remove_comment(post_id: str, comment_id: str) -> Response:
    user = logged_in()
    post, comment = path_id(post_id), path_id(comment_id)
    db = database()
    with db.transaction():
        # The post before the comment, in the order in which a removal of the post locks them.
        locked = db.execute("SELECT 1 FROM posts WHERE post_id = %s AND deleted = 'N' FOR UPDATE", [post])
        one(locked.fetchone())
        found = db.execute(
            "SELECT user_id FROM comments"
            " WHERE comment_id = %s AND post_id = %s AND deleted = 'N' FOR UPDATE",
            [comment, post],
        )
        if not user.may_remove(one(found.fetchone())["user_id"]):
            raise Refusal("forbidden")
        db.execute("UPDATE comments SET deleted = 'Y' WHERE comment_id = %s", [comment])
        db.execute("UPDATE posts SET ncomments = ncomments - 1 WHERE post_id = %s", [post])
    return nothing()


def join_tags(tags: list[str]) -> str:
    return f",{','.join(tags)}," if tags else ""


def author_json(row: dict[str, Any]) -> dict[str, Any]:
    return {"id": row["user_id"], "username": row["author_login"], "display_name": row["author_name"]}


def post_json(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": row["post_id"],
        "title": row["title"],
        "body": row["body"],
        "tags": [tag for tag in (row["tags"] or "").split(",") if tag],
        "author": author_json(row),
        "comment_count": row["ncomments"],
        "created_at": row["created"],
        "updated_at": row["changed"],
    }


def comment_json(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": row["comment_id"],
        "post_id": row["post_id"],
        "author": author_json(row),
        "body": row["body"],
        "created_at": row["created"],
    }
