"""`crossfade data …`: what would be copied, how it stands, and whether both databases say the same.

These commands ask the databases themselves, by the configuration's own URLs: the truth of a stream stands in
the database that it writes to.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar

import psycopg

from crossfade.commands.api import ERROR, NOT_CONVERGED, NOT_FOUND, OK, TRIPPED, USAGE, ApiError, user
from crossfade.commands.telling import Paint, data, table, talk, tell_json, tell_next
from crossfade.directions import NoDirectionError, direction_and_folder
from crossfade.kept_progress import KeptProgress
from dualwrite import (
    desired,
    fence,
    foreign,
    jobs,
    lease,
    pg_source,
    quarantine,
    repair,
    survey,
    target,
    verify,
)
from dualwrite.backfill import copy_name
from dualwrite.capture import CaptureStopped
from dualwrite.cut import NoCutError, cut
from dualwrite.job_states import JobState
from dualwrite.mapped import MappingFailedError, RowMapping, SourceTable, by_table
from dualwrite.pg_connect import connect
from dualwrite.preflight import Weight, near_limit
from dualwrite.quarantine import Waiting
from dualwrite.runbooks import runbook
from dualwrite.segments import Progress
from dualwrite.stream_states import State
from dualwrite.sync import Direction, copies
from dualwrite.verify import Compared, Going, NotFollowingError
from flags.document import one_line
from flags.model import Side

SHOWN: Final = 10
"""Differences of a table that are printed."""
SHOW_EVERY: Final = 5.0
"""Seconds between two words on how far a comparison is."""
REPAIRED_WITHIN: Final = 60.0
"""Seconds that the stream's process has to write rows anew."""
STEADY: Final = 2.0
"""Seconds that a stream has to run, once it had stopped, before it is said to."""
QUIET: Final = 3.0
"""Seconds without another try after which a stream counts as stopped again: after `crossfade reload` the
process that goes by the old mapping may try first, and the next one is a second or two late."""
_COLOURS: Final = {
    "stops": Paint.BAD, "warns": Paint.WARNING, "stopped": Paint.BAD, "following": Paint.GOOD,
    "copying": Paint.WARNING, "equal": Paint.GOOD, "different": Paint.BAD, "unsettled": Paint.WARNING,
}  # fmt: skip

T = TypeVar("T")
_Chosen: TypeAlias = tuple[Direction, SourceTable, RowMapping, bool]
"""What is compared: by the mapping of which way, and whether backwards (`verify.compare`)."""


def plan(options: argparse.Namespace) -> int:
    """Exit code 1 if something forbids it; warnings leave it 0."""
    of = _direction(options)
    found = _asked(survey.survey(of), of)
    code = OK if found.possible else ERROR
    shown = {
        "possible": found.possible,
        "planned": [asdict(one) for one in found.planned],
        "findings": [
            {**asdict(one), "weight": one.weight.value, "runbook": one.runbook} for one in found.findings
        ],
    }
    if tell_json(options, shown):
        return code
    rows = ((one.name, one.how, _about(one.rows)) for one in found.planned)
    table(("copy", "how", "rows, about"), rows)
    for one in sorted(found.findings, key=lambda one: one.weight is Weight.WARNS):
        data("")
        data(f"{one.weight.value}  {one.reason}: {one.message}")
        data(f"       → {one.remedy}")
        if one.runbook is not None:
            data(f"       → {one.runbook}")
    if found.possible:
        tell_next([_start_command(options)])
    return code


def start(options: argparse.Namespace) -> int:
    """Exit code 7 where no process works on it in time, 6 where it stops at once."""
    of = _direction(options)
    before = _asked(_status(of), of)
    if options.towards == Side.LEGACY.value and before is None:
        raise ApiError(
            TRIPPED,
            "a way back that is begun so would copy all of new's rows into legacy; a cutover begins it alike",
            word="not_prepared",
            next_steps=("crossfade cutover prepare NAME --reason WHY",),
        )
    number = _asked(_say(of, options, run=True), of)
    had_stopped = before is not None and before["state"] == State.STOPPED.value
    found = _asked(_taken_up(of, number, had_stopped, options.wait), of) if options.wait else None
    if found is None and options.wait:
        raise ApiError(
            NOT_CONVERGED,
            f"{of.name} shall run, and no process has taken it up within {options.wait:g} s",
            word="no_process",
            next_steps=(
                f"crossfade up -c {options.config}   (with data.run_here, its default)",
                f"crossfade sync --towards {options.towards} -c {options.config}   (on any machine)",
                f"crossfade data status --towards {options.towards} -c {options.config}",
            ),
        )
    stopped = found is not None and found["state"] == State.STOPPED.value
    said = {"stream": of.name, "run": True, "number": number, "status": found}
    if not tell_json(options, said):
        if stopped and found is not None:
            data(f"{of.name} has stopped again ({found['reason']}): {found['message']}")
        else:
            data(f"{of.name} runs" if found else f"{of.name} shall run")
            if found:
                data(f"{found['holder']} works on it")
        tell_next([f"crossfade data status --towards {options.towards} -c {options.config}"])
    return TRIPPED if stopped else OK


