"""What a cutover stands on: both databases, the streams between them, and the tables that it moves."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg

from crossfade import users_code
from crossfade.channel import Message
from crossfade.directions import NoDirectionError, direction_of
from crossfade.users_code import UsersCodeError
from dualwrite import desired, fence, heartbeat, rights, sync, target
from dualwrite.capture import CaptureStopped, Way
from dualwrite.mapped import SourceTable, by_table, other
from dualwrite.mapping import qualified_name
from dualwrite.pg_connect import connect, hang_up
from dualwrite.rest import Pair, Rest
from dualwrite.sync import Direction
from flags.change import Refused
from flags.model import Side

Connection = psycopg.AsyncConnection[Any]

NAME: Final = "crossfade cutover"
"""By which servers know the sessions of a walk."""
LANES: Final = 3
"""Tables that are compared at the same time while everybody waits."""
TAKES_WITHIN: Final = 2.0
"""Seconds that a backend has to take a connection."""
LOOK_AGAIN: Final = 0.004
"""Seconds between two looks at how far a stream has come."""


class UnreachedError(OSError):
    """One side's database cannot be connected to; the message names it, and where to read on."""


@dataclass(frozen=True, slots=True)
class Plot:
    """A cutover as the configuration says it. `tables` are legacy's; none are all that is mapped."""

    name: str
    flags: tuple[str, ...]
    tables: tuple[str, ...]
    own_writes: bool
    max_lag_ms: int | None
    urls: Mapping[Side, str]
    streams: Mapping[Side, Direction]
    """By the side that they go to."""
    targets: Mapping[Side, tuple[str, int]]
    """Host and port of the backends behind the proxy."""

    def sources(self, towards: Side) -> dict[str, SourceTable]:
        """What of the stream towards a side belongs to this cutover, by the source's tables."""
        known = self.streams[towards].sources
        if not self.tables:
            return dict(known)
        legacy = {qualified_name(name) for name in self.tables}
        if towards is Side.NEW:
            return {name: one for name, one in known.items() if name in legacy}
        new = self._targets()
        return {
            name: one for name, one in known.items()
            if name in new or any(str(mapping.table) in legacy for mapping in one.mappings)
        }  # fmt: skip

    def fenced(self, side: Side) -> list[fence.Table]:
        """The tables on this side that only the one with the authority may write, as schema and name.

        What is only there for the stream (nothing of it ever comes from here) is none of them.
        """
        found = set(self.sources(other(side)))
        for source in self.sources(side).values():
            if not source.one_way:
                found.update(str(mapping.table) for mapping in source.mappings)
        parts = (name.partition(".") for name in sorted(found))
        return [(schema, name) for schema, _, name in parts]

    def pairs(self, towards: Side) -> list[Pair]:
        """What has to be alike. On the way back by the same mapping as on the way there."""
        there = by_table(self.sources(Side.NEW))
        if towards is Side.NEW:
            return [Pair(table, mapping, backwards=False) for table, mapping in there]
        alone = {name: one for name, one in self.sources(towards).items() if one.one_way}
        return [
            *(Pair(table, mapping, backwards=True) for table, mapping in there),
            *(Pair(table, mapping, backwards=False) for table, mapping in by_table(alone)),
        ]

    def _targets(self) -> set[str]:
        """Tables of new that rows of legacy's tables become."""
        found = self.sources(Side.NEW).values()
        return {str(mapping.table) for source in found for mapping in source.mappings}


def plots(context: Message) -> dict[str, Plot]:
    """The cutovers of the configuration, by name. Raises Refused where they cannot be read."""
    if not context["cutovers"]:
        return {}
    urls = {Side(side): url for side, url in context["databases"].items()}
    path, text = context["code"]
    try:
        project = users_code.load(Path(path), text)
        name, ways = context["data_name"], {Side(side): Way(way) for side, way in context["ways"].items()}
        streams = {side: direction_of(project, urls, side, path, name=name, ways=ways) for side in Side}
    except (UsersCodeError, NoDirectionError) as error:
        raise Refused("invalid", f"the cutover cannot be read: {error}") from error
    known = set(streams[Side.NEW].sources)
    for one in context["cutovers"]:
        if unknown := sorted({qualified_name(name) for name in one["tables"]} - known):
            raise Refused(
                "invalid",
                f"cutovers.{one['name']}.tables: {', '.join(unknown)} is no table that {path} carries to new;"
                f" it has {', '.join(sorted(known))}",
            )
    return {
        one["name"]: Plot(
            one["name"],
            tuple(one["flags"]),
            tuple(one["tables"]),
            one["own_writes"],
            one["max_lag_ms"],
            urls,
            streams,
            {Side(side): (host, port) for side, (host, port) in context["targets"].items()},
        )
        for one in context["cutovers"]
    }


