"""The schema's revisions: where a database stands, and how to move it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import NullPool, create_engine, text

from new_backend.database import driver_url

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection


def upgrade(url: str, revision: str = "head") -> None:
    """Moves the database up to the revision. Programs that start together take turns."""
    _move(url, lambda config: command.upgrade(config, revision))


def downgrade(url: str, revision: str) -> None:
    """Moves the database down to the revision (`base` is empty). Loses what the later ones kept."""
    _move(url, lambda config: command.downgrade(config, revision))


def current(connection: Connection) -> str | None:
    """The revision where the database stands; None for an empty one."""
    return MigrationContext.configure(connection).get_current_revision()


def newest() -> str | None:
    """The revision that this program needs."""
    return ScriptDirectory.from_config(_config()).get_current_head()


def _move(url: str, move: Callable[[Config], None]) -> None:
    engine = create_engine(driver_url(url), poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('new_backend.schema'))"))
        config = _config()
        config.attributes["connection"] = connection
        move(config)


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", "migrations:new_backend")
    return config
