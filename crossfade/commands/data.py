"""`crossfade data …`: what would be copied, how it stands, and whether both databases say the same.

These commands ask the databases themselves, by the configuration's own URLs: the truth of a stream stands in
the database that it writes to.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Coroutine
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import psycopg

from crossfade.commands.api import ERROR, NOT_CONVERGED, NOT_FOUND, OK, TRIPPED, USAGE, ApiError
from crossfade.commands.telling import Paint, data, table, talk, tell_json, tell_next
from crossfade.directions import NoDirectionError, direction_and_folder
from crossfade.kept_progress import KeptProgress
from dualwrite import fence, pg_source, repair, survey, target, verify
from dualwrite.backfill import copy_name
from dualwrite.capture import CaptureStopped
from dualwrite.mapped import MappingFailedError, by_table
from dualwrite.pg_connect import connect
from dualwrite.preflight import Weight
from dualwrite.segments import Progress
from dualwrite.sync import Direction, copies
from dualwrite.target import State
from dualwrite.verify import Compared, Going, NotFollowingError
from flags.model import Side

SHOWN: Final = 10
"""Differences of a table that are printed."""
SHOW_EVERY: Final = 5.0
"""Seconds between two words on how far a comparison is."""
REPAIRED_WITHIN: Final = 60.0
"""Seconds that the stream's process has to write rows anew."""
_COLOURS: Final = {
    "stops": Paint.BAD, "warns": Paint.WARNING, "stopped": Paint.BAD, "following": Paint.GOOD,
    "copying": Paint.WARNING, "equal": Paint.GOOD, "different": Paint.BAD, "unsettled": Paint.WARNING,
}  # fmt: skip

T = TypeVar("T")


def plan(options: argparse.Namespace) -> int:
    """Exit code 1 if something forbids it; warnings leave it 0."""
    found = _asked(survey.survey(_direction(options)))
    code = OK if found.possible else ERROR
    shown = {
        "possible": found.possible,
        "planned": [asdict(one) for one in found.planned],
        "findings": [{**asdict(one), "weight": one.weight.value} for one in found.findings],
    }
    if tell_json(options, shown):
        return code
    rows = ((one.name, one.how, f"{one.rows:,}") for one in found.planned)
    table(("copy", "how", "rows, about"), rows)
    for one in sorted(found.findings, key=lambda one: one.weight is Weight.WARNS):
        data("")
        data(f"{one.weight.value}  {one.reason}: {one.message}")
        data(f"       → {one.remedy}")
    if found.possible:
        tell_next([f"crossfade sync -c {options.config}"])
    return code


def status(options: argparse.Namespace) -> int:
    """Exit code 6 where the stream has stopped, 3 where it was never begun."""
    of = _direction(options)
    found = _asked(_status(of))
    if found is None:
        raise ApiError(
            NOT_FOUND, f"the stream {of.name} was never begun", word="not_found",
            next_steps=(f"crossfade data plan -c {options.config}", f"crossfade sync -c {options.config}"),
        )  # fmt: skip
    code = TRIPPED if found["state"] == State.STOPPED.value else OK
    if tell_json(options, found):
        return code
    data(f"{found['stream']}  {found['state']}  epoch {found['epoch']}")
    if found["reason"]:
        data(f"{found['reason']}: {found['message']}")
    data(f"the last that came is {found['age']:.1f} s old; position {found['applied']}")
    if not found["held"]:
        data("no process works on it now")
        tell_next([f"crossfade sync --towards {options.towards} -c {options.config}"])
    slot = found["slot"]
    if slot is None:
        data("the source has no slot for it any more")
    else:
        data(f"the source keeps {slot['retained'] / 2**20:,.1f} MiB of log for it ({slot['wal_status']})")
    if found["repairs"]:
        data(f"{found['repairs']:,} rows wait to be written anew")
    data("")
    rows = (
        (one["copy"], "done" if one["done"] else "not begun" if one["rows"] is None else "under way",
         "" if one["rows"] is None else f"{one['rows']:,}", f"{one['of']:,}")
        for one in found["copies"]
    )  # fmt: skip
    table(("copy", "state", "rows", "of about"), rows, _COLOURS)
    return code


