"""`crossfade` with one rule broken on purpose; the suite has to find it out.

    python -m tests.dualwrite.faults.broken "the origin is not marked" sync -c crossfade.yaml

The only place that knows names inside `dualwrite`. Where a piece of text or a name is not there any more, the
process ends with it at once, and the test that started it fails (`with_text`, and `getattr`).
"""

from __future__ import annotations

import inspect
import sys
import textwrap
from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any, Final

from crossfade import cli
from dualwrite import apply, backfill, heartbeat, plan, sync
from dualwrite.apply import Applier
from dualwrite.backfill import Backfill
from dualwrite.change import ABSENT
from dualwrite.follow import Follower
from dualwrite.snapshot import View


def with_text(function: Callable[..., Any], old: str, new: str) -> Any:
    """The function, with a piece of its text replaced."""
    text = textwrap.dedent(inspect.getsource(function))
    assert text.count(old) == 1, f"{function.__qualname__} has {text.count(old)} times {old!r}"
    space = dict(function.__globals__)
    exec("from __future__ import annotations\n" + text.replace(old, new), space)
    return space[function.__name__]


def _replace(owner: Any, name: str, old: str, new: str) -> None:
    setattr(owner, name, with_text(getattr(owner, name), old, new))


def chunks_are_read_at_any_moment() -> None:
    assert callable(View.is_too_old)
    View.is_too_old = lambda *_: False  # type: ignore[method-assign]


def absent_is_null() -> None:
    picking = plan.picking

    def careless(places: Sequence[int]) -> plan.Pick:
        pick = picking(places)
        return lambda row: tuple(None if value is ABSENT else value for value in pick(row))

    plan.picking = careless


def confirmed_before_it_is_applied() -> None:
    applied = "await self._applier.apply("
    _replace(Follower, "step", applied, f"await self._capture.confirm(self._upto)\n            {applied}")


def the_position_comes_first() -> None:
    """How far it is is committed, and then the rows until there."""
    move = Applier._move

    async def apart(self: Applier, *arguments: Any) -> bool:
        watched = await move(self, *arguments)
        await self._connection.execute("COMMIT")
        await self._connection.execute("BEGIN")
        return watched

    Applier._move = apart  # type: ignore[method-assign]


def the_origin_is_not_marked() -> None:
    async def unmarked(connection: Any, name: str) -> None:
        await connection.execute("SET session_replication_role = replica")

    assert callable(apply._mark_as_ours)
    apply._mark_as_ours = unmarked


def deletes_are_dropped() -> None:
    _replace(plan, "_note", "table.removed.add(key)", "rows.pop(key)")


def a_chunk_that_fails_is_passed_over() -> None:
    step = Backfill.step

    async def careless(self: Backfill, applied: list[int]) -> backfill.Progress:
        try:
            return await step(self, applied)
        except sync.psycopg.IntegrityError:
            return self._progress(done=True)

    Backfill.step = careless  # type: ignore[method-assign]


def beats_are_not_counted() -> None:
    assert callable(heartbeat.next_after)
    heartbeat.next_after = max  # type: ignore[assignment]


def the_slot_is_not_looked_at() -> None:
    assert callable(sync.must_be_resumable)
    sync.must_be_resumable = lambda *_: None


BROKEN: Final = MappingProxyType(
    {
        one.__name__.replace("_", " "): one
        for one in (
            chunks_are_read_at_any_moment, absent_is_null, confirmed_before_it_is_applied,
            the_position_comes_first, the_origin_is_not_marked, deletes_are_dropped,
            a_chunk_that_fails_is_passed_over, beats_are_not_counted, the_slot_is_not_looked_at,
        )
    }
)  # fmt: skip


if __name__ == "__main__":
    BROKEN[sys.argv[1]]()
    sys.exit(cli.main(sys.argv[2:]))
