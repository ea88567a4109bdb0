"""Accounts and sessions."""

from __future__ import annotations

import secrets
from functools import cache
from typing import Any

import psycopg
from flask import Blueprint, Response, request
from werkzeug.security import check_password_hash, generate_password_hash

from examples.legacy.checks import USERNAME, Page, path_id
from examples.legacy.refusals import Refusal
from examples.legacy.web import (
    ADMIN,
    ROLES,
    answer,
    body_fields,
    database,
    hash_of,
    logged_in,
    nothing,
    one,
    sid_cookie,
)

api = Blueprint("accounts", __name__, url_prefix="/api")

SESSION_SECONDS = 14 * 24 * 3600
COLUMNS = "user_id, login, fullname, about, level, email, api_time(created) AS created"


@api.post("/accounts")
def register() -> Response:
    fields = body_fields()
    login = fields.text("username", 3, 32, USERNAME)
    password = fields.text("password", 8, 200)
    fullname = fields.text("display_name", 1, 80)
    email = fields.email("email")
    about = fields.text("bio", 0, 2000, default="")
    fields.finish()
    passwd = hash_password(password)
    try:
        opened = database().execute(
            f"""
            INSERT INTO users (login, passwd, fullname, email, about) VALUES (%s, %s, %s, %s, %s)
            RETURNING {COLUMNS}
            """,
            [login, passwd, fullname, email or "", about],
        )
    except psycopg.errors.UniqueViolation:
        raise Refusal("username_taken") from None
    account = private_json(one(opened.fetchone()))
    return answer(account, 201, {"Location": f"/api/accounts/{account['id']}"})


@api.get("/accounts")
def list_accounts() -> Response:
    if logged_in().level < ADMIN:
        raise Refusal("forbidden")
    page = Page(request.args)
    rows = database().execute(
        f"SELECT {COLUMNS} FROM users WHERE deleted = 'N' AND user_id > %s ORDER BY user_id LIMIT %s",
        [page.cursor or 0, page.limit + 1],
    )
    return answer(page.cut([private_json(row) for row in rows]))


@api.get("/accounts/<account_id>")
def show_account(account_id: str) -> Response:
    row = database().execute(
        f"SELECT {COLUMNS} FROM users WHERE deleted = 'N' AND user_id = %s", [path_id(account_id)]
    )
    return answer(public_json(one(row.fetchone())))


@api.get("/me")
def show_me() -> Response:
    row = database().execute(f"SELECT {COLUMNS} FROM users WHERE user_id = %s", [logged_in().id])
    return answer(private_json(one(row.fetchone())))


@api.patch("/me")
def change_me() -> Response:
    user = logged_in()
    fields = body_fields()
    changes: dict[str, Any] = {}
    if "display_name" in fields:
        changes["fullname"] = fields.text("display_name", 1, 80)
    if "email" in fields:
        changes["email"] = fields.email("email") or ""
    if "bio" in fields:
        changes["about"] = fields.text("bio", 0, 2000)
    fields.finish()
    db = database()
    with db.transaction():
        found = db.execute(f"SELECT {COLUMNS} FROM users WHERE user_id = %s FOR UPDATE", [user.id])
        row = one(found.fetchone()) | changes
        db.execute(
            "UPDATE users SET fullname = %s, email = %s, about = %s WHERE user_id = %s",
            [row["fullname"], row["email"], row["about"], user.id],
        )
        if "fullname" in changes:  # the copies of the name, kept by hand
            db.execute("UPDATE posts SET author_name = %s WHERE user_id = %s", [row["fullname"], user.id])
            db.execute("UPDATE comments SET author_name = %s WHERE user_id = %s", [row["fullname"], user.id])
    return answer(private_json(row))


@api.post("/session")
def log_in() -> Response:
    fields = body_fields()
    login = fields.text("username", 1, 200)
    password = fields.text("password", 1, 200)
    fields.finish()
    db = database()
    row = db.execute(
        f"SELECT {COLUMNS}, passwd FROM users WHERE login = %s AND deleted = 'N'", [login]
    ).fetchone()
    # A name that nobody has costs as much time as a wrong password, so that the clock tells nothing.
    if not check_password_hash(row["passwd"] if row else nobodys_hash(), password) or row is None:
        raise Refusal("wrong_credentials")
    sid = secrets.token_urlsafe(32)
    with db.transaction():
        db.execute("DELETE FROM sessions WHERE user_id = %s AND expires <= wall_clock()", [row["user_id"]])
        session = db.execute(
            """
            INSERT INTO sessions (sid_hash, user_id, expires)
            VALUES (%s, %s, wall_clock() + make_interval(secs => %s)) RETURNING api_time(expires) AS expires
            """,
            [hash_of(sid), row["user_id"], SESSION_SECONDS],
        ).fetchone()
    opened = {"token": sid, "expires_at": one(session)["expires"], "account": private_json(row)}
    return answer(opened, 201, sid_cookie(sid, SESSION_SECONDS))


@api.delete("/session")
def log_out() -> Response:
    database().execute("DELETE FROM sessions WHERE sid_hash = %s", [logged_in().sid_hash])
    return nothing(sid_cookie("", 0))


def public_json(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": row["user_id"],
        "username": row["login"],
        "display_name": row["fullname"],
        "bio": row["about"] or "",
        "role": ROLES[row["level"]],
        "created_at": row["created"],
    }


def private_json(row: dict[str, Any]) -> dict[str, Any]:
    return public_json(row) | {"email": row["email"] or None}


def hash_password(password: str) -> str:
    return generate_password_hash(password, method="scrypt:16384:8:5")


@cache
def nobodys_hash() -> str:
    return hash_password(secrets.token_hex())
