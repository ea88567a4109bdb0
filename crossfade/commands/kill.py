"""`crossfade kill` and `unkill`: on this host at once, by the supervisor; then in the store, for all hosts.

Whoever gives `--token` or a condition wants to be asked first: they go by the store, and by this host only
where the store cannot be asked. An address is another host's, so nothing is done on this one. A token that is
only in the environment delays nobody: whoever may use this host's socket may kill here.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from crossfade.commands.api import (
    ANSWER_WITHIN,
    ERROR,
    NOT_CONVERGED,
    NOT_FOUND,
    OK,
    ApiError,
    at_an_address,
    data_dir_of,
    user,
)
from crossfade.commands.flags import flag_path
from crossfade.commands.telling import api, data, said, talk, tell_change


def kill(options: argparse.Namespace) -> int:
    order = {"do": "kill", "flag": _key(options), "reason": options.reason, "by": user()}
    here = _order(options, order) if _at_once(options) else None
    if here is not None:
        if options.output == "text":
            _tell(here)
        if here["code"] not in (OK, NOT_CONVERGED):
            return _end(options, here, None)
    try:
        answer = api(options).ask("POST", _path(options, "kill"), said(options))
    except ApiError as error:
        refused = error.word in ("denied", "unauthorized")
        if not (error.unreachable or (refused and here)) or options.dry_run:
            raise
        if at_an_address(options):
            raise _elsewhere(error, "kill") from None
        talk(f"crossfade: {error}")
        if here is None:
            here = _order(options, order)
            if options.output == "text":
                _tell(here)
        talk("crossfade: this host tells the store, and so the other hosts, as soon as it can be asked")
        return _end(options, here, None)
    return _end(options, here, answer)


def unkill(options: argparse.Namespace) -> int:
    """First here: a kill that the store does not know yet would be carried there afterwards."""
    order = {"do": "unkill", "flag": _key(options), "reason": options.reason, "by": user()}
    here = _order(options, order) if _at_once(options) else None
    try:
        answer = api(options).ask("POST", _path(options, "unkill"), said(options))
    except ApiError as error:
        if not error.unreachable or options.dry_run:
            if here is not None and options.output == "text":
                _tell(here)
            raise
        if at_an_address(options):
            raise _elsewhere(error, "unkill") from None
        talk(f"crossfade: {error}")
        here = here or _order(options, order)
        if options.output == "text":
            _tell(here)
        return _end(options, here, None)
    return _end(options, None, answer)


def _elsewhere(error: ApiError, command: str) -> ApiError:
    """That host cannot be asked from here; on it, its supervisor can."""
    there = f"on that host itself, without --api and CROSSFADE_API: crossfade {command} …"
    return ApiError(error.code, str(error), word=error.word, next_steps=(there,), unreachable=True)


def _at_once(options: argparse.Namespace) -> bool:
    return not (options.dry_run or options.expect_version or options.token or at_an_address(options))


def _end(options: argparse.Namespace, here: dict[str, Any] | None, answer: dict[str, Any] | None) -> int:
    """`here` is what this host has said and `answer` what the store has; one JSON object for both."""
    code = OK if here is None else int(here["code"])
    if options.output == "json":
        data(json.dumps({**(answer or {}), "here": here}))
        converged = (answer or {}).get("converged")
        return NOT_CONVERGED if converged and not converged["complete"] else code
    if answer is None:
        return code
    if here is not None:
        # Whether this host or this command told the store first says nothing to anybody.
        answer = {**answer, "changed": True, "differences": []}
    return tell_change(options, answer) or code


def _order(options: argparse.Namespace, order: dict[str, Any]) -> dict[str, Any]:
    from crossfade import instance  # noqa: PLC0415

    try:
        answer = instance.ask(data_dir_of(options.config), order, ANSWER_WITHIN)
    except instance.NothingRunningError as error:
        again = (f"crossfade up -c {options.config}",)
        raise ApiError(NOT_FOUND, str(error), word="not_running", next_steps=again) from None
    except (instance.NoAnswerError, TimeoutError, OSError) as error:
        raise ApiError(ERROR, str(error)) from None
    return {key: answer[key] for key in ("code", "word", "lines")}


def _tell(outcome: dict[str, Any]) -> None:
    for line in outcome["lines"]:
        (data if outcome["code"] == OK else talk)(line)


def _key(options: argparse.Namespace) -> str | None:
    key: str | None = None if getattr(options, "all", False) else options.key
    return key


def _path(options: argparse.Namespace, what: str) -> str:
    key = _key(options)
    return f"/api/v1/{what}" if key is None else flag_path(key, what)
