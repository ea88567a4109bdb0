"""How a command ends: data on stdout, talk on stderr, and one exit code that says the truth."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from crossfade.commands.api import NOT_CONVERGED, OK, Api, ApiError


def in_words(run: Callable[[argparse.Namespace], int], options: argparse.Namespace) -> int:
    try:
        return run(options)
    except ApiError as error:
        talk(f"crossfade: {error}")
        return error.code


def api(options: argparse.Namespace) -> Api:
    return Api.of(options.config, options.token)


def said(options: argparse.Namespace) -> dict[str, Any]:
    """What every change says."""
    found = {"reason": options.reason, "ticket": options.ticket}
    if hasattr(options, "wait"):
        found |= {
            "wait": options.wait,
            "dry_run": options.dry_run,
            "expected_version": options.expect_version,
        }
    return found


def tell_change(options: argparse.Namespace, answer: dict[str, Any]) -> int:
    """What a change came to; 7 where not every worker obeyed in time."""
    converged = answer.get("converged")
    code = NOT_CONVERGED if converged and not converged["complete"] else OK
    if options.output == "json":
        data(json.dumps(answer))
        return code
    for line in answer["differences"]:
        data(line)
    if not answer["changed"]:
        data("nothing to change")
    if answer["dry_run"]:
        for blast in answer.get("blast_radius", ()):
            data(_blast(blast))
        talk("dry run: nothing was changed")
    elif converged:
        line = f"{converged['obeying']}/{converged['workers']} workers on v{converged['version']}"
        data(f"{line}, slowest {converged['milliseconds']:.0f} ms")
        for missing in converged["missing"]:
            talk(missing)
    elif answer["changed"]:
        data(f"v{answer['version']}")
    return code


def _blast(blast: dict[str, Any]) -> str:
    if not blast["of_requests"]:
        return f"{blast['flag']}: no request was seen in the last 10 minutes, so what would move is not known"
    share = blast["requests"] / blast["of_requests"]
    requests = f"about {blast['requests']:,} of {blast['of_requests']:,} requests ({share:.1%})"
    keys = f"{blast['keys']:,} of {blast['of_keys']:,} keys"
    return f"{blast['flag']}: {requests} and {keys} seen in the last 10 minutes would move"


def tell_json(options: argparse.Namespace, answer: Any) -> bool:
    """Print `answer` as JSON if that is asked for; returns whether it was."""
    if options.output == "json":
        data(json.dumps(answer))
    return bool(options.output == "json")


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    lines = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        data("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def data(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def talk(line: str) -> None:
    sys.stderr.write(line + "\n")
