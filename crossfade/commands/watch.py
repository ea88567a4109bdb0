"""`crossfade ramp …` and `crossfade guardrail …`."""

from __future__ import annotations

import argparse
import re
import sys
import time
from typing import Any
from urllib.parse import quote

from crossfade.commands.api import ERROR, NOT_CONVERGED, OK, TRIPPED, USAGE, Api, ApiError
from crossfade.commands.flags import share_ppm
from crossfade.commands.telling import Paint, api, data, paint, said, table, talk, tell_json, tell_next

_STEP = re.compile(r"(?P<share>[\d.]+\s*%)(:(?P<hold>\d+)(?P<unit>[smhd])(:(?P<requests>\d+))?)?")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
LOOK_EVERY = 0.5
"""Seconds between two looks at a ramp that is waited for."""
COLOURS = {
    "ok": Paint.GOOD, "running": Paint.GOOD, "done": Paint.GOOD,
    "held": Paint.WARNING, "paused": Paint.WARNING, "insufficient_data": Paint.FAINT,
    "tripped": Paint.BAD, "dry_run_tripped": Paint.WARNING, "aborted": Paint.WARNING,
}  # fmt: skip
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_WINDOW = re.compile(r"(?P<days>[A-Za-z,-]+):(?P<opens>\d\d:\d\d)-(?P<closes>\d\d:\d\d)(@(?P<zone>\S+))?")


def ramp_start(options: argparse.Namespace) -> int:
    body = {
        **said(options),
        "to": options.to,
        "steps": [_step(text) for text in options.steps.split(",")],
        "windows": [_window(text) for text in options.window],
    }
    return _tell_ramp(options, api(options).ask("POST", _ramp(options.key), body))


def ramp_status(options: argparse.Namespace) -> int:
    if options.wait is not None and not options.key:
        raise ApiError(
            USAGE, "--wait is for the ramp of one flag; name it: crossfade ramp status FLAG --wait"
        )
    asked = api(options)
    if options.key and options.wait is not None:
        return _wait_for(options, asked)
    if options.key:
        return _tell_ramp(options, asked.get(_ramp(options.key)))
    answer = asked.get("/api/v1/ramps")
    if not tell_json(options, answer):
        rows = [(r["flag"], r["state"], _at(r), r["held_reason"] or "-") for r in answer["ramps"]]
        table(("flag", "state", "step", "why"), rows, COLOURS)
        tell_next(answer["next"])
    return OK


def _wait_for(options: argparse.Namespace, asked: Api) -> int:
    """Until the ramp has ended, a guardrail stands against it, or the time is over; 0 only if it is done."""
    deadline = time.monotonic() + options.wait
    ramp = asked.get(_ramp(options.key))
    lost = False
    while ramp["ended_at"] is None and time.monotonic() < deadline:
        try:
            if ramp["state"] == "paused" and _stopped_by_a_guardrail(asked, options.key):
                _tell_ramp(options, ramp)
                return TRIPPED
            time.sleep(LOOK_EVERY)
            ramp = asked.get(_ramp(options.key))
            lost = False
        except ApiError as error:
            if not error.unreachable:
                raise
            if not lost:
                talk(f"crossfade: {error}; still waiting")
            lost = True
            time.sleep(LOOK_EVERY)
    code = _tell_ramp(options, ramp)
    if ramp["ended_at"] is None:
        return NOT_CONVERGED
    return ERROR if ramp["state"] == "aborted" else code


def _stopped_by_a_guardrail(asked: Api, flag: str) -> bool:
    found = asked.get("/api/v1/guardrails", flag=flag)["guardrails"]
    return any(one["state"] == "tripped" and one["definition"]["action"] != "alert" for one in found)


def ramp_pause(options: argparse.Namespace) -> int:
    return _tell_ramp(options, api(options).ask("POST", _ramp(options.key, "pause"), said(options)))


def ramp_resume(options: argparse.Namespace) -> int:
    return _tell_ramp(options, api(options).ask("POST", _ramp(options.key, "resume"), said(options)))


def ramp_abort(options: argparse.Namespace) -> int:
    body = {**said(options), "stay": options.stay}
    return _tell_ramp(options, api(options).ask("POST", _ramp(options.key, "abort"), body))


