"""What the commands on data have in common: the stream that is meant, and what is asked of its databases.

These commands ask the databases themselves, by the configuration's own URLs: the truth of a stream stands in
the database that it writes to.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import psycopg

from crossfade.commands.api import ERROR, NOT_CONVERGED, NOT_FOUND, USAGE, ApiError
from crossfade.commands.telling import talk
from crossfade.directions import NoDirectionError, direction_and_folder
from dualwrite import fence, repair, target
from dualwrite.backfill import copy_name
from dualwrite.capture import CaptureStopped
from dualwrite.cut import NoCutError
from dualwrite.mapped import MappingFailedError, by_table
from dualwrite.pg_connect import connect
from dualwrite.stream_states import State
from dualwrite.sync import Direction
from dualwrite.verify import NotFollowingError
from flags.model import Side

T = TypeVar("T")
SHOWN: Final = 10
"""Rows of one table that are printed, of however many; -o json has all."""
REPAIRED_WITHIN: Final = 60.0
"""Seconds that the stream's process has to write rows anew."""
STOPPED_FOR: Final = 3.0
"""Seconds: one that was just told to start says for a moment that it has stopped."""


def direction_of(options: argparse.Namespace) -> Direction:
    """The stream that is meant. Raises ApiError."""
    return direction_and_folder_of(options)[0]


def direction_and_folder_of(options: argparse.Namespace) -> tuple[Direction, Path]:
    """The stream that is meant, and where this instance keeps its data. Raises ApiError."""
    try:
        return direction_and_folder(options.config, Side(options.towards))
    except NoDirectionError as error:
        raise ApiError(USAGE, str(error), word="invalid") from error


def asked(question: Coroutine[Any, Any, T], of: Direction) -> T:
    """What the databases answer. Raises ApiError, which says what failed and how."""
    try:
        return asyncio.run(question)
    except NotFollowingError as error:
        raise ApiError(
            NOT_CONVERGED, str(error), word="not_following", next_steps=("crossfade data status",)
        ) from error
    except NoCutError as error:
        raise ApiError(NOT_CONVERGED, str(error), word="no_cut") from error
    except MappingFailedError as error:
        raise ApiError(ERROR, str(error), word="mapping_failed") from error
    except CaptureStopped as error:
        raise ApiError(ERROR, str(error), word=error.reason) from error
    except (psycopg.Error, OSError) as error:
        if isinstance(error, psycopg.OperationalError | OSError) and (which := asyncio.run(away(of))):
            raise ApiError(ERROR, which, word="database") from error
        said = getattr(getattr(error, "diag", None), "message_primary", None) or str(error)
        raise ApiError(ERROR, f"a database does not answer as it should: {said}", word="database") from error


async def away(of: Direction) -> str | None:
    """Which of both databases cannot be reached, and why."""
    towards = of.name.rpartition("to_")[2]
    source = Side.LEGACY.value if towards == Side.NEW.value else Side.NEW.value
    found = []
    for side, url in ((source, of.source_url), (towards, of.target_url)):
        try:
            await (await connect(url)).close()
        except (psycopg.Error, OSError) as error:
            found.append(f"{side}'s database cannot be reached: {' '.join(str(error).split())}")
    return "; ".join(found) or None


async def known_state(looking: psycopg.AsyncConnection[Any], of: Direction) -> target.StreamState | None:
    """None where the stream was never begun."""
    row = await (await looking.execute("SELECT to_regclass('crossfade_sync.streams')")).fetchone()
    return None if row is None or row[0] is None else await target.state(looking, of.name)


def never_begun(options: argparse.Namespace, of: Direction) -> ApiError:
    return ApiError(
        NOT_FOUND, f"the stream {of.name} was never begun", word="not_found",
        next_steps=(
            f"crossfade data plan --towards {options.towards} -c {options.config}",
            start_command(options),
            f"crossfade sync --towards {options.towards} -c {options.config}",
        ),
    )  # fmt: skip


def start_command(options: argparse.Namespace) -> str:
    return f"crossfade data start --towards {options.towards} --reason WHY -c {options.config}"


def rows_said(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"


async def written_by_people(of: Direction, names: list[str]) -> list[str]:
    """Of these copies' tables those at the target that have the authority."""
    async with await connect(of.target_url) as looking:
        kept = await fence.open_tables(looking)
    tables = {copy_name(source.name, mapping): str(mapping.table) for source, mapping in by_table(of.sources)}
    # What was compared by the mapping of the other way: its source is our target.
    return sorted({tables.get(name, name.partition(" to ")[0]) for name in names} & kept)


async def written_anew(of: Direction, keys: Mapping[str, Sequence[Sequence[str]]]) -> None:
    """By copy, and keys at the source; until the stream follows again, so that a cutover may come next.

    Raises NotFollowingError; what was not written then still waits, and is as soon as it can be.
    """
    if not any(keys.values()):
        return
    async with await connect(of.target_url) as looking:
        for name, some in keys.items():
            await repair.ask_for(looking, of.name, name, some)
        began = went = time.monotonic()
        while True:
            # In this order: that it copies is noted before the rows wait no more.
            left = await repair.waiting(looking, of.name)
            known = await known_state(looking, of)
            if not left and known is not None and known.state is State.FOLLOWING:
                return
            now = time.monotonic()
            if known is None or known.state is not State.STOPPED:
                went = now
            elif now - went > STOPPED_FOR:
                raise NotFollowingError(
                    f"the stream has stopped ({known.reason}): {known.message}; {rows_said(left)} wait until"
                    " it goes on"
                )
            if now - began > REPAIRED_WITHIN and left:
                raise NotFollowingError(
                    f"{rows_said(left)} still wait after {REPAIRED_WITHIN:g} s; they are written as soon as a"
                    " process works on the stream (crossfade data start)"
                )
            if now - began > REPAIRED_WITHIN:
                talk("the rows are written; the stream is not up to date yet")
                return
            await asyncio.sleep(0.2)
