"""The public shapes: what comes in is checked here, what goes out is spelled here."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, WithJsonSchema

from new_backend.paging import LARGEST_ID, Item, Page, Paging, WholeId, may_be_missing

MOST_TAGS = 8
LARGEST_TRANSFER = 1_000_000_000
"""Cents."""
TAG = r"^[a-z0-9][a-z0-9-]{0,29}$"


class Incoming(BaseModel):
    """A body: no conversions, no unknown fields."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Outgoing(BaseModel):
    model_config = ConfigDict(frozen=True)


class Nothing(Incoming):
    """An operation without a body, or without a query."""


def without_nul(text: str) -> str:
    """PostgreSQL's text cannot hold the character NUL, which JSON can spell."""
    if "\x00" in text:
        raise ValueError("holds NUL")
    return text


def tidy_tags(tags: list[str]) -> list[str]:
    """Sorted, and each once. Raises ValueError for too many, or one that is not a tag."""
    if len(tags) > MOST_TAGS or not all(re.fullmatch(TAG, tag) for tag in tags):
        raise ValueError("not tags")
    return sorted(set(tags))


Text = AfterValidator(without_nul)
Username = Annotated[str, StringConstraints(min_length=3, max_length=32, pattern=r"^[a-z0-9_]{3,32}$")]
Password = Annotated[str, StringConstraints(min_length=8, max_length=200), Text]
DisplayName = Annotated[str, StringConstraints(min_length=1, max_length=80), Text]
Email = Annotated[
    str,
    StringConstraints(min_length=3, max_length=200, pattern=r"^[!-?A-~]{1,64}@[A-Za-z0-9.-]{1,120}$"),
]
Bio = Annotated[str, StringConstraints(max_length=2000), Text]
Title = Annotated[str, StringConstraints(min_length=1, max_length=200), Text]
PostBody = Annotated[str, StringConstraints(min_length=1, max_length=20_000), Text]
CommentBody = Annotated[str, StringConstraints(min_length=1, max_length=5_000), Text]
Tags = Annotated[
    list[str],
    AfterValidator(tidy_tags),
    WithJsonSchema({"type": "array", "items": {"type": "string", "pattern": TAG}, "maxItems": MOST_TAGS}),
]
Id = Annotated[int, Field(ge=1, le=LARGEST_ID)]
RoleName = Literal["member", "moderator", "admin"]


class Registration(Incoming):
    username: Username
    password: Password
    display_name: DisplayName
    email: Email | None = None
    bio: Bio = ""


class ProfileChange(Incoming):
    """Only the fields that are sent are changed."""

    display_name: DisplayName = Field("", json_schema_extra=may_be_missing)
    email: Email | None = None
    bio: Bio = Field("", json_schema_extra=may_be_missing)


class Credentials(Incoming):
    username: Annotated[str, StringConstraints(min_length=1, max_length=200), Text]
    password: Annotated[str, StringConstraints(min_length=1, max_length=200), Text]


class Account(Item):
    """An account as everybody sees it."""

    username: str
    display_name: str
    bio: str
    role: RoleName
    created_at: datetime


class PrivateAccount(Account):
    """An account as its owner and admins see it."""

    email: str | None


class AccountPage(Page[PrivateAccount]):
    pass


class Session(Outgoing):
    """The token is also the value of the cookie `sid`; either opens the session."""

    token: str
    expires_at: datetime
    account: PrivateAccount


class PostQuery(Paging):
    tag: Annotated[str, StringConstraints(pattern=TAG)] | None = Field(None, json_schema_extra=may_be_missing)
    author: WholeId | None = Field(None, json_schema_extra=may_be_missing)


class PostDraft(Incoming):
    title: Title
    body: PostBody
    tags: Tags = []


class PostChange(Incoming):
    """Only the fields that are sent are changed."""

    title: Title = Field("", json_schema_extra=may_be_missing)
    body: PostBody = Field("", json_schema_extra=may_be_missing)
    tags: Tags = Field([], json_schema_extra=may_be_missing)


class Author(Item):
    username: str
    display_name: str


class Post(Item):
    title: str
    body: str
    tags: list[str]
    author: Author
    comment_count: int
    created_at: datetime
    updated_at: datetime


class PostPage(Page[Post]):
    pass


class CommentDraft(Incoming):
    body: CommentBody


class Comment(Item):
    post_id: int
    author: Author
    body: str
    created_at: datetime


class CommentPage(Page[Comment]):
    pass


class Wallet(Outgoing):
    account_id: int
    balance_cents: int
    currency: Literal["EUR"] = "EUR"


class TransferOrder(Incoming):
    to_account_id: Id
    amount_cents: Annotated[int, Field(ge=1, le=LARGEST_TRANSFER)]
    note: Annotated[str, StringConstraints(max_length=200), Text] = ""


class Party(Item):
    username: str


class Transfer(Item):
    sender: Party = Field(alias="from")
    receiver: Party = Field(alias="to")
    amount_cents: int
    note: str
    created_at: datetime


class TransferPage(Page[Transfer]):
    pass


class Health(Outgoing):
    status: Literal["ok"] = "ok"
