"""The users' code of the sample product: how clients stay logged in, and how rows become the other side's.

Legacy knows a client by the cookie `sid`, and so do the browsers out there. The new backend is to know
clients by a token only. It is the same secret on both sides (see docs/sample-product.md), so an adapter on
the new side is all that it takes; `crossfade.yaml` names it on the routes that move:

    code: migration.py
    routes:
      - {flag: me, match: {path: "/api/me"}, adapter: {new: session}}
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from crossfade import Answer, Convert, FollowUp, Marked, Project, Request, Side, Table, Values

COOKIE = "sid"
_TOKEN = re.compile(r"[A-Za-z0-9_-]{16,128}")
_SESSIONS = "/api/session"


class SessionAdapter:
    """Clients bring a cookie; the new backend is asked with a token and never sees the cookie."""

    def request(self, request: Request) -> Request:
        token = request.cookie(COOKIE)
        asked = request.without_cookie(COOKIE)
        if token is None or not _TOKEN.fullmatch(token) or asked.header("Authorization") is not None:
            return asked
        return asked.adding_header("Authorization", f"Bearer {token}")

    def answer(self, answer: Answer, request: Request) -> Answer:
        """A session that begins or ends is told to the browser in the way that it knows."""
        if request.path != _SESSIONS or answer.set_cookie(COOKIE) is not None:
            return answer
        if request.method == "POST" and answer.status == 201:
            return answer.adding_header("Set-Cookie", _cookie(answer.json()["token"]))
        if request.method == "DELETE" and answer.status == 204:
            return answer.adding_header("Set-Cookie", _cookie("") + "; Max-Age=0")
        return answer


def attributes(request: Request) -> dict[str, str]:
    """For rules such as: visitors first, and those who are logged in later."""
    known = request.cookie(COOKIE) is not None or request.header("Authorization") is not None
    return {"visitor": "known" if known else "unknown"}


def _cookie(token: str) -> str:
    return f"{COOKIE}={token}; Path=/; HttpOnly; SameSite=Lax"


# Rows. Values are PostgreSQL's text, or None.

_BERLIN = ZoneInfo("Europe/Berlin")


def moment(wall: str | None) -> datetime | None:
    """Legacy's wall clock. In the hour that the autumn repeats it means winter time, as for PostgreSQL."""
    if wall is None:
        return None
    local = datetime.fromisoformat(wall)
    winter = local.replace(tzinfo=_BERLIN, fold=1)
    return winter.astimezone(UTC)


def wall(moment: str | None) -> datetime | None:
    if moment is None:
        return None
    return datetime.fromisoformat(moment).astimezone(_BERLIN).replace(tzinfo=None)


def same(value: str | None) -> str | None:
    return value


def empty_is_none(value: str | None) -> str | None:
    return value or None


def none_is_empty(value: str | None) -> str:
    return value or ""


def session_hash(digits: str | None) -> bytes | None:
    return None if digits is None else bytes.fromhex(digits)


def session_digits(raw: str | None) -> str | None:
    return None if raw is None else raw.removeprefix("\\x")


_MARKED = Marked("deleted", alive="N", gone="Y")
_CREATED = Convert("created_at", moment, wall)
_AUTHOR = {
    Side.LEGACY: {
        "author_login": "SELECT login FROM users u WHERE u.user_id = given.user_id",
        "author_name": "SELECT fullname FROM users u WHERE u.user_id = given.user_id",
    }
}

tables = [
    Table(
        "users",
        "accounts",
        key=["user_id"],
        columns={
            "user_id": "id",
            "login": "username",
            "passwd": "password_hash",
            "fullname": "display_name",
            "email": Convert("email", empty_is_none, same),
            "about": Convert("bio", none_is_empty, same),
            "level": Values("role", {"0": "member", "5": "moderator", "9": "admin"}),
            "created": _CREATED,
        },
        marked=_MARKED,
    ),
    Table(
        "users",
        "wallets",
        key=["user_id"],
        columns={"user_id": "account_id", "balance": "balance_cents"},
        marked=_MARKED,
        part_of=Side.LEGACY,
    ),
    Table(
        "sessions",
        "sessions",
        key=["sid_hash"],
        columns={
            "sid_hash": Convert("token_hash", session_hash, session_digits),
            "user_id": "account_id",
            "created": _CREATED,
            "expires": Convert("expires_at", moment, wall),
        },
    ),
    Table(
        "posts",
        "posts",
        key=["post_id"],
        columns={
            "post_id": "id",
            "user_id": "author_id",
            "title": "title",
            "body": "body",
            "created": _CREATED,
        },
        legacy_only=["tags", "changed", "ncomments"],
        new_only=["updated_at"],
        marked=_MARKED,
        computed=_AUTHOR,
    ),
    Table(
        "comments",
        "comments",
        key=["comment_id"],
        columns={
            "comment_id": "id",
            "post_id": "post_id",
            "user_id": "author_id",
            "body": "body",
            "created": _CREATED,
        },
        marked=_MARKED,
        computed=_AUTHOR,
    ),
    Table(
        "transfers",
        "transfers",
        key=["transfer_id"],
        columns={
            "transfer_id": "id",
            "from_user": "sender_id",
            "to_user": "receiver_id",
            "amount": "amount_cents",
            "note": Convert("note", none_is_empty, same),
            "idem_key": "idempotency_key",
            "created": _CREATED,
        },
        computed={
            Side.LEGACY: {
                "from_login": "SELECT login FROM users u WHERE u.user_id = given.from_user",
                "to_login": "SELECT login FROM users u WHERE u.user_id = given.to_user",
            }
        },
    ),
    # New keeps tags as rows. Legacy gets a copy of them, out of which its text with commas is made.
    Table("crossfade_copy.tags", "tags", key=["id"], columns=["id", "name"], towards=Side.LEGACY),
    Table(
        "crossfade_copy.post_tags",
        "post_tags",
        key=["post_id", "tag_id"],
        columns=["post_id", "tag_id"],
        towards=Side.LEGACY,
    ),
]