def stop(options: argparse.Namespace) -> int:
    """Whoever works on it ends that within two seconds; `data start` has it go on where it was."""
    of = _direction(options)
    if _asked(_status(of), of) is None and _asked(_desired(of), of) is None:
        raise ApiError(NOT_FOUND, f"the stream {of.name} was never begun", word="not_found")
    number = _asked(_say(of, options, run=False), of)
    if not tell_json(options, {"stream": of.name, "run": False, "number": number}):
        data(f"{of.name} shall not run any more")
        talk("the source keeps its log for it until it runs again, or its slot is dropped")
        tell_next([_start_command(options)])
    return OK


def _never_begun(options: argparse.Namespace, of: Direction) -> ApiError:
    return ApiError(
        NOT_FOUND, f"the stream {of.name} was never begun", word="not_found",
        next_steps=(
            f"crossfade data plan --towards {options.towards} -c {options.config}",
            _start_command(options),
            f"crossfade sync --towards {options.towards} -c {options.config}",
        ),
    )  # fmt: skip


def _start_command(options: argparse.Namespace) -> str:
    return f"crossfade data start --towards {options.towards} --reason WHY -c {options.config}"


async def _desired(of: Direction) -> desired.Desire | None:
    async with await connect(of.target_url) as looking:
        return await desired.of(looking, of.name)


async def _say(of: Direction, options: argparse.Namespace, *, run: bool) -> int:
    if not options.reason.strip():
        raise ApiError(USAGE, "say why: --reason TEXT", word="invalid")
    async with await connect(of.target_url) as looking:
        return await desired.say(
            looking,
            of.name,
            run=run,
            reason=one_line(options.reason.strip(), 500),
            by=f"{user()} at {socket.gethostname()}",
            over_missing_rows=run and options.over_missing_rows,
        )


async def _taken_up(of: Direction, number: int, stopped: bool, within: float) -> dict[str, Any] | None:
    """How it stands once somebody has taken it under that desire, or had it before; None if nobody has.

    One that had `stopped` has to run for a while: what stopped it may come again at once. Nor is its note
    enough to say that it has stopped again, for that may be of before: somebody has to have tried and to have
    let go of the lease, and nobody to have taken it since.
    """
    until = time.monotonic() + within
    since: tuple[float, int, bool] | None = None
    async with await connect(of.target_url) as looking:
        while time.monotonic() < until:
            held = await lease.look(looking, of.name)
            known = await target.state(looking, of.name)
            has_stopped = known is not None and known.state is State.STOPPED
            runs = held.alive and not has_stopped and await target.is_held(looking, of.name)
            if not runs and not (has_stopped and held.tried >= number and not held.alive):
                since = None
            else:
                if since is None or since[1:] != (held.number, runs):
                    since = time.monotonic(), held.number, runs
                lasts = (STEADY if stopped else 0.0) if runs else QUIET
                if time.monotonic() - since[0] >= lasts:
                    return await _status(of)
            await asyncio.sleep(0.1)
    return None if since is None else await _status(of)


