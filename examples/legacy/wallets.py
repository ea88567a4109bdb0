"""Wallets, and the transfers between them."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response, request

from examples.legacy.checks import IDEMPOTENCY_KEY, LARGEST_ID, Page
from examples.legacy.refusals import Refusal, invalid
from examples.legacy.web import answer, body_fields, database, logged_in, one

api = Blueprint("wallets", __name__, url_prefix="/api")

LARGEST_TRANSFER = 1_000_000_000
"""Cents."""
TRANSFER = """
    transfer_id, from_user, from_login, to_user, to_login, amount, note, api_time(created) AS created
"""


@api.get("/wallet")
def show_wallet() -> Response:
    row = database().execute("SELECT user_id, balance FROM users WHERE user_id = %s", [logged_in().id])
    wallet = one(row.fetchone())
    balance = int(wallet["balance"])
    return answer({"account_id": wallet["user_id"], "balance_cents": balance, "currency": "EUR"})


@api.get("/transfers")
def list_transfers() -> Response:
    user = logged_in()
    page = Page(request.args)
    rows = database().execute(
        f"""
        SELECT {TRANSFER} FROM transfers
        WHERE (from_user = %(me)s OR to_user = %(me)s)
          AND (%(before)s::bigint IS NULL OR transfer_id < %(before)s)
        ORDER BY transfer_id DESC LIMIT %(limit)s
        """,
        {"me": user.id, "before": page.cursor, "limit": page.limit + 1},
    )
    return answer(page.cut([transfer_json(row) for row in rows]))


@api.post("/transfers")
def transfer() -> Response:
    user = logged_in()
    fields = body_fields()
    receiver = fields.whole("to_account_id", 1, LARGEST_ID)
    cents = fields.whole("amount_cents", 1, LARGEST_TRANSFER)
    note = fields.text("note", 0, 200, default="")
    fields.finish()
    key = idempotency_key()
    if receiver == user.id:
        raise invalid({"to_account_id": "invalid"})
    db = database()
    with db.transaction():
        # Always the lower id first: two transfers in opposite directions wait and do not deadlock.
        # The sender's lock also makes a second request with the same key wait for the first.
        locked = db.execute(
            "SELECT user_id, balance FROM users WHERE user_id = ANY(%s) AND deleted = 'N'"
            " ORDER BY user_id FOR UPDATE",
            [[user.id, receiver]],
        )
        balances = {row["user_id"]: int(row["balance"]) for row in locked}
        earlier = db.execute(
            f"SELECT {TRANSFER} FROM transfers WHERE from_user = %s AND idem_key = %s", [user.id, key]
        ).fetchone()
        if earlier is not None:
            if (earlier["to_user"], int(earlier["amount"]), earlier["note"] or "") != (receiver, cents, note):
                raise Refusal("idempotency_key_reused")
            return answer(transfer_json(earlier), 201, {"Idempotency-Replayed": "true"})
        if receiver not in balances:
            raise invalid({"to_account_id": "not_found"})
        if balances[user.id] < cents:
            raise Refusal("insufficient_funds")
        for owner, balance in ((user.id, balances[user.id] - cents), (receiver, balances[receiver] + cents)):
            db.execute("UPDATE users SET balance = %s WHERE user_id = %s", [str(balance), owner])
        row = db.execute(
            f"""
            INSERT INTO transfers (from_user, from_login, to_user, to_login, amount, note, idem_key)
            SELECT s.user_id, s.login, r.user_id, r.login, %s, %s, %s
            FROM users s, users r WHERE s.user_id = %s AND r.user_id = %s
            RETURNING {TRANSFER}
            """,
            [str(cents), note, key, user.id, receiver],
        ).fetchone()
    return answer(transfer_json(one(row)), 201)


def idempotency_key() -> str | None:
    key = request.headers.get("Idempotency-Key")
    if key is not None and not IDEMPOTENCY_KEY.fullmatch(key):
        raise invalid({"Idempotency-Key": "invalid"})
    return key


def transfer_json(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": row["transfer_id"],
        "from": {"id": row["from_user"], "username": row["from_login"]},
        "to": {"id": row["to_user"], "username": row["to_login"]},
        "amount_cents": int(row["amount"]),
        "note": row["note"] or "",
        "created_at": row["created"],
    }
