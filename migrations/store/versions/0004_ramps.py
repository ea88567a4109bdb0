"""Ramps and guardrails: flags that move by themselves."""

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE crossfade_store.ramps (
            id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            flag            text NOT NULL REFERENCES crossfade_store.flags (key),
            state           text NOT NULL,
            steps           jsonb NOT NULL,
            step            integer NOT NULL DEFAULT 0,
            step_started_at timestamptz,
            held_reason     text,
            document        jsonb NOT NULL DEFAULT '{}',
            started_at      timestamptz NOT NULL DEFAULT now(),
            ended_at        timestamptz
        );
        CREATE UNIQUE INDEX ramps_flag_idx ON crossfade_store.ramps (flag) WHERE ended_at IS NULL;
        CREATE TABLE crossfade_store.guardrails (
            id         text PRIMARY KEY,
            flag       text NOT NULL REFERENCES crossfade_store.flags (key),
            definition jsonb NOT NULL,
            state      text NOT NULL,
            evidence   jsonb NOT NULL DEFAULT '{}',
            updated_at timestamptz NOT NULL DEFAULT now()
        );
        CREATE INDEX guardrails_flag_idx ON crossfade_store.guardrails (flag);
        """
    )


def downgrade() -> None:
    op.execute("DROP TABLE crossfade_store.guardrails, crossfade_store.ramps")
