"""`crossfade doctor`: look for what is wrong, from the configuration to the workers, and say what to do."""

from __future__ import annotations

import argparse
import os
import stat
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import quote

from crossfade.commands.api import ANSWER_WITHIN, ERROR, OK, Api, ApiError, data_dir_of
from crossfade.commands.cutover import DATABASES_WITHIN
from crossfade.commands.telling import Paint, api, data, paint, tell_json
from crossfade.held_flags import HeldFlags

OLD_AFTER = 60.0
"""Seconds without a word of the store after which flags count as old."""
HEARD_WITHIN = 10.0
"""Seconds after which an instance that has said nothing is counted as gone."""
LONG_WALK = 600.0
"""Seconds after which a walk that has not ended is worth a look; comparing large tables takes long."""
MEANWHILE = "traffic goes on by the flags that each worker has"


class Level(StrEnum):
    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


_COLOURS = {Level.OK: Paint.GOOD, Level.WARNING: Paint.WARNING, Level.PROBLEM: Paint.BAD}


@dataclass(frozen=True, slots=True)
class Finding:
    """`about` is what was looked at, `todo` what to do about it."""

    level: Level
    about: str
    what: str
    todo: str = ""


def doctor(options: argparse.Namespace) -> int:
    """Exit code 1 if there is a problem; warnings leave it 0."""
    from crossfade.commands.doctor_data import of_the_data  # noqa: PLC0415  (it brings a driver along)

    findings = [*_findings(options), *of_the_data(options)]
    if not tell_json(options, [asdict(finding) for finding in findings]):
        for finding in findings:
            level = paint(f"{finding.level:<8}", _COLOURS[finding.level], sys.stdout)
            data(f"{level} {finding.about:<13} {finding.what}")
            if finding.todo:
                data(f"{'':22} → {finding.todo}")
    return ERROR if any(finding.level is Level.PROBLEM for finding in findings) else OK


def _findings(options: argparse.Namespace) -> Iterator[Finding]:
    yield from _of_the_configuration(options)
    status = _status(options)
    if isinstance(status, Finding):
        yield status
        return
    yield Finding(Level.OK, "instance", f"pid {status['pid']}, {status['state']}")
    yield from _of_the_workers(status)
    yield from _of_the_disk(data_dir_of(options.config), status)
    try:
        asked = api(options)
        feed = asked.get("/api/v1/feed")
    except ApiError as error:
        yield Finding(Level.PROBLEM, "admin API", str(error), "; ".join(error.next_steps))
        return
    yield Finding(Level.OK, "admin API", f"answers at {status['admin']}")
    if status["flags"]["store"] == "none":
        yield Finding(Level.OK, "store", "none: this instance goes by its configuration alone")
        return
    yield from _of_the_bus(feed)
    if feed["store_trouble"] is not None:
        yield Finding(Level.PROBLEM, "store", feed["store_trouble"], f"until then {MEANWHILE}")
        return
    try:
        flags = asked.get("/api/v1/flags")
        instances = asked.get("/api/v1/instances")["instances"]
        guardrails = asked.get("/api/v1/guardrails")["guardrails"]
    except ApiError as error:
        yield Finding(Level.PROBLEM, "store", str(error), f"until then {MEANWHILE}")
        return
    place = f"{feed['store']}, migrated, at v{flags['version']} with {len(flags['flags'])} flags"
    yield Finding(Level.OK, "store", place)
    yield from _of_the_age(status)
    yield from _of_all_instances(flags, instances)
    yield from _of_the_flags(flags, guardrails)
    yield from _of_the_cutovers(asked)


def _of_the_configuration(options: argparse.Namespace) -> Iterator[Finding]:
    from crossfade import settings  # noqa: PLC0415

    report = settings.check(options.config, os.environ)
    for problem in report.problems:
        yield Finding(
            Level.PROBLEM, "configuration", str(problem), "correct the file; crossfade check shows it again"
        )
    for warning in report.warnings:
        if "expected if Crossfade runs already" not in warning:
            yield Finding(Level.WARNING, "configuration", warning)
    if not report.problems:
        yield Finding(Level.OK, "configuration", f"{options.config} is valid")


