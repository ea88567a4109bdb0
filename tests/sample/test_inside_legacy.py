"""What the monolith keeps in its tables: the habits that a migration has to survive."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from tests.sample.backends import SAMPLE, Backend, person

pytestmark = pytest.mark.parametrize("backend", ["legacy"], indirect=True)


def rows(backend: Backend, query: str, *values: object) -> list[dict[str, Any]]:
    with psycopg.connect(backend.database, row_factory=dict_row) as db:
        return db.execute(query, values).fetchall()


def test_money_is_text_and_moves_with_its_owner(backend: Backend) -> None:
    sent = {"to_account_id": person("chen")["id"], "amount_cents": 10}
    transfer = backend.person("hana").post("/api/transfers", json=sent).json()
    (row,) = rows(backend, "SELECT * FROM transfers WHERE transfer_id = %s", transfer["id"])
    assert (row["amount"], row["from_login"], row["to_login"], row["note"]) == ("10", "hana", "chen", "")
    (hana,) = rows(backend, "SELECT balance FROM users WHERE login = 'hana'")
    assert hana["balance"] == str(backend.person("hana").get("/api/wallet").json()["balance_cents"])


def test_tags_are_one_text_between_commas(backend: Backend) -> None:
    bea = backend.person("bea")
    for tags, kept in ((["web", "linux"], ",linux,web,"), ([], "")):
        post = bea.post("/api/posts", json={"title": "t", "body": "b", "tags": tags}).json()
        (row,) = rows(backend, "SELECT * FROM posts WHERE post_id = %s", post["id"])
        assert row["tags"] == kept
        assert (row["author_login"], row["changed"], row["deleted"]) == ("bea", None, "N")


def test_times_are_the_wall_clock_of_berlin(backend: Backend) -> None:
    summer, winter = (
        next(row for row in SAMPLE["posts"] if row["created_at"][5:7] == month) for month in ("07", "01")
    )
    for post, offset in ((summer, 2), (winter, 1)):
        found = rows(
            backend,
            "SELECT created = %s::timestamp + make_interval(hours => %s) AS shifted"
            " FROM posts WHERE post_id = %s",
            post["created_at"].rstrip("Z"),
            offset,
            post["id"],
        )
        assert found == [{"shifted": True}]


def test_the_hour_that_happens_twice_is_read_as_winter(backend: Backend) -> None:
    """Not a wish: what PostgreSQL makes of 02:30 on that night, and why `created_at` may be an hour late."""
    found = rows(
        backend, "SELECT api_time('2024-10-27 02:30:00') AS read, api_time('2024-10-27 01:30:00') AS sure"
    )
    assert found == [{"read": "2024-10-27T01:30:00Z", "sure": "2024-10-26T23:30:00Z"}]


def test_nothing_is_null_in_some_rows_and_empty_in_others(backend: Backend) -> None:
    for column in ("email", "about"):
        (found,) = rows(
            backend,
            f"SELECT bool_or({column} IS NULL) AS nulls, bool_or({column} = '') AS empties FROM users",
        )
        assert found == {"nulls": True, "empties": True}


def test_a_removed_post_is_marked_with_its_comments(backend: Backend) -> None:
    bea = backend.person("bea")
    post = bea.post("/api/posts", json={"title": "t", "body": "b"}).json()
    bea.post(f"/api/posts/{post['id']}/comments", json={"body": "c"})
    bea.delete(f"/api/posts/{post['id']}")
    assert rows(
        backend,
        "SELECT p.deleted AS post, c.deleted AS comment FROM posts p JOIN comments c USING (post_id)"
        " WHERE post_id = %s",
        post["id"],
    ) == [{"post": "Y", "comment": "Y"}]


def test_what_is_kept_of_a_session_opens_none(backend: Backend) -> None:
    token = backend.person("bea").headers["Authorization"].removeprefix("Bearer ")
    kept = {row["sid_hash"] for row in rows(backend, "SELECT sid_hash FROM sessions")}
    assert token not in kept
    for stolen in kept:
        refused = backend.anybody().get("/api/me", headers={"Authorization": f"Bearer {stolen}"})
        assert refused.status_code == 401


def test_copies_kept_by_hand_are_true(backend: Backend) -> None:
    wrong = rows(
        backend,
        """
        SELECT post_id FROM posts JOIN users USING (user_id) LEFT JOIN LATERAL (
            SELECT count(*) AS counted FROM comments
            WHERE comments.post_id = posts.post_id AND comments.deleted = 'N'
        ) AS living ON true
        WHERE posts.deleted = 'N' AND (author_login, author_name, ncomments) <> (login, fullname, counted)
        """,
    )
    assert wrong == []
