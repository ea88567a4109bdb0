"""What each running Crossfade says of itself: which version its workers run, what they have counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import delete, extract, func, select, update
from sqlalchemy.dialects.postgresql import insert

from crossfade.store.connection import Database
from crossfade.store.tables import instances

LEAVE_WITHIN = 1.0
"""Seconds that an instance that ends waits for the store."""
FORGOTTEN_AFTER = 86_400
"""Seconds after which an instance that says nothing any more is forgotten."""


@dataclass(frozen=True, slots=True)
class InstanceReport:
    """`workers` are the acknowledgements, `counts` the requests by flag and cohort since `started_at`."""

    id: str
    host: str
    address: str
    flags_version: int
    started_at: float
    kill_overlay: Mapping[str, Any]
    workers: Sequence[Mapping[str, Any]]
    counts: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Instance:
    """What an instance said last, and how many seconds ago by the store's clock."""

    report: InstanceReport
    age: float


async def report(database: Database, said: InstanceReport) -> None:
    """Write down what an instance says, in place of what it said before."""
    row = {
        "id": said.id,
        "host": said.host,
        "address": said.address,
        "flags_version": said.flags_version,
        "kill_overlay": dict(said.kill_overlay),
        "workers": [dict(worker) for worker in said.workers],
        "counts": dict(said.counts),
        "started_at": datetime.fromtimestamp(said.started_at, UTC),
        "heard_at": func.clock_timestamp(),
    }
    written = insert(instances).values(row)
    written = written.on_conflict_do_update(index_elements=["id"], set_=row)
    silent = instances.c.heard_at < func.clock_timestamp() - func.make_interval(
        0, 0, 0, 0, 0, 0, FORGOTTEN_AFTER
    )
    gone = select(instances.c.id).where(silent).with_for_update(skip_locked=True)
    async with database.transaction() as connection:
        await connection.execute(written)
        await connection.execute(delete(instances).where(instances.c.id.in_(gone)))


async def leave(database: Database, name: str, seconds: float) -> None:
    """Have an instance that has ended count as silent for `seconds`; what it has counted stays."""
    earlier = instances.c.heard_at - func.make_interval(0, 0, 0, 0, 0, 0, seconds)
    async with database.transaction(LEAVE_WITHIN) as connection:
        await connection.execute(update(instances).where(instances.c.id == name).values(heard_at=earlier))


async def everybody(database: Database) -> list[Instance]:
    """Every instance that has not been forgotten, by its id."""
    age = extract("epoch", func.clock_timestamp() - instances.c.heard_at).label("age")
    async with database.transaction() as connection:
        rows = (await connection.execute(select(instances, age).order_by(instances.c.id))).all()
    return [
        Instance(
            InstanceReport(
                id=row.id,
                host=row.host,
                address=row.address,
                flags_version=row.flags_version,
                started_at=row.started_at.timestamp(),
                kill_overlay=row.kill_overlay,
                workers=row.workers,
                counts=row.counts,
            ),
            float(row.age),
        )
        for row in rows
    ]
