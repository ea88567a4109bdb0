"""What stands against a cutover: everything at once, before anybody waits. Looking changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from crossfade.convergence import Convergence
from crossfade.cutover.ground import Ground, absent
from crossfade.store.guardrails import Watch
from dualwrite import desired, fence, quarantine, repair, target
from dualwrite.fence import Fence
from dualwrite.mapped import other
from dualwrite.stream_states import State
from dualwrite.target import StreamState
from flags.model import Authority, FlagSet, Phase, Side

MOST_LAG: Final = 1.0
"""Seconds that the stream may need for what is written at the moment."""
PROBE_WITHIN: Final = 3.0
OLD: Final = 2.0
"""Seconds after which a transaction that has written counts as one that the fence would wait for."""

_OLD: Final = """
    SELECT pid, coalesce(usename, '?'), coalesce(application_name, ''),
           extract(epoch FROM clock_timestamp() - xact_start)
      FROM pg_stat_activity
     WHERE backend_xid IS NOT NULL AND xact_start < clock_timestamp() - make_interval(secs => %s)
       AND datname = current_database() AND pid <> pg_backend_pid()
"""
_DISAGREE: Final = 'docs/cutover.md, "When the journals disagree"'
_GIVEN_UP: Final = "runbooks/new-is-gone.md"
"""Where the last walk was one that accepts a loss."""
_PREPARED: Final = "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()"


@dataclass(frozen=True, slots=True)
class Blocker:
    """`reason` is one word; `remedy` is what to do, best a command."""

    reason: str
    message: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Facts:
    """What was found on both sides. `lag` and `back` are seconds; None: too long, or nobody works."""

    name: str
    towards: Side
    fences: Mapping[Side, Fence | None]
    wanted: Mapping[Side, frozenset[str]]
    """Tables that have to be fenced."""
    decided: Mapping[Side, int]
    """The highest generation that each database's journal knows."""
    stream: StreamState | None
    stream_held: bool
    way_back: StreamState | None
    way_back_held: bool
    lag: float | None
    back: float | None
    repairs: int
    quarantined: int
    """Rows that one of the streams has not brought, both together."""
    old: Sequence[str]
    """Transactions that the fence would wait for."""
    absent: str | None
    """Why the backend that would get all requests could serve nobody."""


async def facts(ground: Ground) -> Facts:
    """Raises psycopg.Error."""
    towards = ground.towards
    sides = {other(towards): ground.losing, towards: ground.gaining}
    fences = {side: await fence.state(connection, ground.plot.name) for side, connection in sides.items()}
    stream, held = await _stream(ground, ground.stream.name, gaining=True)
    way_back, back_held = await _stream(ground, ground.way_back.name, gaining=False)
    rows = await (await ground.losing.execute(_OLD, (OLD,))).fetchall()
    old = [f"pid {pid} ({user} {name}, {age:.0f} s)" for pid, user, name, age in rows]
    old += [
        f"the prepared transaction {gid}"
        for (gid,) in await (await ground.losing.execute(_PREPARED)).fetchall()
    ]
    return Facts(
        name=ground.plot.name,
        towards=towards,
        fences=fences,
        wanted={
            side: frozenset(f"{schema}.{name}" for schema, name in ground.plot.fenced(side)) for side in sides
        },
        decided={
            side: await fence.newest(connection, ground.plot.name) for side, connection in sides.items()
        },
        stream=stream,
        stream_held=held,
        way_back=way_back,
        way_back_held=back_held,
        lag=await ground.brought(PROBE_WITHIN) if stream is not None and held else None,
        back=await ground.brought_back(PROBE_WITHIN) if way_back is not None and back_held else None,
        repairs=await repair.waiting(ground.gaining, ground.stream.name) if stream is not None else 0,
        quarantined=len(await quarantine.waiting(ground.gaining, ground.stream.name))
        + len(await quarantine.waiting(ground.losing, ground.way_back.name)),
        old=old,
        absent=await absent(ground.plot, towards),
    )


async def _stream(ground: Ground, name: str, *, gaining: bool) -> tuple[StreamState | None, bool]:
    looking = ground.gaining if gaining else ground.losing
    there = await (await looking.execute("SELECT to_regclass('crossfade_sync.streams')")).fetchone()
    if there is None or there[0] is None:
        return None, False
    wish = await desired.of(looking, name)
    # Who works on a stream that shall not run any more ends that in a moment.
    held = (wish is None or wish.run) and await target.is_held(looking, name)
    return await target.state(looking, name), held


def blockers(
    found: Facts,
    authority: Authority | None,
    flag_set: FlagSet,
    workers: Convergence,
    finished: Side | None,
    *,
    new_was_given_up: bool,
    guardrails: Sequence[Watch] = (),
) -> list[Blocker]:
    """All of it, in the order in which it is best mended."""
    return [
        *_not_prepared(found, authority, finished, new_was_given_up),
        *_streams(found),
        *_world(found),
        *_flags(found, authority, flag_set),
        *_guardrails(found, guardrails),
        *_workers(workers),
    ]


