"""`crossfade cutover …`: which side has the authority over the data, and the walk that moves it."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import quote

from crossfade.commands.api import ERROR, NOT_CONVERGED, OK, TRIPPED, USAGE, Api, ApiError
from crossfade.commands.live_view import watch
from crossfade.commands.telling import Paint, api, data, said, table, talk, tell_json, tell_next

LOOK_EVERY: Final = 0.2
"""Seconds."""
DATABASES_WITHIN: Final = 30.0
"""Seconds that looking at both databases, and putting fences up, may take besides."""
_COLOURS: Final = {"done": Paint.GOOD, "cancelled": Paint.WARNING}


def plan(options: argparse.Namespace) -> int:
    """Exit code 6 if something stands against it."""
    asked = api(options)
    found = asked.ask("GET", _cutover(asked, options, "plan"), patience=DATABASES_WITHIN)
    code = OK if found["possible"] else TRIPPED
    if tell_json(options, found):
        return code
    verdict = "nothing stands against it" if found["possible"] else "not now"
    data(f"{found['name']} to {found['towards']}: {verdict}")
    data(f"flags   {', '.join(found['flags'])}")
    data(f"tables  {', '.join(found['tables'])}")
    for what, key in (("the stream", "lag"), ("the way back", "lag_back")):
        lag = found[key]
        data(f"{what} needs {'?' if lag is None else f'{lag * 1000:.0f} ms'} for what is written now")
    if found["held_last"] is not None:
        data(f"the last time requests have waited for {found['held_last'] * 1000:.0f} ms")
    for one in found["blockers"]:
        data("")
        data(f"{one['reason']}: {one['message']}")
        data(f"       → {one['remedy']}")
    for one in found["asks"]:
        data("")
        data(f"a walk that is no rehearsal asks for {one['reason']}: {one['message']}")
        data(f"       → {one['remedy']}")
    tell_next(found["next"][:1] if not found["possible"] else found["next"])
    return code


def status(options: argparse.Namespace) -> int:
    asked = api(options)
    if options.key is None and not options.watch:
        found = asked.get("/api/v1/cutovers")
        if not tell_json(options, found):
            rows = (
                (one["name"], _side(one), one["phase"] or "-", one["generation"],
                 one["walks"][0]["state"] if one["walks"] else "-")
                for one in found["cutovers"]
            )  # fmt: skip
            table(("cutover", "authority", "phase", "generation", "last walk"), rows, _COLOURS)
            tell_next(found["next"])
        return OK
    path = _cutover(asked, options)
    if options.watch:
        return watch(options, asked, path, described, _in_a_line, LOOK_EVERY)
    found = asked.get(path)
    if not tell_json(options, found):
        for line in described(found):
            data(line)
        tell_next(found["next"])
    return OK


def _side(found: dict[str, Any]) -> str:
    if found["finished"] is not None:
        return f"finished; {found['finished']} has the data"
    return str(found["side"] or "not prepared")


def _in_a_line(found: dict[str, Any]) -> str:
    walk = f", walk {found['walks'][0]['id']} {found['walks'][0]['state']}" if found["walks"] else ""
    phase = "" if found["phase"] is None else f", {found['phase']}"
    return f"{found['name']} {_side(found)}, generation {found['generation']}{phase}{walk}"


def described(found: dict[str, Any]) -> list[str]:
    side = "nobody has prepared it" if found["side"] is None else f"{found['side']} has the authority"
    lines = [f"{found['name']}  {side}, generation {found['generation']}, {found['phase'] or '-'}"]
    if found["finished"] is not None:
        lines = [f"{found['name']}  {_side(found)}"]
    for walk in found["walks"][:5]:
        held = "" if walk["held_seconds"] is None else f", held {walk['held_seconds'] * 1000:.0f} ms"
        kind = " (rehearsal)" if walk["rehearsal"] else ""
        lines.append(
            f"  walk {walk['id']} to {walk['towards']}{kind}: {walk['state']}, {walk['took']:.1f} s{held}"
        )
        if walk["message"]:
            lines.append(f"    {walk['message']}")
    return lines


def prepare(options: argparse.Namespace) -> int:
    return _tell(options, _post(options, "prepare"))


def finish(options: argparse.Namespace) -> int:
    return _tell(options, _post(options, "finish"))


def abort(options: argparse.Namespace) -> int:
    """What has been decided by then goes on."""
    asked = api(options)
    body = _why(options)
    path = _cutover(asked, options)
    asked.ask("POST", f"{path}/abort", body)
    return _until_ended(options, asked, path, lambda walk: walk["state"] == "cancelled")


def run(options: argparse.Namespace) -> int:
    return _walk(options, "run")


def back(options: argparse.Namespace) -> int:
    if not options.accept_loss:
        return _walk(options, "back")
    asked = api(options)
    found = asked.ask("GET", _cutover(asked, options, "loss"), patience=DATABASES_WITHIN)
    leap = "legacy's sequences leap by 10000, beyond what new has given to rows that are lost"
    for line in (found["why"], found["in_words"], leap):
        talk(line)
    confirm = options.confirm
    if confirm is None:
        if not sys.stdin.isatty():
            raise ApiError(USAGE, f"this loses data: say --confirm {found['name']}", word="invalid")
        confirm = input(f"type {found['name']} to lose it: ").strip()
    if confirm != found["name"]:
        raise ApiError(USAGE, f"{confirm!r} is not {found['name']}: nothing was done", word="invalid")
    return _walk(options, "back", accept_loss=True, confirm=confirm)


def _walk(options: argparse.Namespace, what: str, **more: object) -> int:
    """Exit code 0 when it is done, 6 if it was cancelled, 7 if it has not ended in time (it goes on)."""
    asked = api(options)
    path = _cutover(asked, options)
    body = {**_why(options), "rehearse": options.rehearse, **more}
    asked.ask("POST", f"{path}/{what}", body, patience=DATABASES_WITHIN)
    return _until_ended(options, asked, path, _was_rehearsed if options.rehearse else _is_done)


def _is_done(walk: dict[str, Any]) -> bool:
    return bool(walk["state"] == "done")


def _was_rehearsed(walk: dict[str, Any]) -> bool:
    return str(walk["message"]).startswith("rehearsed")


def _until_ended(
    options: argparse.Namespace, asked: Api, path: str, went_well: Callable[[dict[str, Any]], bool]
) -> int:
    """Exit code 0 if the last walk has ended so, 6 if otherwise, 7 if it has not ended in time."""
    deadline = time.monotonic() + options.wait
    seen = None
    while True:
        try:
            found = asked.get(path)
        except ApiError as error:
            if not error.unreachable:
                raise
            found = None
        if found is not None:
            walk = found["walks"][0]
            if walk["state"] != seen:
                seen = walk["state"]
                talk(f"  {seen}")
            if walk["ended_at"] is not None:
                break
        if time.monotonic() > deadline:
            talk(f"it has not ended within {options.wait:g} s, and goes on: crossfade cutover status -w")
            if found is not None:
                _tell(options, found)
            return NOT_CONVERGED
        time.sleep(LOOK_EVERY)
    _tell(options, found)
    return OK if went_well(walk) else TRIPPED


def _why(options: argparse.Namespace) -> dict[str, Any]:
    """What is said of a walk. How long this command waits for its end is nothing to the API."""
    if not (options.reason or "").strip():
        raise ApiError(
            USAGE, "a change needs a reason", word="invalid", next_steps=("say why: --reason WHY",)
        )
    return {key: value for key, value in said(options).items() if key != "wait"}


def _post(options: argparse.Namespace, what: str) -> dict[str, Any]:
    asked = api(options)
    return asked.ask("POST", _cutover(asked, options, what), _why(options), patience=DATABASES_WITHIN)


def _tell(options: argparse.Namespace, found: dict[str, Any]) -> int:
    if not tell_json(options, found):
        for line in described(found):
            data(line)
        tell_next(found["next"])
    return OK


def _cutover(asked: Api, options: argparse.Namespace, what: str = "") -> str:
    """The path of the one that is named, or of the only one there is."""
    name = options.key
    if name is None:
        known = [one["name"] for one in asked.get("/api/v1/cutovers")["cutovers"]]
        if len(known) != 1:
            there = ", ".join(known)
            word = f"say which one: {there}" if known else "crossfade.yaml names no cutover: docs/cutover.md"
            raise ApiError(USAGE if known else ERROR, word, word="invalid")
        name = known[0]
    return f"/api/v1/cutovers/{quote(name, safe='')}" + (f"/{what}" if what else "")