@dataclass(frozen=True, slots=True)
class Ground:
    """Connections to both databases, seen from a walk towards one of them."""

    plot: Plot
    towards: Side
    losing: Connection
    gaining: Connection
    rest: Rest
    """Of the comparison."""
    connections: Sequence[Connection]
    """All of them."""

    def cut(self) -> None:
        """Hang up on both databases, so that whoever waits for an answer sees the end of the connection."""
        for one in self.connections:
            hang_up(one)

    @classmethod
    @contextlib.asynccontextmanager
    async def of(cls, plot: Plot, towards: Side) -> AsyncIterator[Ground]:
        """Raises UnreachedError."""
        async with contextlib.AsyncExitStack() as stack:

            async def both() -> tuple[Connection, Connection]:
                losing = await stack.enter_async_context(await reach(plot, other(towards)))
                return losing, await stack.enter_async_context(await reach(plot, towards))

            losing, gaining = await both()
            lanes = [await both() for _ in range(LANES)]
            rest = Rest(plot.streams[towards].name, lanes, plot.pairs(towards))
            all_of_them = [losing, gaining, *(one for lane in lanes for one in lane)]
            yield cls(plot, towards, losing, gaining, rest, all_of_them)

    @property
    def stream(self) -> Direction:
        """The one that brings what the losing side writes."""
        return self.plot.streams[self.towards]

    @property
    def way_back(self) -> Direction:
        return self.plot.streams[other(self.towards)]

    @property
    def sources(self) -> dict[str, SourceTable]:
        return self.plot.sources(self.towards)

    async def brought(self, within: float) -> float | None:
        """Seconds until the stream had brought all that is written by now; None if it takes longer."""
        return await brought(self.losing, self.gaining, self.stream.name, within)

    async def brought_back(self, within: float) -> float | None:
        return await brought(self.gaining, self.losing, self.way_back.name, within)


async def reach(plot: Plot, side: Side) -> Connection:
    """A connection to the database of one side. Raises UnreachedError."""
    try:
        return await connect(plot.urls[side], NAME)
    except (psycopg.Error, OSError) as error:
        said = (str(error).splitlines() or ["it is silent"])[0]
        then = "; if it is gone: runbooks/new-is-gone.md" if side is Side.NEW else ""
        raise UnreachedError(f"{side} cannot be reached: {said}{then}") from error


async def absent(plot: Plot, side: Side) -> str | None:
    """Why nobody could be served by the backend of this side; None where it takes connections."""
    host, port = plot.targets[side]
    try:
        async with asyncio.timeout(TAKES_WITHIN):
            _, writer = await asyncio.open_connection(host, port)
    except TimeoutError:
        why = f"nothing within {TAKES_WITHIN:g} s"
    except OSError as error:
        why = error.strerror or str(error)
    else:
        writer.close()
        return None
    return f"{side}'s backend at {host}:{port} takes no connection: {why}"


async def brought(source: Connection, looking: Connection, stream: str, within: float) -> float | None:
    """Seconds until all that is in the source's log by now was applied; None if not within so many."""
    began = time.monotonic()
    position = await heartbeat.mark(source, stream)
    while time.monotonic() - began < within:
        state = await target.state(looking, stream)
        if state is not None and state.applied >= position:
            return time.monotonic() - began
        await asyncio.sleep(LOOK_AGAIN)
    return None


async def prepare(plot: Plot, authority: Side) -> None:
    """Put up the fences as the authority stands, and then begin the stream of the way back.

    In this order: what others have written to the other side before it was fenced never comes back. Safe to
    be done again. Raises fence.WritersError, CaptureStopped, UnreachedError and psycopg.Error.
    """
    for side in Side:
        async with await reach(plot, side) as connection:
            if said := rights.stops(await rights.of_cutover(connection, plot.fenced(side))):
                raise CaptureStopped(rights.REASON, f"in {side}'s database: {said}")
    for side in (other(authority), authority):
        async with await reach(plot, side) as connection:
            await fence.install(connection, plot.name, plot.fenced(side), is_open=side is authority)
    await sync.begin_alike(plot.streams[authority])
    await _run_both(plot, authority)


async def _run_both(plot: Plot, authority: Side) -> None:
    """Where people have said that the stream to the other side shall run, the way back shall, too.

    Where they have said nothing, they start their processes by hand, as they did.
    """
    forth, back = plot.streams[other(authority)], plot.streams[authority]
    async with await connect(forth.target_url, NAME) as fed, await connect(back.target_url, NAME) as looking:
        wish = await desired.of(fed, forth.name)
        known = await desired.of(looking, back.name)
        if wish is not None and wish.run and (known is None or not known.run):
            reason = f"the way back of the cutover {plot.name}"
            await desired.say(looking, back.name, run=True, reason=reason, by="crossfade cutover prepare")


async def by_the_journals(plot: Plot) -> tuple[Side, int]:
    """The side that gained the authority last, and the generation; legacy and 0 where it was never moved.

    What a store that was made anew, or a cutover that was finished, does not know. Raises psycopg.Error.
    """
    found = []
    for side in Side:
        async with await reach(plot, side) as connection:
            found.append((await fence.newest(connection, plot.name), side))
    generation, side = max(found, key=lambda one: one[0])
    return (side, generation) if generation else (Side.LEGACY, 0)


async def finish(plot: Plot, authority: Side) -> bool:
    """Take the fence away from the side that has the authority; False if none stood there.

    The other side's stays: nobody but our stream is to write there as long as a stream can bring it back.
    Raises fence.WritersError and psycopg.Error.
    """
    async with await reach(plot, authority) as connection:
        stood = await fence.state(connection, plot.name) is not None
        await fence.remove(connection, plot.name)
    return stood


def shown(tables: Sequence[fence.Table]) -> str:
    return ", ".join(f"{schema}.{name}" for schema, name in tables)
