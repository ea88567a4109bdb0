"""The tables as SQLAlchemy knows them. They are created by migrations/store, never from here.

They stand in a schema of their own, so that a store may share a database with something else. It is not
called `crossfade`: the schema that has the name of a user stands first in the search path of that user.
Columns of `audit` are `json`, not `jsonb`: the hash chain needs what was written, to the last digit,
and `jsonb` writes numbers anew.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Date,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TIMESTAMP

from crossfade.cutover.walk import State
from crossfade.store.actors import Role

SCHEMA = "crossfade_store"
MOMENT = TIMESTAMP(timezone=True)

metadata = MetaData(
    schema=SCHEMA,
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "fk": "%(table_name)s_%(column_0_name)s_fkey",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ck": "%(table_name)s_%(constraint_name)s_check",
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
    },
)

flag_set = Table(
    "flag_set",
    metadata,
    Column("id", SmallInteger, CheckConstraint("id = 1", name="one_row"), primary_key=True),
    Column("version", BigInteger, nullable=False),
    Column("kill", JSONB(none_as_null=True)),
    Column("shadow_off", JSONB(none_as_null=True)),
    Column("authorities", JSONB, nullable=False, server_default=text("'[]'")),
    Column("audit_seq", BigInteger, nullable=False),
    Column("audit_hash", Text, nullable=False),
    Column("updated_at", MOMENT, nullable=False, server_default=func.now()),
)
"""One row. Whoever changes anything locks it first, so changes happen one after the other.

`audit_seq` and `audit_hash` repeat the last row of `audit`: without them its end could be cut off unseen.
"""

flags = Table(
    "flags",
    metadata,
    Column("key", Text, primary_key=True),
    Column("version", BigInteger, nullable=False),
    Column("document", JSONB, nullable=False),
    Column("updated_at", MOMENT, nullable=False, server_default=func.now()),
)
"""Every flag that ever was: archived ones stay, so that no key is used twice."""

OUTCOMES = ("applied", "denied", "rejected")

audit = Table(
    "audit",
    metadata,
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("at", MOMENT, nullable=False),
    Column("actor", JSON, nullable=False),
    Column("action", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("objects", ARRAY(Text), nullable=False),
    Column("command", JSON, nullable=False),
    Column("outcome", Text, CheckConstraint(f"outcome IN {OUTCOMES}", name="outcome"), nullable=False),
    Column("refusal", Text),
    Column("from_version", BigInteger),
    Column("to_version", BigInteger),
    Column("before", JSON(none_as_null=True)),
    Column("after", JSON(none_as_null=True)),
    Column("reason", Text, nullable=False),
    Column("ticket", Text),
    Column("evidence", JSON(none_as_null=True)),
    Column("request_id", Text),
    Column("prev_hash", Text, nullable=False),
    Column("hash", Text, nullable=False),
    Index(None, "objects", postgresql_using="gin"),
)
"""What was done or tried, in the order in which it happened. Triggers refuse UPDATE, DELETE, TRUNCATE."""

ROLES = tuple(role.value for role in Role)

people = Table(
    "people",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("name", Text, nullable=False),
    Column(
        "role",
        Text,
        CheckConstraint(f"role IN {ROLES}", name="role"),
        nullable=False,
    ),
    Column("token_hash", LargeBinary, nullable=False, unique=True),
    Column("created_at", MOMENT, nullable=False, server_default=func.now()),
    Column("revoked_at", MOMENT),
    Column("last_used", MOMENT),
    Index("people_name_idx", "name", unique=True, postgresql_where=text("revoked_at IS NULL")),
)
"""Tokens that were issued. A person has at most one that is valid; revoked ones stay as history."""

instances = Table(
    "instances",
    metadata,
    Column("id", Text, primary_key=True),
    Column("host", Text, nullable=False),
    Column("address", Text, nullable=False),
    Column("flags_version", BigInteger, nullable=False),
    Column("kill_overlay", JSONB, nullable=False),
    Column("workers", JSONB, nullable=False),
    Column("counts", JSONB, nullable=False),
    Column("started_at", MOMENT, nullable=False),
    Column("heard_at", MOMENT, nullable=False, server_default=func.now()),
)
"""What each running Crossfade last said of itself."""

ramps = Table(
    "ramps",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("flag", ForeignKey("flags.key"), nullable=False),
    Column("state", Text, nullable=False),
    Column("steps", JSONB, nullable=False),
    Column("step", Integer, nullable=False, server_default="0"),
    Column("step_started_at", MOMENT),
    Column("held_reason", Text),
    Column("document", JSONB, nullable=False, server_default=text("'{}'")),
    Column("started_at", MOMENT, nullable=False, server_default=func.now()),
    Column("ended_at", MOMENT),
    Index("ramps_flag_idx", "flag", unique=True, postgresql_where=text("ended_at IS NULL")),
)
"""A flag has at most one ramp that has not ended. `document` holds what only the ramp's own code reads."""