async def _status(of: Direction) -> dict[str, Any] | None:
    async with await connect(of.target_url) as looking:
        row = await (await looking.execute("SELECT to_regclass('crossfade_sync.streams')")).fetchone()
        known = None if row is None or row[0] is None else await target.state(looking, of.name)
        if known is None:
            return None
        cursor = await looking.execute(
            "SELECT copy, rows, done FROM crossfade_sync.copies WHERE stream = %s", (of.name,)
        )
        done = {name: (rows, is_done) for name, rows, is_done in await cursor.fetchall()}
        waiting = await repair.waiting(looking, of.name)
        held = await target.is_held(looking, of.name)
    source = await connect(of.source_url)
    async with source:
        slot = await pg_source.slot_facts(source, of.slot)
        about = {name: await survey.estimate(source, name) for name in of.sources}
    return {
        "stream": of.name, "state": known.state.value, "reason": known.reason, "message": known.message,
        "epoch": known.epoch, "applied": known.applied, "age": known.age, "held": held, "repairs": waiting,
        "slot": None if slot is None else asdict(slot),
        "copies": [
            {"copy": name, "rows": done.get(name, (None, False))[0], "done": done.get(name, (0, False))[1],
             "of": about[of_]}
            for name, of_, _ in copies(of.sources)
        ],
    }  # fmt: skip


def verify_(options: argparse.Namespace) -> int:
    """Exit code 6 where something differs, 7 where it cannot be said."""
    of, folder = _direction_and_folder(options)
    kept = KeptProgress(folder, of.name)
    if options.fresh:
        kept.forget()
    found = _asked(_compared(of, options, kept))
    kept.forget()
    return _tell_compared(options, of, found)


def repair_(options: argparse.Namespace) -> int:
    """Compare, have what differs written anew, and compare that again. Exit codes as of verify."""
    of = _direction(options)
    found = _asked(_compared(of, options))
    wrong = [one for one in found if one.differences]
    count = sum(len(one.differences) for one in wrong)
    if kept := _asked(_written_by_people(of, [one.name for one in wrong])):
        raise ApiError(
            TRIPPED,
            f"{options.towards} has the authority over {', '.join(kept)}; nothing is written over its rows",
            word="under_authority",
            next_steps=("crossfade cutover status",),
        )
    if options.dry_run or not wrong:
        if options.dry_run:
            talk(f"dry run: {count:,} rows would be written anew")
        return _tell_compared(options, of, found)
    talk(f"{count:,} rows are written anew")
    _asked(_repaired(of, wrong))
    options.table = [one.name for one in wrong]
    again = {one.name: one for one in _asked(_compared(of, options))}
    return _tell_compared(options, of, [again.get(one.name, one) for one in found])


async def _written_by_people(of: Direction, names: list[str]) -> list[str]:
    """Of these copies' tables those at the target that have the authority."""
    async with await connect(of.target_url) as looking:
        kept = await fence.open_tables(looking)
    tables = {copy_name(source.name, mapping): str(mapping.table) for source, mapping in by_table(of.sources)}
    return sorted({tables[name] for name in names} & kept)


async def _compared(
    of: Direction, options: argparse.Namespace, kept: KeptProgress | None = None
) -> list[Compared]:
    """`kept` is where a comparison that was killed has left how far it was."""
    found, names = [], options.table
    way_back = "to_legacy" if of.name == "to_new" else "to_new"
    async with await connect(of.target_url) as looking:
        written_to = await fence.open_tables(looking)
    for source, mapping in by_table(of.sources):
        wanted = (source.name, str(mapping.table), copy_name(source.name, mapping))
        if names and not any(name in (*wanted, source.name.removeprefix("public.")) for name in names):
            continue
        backwards = str(mapping.table) in written_to
        stream = way_back if backwards else of.name
        going = _going(wanted[-1], options, kept)
        one = await verify.compare(
            stream, of.source_url, of.target_url, source, mapping, backwards=backwards, going=going
        )
        went_on = f", {one.rows_before:,} of them before it was ended" if one.rows_before else ""
        talk(f"{one.name}: {one.rows:,} rows in {one.seconds:.1f} s{went_on}")
        found.append(one)
    if not found:
        raise ApiError(USAGE, f"no mapping names {', '.join(names or ())}", word="invalid")
    return found


