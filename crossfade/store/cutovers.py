"""Walks of cutovers as rows. Each step says in its WHERE what it has seen: the state, and who walks.

A step that tells workers something is one transaction with the change of the flag set that they obey
(`step_with`), so that what a walk has done and what workers do cannot disagree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import ColumnElement, extract, func, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from crossfade.cutover.walk import State, check
from crossfade.store import flag_rows
from crossfade.store.actors import Actor, ActorType, Via
from crossfade.store.audit import Deed, Head
from crossfade.store.changes import Done
from crossfade.store.store import Store
from crossfade.store.tables import cutovers
from flags.change import Refused, SetAuthority
from flags.model import Authority, FlagSet, Side

KEPT: int = 20
"""Walks of a cutover that are shown."""


class OvertakenError(Exception):
    """Another process walks, or somebody has aborted: look again."""


@dataclass(frozen=True, slots=True)
class Walk:
    id: int
    name: str
    towards: Side
    generation: int
    """That it leads to."""
    state: State
    epoch: int
    rehearsal: bool
    abort: str | None
    """Why somebody wants it to end."""
    message: str | None
    document: Mapping[str, Any]
    started_by: str
    reason: str
    started_at: float
    """Unix time by the store's clock, as all of these."""
    held_at: float | None
    released_at: float | None
    ended_at: float | None
    now: float
    """When this was read."""

    @property
    def turn(self) -> int:
        """Who moves a fence: a later walk, or a later process of the same, is never undone by an earlier.

        By time and not by number: a store may have been made anew since the last walk.
        """
        return int(self.started_at * 1000) << 20 | self.epoch

    @property
    def token(self) -> str:
        """What this walk is called in the journals: no other one is, whatever becomes of the store."""
        return f"{self.id} of {self.started_at:.6f}"

    @property
    def loses(self) -> bool:
        """Whether it goes back to legacy without what new still has."""
        return "loss" in self.document

    @property
    def actor(self) -> Actor:
        return Actor(ActorType.CUTOVER, f"walk {self.id} of {self.started_by}"[:200], None, None, Via.CUTOVER)


_MOMENTS = ("started_at", "held_at", "released_at", "ended_at")
_COLUMNS = (
    *(column for column in cutovers.c if column.name not in _MOMENTS),
    *(extract("epoch", cutovers.c[name]).label(name) for name in _MOMENTS),
    extract("epoch", func.clock_timestamp()).label("now"),
)
_READ = select(*_COLUMNS)


def _walk(row: Any) -> Walk:
    found = row._asdict()
    for name in (*_MOMENTS, "now"):
        found[name] = None if found[name] is None else float(found[name])
    return Walk(**{**found, "state": State(found["state"]), "towards": Side(found["towards"])})


async def under_way(store: Store) -> list[Walk]:
    async with store.transaction() as connection:
        rows = await connection.execute(_READ.where(cutovers.c.ended_at.is_(None)).order_by(cutovers.c.id))
        return [_walk(row) for row in rows]


async def walks(store: Store, name: str) -> list[Walk]:
    """The last walks of a cutover, the latest first."""
    async with store.transaction() as connection:
        query = _READ.where(cutovers.c.name == name).order_by(cutovers.c.id.desc()).limit(KEPT)
        return [_walk(row) for row in await connection.execute(query)]


async def finished_at(store: Store, flag_set: FlagSet, name: str) -> Side | None:
    """The side that has the data of a cutover that was walked and then finished; None where it was not.

    It is the last walk that says so: what is finished has no authority among the flags any more.
    """
    if flag_set.authority(name) is not None:
        return None
    async with store.transaction() as connection:
        done = _READ.where(cutovers.c.name == name, cutovers.c.state == State.DONE.value)
        row = (await connection.execute(done.order_by(cutovers.c.id.desc()).limit(1))).first()
        return None if row is None else _walk(row).towards


async def begin(
    store: Store,
    actor: Actor,
    authority: Authority,
    *,
    reason: str,
    ticket: str | None = None,
    rehearsal: bool = False,
    evidence: Mapping[str, Any] | None = None,
    request_id: str | None = None,
    loss: Mapping[str, Any] | None = None,
) -> Walk:
    """A walk that moves `authority` to the other side. Raises Refused (`conflict`: one is under way).

    With `loss`, what somebody has accepted to lose, it goes back to legacy without new.
    """
    name, towards = authority.cutover, Side.NEW if authority.side is Side.LEGACY else Side.LEGACY
    action = "cutover.rehearse" if rehearsal else "cutover.run" if towards is Side.NEW else "cutover.back"
    action = action if loss is None else "cutover.accept_loss"
    deed = Deed(action, "cutover", (name,), reason, {}, ticket, evidence, request_id)

    async def work(connection: AsyncConnection, _: Head) -> Done[int]:
        await must_not_be_under_way(connection, name)
        # Since the caller has looked at both databases, which takes seconds, a walk may have come and gone.
        found = (await flag_rows.read(connection))[0].authority(name)
        if found is None or (found.side, found.generation) != (authority.side, authority.generation):
            raise Refused("conflict", f"{name} has moved meanwhile: crossfade cutover status {name}")
        row = {
            "name": name, "towards": towards.value, "generation": authority.generation + 1,
            "state": State.PREPARING.value, "rehearsal": rehearsal, "started_by": actor.name,
            "started_at": _later_than_the_last(name),
            "reason": reason.strip(), "document": {} if loss is None else {"loss": dict(loss)},
        }  # fmt: skip
        made = await connection.execute(insert(cutovers).values(row).returning(cutovers.c.id))
        number: int = made.scalar_one()
        return Done(number, after={"walk": number, "towards": towards.value})

    recorded = await store.perform(actor, deed, work)
    return await read(store, recorded.value)


