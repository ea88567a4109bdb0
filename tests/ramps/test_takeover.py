"""One of all control processes looks; when it goes, the next one goes on where it was."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import psycopg
import pytest

from crossfade.reconciler import Reconciler
from crossfade.store.store import Store
from flags.ramp import RampState, Step
from tests.ramps.scene import Scene

ROOT = Path(__file__).parents[2]
WITHIN = 30.0


async def becomes(fact: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(WITHIN):
        while not await fact():  # noqa: ASYNC110  (the fact is in another process)
            await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def another_process(scene: Scene) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.ramps.reconcile", scene.url, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


@contextlib.asynccontextmanager
async def running(scene: Scene) -> AsyncIterator[Reconciler]:
    store = await Store.open(scene.url)
    reconciler = Reconciler(store, every=0.05)
    task = asyncio.create_task(reconciler.run())
    try:
        yield reconciler
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await store.close()


def looks(reconciler: Reconciler, outcome: str = "done") -> float:
    return sum(
        sample.value for sample in reconciler.samples()
        if sample.metric == "crossfade_reconciler_looks_total" and sample.labels == (outcome,)
        and isinstance(sample.value, int | float)
    )  # fmt: skip


async def said(process: asyncio.subprocess.Process) -> None:
    assert process.stdout is not None
    async with asyncio.timeout(WITHIN):
        while (line := await process.stdout.readline()) != b"looks\n":  # or a line of the log
            assert line, "it has ended"


async def test_kill_9_of_the_one_that_looks_hands_over_to_the_next(scene: Scene) -> None:
    await scene.start((Step(10_000, 60.0), Step(20_000, 0.0), Step(30_000, 600.0)))
    async with another_process(scene) as process:
        await said(process)
        await becomes(lambda: at_step(scene, 1))
        async with running(scene) as next_one:
            for _ in range(3):
                await said(process)
            assert looks(next_one) == 0
            process.kill()
            await process.wait()
            scene.pass_time(61)
            await becomes(lambda: at_step(scene, 3))
            assert looks(next_one) > 0
    moves = await scene.acts("ramp", "flag.move")
    assert [move.reason for move in moves][-1] == "step 3 of 3: 3% at live, 1 overdue in one"
    assert len(moves) == 2


async def at_step(scene: Scene, step: int) -> bool:
    return (await scene.ramp()).ramp.step == step


async def test_it_goes_on_after_the_store_has_thrown_everybody_out(
    scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    async with running(scene) as reconciler:
        await becomes(lambda: done(lambda: looks(reconciler) > 0))
        with psycopg.connect(scene.url, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        await becomes(lambda: done(lambda: looks(reconciler, "failed") > 0))
        before = looks(reconciler)
        await becomes(lambda: done(lambda: looks(reconciler) > before))
        await scene.start()
        await becomes(lambda: at_step(scene, 1))
        assert (await scene.ramp()).ramp.state is RampState.RUNNING


async def done(fact: Callable[[], bool]) -> bool:
    return fact()