def _going(name: str, options: argparse.Namespace, kept: KeptProgress | None) -> Going:
    try:
        progress = Progress() if kept is None else kept.load(name)
    except OSError as error:
        talk(f"how far it comes is not kept: {error}")
        progress, kept = Progress(), None
    begun, before = time.monotonic(), progress.rows
    next_ = begun + SHOW_EVERY

    def told(now: Progress) -> None:
        nonlocal next_, kept, before
        before = min(before, now.rows)  # what was kept may have been of something else
        if kept is not None:
            try:
                kept.save(name, now)
            except OSError as error:
                talk(f"how far it comes is not kept: {error}")
                kept = None
        at = time.monotonic()
        if at < next_:
            return
        next_ = at + SHOW_EVERY
        rate = max(1.0, (now.rows - before) / (at - begun))
        left = max(0, now.about - now.rows) / rate
        talk(f"{name}: {now.rows:,} of about {now.about:,} rows, {rate:,.0f} rows/s, {left:,.0f} s left")

    return Going(options.portable, progress, told, options.pace)


async def _repaired(of: Direction, wrong: list[Compared]) -> None:
    async with await connect(of.target_url) as looking:
        for one in wrong:
            keys = [each.source_key for each in one.differences if each.source_key is not None]
            await repair.ask_for(looking, of.name, one.name, keys)
        until = time.monotonic() + REPAIRED_WITHIN
        while await repair.waiting(looking, of.name):
            if time.monotonic() > until:
                raise NotFollowingError(
                    f"the rows still wait after {REPAIRED_WITHIN:g} s; they are written as soon as"
                    " crossfade sync runs"
                )
            await asyncio.sleep(0.2)


def _tell_compared(options: argparse.Namespace, of: Direction, found: list[Compared]) -> int:
    equal = all(one.equal for one in found)
    code = OK if equal else TRIPPED
    shown = {
        "equal": equal, "stream": of.name, "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "compared": [
            {**asdict(replace(one, differences=[])), "verdict": _verdict(one),
             "differences": [asdict(each) for each in one.differences]}
            for one in found
        ],
    }  # fmt: skip
    if (file := getattr(options, "report", None)) is not None:
        try:
            file.write_text(json.dumps(shown, indent=2) + "\n")
        except OSError as error:
            raise ApiError(ERROR, f"cannot write {file}: {error.strerror}", word="report") from error
    if tell_json(options, shown):
        return code
    rows = (
        (one.name, _verdict(one), f"{one.rows:,}", f"{len(one.differences):,}", f"{one.unsettled:,}",
         f"{one.seconds:.1f}", one.form or "mapped rows")
        for one in found
    )  # fmt: skip
    table(("copy", "verdict", "rows", "differ", "unsettled", "seconds", "by"), rows, _COLOURS)
    for one in found:
        for each in one.differences[:SHOWN]:
            columns = f": {', '.join(each.columns)}" if each.columns else ""
            data(f"  {one.name}  key {', '.join(each.key)}  {each.kind}{columns}")
        if len(one.differences) > SHOWN:
            data(f"  {one.name}  and {len(one.differences) - SHOWN:,} more (-o json has all)")
        if one.cut_short:
            data(f"  {one.name}  so many that the rest was not compared; was it ever copied?")
    if not equal:
        tell_next([f"crossfade data repair -c {options.config}"])
    return code


def _verdict(one: Compared) -> str:
    return "different" if one.differences else "unsettled" if one.unsettled else "equal"


def _direction(options: argparse.Namespace) -> Direction:
    return _direction_and_folder(options)[0]


def _direction_and_folder(options: argparse.Namespace) -> tuple[Direction, Path]:
    try:
        return direction_and_folder(options.config, Side(options.towards))
    except NoDirectionError as error:
        raise ApiError(USAGE, str(error), word="invalid") from error


def _asked(question: Coroutine[Any, Any, T]) -> T:
    try:
        return asyncio.run(question)
    except NotFollowingError as error:
        raise ApiError(
            NOT_CONVERGED, str(error), word="not_following", next_steps=("crossfade data status",)
        ) from error
    except MappingFailedError as error:
        raise ApiError(ERROR, str(error), word="mapping_failed") from error
    except CaptureStopped as error:
        raise ApiError(ERROR, str(error), word=error.reason) from error
    except (psycopg.Error, OSError) as error:
        said = getattr(getattr(error, "diag", None), "message_primary", None) or str(error)
        raise ApiError(ERROR, f"a database does not answer as it should: {said}", word="database") from error
