"""The jobs of a stream, as the target keeps them: what is worked on, how often it was begun, how it goes.

How far a copy has come stands elsewhere (`crossfade_sync.copies`), since that is committed with its rows.
What stands here is told about it: losing the last second of it loses nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import psycopg

from dualwrite.job_states import JobState, before

BACKFILL: Final = "backfill"
REPAIR: Final = "repair"

Connection = psycopg.AsyncConnection[Any]

_BEGIN: Final = """
    INSERT INTO crossfade_sync.jobs AS known (stream, kind, name, state, epoch)
    VALUES (%(stream)s, %(kind)s, %(name)s, 'running', %(epoch)s)
    ON CONFLICT (stream, kind, name) DO UPDATE SET
        state = excluded.state, epoch = excluded.epoch, at = clock_timestamp(),
        attempts = CASE known.state WHEN 'done' THEN 1 ELSE known.attempts + 1 END,
        began = CASE known.state WHEN 'done' THEN clock_timestamp() ELSE known.began END,
        rows_per_second = NULL, pauses = '{}', message = NULL
     WHERE known.epoch <= excluded.epoch AND known.state = ANY(%(before)s)
"""


@dataclass(frozen=True, slots=True)
class Job:
    kind: str
    name: str
    state: JobState
    attempts: int
    rows_per_second: float | None
    pauses: Mapping[str, Mapping[str, float]]
    """By reason: how often it had to wait in this attempt, and for how many seconds."""
    message: str | None
    took: float
    """Seconds from its first beginning until what was told last."""


class Jobs:
    """Of one stream, for the process that holds it under `epoch`."""

    def __init__(self, looking: Connection, stream: str, epoch: int) -> None:
        self._looking = looking
        self._key = {"stream": stream, "epoch": epoch}

    async def begin(self, kind: str, name: str) -> None:
        """Note that it is worked on. Safe to be done again."""
        said = {**self._key, "kind": kind, "name": name, "before": before(JobState.RUNNING)}
        await self._looking.execute(_BEGIN, said)

    async def note(
        self, kind: str, name: str, rows_per_second: float | None, pauses: Mapping[str, Mapping[str, float]]
    ) -> None:
        """How it goes."""
        await self._looking.execute(
            "UPDATE crossfade_sync.jobs SET at = clock_timestamp(), rows_per_second = %(rate)s,"
            " pauses = %(pauses)s WHERE stream = %(stream)s AND epoch = %(epoch)s AND kind = %(kind)s"
            " AND name = %(name)s AND state = 'running'",
            {**self._key, "kind": kind, "name": name, "rate": rows_per_second, "pauses": json.dumps(pauses)},
        )

    async def done(self, kind: str, name: str) -> None:
        """Whichever process has begun it, unless a later one works on it."""
        await self._looking.execute(
            "UPDATE crossfade_sync.jobs SET state = 'done', epoch = %(epoch)s, at = clock_timestamp()"
            " WHERE stream = %(stream)s AND epoch <= %(epoch)s AND kind = %(kind)s AND name = %(name)s"
            " AND state = ANY(%(before)s)",
            {**self._key, "kind": kind, "name": name, "before": before(JobState.DONE)},
        )


async def fail(looking: Connection, stream: str, epoch: int, message: str) -> None:
    """The stream has stopped, and with it what was worked on."""
    await looking.execute(
        "UPDATE crossfade_sync.jobs SET state = 'failed', at = clock_timestamp(), message = %s"
        " WHERE stream = %s AND epoch = %s AND state = 'running'",
        (message, stream, epoch),
    )


async def known(looking: Connection, stream: str) -> list[Job]:
    """All jobs of a stream, in the order in which they were first begun."""
    there = await (await looking.execute("SELECT to_regclass('crossfade_sync.jobs')")).fetchone()
    if there is None or there[0] is None:
        return []
    cursor = await looking.execute(
        "SELECT kind, name, state, attempts, rows_per_second, pauses, message,"
        " extract(epoch FROM at - began)::float8"
        " FROM crossfade_sync.jobs WHERE stream = %s ORDER BY began, name",
        (stream,),
    )
    return [Job(row[0], row[1], JobState(row[2]), *row[3:]) for row in await cursor.fetchall()]
