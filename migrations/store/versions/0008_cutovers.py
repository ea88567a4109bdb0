"""Which side may change data, and the walks that move it."""

from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.execute(
        """
        ALTER TABLE crossfade_store.flag_set ADD COLUMN authorities jsonb NOT NULL DEFAULT '[]';
        CREATE TABLE crossfade_store.cutovers (
            id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            name        text NOT NULL,
            towards     text NOT NULL,
            generation  bigint NOT NULL,
            state       text NOT NULL CONSTRAINT cutovers_state_check CHECK (state IN (
                'preparing', 'holding', 'fencing', 'catching_up', 'turning', 'deciding', 'releasing',
                'cancelling', 'done', 'cancelled')),
            epoch       bigint NOT NULL DEFAULT 0,
            rehearsal   boolean NOT NULL DEFAULT false,
            abort       text,
            message     text,
            document    jsonb NOT NULL DEFAULT '{}',
            started_by  text NOT NULL,
            reason      text NOT NULL,
            started_at  timestamptz NOT NULL DEFAULT now(),
            held_at     timestamptz,
            released_at timestamptz,
            ended_at    timestamptz
        );
        CREATE UNIQUE INDEX cutovers_name_idx ON crossfade_store.cutovers (name) WHERE ended_at IS NULL;
        """
    )


def downgrade() -> None:
    op.execute("DROP TABLE crossfade_store.cutovers")
    op.execute("ALTER TABLE crossfade_store.flag_set DROP COLUMN authorities")
