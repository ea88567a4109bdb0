"""The store's revisions: where it stands, and how to move it."""

from __future__ import annotations

from collections.abc import Callable

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import Connection, text

from crossfade.store.connection import Database, StoreError, StoreReason
from crossfade.store.tables import SCHEMA

MIGRATE_WITHIN = 120.0
_PATIENT = text(
    "SELECT set_config('lock_timeout', '60s', true), set_config('statement_timeout', '60s', true),"
    " set_config('idle_in_transaction_session_timeout', '0', true)"
)
_TURN = text("SELECT pg_advisory_xact_lock(hashtext('crossfade.store.schema'))")


async def upgrade(database: Database, revision: str = "head") -> None:
    """Move the store up to the revision. Programs that start together take turns."""
    await _move(database, lambda config: command.upgrade(config, revision))


async def downgrade(database: Database, revision: str) -> None:
    """Move the store down to the revision (`base` is empty). Loses what the later ones kept."""
    await _move(database, lambda config: command.downgrade(config, revision))


def current(connection: Connection) -> str | None:
    """The revision where the store stands; None for an empty one."""
    options = {"version_table_schema": SCHEMA}
    return MigrationContext.configure(connection, opts=options).get_current_revision()


def newest() -> str | None:
    """The revision that this program needs."""
    return ScriptDirectory.from_config(_config()).get_current_head()


async def _move(database: Database, move: Callable[[Config], None]) -> None:
    def with_connection(connection: Connection) -> None:
        config = _config()
        config.attributes["connection"] = connection
        move(config)

    async with database.transaction(MIGRATE_WITHIN) as connection:
        await connection.execute(_PATIENT)
        await connection.execute(_TURN)
        await connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}"))
        try:
            await connection.run_sync(with_connection)
        except CommandError as error:
            raise StoreError(
                StoreReason.NEWER,
                f"the store at {database.place} was migrated by a newer Crossfade ({error}); run that one, "
                "or let it take its revisions back first",
            ) from error


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", "migrations:store")
    return config
