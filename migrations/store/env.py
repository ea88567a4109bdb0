"""Runs the revisions of the store. Called through `crossfade.store.schema`, which gives the connection."""

from alembic import context

from crossfade.store.tables import SCHEMA, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table_schema=SCHEMA,
)
with context.begin_transaction():
    context.run_migrations()
