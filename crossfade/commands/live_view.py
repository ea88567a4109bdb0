"""`-w`: a flag, or a cutover, as it changes."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

from crossfade.commands.api import OK, Api, ApiError
from crossfade.commands.telling import Paint, api, data, paint, talk, tell_json

LOOK_EVERY = 1.0
_ABOVE = "\x1b[H\x1b[2J"
"""To the upper left corner, and nothing below it."""


def watch(
    options: argparse.Namespace,
    asked: Api,
    path: str,
    described: Callable[[dict[str, Any]], list[str]],
    in_a_line: Callable[[dict[str, Any]], str],
    every: float = LOOK_EVERY,
) -> int:
    """Redraw on a terminal; anywhere else print `in_a_line` whenever it is another one. Outlives a restart.

    Raises ApiError for what waiting does not mend.
    """
    terminal = sys.stdout.isatty() and options.output == "text"
    shown: object = None
    lines: list[str] = []
    try:
        while True:
            try:
                found, running = asked.get(path), _running(asked)
            except ApiError as error:
                if not error.unreachable:
                    raise
                lost = f"no answer since {time.strftime('%H:%M:%S')}: {error}"
                if terminal:
                    data(_ABOVE + "\n".join([*lines, "", paint(lost, Paint.BAD, sys.stdout)]))
                elif shown != "lost":
                    talk(lost)
                shown = "lost"
                time.sleep(LOOK_EVERY)
                asked = _again(options, asked)
                continue
            lines = [*described(found), f"workers     {running}"]
            seen = f"{in_a_line(found)}, workers {running}"
            if terminal:
                foot = paint(f"{time.strftime('%H:%M:%S')}, Ctrl-C ends this", Paint.FAINT, sys.stdout)
                data(_ABOVE + "\n".join([*lines, "", foot]))
            elif seen != shown and not tell_json(options, found):
                data(seen)
            shown = seen
            time.sleep(every)
    except KeyboardInterrupt:
        return OK


def _running(asked: Api) -> str:
    """Which versions of the flag set the workers decide by."""
    status: dict[str, Any] = asked.get("/api/v1/proxy")
    return ", ".join(f"v{version}" for version in sorted({w["flags_version"] for w in status["workers"]}))


def _again(options: argparse.Namespace, asked: Api) -> Api:
    """The instance may have come back at another address."""
    try:
        return api(options)
    except ApiError:
        return asked