def _status(options: argparse.Namespace) -> dict[str, Any] | Finding:
    """What the supervisor says over its own socket, which needs neither the API nor the store."""
    from crossfade import instance  # noqa: PLC0415

    try:
        answer = instance.ask(data_dir_of(options.config), {"do": "status"}, ANSWER_WITHIN)
    except instance.NothingRunningError as error:
        return Finding(Level.PROBLEM, "instance", str(error), f"crossfade up -c {options.config}")
    except (TimeoutError, OSError, instance.NoAnswerError) as error:
        return Finding(Level.PROBLEM, "instance", f"its socket does not answer: {error}", "look into its log")
    except ApiError as error:
        return Finding(Level.PROBLEM, "instance", str(error))
    status: dict[str, Any] = answer["status"]
    return status


def _of_the_workers(status: dict[str, Any]) -> Iterator[Finding]:
    if status["ready"]:
        number, generation = len(status["workers"]), status["generation"]
        yield Finding(Level.OK, "workers", f"{number} accept, configuration generation {generation}")
    else:
        yield Finding(
            Level.PROBLEM, "workers", "not ready: " + ", ".join(status["not_ready"]), "look into its log"
        )


def _of_the_disk(data_dir: Path, status: dict[str, Any]) -> Iterator[Finding]:
    path = data_dir / "run" / "admin.token"
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        yield Finding(Level.WARNING, "token", f"{path}: {error.strerror}", "crossfade restart makes one")
    else:
        if mode & 0o077:
            what = f"{path} can be read by others ({mode:o})"
            yield Finding(Level.PROBLEM, "token", what, f"chmod 600 {path}, and look who has read it")
        else:
            yield Finding(Level.OK, "token", f"{path} is for its owner only")
    flags = status["flags"]
    if flags["store"] == "none":
        return
    held = HeldFlags(data_dir)
    held.load()
    if held.trouble is not None or flags["trouble"] is not None:
        yield Finding(Level.PROBLEM, "flags on disk", held.trouble or flags["trouble"], MEANWHILE)
    elif held.version != flags["version"]:
        what = f"v{held.version} is on disk, but v{flags['version']} is in force"
        yield Finding(
            Level.PROBLEM, "flags on disk", what, "a start would use the older one: is the disk full?"
        )
    else:
        yield Finding(Level.OK, "flags on disk", f"v{held.version}, whole")
    if flags["kills"]:
        what = f"killed on this host, and not known to the store yet: {', '.join(flags['kills'])}"
        yield Finding(Level.WARNING, "kills", what, "the store gets them when it is back")


def _of_the_bus(feed: dict[str, Any]) -> Iterator[Finding]:
    if feed["bus"] == "none":
        yield Finding(Level.OK, "bus", "none: changes are looked for every 2 s")
    elif feed["bus_trouble"] is not None:
        what = f"{feed['bus']}: {feed['bus_trouble']}"
        yield Finding(Level.WARNING, "bus", what, "changes come within 2 s instead of at once; start the bus")
    else:
        yield Finding(Level.OK, "bus", f"{feed['bus']} is heard")


def _of_the_age(status: dict[str, Any]) -> Iterator[Finding]:
    age = status["flags"]["age_seconds"]
    if age is None:
        yield Finding(
            Level.PROBLEM, "age", "the store has never confirmed the flags here", "look into the log"
        )
    elif age > OLD_AFTER:
        yield Finding(Level.PROBLEM, "age", f"the flags here are {age:.0f} s old", "look into the log")
    else:
        yield Finding(Level.OK, "age", f"the store has confirmed the flags here {age:.1f} s ago")


