"""The API in one table. What stands here is served, guarded and documented; nothing else is."""

from __future__ import annotations

from functools import cache
from typing import Any

from sqlalchemy import text

from new_backend import accounts, models, openapi, posts, wallets
from new_backend.docs_page import render
from new_backend.models import Nothing
from new_backend.operations import Answer, Call, Operation
from new_backend.paging import Paging
from new_backend.permissions import Role
from new_backend.refusals import Reason


async def health(call: Call[Nothing, Nothing]) -> Answer:
    async with call.database.reading() as db:
        await db.execute(text("SELECT 1"))
    return Answer(models.Health())


async def show_document(_: Call[Nothing, Nothing]) -> Answer:
    return Answer(document())


async def show_docs(_: Call[Nothing, Nothing]) -> Answer:
    return Answer(docs_page(), {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"})


OPERATIONS: tuple[Operation[Any, Any], ...] = (
    Operation(
        "POST", "/api/accounts", "Open an account with an empty wallet", accounts.register,
        body=models.Registration, query=Nothing, needs=Role.NOBODY,
        status=201, answer=models.PrivateAccount, refusals=(Reason.USERNAME_TAKEN,),
    ),
    Operation(
        "GET", "/api/accounts", "List all accounts, oldest first", accounts.list_accounts,
        body=Nothing, query=Paging, needs=Role.ADMIN,
        status=200, answer=models.AccountPage,
    ),
    Operation(
        "GET", "/api/accounts/{account_id}", "Show an account", accounts.show_account,
        body=Nothing, query=Nothing, needs=Role.NOBODY,
        status=200, answer=models.Account,
    ),
    Operation(
        "GET", "/api/me", "Show your account", accounts.show_me,
        body=Nothing, query=Nothing, needs=Role.MEMBER,
        status=200, answer=models.PrivateAccount,
    ),
    Operation(
        "PATCH", "/api/me", "Change your profile", accounts.change_me,
        body=models.ProfileChange, query=Nothing, needs=Role.MEMBER,
        status=200, answer=models.PrivateAccount,
    ),
    Operation(
        "POST", "/api/session", "Log in", accounts.log_in,
        body=models.Credentials, query=Nothing, needs=Role.NOBODY,
        status=201, answer=models.Session, refusals=(Reason.WRONG_CREDENTIALS,),
    ),
    Operation(
        "DELETE", "/api/session", "Log out", accounts.log_out,
        body=Nothing, query=Nothing, needs=Role.MEMBER,
        status=204, answer=None,
    ),
    Operation(
        "GET", "/api/posts", "List posts, newest first", posts.list_posts,
        body=Nothing, query=models.PostQuery, needs=Role.NOBODY,
        status=200, answer=models.PostPage,
    ),
    Operation(
        "POST", "/api/posts", "Write a post", posts.write_post,
        body=models.PostDraft, query=Nothing, needs=Role.MEMBER,
        status=201, answer=models.Post,
    ),
    Operation(
        "GET", "/api/posts/{post_id}", "Show a post", posts.show_post,
        body=Nothing, query=Nothing, needs=Role.NOBODY,
        status=200, answer=models.Post,
    ),
    Operation(
        "PATCH", "/api/posts/{post_id}", "Change your post", posts.change_post,
        body=models.PostChange, query=Nothing, needs=Role.MEMBER,
        status=200, answer=models.Post, refusals=(Reason.FORBIDDEN,),
    ),
    Operation(
        "DELETE", "/api/posts/{post_id}", "Remove your post, or as a moderator anybody's", posts.remove_post,
        body=Nothing, query=Nothing, needs=Role.MEMBER,
        status=204, answer=None, refusals=(Reason.FORBIDDEN,),
    ),
    Operation(
        "GET", "/api/posts/{post_id}/comments", "List a post's comments, oldest first", posts.list_comments,
        body=Nothing, query=Paging, needs=Role.NOBODY,
        status=200, answer=models.CommentPage,
    ),
    Operation(
        "POST", "/api/posts/{post_id}/comments", "Comment on a post", posts.write_comment,
        body=models.CommentDraft, query=Nothing, needs=Role.MEMBER,
        status=201, answer=models.Comment,
    ),
    Operation(
        "DELETE", "/api/posts/{post_id}/comments/{comment_id}",
        "Remove your comment, or as a moderator anybody's", posts.remove_comment,
        body=Nothing, query=Nothing, needs=Role.MEMBER,
        status=204, answer=None, refusals=(Reason.FORBIDDEN,),
    ),
    Operation(
        "GET", "/api/wallet", "Show your wallet", wallets.show_wallet,
        body=Nothing, query=Nothing, needs=Role.MEMBER,
        status=200, answer=models.Wallet,
    ),
    Operation(
        "GET", "/api/transfers", "List what you sent and received, newest first", wallets.list_transfers,
        body=Nothing, query=Paging, needs=Role.MEMBER,
        status=200, answer=models.TransferPage,
    ),
    Operation(
        "POST", "/api/transfers", "Send money to another account", wallets.send_money,
        body=models.TransferOrder, query=Nothing, needs=Role.MEMBER,
        status=201, answer=models.Transfer,
        refusals=(Reason.INSUFFICIENT_FUNDS, Reason.IDEMPOTENCY_KEY_REUSED),
        request_headers={
            "Idempotency-Key": "Makes the request safe to send again: the same key with the same body "
            "answers with the transfer that the first request made."
        },
    ),
    Operation(
        "GET", "/healthz", "Whether the service can reach its database", health,
        body=Nothing, query=Nothing, needs=Role.NOBODY,
        status=200, answer=models.Health,
    ),
    Operation(
        "GET", "/api/openapi.json", "This document", show_document,
        body=Nothing, query=Nothing, needs=Role.NOBODY,
        status=200, answer="application/json; charset=utf-8",
    ),
    Operation(
        "GET", "/api/docs", "This document, for people", show_docs,
        body=Nothing, query=Nothing, needs=Role.NOBODY,
        status=200, answer="text/html; charset=utf-8",
    ),
)  # fmt: skip


@cache
def document() -> bytes:
    return openapi.write(OPERATIONS)


@cache
def docs_page() -> bytes:
    return render(openapi.describe(OPERATIONS))