def _step(text: str) -> dict[str, Any]:
    found = _STEP.fullmatch(text.strip())
    if not found:
        raise ApiError(
            USAGE,
            f'"{text}" is no step; expected SHARE, SHARE:HOLD or SHARE:HOLD:REQUESTS, such as 5%:10m:500, '
            "where HOLD has one of the units s, m, h and d",
        )
    hold = int(found["hold"] or 0) * _UNITS[found["unit"] or "s"]
    return {
        "weight_ppm": share_ppm(found["share"]),
        "hold": hold,
        "min_requests": int(found["requests"] or 0),
    }


def _window(text: str) -> dict[str, Any]:
    found = _WINDOW.fullmatch(text.strip())
    if not found:
        expected = "mon-fri:09:00-16:00, or with its zone mon-fri:09:00-16:00@Europe/Berlin"
        raise ApiError(USAGE, f'"{text}" is no window; expected one such as {expected}')
    days: list[str] = []
    for part in found["days"].lower().split(","):
        first, _, last = part.partition("-")
        if first not in DAYS or (last and last not in DAYS):
            raise ApiError(USAGE, f'"{part}" is no day; expected some of {", ".join(DAYS)}')
        begin, end = DAYS.index(first), DAYS.index(last or first)
        days += DAYS[begin : end + 1] if begin <= end else (*DAYS[begin:], *DAYS[: end + 1])
    return {"days": days, "from": found["opens"], "to": found["closes"], "zone": found["zone"] or "UTC"}


def _tell_ramp(options: argparse.Namespace, ramp: dict[str, Any]) -> int:
    code = TRIPPED if ramp["state"] == "tripped" else OK
    if tell_json(options, ramp):
        return code
    data(f"{ramp['flag']}: {paint(ramp['state'], COLOURS.get(ramp['state']), sys.stdout)}, {_at(ramp)}")
    if ramp["held_reason"]:
        data(f"  {ramp['held_reason']}")
    for number, step in enumerate(ramp["steps"], 1):
        mark = "→" if number == ramp["step"] else " "
        share = f"{step['weight_ppm'] / 10_000:g}%"
        data(f"  {mark} {share}, at least {step['hold']:g} s and {step['min_requests']} requests")
    if ramp["dry_run"]:
        talk("dry run: nothing was changed")
    tell_next(ramp["next"])
    return code


def _at(ramp: dict[str, Any]) -> str:
    step, of = ramp["step"], len(ramp["steps"])
    return f"step {step} of {of}" if step else f"before step 1 of {of}"


def _ramp(key: str, what: str = "") -> str:
    return f"/api/v1/ramps/{quote(key, safe='')}" + (f"/{what}" if what else "")


def guardrails(options: argparse.Namespace) -> int:
    answer = api(options).get("/api/v1/guardrails", flag=options.key)
    if not tell_json(options, answer):
        rows = [(g["id"], g["flag"], g["state"], g["definition"]["action"], g["message"] or "-")
                for g in answer["guardrails"]]  # fmt: skip
        table(("guardrail", "flag", "state", "action", "what it sees"), rows, COLOURS)
        tell_next(answer["next"])
    return OK


def guardrail_set(options: argparse.Namespace) -> int:
    definition: dict[str, Any] = {
        "signal": options.signal,
        "action": options.action,
        "mode": "dry_run" if options.dry_run_mode else "enforce",
    }
    for name in ("tolerance", "alpha", "min_requests", "ceiling", "latency_over"):
        if getattr(options, name) is not None:
            definition[name] = getattr(options, name)
    name = options.id or f"{options.key}:{options.signal}"
    body = {**said(options), "flag": options.key, "definition": definition}
    return _tell_guardrail(options, api(options).ask("PUT", _guardrail(name), body))


def guardrail_rearm(options: argparse.Namespace) -> int:
    return _tell_guardrail(options, api(options).ask("POST", _guardrail(options.id, "rearm"), said(options)))


def guardrail_delete(options: argparse.Namespace) -> int:
    answer = api(options).ask("DELETE", _guardrail(options.id), said(options))
    if not tell_json(options, answer):
        data(f"{options.id}: deleted")
    return OK


def _tell_guardrail(options: argparse.Namespace, watch: dict[str, Any]) -> int:
    if not tell_json(options, watch):
        data(f"{watch['id']}: {watch['state']}" + (f", {watch['message']}" if watch["message"] else ""))
        if watch["dry_run"]:
            talk("dry run: nothing was changed")
        tell_next(watch["next"])
    return OK


def _guardrail(name: str, what: str = "") -> str:
    return f"/api/v1/guardrails/{quote(name, safe='')}" + (f"/{what}" if what else "")
