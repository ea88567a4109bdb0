"""Plants the sample data in the legacy tables, in the shape that years of use would have given it."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING

from examples.legacy.posts import join_tags
from examples.legacy.web import ROLES

if TYPE_CHECKING:
    from pathlib import Path

    from examples.legacy.database import Connection

LEVELS = {role: level for level, role in ROLES.items()}
WALL = "(%s::timestamptz AT TIME ZONE 'Europe/Berlin')"


def plant(db: Connection, file: Path) -> None:
    """Fills empty tables from `file`; leaves tables alone that have rows already."""
    data = json.loads(file.read_bytes())
    users = {account["id"]: account for account in data["accounts"]}
    comments = Counter(row["post_id"] for row in data["comments"] if not row.get("deleted"))
    with db.transaction(), db.cursor() as cursor:
        cursor.execute("LOCK TABLE users IN EXCLUSIVE MODE")
        if cursor.execute("SELECT 1 FROM users LIMIT 1").fetchone():
            return
        cursor.executemany(
            f"INSERT INTO users VALUES (%s, %s, %s, %s, %s, %s, %s, %s, {WALL}, %s)",
            [
                (
                    row["id"], row["username"], row["password_hash"], row["display_name"],
                    row["email"] or void(row), row["bio"] or void(row), LEVELS[row["role"]],
                    str(row["balance_cents"]), row["created_at"], mark(row),
                )
                for row in users.values()
            ],
        )  # fmt: skip
        cursor.executemany(
            f"INSERT INTO posts VALUES (%s, %s, %s, %s, %s, %s, %s, %s, {WALL}, {WALL}, %s)",
            [
                (
                    row["id"], row["author_id"], users[row["author_id"]]["username"],
                    users[row["author_id"]]["display_name"], row["title"], row["body"],
                    join_tags(row["tags"]) or void(row), comments[row["id"]], row["created_at"],
                    row["updated_at"] if row["updated_at"] != row["created_at"] else None, mark(row),
                )
                for row in data["posts"]
            ],
        )  # fmt: skip
        cursor.executemany(
            f"INSERT INTO comments VALUES (%s, %s, %s, %s, %s, %s, {WALL}, %s)",
            [
                (
                    row["id"], row["post_id"], row["author_id"], users[row["author_id"]]["username"],
                    users[row["author_id"]]["display_name"], row["body"], row["created_at"], mark(row),
                )
                for row in data["comments"]
            ],
        )  # fmt: skip
        cursor.executemany(
            f"INSERT INTO transfers VALUES (%s, %s, %s, %s, %s, %s, %s, NULL, {WALL})",
            [
                (
                    row["id"], row["from_id"], users[row["from_id"]]["username"], row["to_id"],
                    users[row["to_id"]]["username"], str(row["amount_cents"]),
                    row["note"] or void(row), row["created_at"],
                )
                for row in data["transfers"]
            ],
        )  # fmt: skip
        for table, key in (("users", "user_id"), ("posts", "post_id"), ("comments", "comment_id"),
                           ("transfers", "transfer_id")):  # fmt: skip
            cursor.execute(
                f"SELECT setval(pg_get_serial_sequence('{table}', '{key}'), max({key})) FROM {table}"
            )
        # Without statistics the planner takes `deleted = 'N'` for rare, and a list reads the whole table.
        cursor.execute("ANALYZE users, posts, comments, transfers")


def void(row: dict[str, int]) -> str | None:
    """Some rows say NULL where others say ''."""
    return None if row["id"] % 3 else ""


def mark(row: dict[str, object]) -> str:
    return "Y" if row.get("deleted") else "N"
