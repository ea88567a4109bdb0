"""Whether anybody has noticed anything: what the people were told, beside both databases."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import psycopg

from crossfade.demo.people import Told
from crossfade.demo.play import Play

SETTLED_WITHIN = 30.0
"""Seconds in which both streams must have brought everything."""
WALKS: Final = 3
SHOWN: Final = 5
_QUERIES: Final = {
    "legacy": (
        "SELECT body FROM comments WHERE body LIKE %s AND deleted = 'N'",
        "SELECT idem_key FROM transfers WHERE idem_key LIKE %s",
        "SELECT sum(balance::bigint) FROM users WHERE deleted = 'N'",
    ),
    "new": (
        "SELECT body FROM comments WHERE body LIKE %s",
        "SELECT idempotency_key FROM transfers WHERE idempotency_key LIKE %s",
        "SELECT sum(balance_cents) FROM wallets",
    ),
}


@dataclass(frozen=True, slots=True)
class Written:
    """What one database has of what this demo's people have written, and all the money there is."""

    comments: Sequence[str]
    transfers: Sequence[str]
    cents: int


@dataclass(frozen=True, slots=True)
class Facts:
    told: Told
    written: Mapping[str, Written]
    """By side."""
    cents: int
    """All the money there was in the beginning."""
    held: Sequence[float]
    """Of each walk that moved the authority: the longest that a request has waited, in seconds."""
    answered: Mapping[str, int]
    """By side, as Crossfade has counted."""
    covered: int
    """Failures of new that legacy has answered for."""
    differ: Sequence[str]
    """Tables that `data verify` does not find equal."""


def cents_in(url: str) -> int:
    with psycopg.connect(url) as connection:
        return _cents(connection, _QUERIES["legacy"][2])


def gathered(play: Play, told: Told, cents: int) -> Facts:
    """Once both streams have brought everything; as it is then where they do not."""
    deadline = time.monotonic() + SETTLED_WITHIN
    stage = play.stage
    while True:
        written = {side: _written(side, url, told.mark) for side, url in stage.databases.items()}
        found = Facts(told, written, cents, tuple(play.held), stage.answered(), stage.covered(), ())
        if not list(_misplaced(found)) or time.monotonic() > deadline:
            return replace(found, differ=_different(play))
        time.sleep(0.2)


def _different(play: Play) -> list[str]:
    done = play.run("data verify -o json")
    try:
        compared = json.loads(done.out)["compared"]
    except (ValueError, KeyError):
        return [f"something: data verify ended with {done.code}"]
    return [one["name"] for one in compared if one["verdict"] != "equal"]


def wrong(found: Facts) -> list[str]:
    """Everything that somebody could have noticed; empty if there is nothing."""
    told = found.told
    lines = [*told.failed[:SHOWN]]
    if told.failures > len(lines):
        lines.append(f"{told.failures:,} requests have failed")
    if not told.requests:
        lines.append("nobody was there")
    if not (told.comments and told.transfers):
        lines.append("nobody has written anything, so that nothing could be lost")
    lines += _misplaced(found)
    lines += [f"both databases differ in {name}" for name in found.differ]
    if len(found.held) != WALKS:
        lines.append(f"the authority has moved {len(found.held)} times, not {WALKS}")
    return lines


def _misplaced(found: Facts) -> Iterator[str]:
    """Each acknowledged write must be in both databases once, and nothing else."""
    for side, there in found.written.items():
        for what, told, has in (
            ("comments", found.told.comments, there.comments),
            ("transfers", found.told.transfers, there.transfers),
        ):
            expected, seen = Counter(told), Counter(has)
            lost, more = expected - seen, seen - expected
            doubled = sum(count for name, count in more.items() if name in expected)
            if lost:
                yield f"{side} has lost {lost.total():,} acknowledged {what}, such as {next(iter(lost))}"
            if doubled:
                yield f"{side} has {doubled:,} {what} twice"
            if phantoms := more.total() - doubled:
                yield f"{side} has {phantoms:,} {what} that nobody was told of"
        if there.cents != found.cents:
            yield f"{side} has {there.cents:,} cents in all; there were {found.cents:,}"


def said(found: Facts, report: Path, seconds: float) -> Iterator[str]:
    told = found.told
    misplaced = list(_misplaced(found))
    by = ", ".join(f"{count:,} by {side}" for side, count in sorted(found.answered.items()))
    writes = f"{len(told.comments):,} comments and {len(told.transfers):,} transfers acknowledged"
    where = "each is in both databases once" if not misplaced else "see below"
    yield f"   requests       {told.requests:,} of the people; answered {by}"
    yield f"   failures       {told.failures:,} (answers not as they should be, as the people saw them)"
    yield f"   covered        {found.covered:,} failures of new that legacy answered for, so nobody saw them"
    yield f"   slowest        {told.slowest:.2f} s"
    yield f"   writes         {writes}; {where}"
    yield f"   lost, doubled  {len(misplaced) or 'none'}"
    if found.held:
        yield f"   longest hold   {max(found.held) * 1000:.0f} ms, of {len(found.held)} walks"
    yield f"   report         {report}"
    yield f"   took           {seconds:.0f} s"


def _written(side: str, url: str, mark: str) -> Written:
    comments, transfers, cents = _QUERIES[side]
    with psycopg.connect(url) as connection:
        return Written(
            [row[0] for row in connection.execute(comments.encode(), (f"{mark}%",))],
            [row[0] for row in connection.execute(transfers.encode(), (f"{mark}%",))],
            _cents(connection, cents),
        )


def _cents(connection: psycopg.Connection, query: str) -> int:
    row = connection.execute(query.encode()).fetchone()
    return 0 if row is None else int(row[0])