def _later_than_the_last(name: str) -> ColumnElement[Any]:
    """Now; but fences go by this order, and the store's clock may have been set back."""
    last = select(func.max(cutovers.c.started_at)).where(cutovers.c.name == name).scalar_subquery()
    return func.greatest(func.clock_timestamp(), last + text("interval '1 millisecond'"))


async def must_not_be_under_way(connection: AsyncConnection, name: str) -> None:
    """Raises Refused where a walk of this cutover is; to be asked under the lock of the flag set."""
    mine = (cutovers.c.name == name) & cutovers.c.ended_at.is_(None)
    if (await connection.execute(select(cutovers.c.id).where(mine))).first() is not None:
        raise Refused("conflict", f"a walk of {name} is under way: crossfade cutover status")


async def read(store: Store, number: int) -> Walk:
    async with store.transaction() as connection:
        return _walk((await connection.execute(_READ.where(cutovers.c.id == number))).one())


async def take(store: Store, walk: Walk) -> Walk | None:
    """Become the one who walks; whoever did before can do no step any more. None where it has ended."""
    where = (cutovers.c.id == walk.id) & cutovers.c.ended_at.is_(None)
    taken = update(cutovers).where(where).values(epoch=cutovers.c.epoch + 1)
    async with store.transaction() as connection:
        row = (await connection.execute(taken.returning(*_COLUMNS))).one_or_none()
        return None if row is None else _walk(row)


async def ask_to_abort(
    store: Store, actor: Actor, walk: Walk, *, reason: str, ticket: str | None, request_id: str | None
) -> None:
    """Have the walk cancelled as soon as it can; one that has been decided goes on."""
    deed = Deed("cutover.abort", "cutover", (walk.name,), reason, {}, ticket, None, request_id)

    async def work(connection: AsyncConnection, _: Head) -> Done[None]:
        where = (cutovers.c.id == walk.id) & cutovers.c.ended_at.is_(None)
        await connection.execute(update(cutovers).where(where).values(abort=reason.strip()))
        return Done(None, after={"walk": walk.id})

    await store.perform(actor, deed, work)


async def step(store: Store, walk: Walk, to: State, *, message: str | None = None, **more: Any) -> Walk:
    """The next state, written if all is as `walk` says. Raises OvertakenError."""
    async with store.transaction() as connection:
        return await _write(connection, walk, to, message, more)


async def step_with(
    store: Store, walk: Walk, to: State, authority: Authority, *, message: str | None = None, **more: Any
) -> Walk:
    """The next state, and with it what workers obey (its version: `document`). Raises OvertakenError.

    The same state again only tells them.
    """
    written: list[Walk] = []

    async def also(connection: AsyncConnection, after: FlagSet) -> None:
        known = {**walk.document, **more, "version": after.version}
        written.append(await _write(connection, walk, to, message, known))

    reason = f"cutover {walk.name}: {to.value}" + (f" ({message})" if message else "")
    await store.change(walk.actor, SetAuthority(authority), reason=reason[:1000], also=also)
    return written[-1]


async def _write(
    connection: AsyncConnection, walk: Walk, to: State, message: str | None, more: Mapping[str, Any]
) -> Walk:
    if to is not walk.state:
        check(walk.state, to)
    values: dict[str, Any] = {"state": to.value, "document": {**walk.document, **more}}
    if message is not None:
        values["message"] = message
    moment = {State.HOLDING: "held_at", State.RELEASING: "released_at"}.get(to)
    if to in (State.DONE, State.CANCELLED):
        moment = "ended_at"
    if moment is not None:
        values[moment] = func.clock_timestamp()
    where = (
        (cutovers.c.id == walk.id) & (cutovers.c.epoch == walk.epoch) & (cutovers.c.state == walk.state.value)
    )
    if to not in (State.CANCELLING, State.CANCELLED, State.RELEASING, State.DONE):
        where &= cutovers.c.abort.is_(None)
    query = update(cutovers).where(where).values(values).returning(*_COLUMNS)
    row = (await connection.execute(query)).one_or_none()
    if row is None:
        raise OvertakenError(f"walk {walk.id} is not as it was read")
    return _walk(row)


def also_noted(walk: Walk, **more: Any) -> Walk:
    """The walk with more in its document, which the next step writes."""
    return replace(walk, document={**walk.document, **more})
