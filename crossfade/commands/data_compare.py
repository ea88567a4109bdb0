"""`crossfade data verify | repair`: whether both databases say the same, and writing anew what differs."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Final, TypeAlias

from crossfade.commands.api import ERROR, NOT_CONVERGED, OK, TRIPPED, USAGE, ApiError
from crossfade.commands.streams import (
    SHOWN,
    asked,
    direction_and_folder_of,
    direction_of,
    known_state,
    never_begun,
    rows_said,
    written_anew,
    written_by_people,
)
from crossfade.commands.telling import Paint, data, table, talk, tell_json, tell_next
from crossfade.directions import NoDirectionError, direction_and_folder
from crossfade.kept_progress import KeptProgress
from dualwrite import fence, verify
from dualwrite.backfill import copy_name
from dualwrite.cut import cut
from dualwrite.mapped import RowMapping, SourceTable, by_table
from dualwrite.pg_connect import connect
from dualwrite.segments import Progress
from dualwrite.sync import Direction
from dualwrite.verify import Compared, Going
from flags.model import Side

SHOW_EVERY: Final = 5.0
"""Seconds between two words on how far a comparison is."""
_COLOURS: Final = {"equal": Paint.GOOD, "different": Paint.BAD, "unsettled": Paint.WARNING}
_Chosen: TypeAlias = tuple[Direction, SourceTable, RowMapping, bool]
"""What is compared: by the mapping of which way, and whether backwards (`verify.compare`)."""


def verify_(options: argparse.Namespace) -> int:
    """Exit code 6 where something differs, 7 where it cannot be said."""
    of, folder = direction_and_folder_of(options)
    kept = KeptProgress(folder, of.name)
    if options.fresh:
        kept.forget()
    found = asked(_compared(of, options, kept), of)
    kept.forget()
    return _tell_compared(options, of, found)


def repair_(options: argparse.Namespace) -> int:
    """Compare, have what differs written anew, and compare that again. Exit codes as of verify."""
    of = direction_of(options)
    found = asked(_compared(of, options), of)
    wrong = [one for one in found if one.differences]
    count = sum(len(one.differences) for one in wrong)
    if kept := asked(written_by_people(of, [one.name for one in wrong]), of):
        raise ApiError(
            TRIPPED,
            f"{options.towards} has the authority over {', '.join(kept)}; nothing is written over its rows",
            word="under_authority",
            next_steps=("crossfade cutover status",),
        )
    if options.dry_run or not wrong:
        if options.dry_run:
            talk(f"dry run: {rows_said(count)} would be written anew")
        return _tell_compared(options, of, found)
    talk(f"to be written anew: {rows_said(count)}")
    asked(_repaired(of, wrong), of)
    options.table = [one.name for one in wrong]
    again = {one.name: one for one in asked(_compared(of, options), of)}
    return _tell_compared(options, of, [again.get(one.name, one) for one in found])


async def _compared(
    of: Direction, options: argparse.Namespace, kept: KeptProgress | None = None
) -> list[Compared]:
    """`kept` is where a comparison that was killed has left how far it was."""
    found, names = [], options.table
    chosen: list[_Chosen] = []
    async with await connect(of.target_url) as looking:
        written_to = await fence.open_tables(looking)
        if await known_state(looking, of) is None:
            raise never_begun(options, of)
    for by, source, mapping in _pairs(of, options, written_to):
        wanted = (source.name, str(mapping.table), copy_name(source.name, mapping))
        if names and not any(name in (*wanted, source.name.removeprefix("public.")) for name in names):
            continue
        chosen.append((by, source, mapping, by is of and str(mapping.table) in written_to))
    if not chosen:
        raise ApiError(USAGE, f"no mapping names {', '.join(names or ())}", word="invalid")
    if getattr(options, "exact", False):
        return await _compared_at_one_moment(options, chosen)
    for by, source, mapping, backwards in chosen:
        stream = by.way_back if backwards else by.name
        going = _going(copy_name(source.name, mapping), options, kept)
        one = await verify.compare(
            stream, by.source_url, by.target_url, source, mapping, backwards=backwards, going=going
        )
        went_on = f", {one.rows_before:,} of them before it was ended" if one.rows_before else ""
        talk(f"{one.name}: {rows_said(one.rows)} in {one.seconds:.1f} s{went_on}")
        found.append(one)
    async with await connect(of.target_url) as looking:
        if await fence.open_tables(looking) != written_to:
            raise ApiError(
                NOT_CONVERGED,
                "the authority has moved while it was compared, so what was taken for the newer side was not;"
                " nothing was changed",
                word="moved",
                next_steps=("the same command again",),
            )
    return found


async def _compared_at_one_moment(options: argparse.Namespace, chosen: Sequence[_Chosen]) -> list[Compared]:
    """One moment for all tables of a stream; nobody can go on with it later."""
    found = []
    ways = {(by.name, backwards): by for by, _, _, backwards in chosen}
    for (_, backwards), by in ways.items():
        stream = by.way_back if backwards else by.name
        urls = (by.source_url, by.target_url)
        async with cut(stream, *(reversed(urls) if backwards else urls)) as both:
            talk(f"{stream}: both sides as of {both.at.position}; the stream stood for {both.at.stood:.2f} s")
            for its, source, mapping, back in chosen:
                if its is by and back == backwards:
                    going = _going(copy_name(source.name, mapping), options, None)
                    one = await verify.compare_at(both, source, mapping, backwards=back, going=going)
                    talk(f"{one.name}: {one.rows:,} rows in {one.seconds:.1f} s")
                    found.append(one)
    return found


def _pairs(
    of: Direction, options: argparse.Namespace, written_to: frozenset[str]
) -> Iterator[tuple[Direction, SourceTable, RowMapping]]:
    """What is compared, and by the mapping of which way.

    Where legacy has the authority it is what new is made of, and the mapping to new says what is the same in
    legacy (NULL and ''); what new would be brought back as may be written otherwise, and be right.
    """
    there = None
    if options.towards == Side.LEGACY.value and written_to:
        try:
            there = direction_and_folder(options.config, Side.NEW)[0]
        except NoDirectionError:
            there = None  # the mapping is towards legacy only
    by_the_other = frozenset[str]()
    if there is not None:
        by_the_other = written_to & frozenset(there.sources)
        for source, mapping in by_table(there.sources):
            if source.name in by_the_other:
                yield there, source, mapping
    for source, mapping in by_table(of.sources):
        if str(mapping.table) not in by_the_other:
            yield of, source, mapping


def _going(name: str, options: argparse.Namespace, kept: KeptProgress | None) -> Going:
    try:
        progress = Progress() if kept is None else kept.load(name)
    except OSError as error:
        talk(f"how far it comes is not kept: {error}")
        progress, kept = Progress(), None
    begun, before = time.monotonic(), progress.rows
    next_ = begun + SHOW_EVERY

    def told(now: Progress) -> None:
        nonlocal next_, kept, before
        before = min(before, now.rows)  # what was kept may have been of something else
        if kept is not None:
            try:
                kept.save(name, now)
            except OSError as error:
                talk(f"how far it comes is not kept: {error}")
                kept = None
        at = time.monotonic()
        if at < next_:
            return
        next_ = at + SHOW_EVERY
        rate = max(1.0, (now.rows - before) / (at - begun))
        left = max(0, now.about - now.rows) / rate
        talk(f"{name}: {now.rows:,} of about {now.about:,} rows, {rate:,.0f} rows/s, {left:,.0f} s left")

    return Going(options.portable, progress, told, options.pace, talk)


async def _repaired(of: Direction, wrong: list[Compared]) -> None:
    await written_anew(of, {
        one.name: [each.source_key for each in one.differences if each.source_key is not None]
        for one in wrong
    })  # fmt: skip


def _tell_compared(options: argparse.Namespace, of: Direction, found: list[Compared]) -> int:
    equal = all(one.equal for one in found)
    code = OK if equal else TRIPPED
    shown = {
        "equal": equal, "stream": of.name, "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "compared": [
            {**asdict(replace(one, differences=[])), "verdict": _verdict(one),
             "differences": [asdict(each) for each in one.differences]}
            for one in found
        ],
    }  # fmt: skip
    if (file := getattr(options, "report", None)) is not None:
        try:
            file.write_text(json.dumps(shown, indent=2) + "\n")
        except OSError as error:
            raise ApiError(ERROR, f"cannot write {file}: {error.strerror}", word="report") from error
    if tell_json(options, shown):
        return code
    rows = (
        (one.name, _verdict(one), f"{one.rows:,}", f"{len(one.differences):,}", f"{one.unsettled:,}",
         f"{one.seconds:.1f}", one.form or "mapped rows")
        for one in found
    )  # fmt: skip
    table(("copy", "verdict", "rows", "differ", "unsettled", "seconds", "by"), rows, _COLOURS)
    for one in found:
        for each in one.differences[:SHOWN]:
            columns = f": {', '.join(each.columns)}" if each.columns else ""
            data(f"  {one.name}  key {', '.join(each.key)}  {each.kind}{columns}")
        if len(one.differences) > SHOWN:
            data(f"  {one.name}  and {len(one.differences) - SHOWN:,} more (-o json has all)")
        if one.cut_short:
            data(f"  {one.name}  so many that the rest was not compared; was it ever copied?")
    if not equal:
        kept = asked(written_by_people(of, [one.name for one in found if one.differences]), of)
        side = options.towards if not kept else "new" if options.towards == "legacy" else "legacy"
        tell_next([f"crossfade data repair --towards {side} -c {options.config}"])
    return code


def _verdict(one: Compared) -> str:
    return "different" if one.differences else "unsettled" if one.unsettled else "equal"
