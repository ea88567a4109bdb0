"""Wallets, and the transfers between them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from sqlalchemy import RowMapping, insert, select, union_all, update

from new_backend.models import Nothing, Party, Transfer, TransferOrder, TransferPage, Wallet
from new_backend.operations import Answer, Call
from new_backend.refusals import Reason, Refusal, invalid
from new_backend.tables import accounts, transfers, wallets

if TYPE_CHECKING:
    from new_backend.paging import Paging

IDEMPOTENCY_KEY = r"[A-Za-z0-9_.:-]{1,64}"

SENDER, RECEIVER = accounts.alias("sender"), accounts.alias("receiver")
TRANSFERS = (
    select(
        transfers.c.id,
        transfers.c.sender_id,
        SENDER.c.username.label("sender"),
        transfers.c.receiver_id,
        RECEIVER.c.username.label("receiver"),
        transfers.c.amount_cents,
        transfers.c.note,
        transfers.c.created_at,
    )
    .join(SENDER, SENDER.c.id == transfers.c.sender_id)
    .join(RECEIVER, RECEIVER.c.id == transfers.c.receiver_id)
)


async def show_wallet(call: Call[Nothing, Nothing]) -> Answer:
    async with call.database.reading() as db:
        row = (await db.execute(select(wallets).where(wallets.c.account_id == call.actor.id))).one()
    return Answer(Wallet(account_id=row.account_id, balance_cents=row.balance_cents))


async def list_transfers(call: Call[Nothing, Paging]) -> Answer:
    """The newest of what was sent and of what was received: two index scans, merged, instead of an OR."""
    halves = []
    for mine in (transfers.c.sender_id, transfers.c.receiver_id):
        half = select(transfers.c.id).where(mine == call.actor.id)
        if call.query.cursor is not None:
            half = half.where(transfers.c.id < call.query.cursor)
        halves.append(half.order_by(transfers.c.id.desc()).limit(call.query.limit + 1))
    newest = union_all(*halves).subquery()
    wanted = TRANSFERS.join(newest, newest.c.id == transfers.c.id)
    async with call.database.reading() as db:
        rows = await db.execute(wanted.order_by(transfers.c.id.desc()).limit(call.query.limit + 1))
    return Answer(TransferPage.cut([transfer(row) for row in rows.mappings()], call.query.limit))


async def send_money(call: Call[TransferOrder, Nothing]) -> Answer:
    order, sender, receiver = call.body, call.actor.id, call.body.to_account_id
    key = call.headers.get("Idempotency-Key")
    if key is not None and not re.fullmatch(IDEMPOTENCY_KEY, key):
        raise invalid({"Idempotency-Key": "invalid"})
    if receiver == sender:
        raise invalid({"to_account_id": "invalid"})
    async with call.database.writing() as db:
        # Always the lower id first: two transfers in opposite directions wait and do not deadlock.
        # The sender's lock also makes a second request with the same key wait for the first.
        locked = await db.execute(
            select(wallets)
            .where(wallets.c.account_id.in_((sender, receiver)))
            .order_by(wallets.c.account_id)
            .with_for_update()
        )
        balances = {row.account_id: row.balance_cents for row in locked}
        if key is not None:
            same_key = (transfers.c.sender_id == sender, transfers.c.idempotency_key == key)
            found = await db.execute(TRANSFERS.where(*same_key))
            earlier = found.mappings().one_or_none()
            if earlier is not None:
                return repeated(transfer(earlier), order)
        if receiver not in balances:
            raise invalid({"to_account_id": "not_found"})
        if balances[sender] < order.amount_cents:
            raise Refusal(Reason.INSUFFICIENT_FUNDS)
        for owner, change in ((sender, -order.amount_cents), (receiver, order.amount_cents)):
            await db.execute(
                update(wallets)
                .where(wallets.c.account_id == owner)
                .values(balance_cents=wallets.c.balance_cents + change)
            )
        transfer_id = await db.scalar(
            insert(transfers)
            .values(
                sender_id=sender,
                receiver_id=receiver,
                amount_cents=order.amount_cents,
                note=order.note,
                idempotency_key=key,
            )
            .returning(transfers.c.id)
        )
        made = await db.execute(TRANSFERS.where(transfers.c.id == transfer_id))
        return Answer(transfer(made.mappings().one()))


def repeated(earlier: Transfer, order: TransferOrder) -> Answer:
    """The answer to a request whose key is known: the transfer it made, if it asks for the same again."""
    if (earlier.receiver.id, earlier.amount_cents, earlier.note) != (
        order.to_account_id,
        order.amount_cents,
        order.note,
    ):
        raise Refusal(Reason.IDEMPOTENCY_KEY_REUSED)
    return Answer(earlier, {"Idempotency-Replayed": "true"})


def transfer(row: RowMapping) -> Transfer:
    return Transfer.model_validate(
        {
            "id": row["id"],
            "from": Party(id=row["sender_id"], username=row["sender"]),
            "to": Party(id=row["receiver_id"], username=row["receiver"]),
            "amount_cents": row["amount_cents"],
            "note": row["note"],
            "created_at": row["created_at"],
        }
    )