follow_ups = [
    # One text with commas becomes a row per tag; what was never changed was changed when it was made.
    FollowUp(
        "posts",
        Side.NEW,
        key=["post_id"],
        inputs=["tags", "changed", "deleted"],
        sql=[
            """
            INSERT INTO tags (name)
            SELECT DISTINCT name FROM {touched}, unnest(string_to_array(trim(BOTH ',' FROM tags), ',')) name
            WHERE NOT gone AND deleted = 'N' AND name <> '' ON CONFLICT DO NOTHING
            """,
            """
            DELETE FROM post_tags p USING {touched} t, tags g
            WHERE p.post_id = t.post_id::bigint AND g.id = p.tag_id
              AND (t.gone OR t.deleted <> 'N' OR strpos(coalesce(t.tags, ''), ',' || g.name || ',') = 0)
            """,
            """
            INSERT INTO post_tags (post_id, tag_id)
            SELECT t.post_id::bigint, g.id FROM {touched} t, tags g
            WHERE NOT t.gone AND t.deleted = 'N' AND strpos(t.tags, ',' || g.name || ',') > 0
            ON CONFLICT DO NOTHING
            """,
            """
            UPDATE posts p SET updated_at =
                coalesce(t.changed::timestamp AT TIME ZONE 'Europe/Berlin', p.created_at)
            FROM {touched} t WHERE p.id = t.post_id::bigint AND NOT t.gone
            """,
        ],
    ),
    FollowUp(
        "post_tags",
        Side.LEGACY,
        key=["post_id", "tag_id"],
        inputs=[],
        sql="""
            UPDATE posts p SET tags = coalesce(
                (SELECT ',' || string_agg(g.name, ',' ORDER BY g.id) || ','
                   FROM crossfade_copy.post_tags o JOIN crossfade_copy.tags g ON g.id = o.tag_id
                  WHERE o.post_id = p.post_id), '')
            WHERE p.post_id IN (SELECT post_id::integer FROM {touched})
        """,
    ),
    FollowUp(
        "posts",
        Side.LEGACY,
        key=["id"],
        inputs=["created_at", "updated_at"],
        sql="""
            UPDATE posts p SET changed = CASE WHEN t.updated_at <> t.created_at
                THEN t.updated_at::timestamptz AT TIME ZONE 'Europe/Berlin' END
            FROM {touched} t WHERE p.post_id = t.id::integer AND NOT t.gone
        """,
    ),
    FollowUp(
        "comments",
        Side.LEGACY,
        key=["id"],
        inputs=[],
        sql="""
            UPDATE posts p SET ncomments =
                (SELECT count(*) FROM comments c WHERE c.post_id = p.post_id AND c.deleted = 'N')
            WHERE p.post_id IN
                (SELECT c.post_id FROM comments c JOIN {touched} t ON c.comment_id = t.id::integer)
        """,
    ),
    FollowUp(
        "accounts",
        Side.LEGACY,
        key=["id"],
        inputs=["username", "display_name"],
        sql=[
            """
            UPDATE posts o SET author_login = t.username, author_name = t.display_name
            FROM {touched} t WHERE o.user_id = t.id::integer AND NOT t.gone
              AND (o.author_login, o.author_name) IS DISTINCT FROM (t.username, t.display_name)
            """,
            """
            UPDATE comments o SET author_login = t.username, author_name = t.display_name
            FROM {touched} t WHERE o.user_id = t.id::integer AND NOT t.gone
              AND (o.author_login, o.author_name) IS DISTINCT FROM (t.username, t.display_name)
            """,
        ],
    ),
]

# What legacy's types do not tell (`check_mapping`): its clock writes no other moments, and texts are numbers.
_WALL_CLOCK = ["1970-01-01 00:00:00", "2000-02-29 12:00:00", "2026-03-29 03:00:00", "2026-10-25 02:30:00"]
_CLOCKS = ("users.created", "sessions.created", "sessions.expires", "posts.created", "comments.created")
_CENTS = ["1", "250", "9007199254740993"]

project = Project(
    adapters={"session": SessionAdapter()},
    attributes=attributes,
    tables=tables,
    follow_ups=follow_ups,
    holds={
        **dict.fromkeys((*_CLOCKS, "transfers.created"), _WALL_CLOCK),
        "users.balance": ["0", *_CENTS],
        "transfers.amount": _CENTS,
        "sessions.sid_hash": ["00" * 32, "ff" * 32],
    },
    # Legacy means the same by NULL and by '', and new has only one of them.
    lossy=["users.email", "users.about", "transfers.note"],
)
