"""`crossfade data plan | start | stop | status`: what would be copied, whether it runs, and how it stands."""

from __future__ import annotations

import argparse
import asyncio
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

import psycopg

from crossfade.commands.api import ERROR, NOT_CONVERGED, NOT_FOUND, OK, TRIPPED, USAGE, ApiError, user
from crossfade.commands.streams import (
    asked,
    away,
    direction_of,
    known_state,
    never_begun,
    rows_said,
    start_command,
)
from crossfade.commands.telling import Paint, data, table, talk, tell_json, tell_next
from dualwrite import desired, foreign, jobs, lease, pg_source, quarantine, repair, survey, target
from dualwrite.job_states import JobState
from dualwrite.pg_connect import connect
from dualwrite.preflight import Weight, near_limit
from dualwrite.runbooks import runbook
from dualwrite.stream_states import State
from dualwrite.sync import Direction, copies
from flags.document import one_line
from flags.model import Side

STEADY: Final = 2.0
"""Seconds that a stream has to run, once it had stopped, before it is said to."""
QUIET: Final = 3.0
"""Seconds without another try after which a stream counts as stopped again: after `crossfade reload` the
process that goes by the old mapping may try first, and the next one is a second or two late."""
_COLOURS: Final = {
    "stops": Paint.BAD, "warns": Paint.WARNING, "stopped": Paint.BAD, "following": Paint.GOOD,
    "copying": Paint.WARNING,
}  # fmt: skip


def plan(options: argparse.Namespace) -> int:
    """Exit code 1 if something forbids it; warnings leave it 0."""
    of = direction_of(options)
    found = asked(survey.survey(of), of)
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
        tell_next([start_command(options)])
    return code


def start(options: argparse.Namespace) -> int:
    """Exit code 7 where no process works on it in time, 6 where it stops at once."""
    of = direction_of(options)
    before = asked(_status(of), of)
    if options.towards == Side.LEGACY.value and before is None:
        raise ApiError(
            TRIPPED,
            "a way back that is begun so would copy all of new's rows into legacy; a cutover begins it alike",
            word="not_prepared",
            next_steps=("crossfade cutover prepare NAME --reason WHY",),
        )
    number = asked(_say(of, options, run=True), of)
    had_stopped = before is not None and before["state"] == State.STOPPED.value
    found = asked(_taken_up(of, number, had_stopped, options.wait), of) if options.wait else None
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
    of = direction_of(options)
    if not asked(_is_known(of), of):
        raise ApiError(NOT_FOUND, f"the stream {of.name} was never begun", word="not_found")
    number = asked(_say(of, options, run=False), of)
    if not tell_json(options, {"stream": of.name, "run": False, "number": number}):
        data(f"{of.name} shall not run any more")
        talk("the source keeps its log for it until it runs again, or its slot is dropped")
        tell_next([start_command(options)])
    return OK


async def _is_known(of: Direction) -> bool:
    """Whether it was begun, or somebody has said that it shall be. The source is not asked."""
    async with await connect(of.target_url) as looking:
        return bool(await known_state(looking, of) or await desired.of(looking, of.name))


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
    """Exit code 6 where the stream has stopped, 3 where it was never begun, 1 where its source is away.

    `paused` is what people have stopped; what its process has noted of it last is `noted`.
    """
    of = direction_of(options)
    found = asked(_status(of), of)
    if found is None:
        raise never_begun(options, of)
    stopped, unreached = found["state"] == State.STOPPED.value, found["unreached"]
    code = TRIPPED if stopped else ERROR if unreached else OK
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
            [start_command(options)]
            if wish is None or not wish["run"] or found["reason"]
            else [f"crossfade up -c {options.config}"]
        )
    slot = found["slot"]
    if unreached:
        data(f"{unreached}; this is what its target knows")
    elif slot is None:
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
        data(f"{one['said']}, since {one['first']}, last {one['last']}")
    if found["unwatched"]:
        them = ", ".join(found["unwatched"])
        data(
            f"who else writes is not noted at {them}: no trigger could be made there, or may not tell"
            " who is who; crossfade data plan names what is missing"
        )
    if found["foreign_writes"]:
        data(f"  → {runbook('foreign_write')}")
        tell_next([f"crossfade data verify --towards {options.towards} -c {options.config}"])
    if found["repairs"]:
        data(f"waiting to be written anew: {rows_said(found['repairs'])}")
    if found["quarantined"]:
        data(f"waiting in quarantine: {rows_said(found['quarantined'])}")
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


async def _status(of: Direction) -> dict[str, Any] | None:
    async with await connect(of.target_url) as looking:
        known = await known_state(looking, of)
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
    slot, about, unreached = None, dict.fromkeys(of.sources, 0), None
    try:
        source = await connect(of.source_url)
    except (psycopg.OperationalError, OSError):
        unreached = await away(of)
    else:
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
        "unreached": unreached,
        "copies": [
            {"copy": name, "rows": done.get(name, (None, False))[0], "done": done.get(name, (0, False))[1],
             "of": about[of_]}
            for name, of_, _ in copies(of.sources)
        ],
        "jobs": [_job(job, done, about, tables) for job in worked_on],
        "unwatched": unwatched,
        "foreign_writes": [
            {**asdict(one), "said": str(one), "first": one.first.isoformat(timespec="seconds"),
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
