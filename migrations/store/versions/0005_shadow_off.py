"""Who has stopped all mirroring."""

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.execute("ALTER TABLE crossfade_store.flag_set ADD COLUMN shadow_off jsonb")


def downgrade() -> None:
    op.execute("ALTER TABLE crossfade_store.flag_set DROP COLUMN shadow_off")
