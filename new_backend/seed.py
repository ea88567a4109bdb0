"""Plants the sample data in the new tables."""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import NullPool, create_engine, func, insert, select, text

from new_backend.database import driver_url
from new_backend.tables import accounts, comments, post_tags, posts, tags, transfers, wallets

if TYPE_CHECKING:
    from pathlib import Path


def plant(url: str, file: Path) -> None:
    """Fills empty tables from `file`; leaves tables alone that have rows already."""
    data = json.loads(file.read_bytes())
    people, written, said = (living(data[name]) for name in ("accounts", "posts", "comments"))
    names = sorted({name for post in written for name in post["tags"]})
    tag_ids = {name: number for number, name in enumerate(names, 1)}
    engine = create_engine(driver_url(url), poolclass=NullPool)
    with engine.begin() as db:
        db.execute(text("LOCK TABLE accounts IN EXCLUSIVE MODE"))
        if db.scalar(select(func.count()).select_from(accounts)):
            return
        db.execute(insert(accounts), [only(accounts.c.keys(), row) for row in people])
        db.execute(
            insert(wallets),
            [{"account_id": row["id"], "balance_cents": row["balance_cents"]} for row in people],
        )
        db.execute(insert(posts), [only(posts.c.keys(), row) for row in written])
        db.execute(insert(tags), [{"id": number, "name": name} for name, number in tag_ids.items()])
        db.execute(
            insert(post_tags),
            [{"post_id": row["id"], "tag_id": tag_ids[name]} for row in written for name in row["tags"]],
        )
        db.execute(insert(comments), [only(comments.c.keys(), row) for row in said])
        db.execute(
            insert(transfers),
            [
                only(transfers.c.keys(), row | {"sender_id": row["from_id"], "receiver_id": row["to_id"]})
                for row in living(data["transfers"])
            ],
        )
        # One past everything in the file: also past what was deleted and is not planted here.
        for table, rows in ((accounts, data["accounts"]), (posts, data["posts"]),
                            (comments, data["comments"]), (transfers, data["transfers"])):  # fmt: skip
            last = max(row["id"] for row in rows)
            db.execute(select(func.setval(func.pg_get_serial_sequence(table.name, "id"), last)))
        db.execute(select(func.setval(func.pg_get_serial_sequence("tags", "id"), len(tag_ids))))


def living(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that are not deleted, with their times read."""
    return [
        {key: datetime.fromisoformat(value) if key.endswith("_at") else value for key, value in row.items()}
        for row in rows
        if not row.get("deleted")
    ]


def only(columns: list[str], row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key in columns}
