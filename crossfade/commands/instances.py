"""`crossfade proxy status --all`: which version each instance on the same store runs, as of when."""

from __future__ import annotations

import argparse
from typing import Any

from crossfade.commands.api import OK
from crossfade.commands.telling import Paint, api, table, talk, tell_json, tell_next

SILENT_AFTER = 10.0
"""Seconds after which an instance that has said nothing counts as silent."""


def instances(options: argparse.Namespace) -> int:
    asked = api(options)
    answer = asked.get("/api/v1/instances")
    if tell_json(options, answer):
        return OK
    rows = [
        (
            one["id"],
            one["address"],
            f"v{one['flags_version']}",
            _workers(one),
            f"{'silent for' if one['age_seconds'] > SILENT_AFTER else 'heard'} {one['age_seconds']:.1f} s"
            + ("" if one["age_seconds"] > SILENT_AFTER else " ago"),
            ", ".join(one["kills"]) or "-",
        )
        for one in answer["instances"]
    ]
    table(("instance", "admin", "flags", "workers", "last word", "own kills"), rows, {"silent": Paint.BAD})
    talk(f"the store is at v{asked.get('/api/v1/flags')['version']}")
    tell_next(answer["next"])
    return OK


def _workers(one: dict[str, Any]) -> str:
    by_version: dict[int, int] = {}
    for worker in one["workers"]:
        by_version[worker["version"]] = by_version.get(worker["version"], 0) + 1
    counted = (f"{number} on v{version}" for version, number in sorted(by_version.items()))
    return ", ".join(counted) or "none"