def _not_prepared(
    found: Facts, authority: Authority | None, finished: Side | None, new_was_given_up: bool
) -> Iterator[Blocker]:
    name, losing = found.name, other(found.towards)
    prepare = f"crossfade cutover prepare {name} --reason WHY"
    if finished is not None:
        said = f"{name} is finished; {finished} has the data"
        yield Blocker("finished", said, f"only to take it up again: {prepare}")
        return
    if authority is None:
        yield Blocker("not_prepared", f"nobody has prepared {name}", prepare)
        return
    if authority.phase is not Phase.OPEN:
        yield Blocker("under_way", f"a walk of {name} is under way", f"crossfade cutover status {name}")
    if authority.side is not losing:
        yield Blocker(
            "authority", f"{found.towards} has the authority already", f"crossfade cutover status {name}"
        )
        return
    if (
        found.decided[authority.side] != authority.generation
        or max(found.decided.values()) > authority.generation
    ):
        yield Blocker(
            "journal",
            f"the databases' journals know generation {max(found.decided.values())}, and the flags"
            f" {authority.generation}: was a store or a database restored from an old copy?",
            _DISAGREE,
        )
    for side, fence_ in found.fences.items():
        if fence_ is None:
            yield Blocker("not_fenced", f"{side} has no fence", prepare)
            continue
        if missing := found.wanted[side] - fence_.tables:
            yield Blocker("not_fenced", f"{side}'s {', '.join(sorted(missing))} has no fence", prepare)
        if fence_.is_open is not (side is losing):
            stands = "open" if fence_.is_open else "closed"
            where = _GIVEN_UP if new_was_given_up and side is Side.NEW else _DISAGREE
            yield Blocker("fence", f"{side}'s fence is {stands}", where)


def _streams(found: Facts) -> Iterator[Blocker]:
    streams = (
        ("the stream", found.towards, found.stream, found.stream_held, found.lag),
        ("the way back", other(found.towards), found.way_back, found.way_back_held, found.back),
    )
    for what, towards, state, held, took in streams:
        run = f"crossfade data start --towards {towards} --reason WHY"
        # Towards the side that is written to nothing is to be copied, as `sync` by itself would.
        back = towards is other(found.towards)
        begin = f"crossfade cutover prepare {found.name} --reason WHY" if back else run
        status = f"crossfade data status --towards {towards}"
        if state is None:
            yield Blocker("no_stream", f"{what} towards {towards} was never begun", begin)
        elif state.state is State.STOPPED:
            yield Blocker(
                "stopped", f"{what} towards {towards} has stopped ({state.reason}): {state.message}", status
            )
        elif not held:
            yield Blocker("no_process", f"no process works on {what} towards {towards}", run)
        elif state.state is not State.FOLLOWING:
            yield Blocker("copying", f"{what} towards {towards} is still copying", status)
        elif took is None:
            yield Blocker(
                "lag", f"{what} towards {towards} has not brought a mark within {PROBE_WITHIN:g} s", status
            )
        elif took > MOST_LAG:
            yield Blocker(
                "lag", f"{what} towards {towards} is {took:.1f} s behind, at most {MOST_LAG:g}", status
            )
    if found.repairs:
        yield Blocker("repairs", f"{found.repairs} rows wait to be written anew", "crossfade data status")
    if found.quarantined:
        yield Blocker("quarantined", f"{found.quarantined} rows wait in quarantine", "runbooks/poison-row.md")


def _world(found: Facts) -> Iterator[Blocker]:
    if found.absent is not None:
        yield Blocker("backend", found.absent, "start it, or correct targets: and crossfade reload")
    if found.old:
        yield Blocker(
            "long_transaction",
            f"{other(found.towards)} has transactions that the fence would wait for: {'; '.join(found.old)}",
            "wait until they have ended, or end them there",
        )


def _flags(found: Facts, authority: Authority | None, flag_set: FlagSet) -> Iterator[Blocker]:
    if authority is None:
        return
    for key in authority.flags:
        flag = flag_set.flag(key)
        if flag is None or flag.archived:
            yield Blocker("flag", f"the flag {key} is gone", "crossfade flag list")
        elif found.towards is Side.NEW and flag.kill is not None:
            yield Blocker(
                "killed", f"{key} is killed: {flag.kill.reason}", f"crossfade unkill {key} --reason WHY"
            )
    if found.towards is Side.NEW and flag_set.kill is not None:
        yield Blocker(
            "killed", f"everything is killed: {flag_set.kill.reason}", "crossfade unkill --all --reason WHY"
        )


def tripped(guardrails: Sequence[Watch]) -> list[Watch]:
    """Those that say that new is not well, and that nobody has rearmed."""
    return [one for one in guardrails if one.stands_against is not None]


def _guardrails(found: Facts, guardrails: Sequence[Watch]) -> Iterator[Blocker]:
    if found.towards is Side.NEW:
        for one in tripped(guardrails):
            yield Blocker(
                "guardrail",
                f"the guardrail {one.guardrail.id} has tripped: {one.message}",
                f"look why, then: crossfade guardrail rearm {one.guardrail.id} --reason WHY",
            )


def _workers(workers: Convergence) -> Iterator[Blocker]:
    if not workers.complete:
        yield Blocker("workers", "; ".join(workers.missing), "crossfade proxy status")
