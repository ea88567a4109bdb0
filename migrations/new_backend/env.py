"""Runs the revisions of the new backend. Called through `new_backend.schema`, which gives the connection."""

from alembic import context

from new_backend.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
