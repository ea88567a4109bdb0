"""`crossfade data check-mapping`: values that legacy may hold, to new and back. Nothing of it stays."""

from __future__ import annotations

import argparse
import asyncio
import os
from collections import Counter
from dataclasses import asdict
from typing import Final

import psycopg

from crossfade import settings, users_code
from crossfade.commands.api import ERROR, OK, TRIPPED, USAGE, ApiError
from crossfade.commands.telling import data, tell_json
from crossfade.directions import NoDirectionError, is_postgresql
from crossfade.mapping_contract import try_project
from crossfade.project import Project
from crossfade.settings import SettingsError
from crossfade.users_code import UsersCodeError
from dualwrite.mapping import InvalidMappingError
from dualwrite.round_trip import Unfit
from flags.model import Side

SHOWN: Final = 3
"""Values of a column and an outcome that are printed."""


def check_mapping(options: argparse.Namespace) -> int:
    """Exit code 6 where a value does not come home."""
    project, urls = _read(options)
    try:
        tried = asyncio.run(try_project(project, urls[Side.LEGACY], urls[Side.NEW], seed=options.seed))
    except InvalidMappingError as error:
        raise ApiError(USAGE, str(error), word="invalid") from error
    except (psycopg.Error, OSError) as error:
        said = getattr(getattr(error, "diag", None), "message_primary", None) or str(error)
        raise ApiError(ERROR, f"a database does not answer as it should: {said}", word="database") from error
    code = TRIPPED if tried.unfit else OK
    if tell_json(options, asdict(tried)):
        return code
    data(f"{tried.columns} columns, {tried.values:,} values: {'' if tried.unfit else 'all come home'}")
    seen: Counter[tuple[str, str]] = Counter()
    for one in tried.unfit:
        seen[_kind(one)] += 1
        if seen[_kind(one)] <= SHOWN:
            data(f"  {one}")
    for (column, outcome), count in seen.items():
        if count > SHOWN:
            data(f"  {column}: {count - SHOWN} more are {outcome} (-o json has all)")
    return code


def _kind(one: Unfit) -> tuple[str, str]:
    return one.column, one.outcome.value.replace("_", " ")


def _read(options: argparse.Namespace) -> tuple[Project, dict[Side, str]]:
    try:
        found = settings.load_to_run(options.config, os.environ)
        if found.data is None or found.code is None:
            raise NoDirectionError(f"{options.config}: data: or code: is missing")
        project = users_code.load(found.code, found.code_text)
        urls = {Side.LEGACY: found.data.legacy.text, Side.NEW: found.data.new.text}
        if not project.tables:
            raise NoDirectionError(f"{found.code}: project has no tables")
        if strange := [side for side, url in urls.items() if not is_postgresql(url)]:
            raise NoDirectionError(f"data.{strange[0].value}.url is no PostgreSQL")
    except (SettingsError, UsersCodeError, NoDirectionError) as error:
        raise ApiError(USAGE, str(error), word="invalid") from error
    return project, urls