def status(options: argparse.Namespace) -> int:
    """Exit code 6 where the stream has stopped, 3 where it was never begun.

    `paused` is what people have stopped; what its process has noted of it last is `noted`.
    """
    of = _direction(options)
    found = _asked(_status(of), of)
    if found is None:
        raise _never_begun(options, of)
    code = TRIPPED if found["state"] == State.STOPPED.value else OK
    if tell_json(options, found):
        return code
    data(f"{found['stream']}  {found['state']}  epoch {found['epoch']}")
    if found["reason"]:
        data(f"{found['reason']}: {found['message']}")
        if found["runbook"] is not None:
            data(f"  → {found['runbook']}")
    data(f"the last that came is {found['age']:.1f} s old; position {found['applied']}")
    wish = found["desired"]
    if wish is not None:
        shall = "shall run" if wish["run"] else "shall not run"
        data(f"it {shall}: {wish['reason']} ({wish['by']}, {wish['at']})")
    if found["held"]:
        data(f"{found['holder']} works on it")
    else:
        data("no process works on it now")
        tell_next(
            [_start_command(options)]
            if wish is None or not wish["run"] or found["reason"]
            else [f"crossfade up -c {options.config}"]
        )
    slot = found["slot"]
    if slot is None:
        data("the source has no slot for it any more")
    else:
        limit = "without a limit" if slot["share"] is None else f"{slot['share']:.1%} of what it may keep"
        data(
            f"the source keeps {slot['retained'] / 2**20:,.1f} MiB of log for it"
            f" ({slot['wal_status']}, {limit})"
        )
        if found["alarm"] is not None:
            data(f"{found['alarm']}\n  → {runbook('slot_near_limit')}")
    for one in found["foreign_writes"]:
        data(
            f"{one['login']} ({one['application'] or 'no application name'}) has written into {one['table']}"
            f" beside us: {one['what']}, since {one['first']}, last {one['last']}"
        )
    if found["unwatched"]:
        them = ", ".join(found["unwatched"])
        data(f"who else writes is not noted at {them}: no trigger could be made there")
    if found["foreign_writes"]:
        tell_next([f"crossfade data verify --towards {options.towards} -c {options.config}"])
    if found["repairs"]:
        data(f"waiting to be written anew: {_rows(found['repairs'])}")
    if found["quarantined"]:
        data(f"waiting in quarantine: {_rows(found['quarantined'])}")
        tell_next([f"crossfade data quarantine list --towards {options.towards} -c {options.config}"])
    data("")
    rows = (
        (one["copy"], "done" if one["done"] else "not begun" if one["rows"] is None else "under way",
         "" if one["rows"] is None else f"{one['rows']:,}", _about(one["of"]))
        for one in found["copies"]
    )  # fmt: skip
    table(("copy", "state", "rows", "of about"), rows, _COLOURS)
    for one in found["jobs"]:
        if one["state"] != JobState.DONE.value:
            data("")
            data(_job_shown(one))
    return code


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"


def _about(rows: int) -> str:
    """An estimate; a table that was never analyzed has none, which looks as if it were empty."""
    return f"{rows:,}" if rows else "?"


def _job_shown(job: dict[str, Any]) -> str:
    """How it goes, in one line."""
    parts = [f"{job['kind']} {job['name']}: {job['state']}"]
    if job["rows_per_second"] is not None:
        parts.append(f"{job['rows_per_second']:,.0f} rows/s")
    if job["seconds_left"] is not None:
        parts.append(f"about {job['seconds_left']:,.0f} s left")
    if job["attempts"] > 1:
        parts.append(f"begun {job['attempts']} times")
    for reason, waited in job["pauses"].items():
        parts.append(f"waited {waited['times']:,} times, {waited['seconds']:,.1f} s ({reason})")
    if job["message"]:
        parts.append(job["message"])
    return ", ".join(parts)


async def _known(looking: psycopg.AsyncConnection[Any], of: Direction) -> target.StreamState | None:
    row = await (await looking.execute("SELECT to_regclass('crossfade_sync.streams')")).fetchone()
    return None if row is None or row[0] is None else await target.state(looking, of.name)


