"""A copy that keeps to a ceiling, is told of while it goes on, and is taken up by the next process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest

from crossfade.commands.data import _job_shown
from dualwrite import jobs, sync, target
from dualwrite.job_states import NEXT, JobState, before
from dualwrite.jobs import BACKFILL, Jobs
from dualwrite.mapped import SourceTable
from dualwrite.pace import Reason
from dualwrite.stream_states import State
from dualwrite.sync import Direction, Told
from tests.dualwrite.sample import until
from tests.dualwrite.test_backfill import COPYING
from tests.support.sample_databases import forget

Connection = psycopg.AsyncConnection[Any]
ROWS, CEILING = 800, 400
COPY = "public.notes to public.notes"


@pytest.fixture
async def paced(writer: Connection, source_url: str, target_url: str) -> AsyncIterator[Direction]:
    """More rows than may be copied at once."""
    await writer.execute("INSERT INTO notes SELECT n, 'title ' || n FROM generate_series(1, %s) n", (ROWS,))
    await writer.execute("ANALYZE notes")
    sources = {"public.notes": SourceTable("public.notes", (COPYING,), ())}
    yield Direction("paced", source_url, target_url, sources, copy_rows_per_second=CEILING)
    await asyncio.to_thread(forget, source_url, "crossfade_paced")
    await asyncio.to_thread(forget, target_url, "crossfade_paced")


@contextlib.asynccontextmanager
async def running(direction: Direction) -> AsyncIterator[Told]:
    told = Told()
    task = asyncio.create_task(sync.run(direction, told))
    try:
        yield told
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_copy_waits_is_told_of_and_is_taken_up(paced: Direction, looking: Connection) -> None:
    async def some() -> bool:
        return 0 < await target.rows_copied(looking, "paced", COPY) < ROWS

    async def waited() -> bool:
        found = await jobs.known(looking, "paced")
        return bool(found) and Reason.CEILING.value in found[0].pauses

    async with running(paced):
        await until(some, "a part of it was copied")
        await until(waited, "it has waited, and says so")
        [job] = await jobs.known(looking, "paced")
        assert (job.kind, job.name, job.state, job.attempts) == (BACKFILL, COPY, JobState.RUNNING, 1)
    async with running(paced) as told:
        await until(lambda: _follows(told), "all was copied")
        [job] = await jobs.known(looking, "paced")
        assert (job.state, job.attempts) == (JobState.DONE, 2)
        assert await target.rows_copied(looking, "paced", COPY) == ROWS
        assert told.left is None


def test_how_it_goes_is_one_line() -> None:
    waited = {"lag": {"times": 3, "seconds": 1.5}}
    job = {
        "kind": BACKFILL, "name": COPY, "state": "running", "rows_per_second": 1234.4, "seconds_left": 60.2,
        "attempts": 2, "pauses": waited, "message": None,
    }  # fmt: skip
    assert _job_shown(job) == (
        f"backfill {COPY}: running, 1,234 rows/s, about 60 s left, begun 2 times, waited 3 times, 1.5 s (lag)"
    )
    failed = {**job, "state": "failed", "rows_per_second": None, "seconds_left": None, "attempts": 1}
    said = _job_shown({**failed, "pauses": {}, "message": "poison_row: it does not fit"})
    assert said == f"backfill {COPY}: failed, poison_row: it does not fit"


async def _follows(told: Told) -> bool:
    return told.state is State.FOLLOWING


async def test_a_job_takes_the_steps_of_the_table_under_its_epoch(looking: Connection) -> None:
    ours, later = Jobs(looking, "s", 3), Jobs(looking, "s", 4)

    async def state() -> JobState:
        [job] = await jobs.known(looking, "s")
        return job.state

    await ours.begin(BACKFILL, "a")
    await ours.done(BACKFILL, "a")
    assert await state() is JobState.DONE
    await jobs.fail(looking, "s", 3, "poison_row: it does not fit")
    assert await state() is JobState.DONE, "what is done does not fail any more"
    await later.begin(BACKFILL, "a")
    await ours.done(BACKFILL, "a")
    await ours.begin(BACKFILL, "a")
    assert await state() is JobState.RUNNING, "another process works on it"
    await Jobs(looking, "s", 5).done(BACKFILL, "a")
    assert await state() is JobState.DONE, "whoever copied the last of it had not said so"
    await later.begin(BACKFILL, "a")
    assert await state() is JobState.DONE, "a later process has been there"
    await Jobs(looking, "s", 6).begin(BACKFILL, "a")
    await jobs.fail(looking, "s", 6, "poison_row: it does not fit")
    [job] = await jobs.known(looking, "s")
    assert (job.state, job.message) == (JobState.FAILED, "poison_row: it does not fit")
    assert before(JobState.DONE) == [one.value for one in JobState if JobState.DONE in NEXT[one]]
    with pytest.raises(psycopg.errors.CheckViolation):
        await looking.execute("UPDATE crossfade_sync.jobs SET state = 'waiting'")
