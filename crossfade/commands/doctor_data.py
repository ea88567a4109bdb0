"""What `crossfade doctor` asks of both databases: are they there, and how do the streams between stand."""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Iterator, Sequence
from typing import Final

import psycopg

from crossfade import settings, users_code
from crossfade.commands.doctor import Finding, Level
from crossfade.directions import NoDirectionError, direction_of
from crossfade.settings import SettingsError
from crossfade.users_code import UsersCodeError
from dualwrite import desired, foreign, pg_source, preflight, survey, target
from dualwrite.capture import CaptureStopped
from dualwrite.desired import Desire
from dualwrite.foreign import Writer
from dualwrite.pg_connect import connect
from dualwrite.preflight import Weight
from dualwrite.runbooks import runbook
from dualwrite.stream_states import State
from dualwrite.sync import Direction
from dualwrite.target import StreamState
from flags.model import Side

BEHIND: Final = 10.0
"""Seconds without anything applied from which on a stream counts as behind; beats come every second."""
_LEVELS: Final = {Weight.STOPS: Level.PROBLEM, Weight.WARNS: Level.WARNING}


def of_the_data(options: argparse.Namespace) -> Iterator[Finding]:
    """Nothing where no databases are configured, or the configuration cannot be read (said elsewhere)."""
    try:
        found = settings.load_to_run(options.config, os.environ)
        if found.data is None or found.code is None:
            return
        project = users_code.load(found.code, found.code_text)
    except (SettingsError, UsersCodeError):
        return
    urls = {Side.LEGACY: found.data.legacy.text, Side.NEW: found.data.new.text}
    for side, url in urls.items():
        if (trouble := asyncio.run(_trouble(url))) is not None:
            about = f"{side.value}'s database"
            yield Finding(
                Level.PROBLEM, "data", f"{about}: {trouble}", "start it, or correct data: in the file"
            )
            return
    for side in (Side.NEW, Side.LEGACY):
        try:
            of = direction_of(
                project, urls, side, str(found.code), name=found.data.name, ways=found.data.ways
            )
        except NoDirectionError:
            continue
        try:
            yield from asyncio.run(_of_a_stream(of, side))
        except (psycopg.Error, OSError, CaptureStopped) as error:
            yield Finding(
                Level.PROBLEM, of.name, _said(error), f"crossfade data status --towards {side.value}"
            )


async def _trouble(url: str) -> str | None:
    try:
        await (await connect(url)).close()
    except (psycopg.Error, OSError) as error:
        return _said(error)
    return None


async def _of_a_stream(of: Direction, side: Side) -> list[Finding]:
    async with await connect(of.target_url) as looking:
        row = await (await looking.execute("SELECT to_regclass('crossfade_sync.streams')")).fetchone()
        known = None if row is None or row[0] is None else await target.state(looking, of.name)
        if known is None:
            return [
                Finding(Level.OK, of.name, "was never begun", f"crossfade data plan --towards {side.value}")
            ]
        held = await target.is_held(looking, of.name)
        wish = await desired.of(looking, of.name)
        strangers = await foreign.of_late(looking, of.written) if of.watches else []
        unwatched = await foreign.unwatched(looking, of.written) if of.watches else []
    found = [_stands(known, held, side, wish), *_beside(strangers, unwatched, of.name, side)]
    async with await connect(of.source_url) as source:
        slot = await pg_source.slot_facts(source, of.slot)
    if slot is not None:
        limit = "without a limit" if slot.share is None else f"{slot.share:.1%} of what it may keep"
        kept = f"the source keeps {slot.retained / 2**20:,.1f} MiB of log for it ({slot.wal_status}, {limit})"
        found.append(Finding(Level.OK, of.name, kept))
    return [*found, *of_the_plan((await survey.survey(of)).findings, of.name, side)]


def of_the_plan(found: Sequence[preflight.Finding], stream: str, side: Side) -> Iterator[Finding]:
    """What stands against a stream. Columns that may be too narrow are many; `data plan` has each. Pure."""
    if lossy := sum(one.reason == "lossy" for one in found):
        columns = "1 column" if lossy == 1 else f"{lossy} columns"
        what = f"lossy: {columns} may be too narrow or lose something"
        yield Finding(Level.WARNING, stream, what, f"crossfade data plan --towards {side.value}")
    for one in found:
        if one.reason != "lossy":
            todo = one.remedy if one.runbook is None else f"{one.remedy} ({one.runbook})"
            yield Finding(_LEVELS[one.weight], stream, f"{one.reason}: {one.message}", todo)


def _beside(
    strangers: Sequence[Writer], unwatched: Sequence[str], stream: str, side: Side
) -> Iterator[Finding]:
    if unwatched:
        what = f"who else writes is not noted at {', '.join(unwatched)}"
        yield Finding(
            Level.WARNING, stream, what, "GRANT TRIGGER there, if it lacks; then start the stream anew"
        )
    for one in strangers:
        todo = f"crossfade data verify --towards {side.value} ({runbook('foreign_write')})"
        yield Finding(Level.WARNING, stream, f"{one}, {one.age:,.0f} s ago", todo)


def _stands(known: StreamState, held: bool, side: Side, wish: Desire | None) -> Finding:
    todo = f"crossfade data status --towards {side.value}"
    if known.state is State.STOPPED:
        return Finding(Level.PROBLEM, known.name, f"has stopped ({known.reason}): {known.message}", todo)
    if not held and wish is not None and not wish.run:
        return Finding(
            Level.PROBLEM, known.name, f"stopped by {wish.by}: {wish.reason}",
            f"crossfade data start --towards {side.value} --reason WHY",
        )  # fmt: skip
    if not held:
        what = f"no process works on it; what came last is {known.age:,.0f} s old"
        return Finding(Level.PROBLEM, known.name, what, f"crossfade sync --towards {side.value}")
    if known.age > BEHIND:
        return Finding(Level.WARNING, known.name, f"what came last is {known.age:,.0f} s old", todo)
    return Finding(Level.OK, known.name, f"{known.state.value}; what came last is {known.age:.1f} s old")


def _said(error: Exception) -> str:
    return getattr(getattr(error, "diag", None), "message_primary", None) or " ".join(str(error).split())