async def _status(of: Direction) -> dict[str, Any] | None:
    async with await connect(of.target_url) as looking:
        known = await _known(looking, of)
        if known is None:
            return None
        cursor = await looking.execute(
            "SELECT copy, rows, done FROM crossfade_sync.copies WHERE stream = %s", (of.name,)
        )
        done = {name: (rows, is_done) for name, rows, is_done in await cursor.fetchall()}
        waiting = await repair.waiting(looking, of.name)
        quarantined = len(await quarantine.waiting(looking, of.name))
        held = await target.is_held(looking, of.name)
        wish = await desired.of(looking, of.name)
        worked_on = await jobs.known(looking, of.name)
        holder = (await lease.look(looking, of.name)).holder if held else None
        unwatched = await foreign.unwatched(looking, of.written) if of.watches else []
        strangers = [one for one in await foreign.seen(looking) if one.table in of.written]
    tables = {name: table for name, table, _ in copies(of.sources)}
    source = await connect(of.source_url)
    async with source:
        slot = await pg_source.slot_facts(source, of.slot)
        about = {name: await pg_source.rows_about(source, name) for name in of.sources}
    paused = known.state is not State.STOPPED and not held and wish is not None and not wish.run
    return {
        "stream": of.name, "state": "paused" if paused else known.state.value,
        "noted": known.state.value, "reason": known.reason, "message": known.message,
        "epoch": known.epoch, "applied": known.applied, "age": known.age, "held": held,
        "holder": holder, "repairs": waiting, "quarantined": quarantined,
        "desired": None if wish is None else {**asdict(wish), "at": wish.at.isoformat(timespec="seconds")},
        "runbook": None if known.reason is None else runbook(known.reason),
        "slot": None if slot is None else {**asdict(slot), "share": slot.share},
        "alarm": None if slot is None else near_limit(slot),
        "copies": [
            {"copy": name, "rows": done.get(name, (None, False))[0], "done": done.get(name, (0, False))[1],
             "of": about[of_]}
            for name, of_, _ in copies(of.sources)
        ],
        "jobs": [_job(job, done, about, tables) for job in worked_on],
        "unwatched": unwatched,
        "foreign_writes": [
            {**asdict(one), "first": one.first.isoformat(timespec="seconds"),
             "last": one.last.isoformat(timespec="seconds")}
            for one in strangers
        ],
    }  # fmt: skip


def _job(
    job: jobs.Job,
    copied: Mapping[str, tuple[int, bool]],
    about: Mapping[str, int],
    tables: Mapping[str, str],
) -> dict[str, Any]:
    """With the seconds that are left at its rate, as far as they can be told."""
    left = None
    if job.state is JobState.RUNNING and job.rows_per_second and job.name in tables:
        rows = about[tables[job.name]] - copied.get(job.name, (0, False))[0]
        # Statistics may be old, or not there at all.
        left = round(rows / job.rows_per_second, 1) if rows > 0 else None
    return {**asdict(job), "state": job.state.value, "seconds_left": left}


def verify_(options: argparse.Namespace) -> int:
    """Exit code 6 where something differs, 7 where it cannot be said."""
    of, folder = _direction_and_folder(options)
    kept = KeptProgress(folder, of.name)
    if options.fresh:
        kept.forget()
    found = _asked(_compared(of, options, kept), of)
    kept.forget()
    return _tell_compared(options, of, found)


def repair_(options: argparse.Namespace) -> int:
    """Compare, have what differs written anew, and compare that again. Exit codes as of verify."""
    of = _direction(options)
    found = _asked(_compared(of, options), of)
    wrong = [one for one in found if one.differences]
    count = sum(len(one.differences) for one in wrong)
    if kept := _asked(_written_by_people(of, [one.name for one in wrong]), of):
        raise ApiError(
            TRIPPED,
            f"{options.towards} has the authority over {', '.join(kept)}; nothing is written over its rows",
            word="under_authority",
            next_steps=("crossfade cutover status",),
        )
    if options.dry_run or not wrong:
        if options.dry_run:
            talk(f"dry run: {_rows(count)} would be written anew")
        return _tell_compared(options, of, found)
    talk(f"to be written anew: {_rows(count)}")
    _asked(_repaired(of, wrong), of)
    options.table = [one.name for one in wrong]
    again = {one.name: one for one in _asked(_compared(of, options), of)}
    return _tell_compared(options, of, [again.get(one.name, one) for one in found])


async def _written_by_people(of: Direction, names: list[str]) -> list[str]:
    """Of these copies' tables those at the target that have the authority."""
    async with await connect(of.target_url) as looking:
        kept = await fence.open_tables(looking)
    tables = {copy_name(source.name, mapping): str(mapping.table) for source, mapping in by_table(of.sources)}
    # What was compared by the mapping of the other way: its source is our target.
    return sorted({tables.get(name, name.partition(" to ")[0]) for name in names} & kept)