guardrails = Table(
    "guardrails",
    metadata,
    Column("id", Text, primary_key=True),
    Column("flag", ForeignKey("flags.key"), nullable=False, index=True),
    Column("definition", JSONB, nullable=False),
    Column("state", Text, nullable=False),
    Column("evidence", JSONB, nullable=False, server_default=text("'{}'")),
    Column("updated_at", MOMENT, nullable=False, server_default=func.now()),
)

shadow_counts = Table(
    "shadow_counts",
    metadata,
    Column("source", Text, primary_key=True),
    Column("flag", Text, primary_key=True),
    Column("route", Text, primary_key=True),
    Column("minute", MOMENT, primary_key=True, index=True),
    Column("counts", JSONB, nullable=False),
)
"""What one process has counted in one minute, written whole each time: nothing adds up twice."""

shadow_paths = Table(
    "shadow_paths",
    metadata,
    Column("flag", Text, primary_key=True),
    Column("route", Text, primary_key=True),
    Column("path", Text, primary_key=True),
    Column("hour", MOMENT, primary_key=True),
    Column("new_only", BigInteger, nullable=False, server_default="0"),
    Column("legacy_only", BigInteger, nullable=False, server_default="0"),
    Column("together", BigInteger, nullable=False, server_default="0"),
)

shadow_categories = Table(
    "shadow_categories",
    metadata,
    Column("id", Text, primary_key=True),
    Column("flag", Text, nullable=False, index=True),
    Column("route", Text, nullable=False),
    Column("path", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("count", BigInteger, nullable=False),
    Column("first_seen", MOMENT, nullable=False),
    Column("last_seen", MOMENT, nullable=False),
    Column("mark", Text, nullable=False, server_default="open"),
    Column("mark_by", Text),
    Column("mark_reason", Text),
    Column("mark_expires", Date),
)

shadow_samples = Table(
    "shadow_samples",
    metadata,
    Column("id", Text, primary_key=True),
    Column("category", ForeignKey("shadow_categories.id", ondelete="CASCADE"), primary_key=True),
    Column("at", MOMENT, nullable=False),
    Column("exhibit", JSON, nullable=False),
)

shadow_seen = Table(
    "shadow_seen",
    metadata,
    Column("id", Text, primary_key=True),
    Column("at", MOMENT, nullable=False, server_default=func.now()),
)
"""Pairs that were taken in lately: the bus may hand one over twice."""

shadow_rules = Table(
    "shadow_rules",
    metadata,
    Column("id", Text, primary_key=True),
    Column("definition", JSONB, nullable=False),
    Column("set_by", Text, nullable=False),
    Column("set_at", MOMENT, nullable=False, server_default=func.now()),
)

shadow_reports = Table(
    "shadow_reports",
    metadata,
    Column("digest", Text, primary_key=True),
    Column("kept_at", MOMENT, nullable=False, server_default=func.now()),
    Column("kept_by", Text, nullable=False),
    Column("ready", ARRAY(Text), nullable=False),
    Column("report", JSON, nullable=False),
)

CUTOVER_STATES = tuple(state.value for state in State)

cutovers = Table(
    "cutovers",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("name", Text, nullable=False),
    Column("towards", Text, nullable=False),
    Column("generation", BigInteger, nullable=False),
    Column("state", Text, CheckConstraint(f"state IN {CUTOVER_STATES}", name="state"), nullable=False),
    Column("epoch", BigInteger, nullable=False, server_default="0"),
    Column("rehearsal", Boolean, nullable=False, server_default=text("false")),
    Column("abort", Text),
    Column("message", Text),
    Column("document", JSONB, nullable=False, server_default=text("'{}'")),
    Column("started_by", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("started_at", MOMENT, nullable=False, server_default=func.now()),
    Column("held_at", MOMENT),
    Column("released_at", MOMENT),
    Column("ended_at", MOMENT),
    Index("cutovers_name_idx", "name", unique=True, postgresql_where=text("ended_at IS NULL")),
)
"""Walks of cutovers, each forth or back. One of a name is under way at most; `epoch` is who walks it."""
