"""Reports that somebody has kept, for changes that need one."""

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE crossfade_store.shadow_reports (
            digest  text PRIMARY KEY,
            kept_at timestamptz NOT NULL DEFAULT now(),
            kept_by text NOT NULL,
            ready   text[] NOT NULL,
            report  json NOT NULL
        );
        """
    )


def downgrade() -> None:
    op.execute("DROP TABLE crossfade_store.shadow_reports")
