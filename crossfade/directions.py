"""From what the configuration and `migration.py` say to a stream of one direction."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from crossfade import users_code
from crossfade.project import Project
from crossfade.users_code import UsersCodeError
from dualwrite.capture import Way
from dualwrite.mapped import towards
from dualwrite.mapping import InvalidMappingError
from dualwrite.sync import Direction
from flags.model import Side

_POSTGRESQL = ("postgresql://", "postgres://")


class NoDirectionError(Exception):
    """There is nothing to sync, or it is said in a way that cannot be meant; the text says what to do."""


def direction(config: Path, side: Side) -> Direction:
    """The stream towards `side`. Raises NoDirectionError."""
    return direction_and_folder(config, side)[0]


def direction_and_folder(config: Path, side: Side) -> tuple[Direction, Path]:
    """As `direction`, and where this installation keeps its files."""
    # Those who are told what to go by read no file, and start sooner without this.
    from crossfade import settings  # noqa: PLC0415
    from crossfade.settings import SettingsError  # noqa: PLC0415

    try:
        found = settings.load_to_run(config, os.environ)
        if found.data is None:
            raise NoDirectionError(f"{config}: data: is missing; name data.legacy.url and data.new.url")
        if found.code is None:
            raise NoDirectionError(
                f"{config}: code: is missing; a migration.py says how rows of one side become the other's"
            )
        project = users_code.load(found.code, found.code_text)
    except (SettingsError, UsersCodeError) as error:
        raise NoDirectionError(str(error)) from error
    urls = {Side.LEGACY: found.data.legacy.text, Side.NEW: found.data.new.text}
    way = direction_of(
        project, urls, side, str(found.code),
        name=found.data.name, ways=found.data.ways, copy_rows_per_second=found.data.copy_rows_per_second,
    )  # fmt: skip
    return way, found.data_dir


def direction_of(
    project: Project,
    urls: Mapping[Side, str],
    side: Side,
    code: str,
    *,
    name: str,
    ways: Mapping[Side, Way],
    copy_rows_per_second: int = 0,
) -> Direction:
    """The stream towards `side` by what was read already. Raises NoDirectionError.

    `name` and `ways` are `data.name` and how each side is read.
    """
    try:
        sources = towards(side, project.tables, project.follow_ups)
    except InvalidMappingError as error:
        raise NoDirectionError(f"{error}") from error
    if not sources:
        raise NoDirectionError(f"{code}: project has no tables towards {side.value}")
    for one, url in urls.items():
        if not is_postgresql(url):
            raise NoDirectionError(
                f"data.{one.value}.url is no PostgreSQL; other databases come with a later release"
            )
    source = Side.LEGACY if side is Side.NEW else Side.NEW
    stream = f"{name}_to_{side.value}" if name else f"to_{side.value}"
    return Direction(
        stream, urls[source], urls[side], sources,
        watches=side is Side.NEW, way=ways[source], copy_rows_per_second=copy_rows_per_second or None,
    )  # fmt: skip


def is_postgresql(url: str) -> bool:
    return url.startswith(_POSTGRESQL)
