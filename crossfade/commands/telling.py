"""How a command ends: data on stdout, talk on stderr, and one exit code that says the truth."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from typing import Any, TextIO

from crossfade.commands.api import NOT_CONVERGED, OK, Api, ApiError


def in_words(run: Callable[[argparse.Namespace], int], options: argparse.Namespace) -> int:
    try:
        return run(options)
    except ApiError as error:
        tell_error(options, error)
        return error.code


def tell_error(options: argparse.Namespace, error: ApiError) -> None:
    """On stderr, in the form that was asked for."""
    if options.output == "json":
        talk(json.dumps({"error": error.word, "message": str(error), "next": list(error.next_steps)}))
        return
    talk(paint(f"crossfade: {error}", Paint.BAD, sys.stderr))
    tell_next(error.next_steps)


def tell_next(steps: Iterable[str]) -> None:
    for step in steps:
        talk(paint(f"  next: {step}", Paint.FAINT, sys.stderr))


class Paint(Enum):
    """What a colour means, so that nothing is said by colour alone."""

    GOOD = "32"
    WARNING = "33"
    BAD = "31"
    FAINT = "2"


def paint(text: str, how: Paint | None, on: TextIO) -> str:
    """`text` in colour where `on` is a terminal and nobody has said NO_COLOR (https://no-color.org)."""
    if how is None or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not on.isatty():
        return text
    return f"\x1b[{how.value}m{text}\x1b[0m"


def api(options: argparse.Namespace) -> Api:
    return Api.of(options)


def said(options: argparse.Namespace) -> dict[str, Any]:
    """What this command says about its change, of what it can say."""
    names = {
        "reason": "reason", "ticket": "ticket", "expect_version": "expected_version", "dry_run": "dry_run",
        "wait": "wait", "report": "report",
    }  # fmt: skip
    return {there: getattr(options, here) for here, there in names.items() if hasattr(options, here)}


def tell_change(options: argparse.Namespace, answer: dict[str, Any]) -> int:
    """What a change came to; 7 where not every worker obeyed in time."""
    converged = answer.get("converged")
    code = NOT_CONVERGED if converged and not converged["complete"] else OK
    if tell_json(options, answer):
        return code
    for line in answer["differences"]:
        data(line)
    for warning in answer["warnings"]:
        talk(paint(f"warning: {warning}", Paint.BAD, sys.stderr))
    if not answer["changed"]:
        data("nothing to change")
    if answer["dry_run"]:
        for blast in answer["blast_radius"] or ():
            data(_blast(blast))
        talk("dry run: nothing was changed")
    elif converged:
        line = f"{converged['obeying']}/{converged['workers']} workers on v{converged['version']}"
        data(f"{line}, slowest {converged['milliseconds']:.0f} ms")
        for missing in converged["missing"]:
            talk(missing)
    elif answer["changed"]:
        data(f"v{answer['version']}")
    tell_next(answer["next"])
    return code


def _blast(blast: dict[str, Any]) -> str:
    if not blast["of_requests"]:
        return f"{blast['flag']}: no request was seen in the last 10 minutes, so what would move is not known"
    share = blast["requests"] / blast["of_requests"]
    requests = f"about {blast['requests']:,} of {blast['of_requests']:,} requests ({share:.1%})"
    keys = f"{blast['keys']:,} of {blast['of_keys']:,} keys"
    return f"{blast['flag']}: {requests} of the last 10 minutes would move, and {keys} of a sample of them"


def tell_json(options: argparse.Namespace, answer: Any) -> bool:
    """Print `answer` as JSON if that is asked for; returns whether it was."""
    if options.output == "json":
        data(json.dumps(answer))
    return bool(options.output == "json")


def table(
    head: Sequence[str], rows: Iterable[Sequence[object]], colours: Mapping[str, Paint] | None = None
) -> None:
    """`colours`: by the first word of a cell."""
    lines = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [
            paint(cell.ljust(width), (colours or {}).get(cell.partition(" ")[0]), sys.stdout)
            for cell, width in zip(line, widths, strict=True)
        ]
        data("  ".join(cells).rstrip())


def data(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def talk(line: str) -> None:
    sys.stderr.write(line + "\n")
