"""What each running Crossfade says of itself."""

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE crossfade_store.instances (
            id            text PRIMARY KEY,
            host          text NOT NULL,
            address       text NOT NULL,
            flags_version bigint NOT NULL,
            kill_overlay  jsonb NOT NULL,
            workers       jsonb NOT NULL,
            counts        jsonb NOT NULL,
            started_at    timestamptz NOT NULL,
            heard_at      timestamptz NOT NULL DEFAULT now()
        );
        """
    )


def downgrade() -> None:
    op.execute("DROP TABLE crossfade_store.instances")