async def _compared(
    of: Direction, options: argparse.Namespace, kept: KeptProgress | None = None
) -> list[Compared]:
    """`kept` is where a comparison that was killed has left how far it was."""
    found, names = [], options.table
    chosen: list[_Chosen] = []
    async with await connect(of.target_url) as looking:
        written_to = await fence.open_tables(looking)
        if await _known(looking, of) is None:
            raise _never_begun(options, of)
    for by, source, mapping in _pairs(of, options, written_to):
        wanted = (source.name, str(mapping.table), copy_name(source.name, mapping))
        if names and not any(name in (*wanted, source.name.removeprefix("public.")) for name in names):
            continue
        chosen.append((by, source, mapping, by is of and str(mapping.table) in written_to))
    if not chosen:
        raise ApiError(USAGE, f"no mapping names {', '.join(names or ())}", word="invalid")
    if getattr(options, "exact", False):
        return await _compared_at_one_moment(options, chosen)
    for by, source, mapping, backwards in chosen:
        stream = by.way_back if backwards else by.name
        going = _going(copy_name(source.name, mapping), options, kept)
        one = await verify.compare(
            stream, by.source_url, by.target_url, source, mapping, backwards=backwards, going=going
        )
        went_on = f", {one.rows_before:,} of them before it was ended" if one.rows_before else ""
        talk(f"{one.name}: {_rows(one.rows)} in {one.seconds:.1f} s{went_on}")
        found.append(one)
    return found


async def _compared_at_one_moment(options: argparse.Namespace, chosen: Sequence[_Chosen]) -> list[Compared]:
    """One moment for all tables of a stream; nobody can go on with it later."""
    found = []
    ways = {(by.name, backwards): by for by, _, _, backwards in chosen}
    for (_, backwards), by in ways.items():
        stream = by.way_back if backwards else by.name
        urls = (by.source_url, by.target_url)
        async with cut(stream, *(reversed(urls) if backwards else urls)) as both:
            talk(f"{stream}: both sides as of {both.at.position}; the stream stood for {both.at.stood:.2f} s")
            for its, source, mapping, back in chosen:
                if its is by and back == backwards:
                    going = _going(copy_name(source.name, mapping), options, None)
                    one = await verify.compare_at(both, source, mapping, backwards=back, going=going)
                    talk(f"{one.name}: {one.rows:,} rows in {one.seconds:.1f} s")
                    found.append(one)
    return found


def _pairs(
    of: Direction, options: argparse.Namespace, written_to: frozenset[str]
) -> Iterator[tuple[Direction, SourceTable, RowMapping]]:
    """What is compared, and by the mapping of which way.

    Where legacy has the authority it is what new is made of, and the mapping to new says what is the same in
    legacy (NULL and ''); what new would be brought back as may be written otherwise, and be right.
    """
    there = None
    if options.towards == Side.LEGACY.value and written_to:
        try:
            there = direction_and_folder(options.config, Side.NEW)[0]
        except NoDirectionError:
            there = None  # the mapping is towards legacy only
    by_the_other = frozenset[str]()
    if there is not None:
        by_the_other = written_to & frozenset(there.sources)
        for source, mapping in by_table(there.sources):
            if source.name in by_the_other:
                yield there, source, mapping
    for source, mapping in by_table(of.sources):
        if str(mapping.table) not in by_the_other:
            yield of, source, mapping


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

    return Going(options.portable, progress, told, options.pace, talk)


async def _repaired(of: Direction, wrong: list[Compared]) -> None:
    await _written_anew(of, {
        one.name: [each.source_key for each in one.differences if each.source_key is not None]
        for one in wrong
    })  # fmt: skip