def _of_all_instances(flags: dict[str, Any], instances: list[dict[str, Any]]) -> Iterator[Finding]:
    living = [one for one in instances if one["age_seconds"] < HEARD_WITHIN]
    behind = [
        f"worker {worker['worker']} of {one['id']} runs v{worker['version']}"
        for one in living
        for worker in one["workers"]
        if worker["version"] != flags["version"]
    ]
    if behind:
        todo = "crossfade reload there, or look into that host's log"
        yield Finding(Level.PROBLEM, "versions", "; ".join(behind), todo)
    else:
        workers = sum(len(one["workers"]) for one in living)
        what = f"every worker ({workers}) of {len(living)} instances runs v{flags['version']}"
        yield Finding(Level.OK, "versions", what)
    for one in instances:
        if one not in living:
            what = f"{one['id']} has said nothing for {one['age_seconds']:.0f} s"
            yield Finding(
                Level.WARNING, "instances", what, "start it, or let it be: it is forgotten after a day"
            )


def _of_the_cutovers(asked: Api) -> Iterator[Finding]:
    """Fences, journals and walks; what else stands against the next walk is what its plan is for."""
    try:
        found = asked.get("/api/v1/cutovers")["cutovers"]
    except ApiError as error:
        yield Finding(Level.PROBLEM, "cutovers", str(error), "; ".join(error.next_steps))
        return
    for one in found:
        name, walk = one["name"], one["walks"][0] if one["walks"] else None
        if walk is not None and walk["ended_at"] is None:
            level = Level.WARNING if walk["took"] > LONG_WALK else Level.OK
            what = (
                f"{name}: walk {walk['id']} to {walk['towards']} is {walk['state']} for {walk['took']:.0f} s"
            )
            yield Finding(level, "cutover", what, f"crossfade cutover status {name} -w")
        elif one["side"] is not None:
            yield from _of_the_fences(asked, one)


def _of_the_fences(asked: Api, one: dict[str, Any]) -> Iterator[Finding]:
    name = one["name"]
    try:
        plan = asked.ask("GET", f"/api/v1/cutovers/{quote(name, safe='')}/plan", patience=DATABASES_WITHIN)
    except ApiError as error:
        todo = "runbooks/way-back.md, runbooks/new-is-gone.md" if one["side"] == "new" else "look at both"
        yield Finding(Level.PROBLEM, "cutover", str(error), todo)
        return
    wrong = [
        blocker for blocker in plan["blockers"] if blocker["reason"] in ("fence", "not_fenced", "journal")
    ]
    for blocker in wrong:
        yield Finding(Level.PROBLEM, blocker["reason"], f"{name}: {blocker['message']}", blocker["remedy"])
    if not wrong:
        what = f"{name}: {one['side']} has the authority (generation {one['generation']}), and its fences and"
        yield Finding(Level.OK, "cutover", f"{what} journals say so")


def _of_the_flags(flags: dict[str, Any], guardrails: list[dict[str, Any]]) -> Iterator[Finding]:
    if kill := flags["kill"]:
        what = f"everything, by {kill['by']} since {kill['at']}: {kill['reason']}"
        yield Finding(Level.WARNING, "killed", what, "crossfade unkill --all --reason WHY")
    for flag in flags["flags"]:
        if (kill := flag["kill"]) and not flag["archived"]:
            what = f"{flag['key']}, by {kill['by']} since {kill['at']}: {kill['reason']}"
            yield Finding(Level.WARNING, "killed", what, f"crossfade unkill {flag['key']} --reason WHY")
        if flag["overdue"]:
            what = f"{flag['key']} was due on {flag['expires_on']}; its owner is {flag['owner'] or 'nobody'}"
            todo = f"finish the move and archive it, or crossfade flag edit {flag['key']} --expires-on DATE"
            yield Finding(Level.WARNING, "overdue", what, todo)
    for guardrail in guardrails:
        if guardrail["state"] == "tripped":
            what = f"{guardrail['id']}: {guardrail['message']}"
            yield Finding(
                Level.WARNING, "tripped", what, f"crossfade guardrail rearm {guardrail['id']} --reason WHY"
            )
