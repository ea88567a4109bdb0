"""Accounts and sessions."""

from __future__ import annotations

import hashlib
import secrets
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from new_backend import passwords
from new_backend.models import (
    Account,
    AccountPage,
    Credentials,
    Nothing,
    PrivateAccount,
    ProfileChange,
    Registration,
    Session,
)
from new_backend.operations import Answer, Call
from new_backend.permissions import NOBODY, Actor, Role
from new_backend.refusals import Reason, Refusal
from new_backend.tables import NOW, accounts, sessions, wallets

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from new_backend.paging import Paging

SESSION_LASTS = timedelta(days=14)

PUBLIC = (
    accounts.c.id,
    accounts.c.username,
    accounts.c.display_name,
    accounts.c.bio,
    accounts.c.role,
    accounts.c.created_at,
)
PRIVATE = (*PUBLIC, accounts.c.email)
OPEN_SESSION = (
    select(accounts.c.id, accounts.c.role)
    .join(sessions, sessions.c.account_id == accounts.c.id)
    .where(sessions.c.token_hash == bindparam("token_hash"), sessions.c.expires_at > func.now())
)


async def register(call: Call[Registration, Nothing]) -> Answer:
    wanted = call.body
    values = wanted.model_dump(exclude={"password"})
    values["password_hash"] = await passwords.hash_password(wanted.password)
    try:
        async with call.database.writing() as db:
            opened = await db.execute(insert(accounts).values(values).returning(*PRIVATE))
            account = PrivateAccount.model_validate(opened.mappings().one())
            await db.execute(insert(wallets).values(account_id=account.id))
    except IntegrityError:  # the username is all that can collide here
        raise Refusal(Reason.USERNAME_TAKEN) from None
    return Answer(account, {"Location": f"/api/accounts/{account.id}"})


async def list_accounts(call: Call[Nothing, Paging]) -> Answer:
    async with call.database.reading() as db:
        rows = await db.execute(
            select(*PRIVATE)
            .where(accounts.c.id > (call.query.cursor or 0))
            .order_by(accounts.c.id)
            .limit(call.query.limit + 1)
        )
    found = [PrivateAccount.model_validate(row) for row in rows.mappings()]
    return Answer(AccountPage.cut(found, call.query.limit))


async def show_account(call: Call[Nothing, Nothing]) -> Answer:
    async with call.database.reading() as db:
        found = await db.execute(select(*PUBLIC).where(accounts.c.id == call.ids["account_id"]))
        row = found.mappings().one_or_none()
    if row is None:
        raise Refusal(Reason.NOT_FOUND)
    return Answer(Account.model_validate(row))


async def show_me(call: Call[Nothing, Nothing]) -> Answer:
    async with call.database.reading() as db:
        return Answer(await account_of(db, call.actor))


async def change_me(call: Call[ProfileChange, Nothing]) -> Answer:
    changes = call.body.model_dump(exclude_unset=True)
    async with call.database.writing() as db:
        if changes:
            await db.execute(update(accounts).where(accounts.c.id == call.actor.id).values(changes))
        return Answer(await account_of(db, call.actor))


async def log_in(call: Call[Credentials, Nothing]) -> Answer:
    async with call.database.reading() as db:
        query = select(*PRIVATE, accounts.c.password_hash).where(accounts.c.username == call.body.username)
        row = (await db.execute(query)).mappings().one_or_none()
    # No connection is held while the password is checked, which takes its time on purpose.
    kept = row["password_hash"] if row else None
    if not await passwords.password_fits(call.body.password, kept) or row is None:
        raise Refusal(Reason.WRONG_CREDENTIALS)
    token = secrets.token_urlsafe(32)
    mine = sessions.c.account_id == row["id"]
    async with call.database.writing() as db:
        await db.execute(delete(sessions).where(mine, sessions.c.expires_at <= func.now()))
        expires_at = await db.scalar(
            insert(sessions)
            .values(token_hash=hash_of(token), account_id=row["id"], expires_at=NOW + SESSION_LASTS)
            .returning(sessions.c.expires_at)
        )
    session = Session(token=token, expires_at=expires_at, account=PrivateAccount.model_validate(row))
    return Answer(session, sid_cookie(call, token, SESSION_LASTS))


async def log_out(call: Call[Nothing, Nothing]) -> Answer:
    async with call.database.writing() as db:
        await db.execute(delete(sessions).where(sessions.c.token_hash == call.actor.token_hash))
    return Answer(None, sid_cookie(call, "", timedelta(0)))


async def actor_with(db: AsyncConnection, token: str) -> Actor:
    """Whose session the token opens, or NOBODY."""
    token_hash = hash_of(token)
    row = (await db.execute(OPEN_SESSION, {"token_hash": token_hash})).one_or_none()
    return NOBODY if row is None else Actor(row.id, Role[row.role.upper()], token_hash)


async def account_of(db: AsyncConnection, actor: Actor) -> PrivateAccount:
    found = await db.execute(select(*PRIVATE).where(accounts.c.id == actor.id))
    return PrivateAccount.model_validate(found.mappings().one())


def hash_of(token: str) -> bytes:
    """What the table keeps of a token, so that a stolen table opens no session."""
    return hashlib.sha256(token.encode(errors="backslashreplace")).digest()


def sid_cookie(call: Call[Any, Any], token: str, lasts: timedelta) -> dict[str, str]:
    """The header that sets the session's cookie, or with no time left takes it away."""
    secure = "; Secure" if call.headers.get("X-Forwarded-Proto") == "https" else ""
    seconds = int(lasts.total_seconds())
    return {"Set-Cookie": f"sid={token}; Max-Age={seconds}; Path=/; HttpOnly; SameSite=Lax{secure}"}
