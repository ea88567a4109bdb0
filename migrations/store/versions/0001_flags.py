"""Flags, their common version, and the audit of every change."""

from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE crossfade_store.flag_set (
            id         smallint PRIMARY KEY CONSTRAINT flag_set_one_row_check CHECK (id = 1),
            version    bigint NOT NULL,
            kill       jsonb,
            audit_seq  bigint NOT NULL,
            audit_hash text NOT NULL,
            updated_at timestamptz NOT NULL DEFAULT now()
        );
        INSERT INTO crossfade_store.flag_set (id, version, audit_seq, audit_hash)
            VALUES (1, 0, 0, repeat('0', 64));
        CREATE TABLE crossfade_store.flags (
            key        text PRIMARY KEY,
            version    bigint NOT NULL,
            document   jsonb NOT NULL,
            updated_at timestamptz NOT NULL DEFAULT now()
        );
        CREATE TABLE crossfade_store.audit (
            seq          bigint PRIMARY KEY,
            at           timestamptz NOT NULL,
            actor        json NOT NULL,
            action       text NOT NULL,
            kind         text NOT NULL,
            objects      text[] NOT NULL,
            command      json NOT NULL,
            outcome      text NOT NULL
                         CONSTRAINT audit_outcome_check CHECK (outcome IN ('applied', 'denied', 'rejected')),
            refusal      text,
            from_version bigint,
            to_version   bigint,
            before       json,
            after        json,
            reason       text NOT NULL,
            ticket       text,
            evidence     json,
            request_id   text,
            prev_hash    text NOT NULL,
            hash         text NOT NULL
        );
        CREATE INDEX audit_objects_idx ON crossfade_store.audit USING gin (objects);
        CREATE FUNCTION crossfade_store.refuse_rewriting() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION 'rows of % are never changed or removed', TG_TABLE_NAME
                USING ERRCODE = 'insufficient_privilege';
        END $$;
        CREATE TRIGGER audit_is_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON crossfade_store.audit
            FOR EACH STATEMENT EXECUTE FUNCTION crossfade_store.refuse_rewriting();
        -- ALWAYS: session_replication_role = replica would step around an ordinary trigger.
        ALTER TABLE crossfade_store.audit ENABLE ALWAYS TRIGGER audit_is_append_only;
        """
    )


def downgrade() -> None:
    op.execute(
        """
        DROP TABLE crossfade_store.audit, crossfade_store.flags, crossfade_store.flag_set;
        DROP FUNCTION crossfade_store.refuse_rewriting();
        """
    )
