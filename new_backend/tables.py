"""The tables as SQLAlchemy knows them. They are created by migrations/new_backend, never from here."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    ForeignKey,
    Identity,
    Index,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import TIMESTAMP

MOMENT = TIMESTAMP(timezone=True, precision=0)
NOW = func.date_trunc(text("'second'"), func.now(), type_=MOMENT)
"""The API speaks of whole seconds, so whole seconds are kept."""

metadata = MetaData(
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "fk": "%(table_name)s_%(column_0_name)s_fkey",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ck": "%(table_name)s_%(constraint_name)s_check",
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
    }
)

accounts = Table(
    "accounts",
    metadata,
    Column("id", BigInteger, Identity(always=False), primary_key=True),
    Column("username", Text, nullable=False, unique=True),
    Column("password_hash", Text, nullable=False),
    Column("display_name", Text, nullable=False),
    Column("email", Text, CheckConstraint("email <> ''", name="email")),
    Column("bio", Text, nullable=False, server_default=""),
    Column(
        "role",
        Text,
        CheckConstraint("role IN ('member', 'moderator', 'admin')", name="role"),
        nullable=False,
        server_default="member",
    ),
    Column("created_at", MOMENT, nullable=False, server_default=NOW),
)

sessions = Table(
    "sessions",
    metadata,
    Column("token_hash", LargeBinary, primary_key=True),
    Column("account_id", ForeignKey("accounts.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("created_at", MOMENT, nullable=False, server_default=NOW),
    Column("expires_at", MOMENT, nullable=False),
)

posts = Table(
    "posts",
    metadata,
    Column("id", BigInteger, Identity(always=False), primary_key=True),
    Column("author_id", ForeignKey("accounts.id"), nullable=False),
    Column("title", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("created_at", MOMENT, nullable=False, server_default=NOW),
    Column("updated_at", MOMENT, nullable=False, server_default=NOW),
    Index(None, "author_id", "id"),
)

tags = Table(
    "tags",
    metadata,
    Column("id", BigInteger, Identity(always=False), primary_key=True),
    Column("name", Text, nullable=False, unique=True),
)

post_tags = Table(
    "post_tags",
    metadata,
    Column("post_id", ForeignKey("posts.id", ondelete="CASCADE"), primary_key=True),
    Column("tag_id", ForeignKey("tags.id"), primary_key=True),
    Index(None, "tag_id", "post_id"),
)

comments = Table(
    "comments",
    metadata,
    Column("id", BigInteger, Identity(always=False), primary_key=True),
    Column("post_id", ForeignKey("posts.id", ondelete="CASCADE"), nullable=False),
    Column("author_id", ForeignKey("accounts.id"), nullable=False, index=True),
    Column("body", Text, nullable=False),
    Column("created_at", MOMENT, nullable=False, server_default=NOW),
    Index(None, "post_id", "id"),
)

wallets = Table(
    "wallets",
    metadata,
    Column("account_id", ForeignKey("accounts.id", ondelete="CASCADE"), primary_key=True),
    Column(
        "balance_cents",
        BigInteger,
        CheckConstraint("balance_cents >= 0", name="balance"),
        nullable=False,
        server_default="0",
    ),
)

transfers = Table(
    "transfers",
    metadata,
    Column("id", BigInteger, Identity(always=False), primary_key=True),
    Column("sender_id", ForeignKey("accounts.id"), nullable=False),
    Column("receiver_id", ForeignKey("accounts.id"), nullable=False),
    Column("amount_cents", BigInteger, CheckConstraint("amount_cents > 0", name="amount"), nullable=False),
    Column("note", Text, nullable=False, server_default=""),
    Column("idempotency_key", Text),
    Column("created_at", MOMENT, nullable=False, server_default=NOW),
    CheckConstraint("sender_id <> receiver_id", name="parties"),
    UniqueConstraint("sender_id", "idempotency_key"),
    Index(None, "sender_id", "id"),
    Index(None, "receiver_id", "id"),
)
