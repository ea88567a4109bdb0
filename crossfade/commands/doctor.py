"""`crossfade doctor`: look for what is wrong, and say what to do."""

from __future__ import annotations

import argparse
import json
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from crossfade.commands.api import ERROR, OK, Api, ApiError, data_dir_of
from crossfade.commands.telling import api, data

OLD_AFTER = 60.0
"""Seconds without a word of the store after which flags count as old."""


@dataclass(frozen=True, slots=True)
class Finding:
    """`level` is ok, warning or problem; `todo` is what to do about it."""

    level: str
    what: str
    todo: str = ""


def doctor(options: argparse.Namespace) -> int:
    """Exit code 1 if there is a problem; warnings leave it 0."""
    findings = list(_findings(options))
    if options.output == "json":
        data(json.dumps([asdict(finding) for finding in findings]))
    else:
        for finding in findings:
            data(
                f"{finding.level:<8} {finding.what}"
                + (f"\n         → {finding.todo}" if finding.todo else "")
            )
    return ERROR if any(finding.level == "problem" for finding in findings) else OK


def _findings(options: argparse.Namespace) -> Iterator[Finding]:
    from crossfade import settings  # noqa: PLC0415

    report = settings.check(options.config, os.environ)
    for problem in report.problems:
        yield Finding("problem", str(problem), "correct the file; crossfade check shows it again")
    for warning in report.warnings:
        if "expected if Crossfade runs already" not in warning:
            yield Finding("warning", warning)
    if not report.problems:
        yield Finding("ok", f"{options.config} is valid")
    try:
        asked = api(options)
        status = asked.get("/api/v1/proxy")
    except ApiError as error:
        todo = f"crossfade up -c {options.config}" if error.unreachable else ""
        yield Finding("problem", str(error), todo)
        return
    yield from _of_the_instance(status)
    yield from _of_the_token(options)
    if status["flags"]["store"] != "none":
        yield from _of_the_flags(asked, status)


def _of_the_instance(status: dict[str, Any]) -> Iterator[Finding]:
    if status["ready"]:
        yield Finding("ok", f"{len(status['workers'])} workers accept, generation {status['generation']}")
    else:
        yield Finding("problem", "not ready: " + ", ".join(status["not_ready"]), "look into its log")
    flags = status["flags"]
    if flags["trouble"]:
        yield Finding("problem", flags["trouble"], "traffic goes on by the flags that each worker has")
    if flags["kills"]:
        yield Finding(
            "warning",
            f"killed on this host, and not known to the store yet: {', '.join(flags['kills'])}",
            "the store gets them when it is back; crossfade unkill takes them back",
        )


def _of_the_token(options: argparse.Namespace) -> Iterator[Finding]:
    path = data_dir_of(options.config) / "run" / "admin.token"
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        yield Finding("warning", f"{path}: {error.strerror}")
        return
    if mode & 0o077:
        yield Finding("problem", f"{path} can be read by others ({mode:o})", f"chmod 600 {path}")


def _of_the_flags(asked: Api, status: dict[str, Any]) -> Iterator[Finding]:
    age = status["flags"]["age_seconds"]
    try:
        found = asked.get("/api/v1/flags")
        instances = asked.get("/api/v1/instances")["instances"]
    except ApiError as error:
        todo = "start it, or look at `store` in the configuration; until then only crossfade kill works"
        yield Finding("problem", f"the store cannot be asked: {error}", todo)
        return
    yield Finding("ok", f"the store is at v{found['version']} with {len(found['flags'])} flags")
    if age is not None and age > OLD_AFTER:
        yield Finding("problem", f"the flags here are {age:.0f} s old", "look into the log of the feed")
    behind = [
        f"worker {worker['worker']} of {one['id']} runs v{worker['version']}"
        for one in instances
        if one["age_seconds"] < OLD_AFTER
        for worker in one["workers"]
        if worker["version"] != found["version"]
    ]
    if behind:
        yield Finding("problem", "; ".join(behind), "crossfade reload, or look into that host's log")
    else:
        yield Finding("ok", f"every worker of {len(instances)} instances runs it")
    today = time.strftime("%Y-%m-%d", time.gmtime())
    for flag in found["flags"]:
        due = flag["expires_on"]
        if due and due < today and not flag["archived"]:
            owner = flag["owner"] or "nobody"
            todo = "finish the migration and archive the flag, or give it another date: crossfade flag edit"
            yield Finding("warning", f"{flag['key']} was due on {due}; its owner is {owner}", todo)