async def _written_anew(of: Direction, keys: Mapping[str, Sequence[Sequence[str]]]) -> None:
    """By copy, and keys at the source; until the stream follows again, so that a cutover may come next.

    Raises NotFollowingError; the rows wait on then.
    """
    async with await connect(of.target_url) as looking:
        for name, some in keys.items():
            await repair.ask_for(looking, of.name, name, some)
        until = time.monotonic() + REPAIRED_WITHIN
        while True:
            known = await _known(looking, of)
            if known is not None and known.state is State.STOPPED:
                raise NotFollowingError(f"the stream has stopped ({known.reason}): {known.message}")
            left = await repair.waiting(looking, of.name)
            if not left and known is not None and known.state is State.FOLLOWING:
                return
            if time.monotonic() > until:
                what = f"{_rows(left)} still wait" if left else "the stream still copies"
                raise NotFollowingError(
                    f"{what} after {REPAIRED_WITHIN:g} s; rows are written as soon as a process works on"
                    " the stream (crossfade data start)"
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
        kept = _asked(_written_by_people(of, [one.name for one in found if one.differences]), of)
        side = options.towards if not kept else "new" if options.towards == "legacy" else "legacy"
        tell_next([f"crossfade data repair --towards {side} -c {options.config}"])
    return code


def _verdict(one: Compared) -> str:
    return "different" if one.differences else "unsettled" if one.unsettled else "equal"


def quarantine_list(options: argparse.Namespace) -> int:
    of = _direction(options)
    found = _asked(_quarantined(of, options.table), of)
    if tell_json(options, {"stream": of.name, "waiting": [_shown(one) for one in found]}):
        return OK
    if not found:
        data("nothing waits")
        return OK
    rows = ((one.copy, ", ".join(one.key), f"{one.changes:,}", f"{one.at:%F %T}", one.error) for one in found)
    table(("copy", "key", "changes", "since", "what was said"), rows)
    retry = f"crossfade data quarantine retry --towards {options.towards} -c {options.config}"
    tell_next(["mend the row at the source, the mapping or the target (runbooks/poison-row.md)", retry])
    return OK


def quarantine_retry(options: argparse.Namespace) -> int:
    """Exit code 6 where rows still wait."""
    of = _direction(options)
    found = _asked(_quarantined(of, options.table), of)
    mappings = {copy_name(source.name, mapping): mapping for source, mapping in by_table(of.sources)}
    keys: dict[str, list[list[str]]] = {}
    for one in found:
        mapping = mappings.get(one.copy)
        if mapping is None:
            raise ApiError(USAGE, f"no mapping of migration.py makes the copy {one.copy}", word="invalid")
        key = mapping.source_key_of(tuple(part.encode() for part in one.key))
        assert key is not None, "a table with this policy has a way back for its key"
        keys.setdefault(one.copy, []).append(
            [part.decode() if isinstance(part, bytes) else "" for part in key]
        )
    if kept := _asked(_written_by_people(of, list(keys)), of):
        raise ApiError(
            TRIPPED,
            f"{options.towards} has the authority over {', '.join(kept)}; nothing is written over its rows",
            word="under_authority",
            next_steps=("crossfade cutover status",),
        )
    if keys:
        _asked(_written_anew(of, keys), of)
    left = _asked(_quarantined(of, options.table), of)
    code = TRIPPED if left else OK
    shown = {"stream": of.name, "tried": len(found), "waiting": [_shown(one) for one in left]}
    if tell_json(options, shown):
        return code
    data(f"{_rows(len(found))} tried, still waiting: {len(left):,}")
    for one in left[:SHOWN]:
        data(f"  {one.copy}  key {', '.join(one.key)}: {one.error}")
    return code


async def _quarantined(of: Direction, names: list[str] | None) -> list[Waiting]:
    async with await connect(of.target_url) as looking:
        found = await quarantine.waiting(looking, of.name)
    if not names:
        return found
    tables = [part for name in names for part in (name, f"public.{name}")]
    return [
        one for one in found if one.copy in names or any(part in tables for part in one.copy.split(" to "))
    ]


def _shown(one: Waiting) -> dict[str, Any]:
    return {**asdict(one), "at": one.at.isoformat()}


def _direction(options: argparse.Namespace) -> Direction:
    return _direction_and_folder(options)[0]


def _direction_and_folder(options: argparse.Namespace) -> tuple[Direction, Path]:
    try:
        return direction_and_folder(options.config, Side(options.towards))
    except NoDirectionError as error:
        raise ApiError(USAGE, str(error), word="invalid") from error


async def _away(of: Direction) -> str | None:
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


def _asked(question: Coroutine[Any, Any, T], of: Direction) -> T:
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
        if isinstance(error, psycopg.OperationalError | OSError) and (away := asyncio.run(_away(of))):
            raise ApiError(ERROR, away, word="database") from error
        said = getattr(getattr(error, "diag", None), "message_primary", None) or str(error)
        raise ApiError(ERROR, f"a database does not answer as it should: {said}", word="database") from error
