"""Tokens of people, each with a role."""

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE crossfade_store.people (
            id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            name       text NOT NULL,
            role       text NOT NULL CONSTRAINT people_role_check
                       CHECK (role IN ('viewer', 'reviewer', 'operator', 'approver', 'admin')),
            token_hash bytea NOT NULL UNIQUE,
            created_at timestamptz NOT NULL DEFAULT now(),
            revoked_at timestamptz,
            last_used  timestamptz
        );
        CREATE UNIQUE INDEX people_name_idx ON crossfade_store.people (name) WHERE revoked_at IS NULL;
        """
    )


def downgrade() -> None:
    op.execute("DROP TABLE crossfade_store.people")
