"""`crossfade data quarantine list | retry`: the rows that the target has not taken."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from crossfade.commands.api import OK, TRIPPED, USAGE, ApiError
from crossfade.commands.streams import SHOWN, asked, direction_of, rows_said, written_anew, written_by_people
from crossfade.commands.telling import data, table, tell_json, tell_next
from dualwrite import quarantine
from dualwrite.backfill import copy_name
from dualwrite.mapped import by_table
from dualwrite.pg_connect import connect
from dualwrite.quarantine import Waiting
from dualwrite.sync import Direction


def list_(options: argparse.Namespace) -> int:
    of = direction_of(options)
    found = asked(_quarantined(of, options.table), of)
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


def retry(options: argparse.Namespace) -> int:
    """Exit code 6 where rows still wait."""
    of = direction_of(options)
    found = asked(_quarantined(of, options.table), of)
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
    if kept := asked(written_by_people(of, list(keys)), of):
        raise ApiError(
            TRIPPED,
            f"{options.towards} has the authority over {', '.join(kept)}; nothing is written over its rows",
            word="under_authority",
            next_steps=("crossfade cutover status",),
        )
    if keys:
        asked(written_anew(of, keys), of)
    left = asked(_quarantined(of, options.table), of)
    code = TRIPPED if left else OK
    shown = {"stream": of.name, "tried": len(found), "waiting": [_shown(one) for one in left]}
    if tell_json(options, shown):
        return code
    data(f"{rows_said(len(found))} tried, still waiting: {len(left):,}")
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
