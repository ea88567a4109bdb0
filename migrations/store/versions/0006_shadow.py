"""What comparing answers has found."""

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE crossfade_store.shadow_counts (
            source text NOT NULL,
            flag   text NOT NULL,
            route  text NOT NULL,
            minute timestamptz NOT NULL,
            counts jsonb NOT NULL,
            PRIMARY KEY (source, flag, route, minute)
        );
        CREATE INDEX shadow_counts_minute_idx ON crossfade_store.shadow_counts (minute);
        CREATE TABLE crossfade_store.shadow_paths (
            flag        text NOT NULL,
            route       text NOT NULL,
            path        text NOT NULL,
            hour        timestamptz NOT NULL,
            new_only    bigint NOT NULL DEFAULT 0,
            legacy_only bigint NOT NULL DEFAULT 0,
            together    bigint NOT NULL DEFAULT 0,
            PRIMARY KEY (flag, route, path, hour)
        );
        CREATE TABLE crossfade_store.shadow_categories (
            id           text PRIMARY KEY,
            flag         text NOT NULL,
            route        text NOT NULL,
            path         text NOT NULL,
            kind         text NOT NULL,
            count        bigint NOT NULL,
            first_seen   timestamptz NOT NULL,
            last_seen    timestamptz NOT NULL,
            mark         text NOT NULL DEFAULT 'open',
            mark_by      text,
            mark_reason  text,
            mark_expires date
        );
        CREATE INDEX shadow_categories_flag_idx ON crossfade_store.shadow_categories (flag);
        CREATE TABLE crossfade_store.shadow_samples (
            id       text NOT NULL,
            category text NOT NULL REFERENCES crossfade_store.shadow_categories (id) ON DELETE CASCADE,
            at       timestamptz NOT NULL,
            exhibit  json NOT NULL,
            PRIMARY KEY (category, id)
        );
        CREATE TABLE crossfade_store.shadow_seen (
            id text PRIMARY KEY,
            at timestamptz NOT NULL DEFAULT now()
        );
        CREATE TABLE crossfade_store.shadow_rules (
            id         text PRIMARY KEY,
            definition jsonb NOT NULL,
            set_by     text NOT NULL,
            set_at     timestamptz NOT NULL DEFAULT now()
        );
        """
    )


def downgrade() -> None:
    for table in ("rules", "seen", "samples", "categories", "paths", "counts"):
        op.execute(f"DROP TABLE crossfade_store.shadow_{table}")
