"""`crossfade shadow …`."""

from __future__ import annotations

import argparse
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from crossfade.commands.api import ERROR, OK, TRIPPED, USAGE, ApiError
from crossfade.commands.telling import (
    Paint,
    api,
    data,
    paint,
    said,
    table,
    talk,
    tell_change,
    tell_json,
    tell_next,
)

COLOURS = {"ready": Paint.GOOD, "not_ready": Paint.BAD, "not_enough_evidence": Paint.WARNING}
MARKS = {"open": Paint.BAD, "bug": Paint.BAD}


def turn_off(options: argparse.Namespace) -> int:
    return tell_change(options, api(options).ask("POST", "/api/v1/shadow/off", said(options)))


def turn_on(options: argparse.Namespace) -> int:
    return tell_change(options, api(options).ask("POST", "/api/v1/shadow/on", said(options)))


def status(options: argparse.Namespace) -> int:
    """What was compared, in a table."""
    report = _report(options)
    if tell_json(options, report):
        return OK
    _tell_routes(report)
    tell_next(report["next"])
    return OK


def report(options: argparse.Namespace) -> int:
    """The report; with --gate exit code 6 unless every route is ready."""
    from shadow.report import as_html, as_markdown  # noqa: PLC0415

    found = _report(options)
    code = OK if found["ready"] or not options.gate else TRIPPED
    form = "json" if options.output == "json" else options.format
    written = ""
    if form == "json":
        written = json.dumps(found, indent=2) + "\n"
    elif form != "text":
        written = as_html(found) if form == "html" else as_markdown(found)
    if options.to is not None:
        try:
            options.to.write_text(written or as_markdown(found), encoding="utf-8")
        except OSError as error:
            raise ApiError(ERROR, f"{options.to} cannot be written: {error.strerror}") from None
        talk(f"written to {options.to}, digest {found['digest']}")
    elif form == "text":
        _tell_routes(found)
        data(f"digest {found['digest']}")
    else:
        data(written.rstrip("\n"))
    if code == TRIPPED:
        talk(paint("crossfade: the gate is closed: not every route is ready", Paint.BAD, sys.stderr))
    tell_next(found["next"])
    return code


def _report(options: argparse.Namespace) -> dict[str, Any]:
    asked: dict[str, Any] = {"hours": options.hours}
    for name in ("flag", "rate", "pairs"):
        if getattr(options, name, None) is not None:
            asked[name] = getattr(options, name)
    if "rate" in asked:
        asked["rate"] = _share(asked["rate"])
    if getattr(options, "keep", False):
        why = {"reason": options.reason, "ticket": options.ticket}
        return api(options).ask("POST", "/api/v1/shadow/reports", {**asked, **why})
    return api(options).get("/api/v1/shadow/report", **asked)


def _share(text: str) -> float:
    from flags.stages import ppm_of  # noqa: PLC0415

    try:
        return ppm_of(text) / 1_000_000
    except ValueError as error:
        raise ApiError(USAGE, f"--rate {text}: {error}") from None


def _tell_routes(report: dict[str, Any]) -> None:
    rows = [
        (
            route["route"], route["flag"], route["readiness"], f"{route['pairs']:,}",
            f"{route['upper_bound']:.3%}", len(route["open"]), "; ".join(route["reasons"]) or "-",
        )
        for route in report["routes"]
    ]  # fmt: skip
    table(("route", "flag", "verdict", "pairs", "differ at most", "open", "why"), rows, COLOURS)
    if report["coverage"]:
        missing = [f"{one['method']} {one['path']}" for one in report["coverage"] if not one["pairs"]]
        of = len(report["coverage"])
        talk(f"{of - len(missing)} of {of} operations of the OpenAPI document were compared")
        if missing:
            talk(f"never: {', '.join(missing[:20])}{' …' if len(missing) > 20 else ''}")
    for flag, counts in report["skipped"].items():
        reasons = ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items()))
        talk(f"not mirrored, {flag}: {reasons}")


def diffs(options: argparse.Namespace) -> int:
    answer = api(options).get("/api/v1/shadow/categories", flag=options.flag)
    if tell_json(options, answer):
        return OK
    rows = [
        (
            one["id"], one["mark"], one["route"], one["path"], one["kind"], f"{one['count']:,}",
            _moment(one["last_seen"]),
        )
        for one in answer["categories"]
    ]  # fmt: skip
    table(("id", "mark", "route", "place", "kind", "times", "last seen"), rows, MARKS)
    tell_next(answer["next"])
    return OK


def show(options: argparse.Namespace) -> int:
    answer = api(options).get(_category(options.id))
    if tell_json(options, answer):
        return OK
    place = f"{answer['path']} ({answer['kind']}) on {answer['route']}, flag {answer['flag']}"
    data(f"{place}: {answer['count']:,} times")
    if answer["mark"] != "open":
        data(f"marked {answer['mark']} by {answer['mark_by']}: {answer['mark_reason']}")
    if answer["ruled"]:
        data(answer["ruled"])
    for sample in answer["samples"]:
        asked = sample["exhibit"]["asked"]
        data("")
        data(f"{asked['method']} {asked['target']}")
        for side in ("legacy", "new"):
            one = sample["exhibit"][side]
            data(f"  {side:<6}  {one['trouble'] or one['status']}  {one['seconds'] * 1000:.0f} ms")
        for one in sample["differences"]:
            data(f"  {one['path']}  {one['kind']}")
            data(f"    legacy  {one['legacy']}")
            data(f"    new     {one['new']}")
    tell_next(answer["next"])
    return OK


def replay(options: argparse.Namespace) -> int:
    """Ask both sides again; exit code 6 where something still differs as it did, or none could be asked."""
    headers = [_header(text) for text in options.header]
    answer = api(options).ask("POST", _category(options.id, "replay"), {"headers": headers}, patience=60.0)
    code = OK if answer["asked"] and answer["gone"] == answer["asked"] else TRIPPED
    if tell_json(options, answer):
        return code
    for one in answer["replayed"]:
        as_before = ", as before" if one["still"] and not one["trouble"] else ""
        data(f"{one['method']} {one['target']}: {one['trouble'] or one['verdict']}{as_before}")
        for each in one["differences"]:
            data(f"  {each['path']}  {each['kind']}")
            data(f"    legacy  {each['legacy']}")
            data(f"    new     {each['new']}")
        if one["left_out"]:
            talk(f"  sent without {', '.join(one['left_out'])}, which are secret and not kept")
    data(f"{answer['gone']} of {answer['asked']} do not differ any more as they did")
    tell_next(answer["next"])
    return code


def _header(text: str) -> list[str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise ApiError(USAGE, f'"{text}" is no field; expected NAME: VALUE')
    return [name.strip(), value.strip()]


def mark(options: argparse.Namespace) -> int:
    body = {**said(options), "mark": options.mark, "expires": options.expires}
    answer = api(options).ask("POST", _category(options.id, "mark"), body)
    if not tell_json(options, answer):
        data(f"{answer['id']}: {answer['mark']}")
        tell_next(answer["next"])
    return OK


def rules(options: argparse.Namespace) -> int:
    answer = api(options).get("/api/v1/shadow/rules")
    if tell_json(options, answer):
        return OK
    rows = []
    for one in answer["rules"]:
        rule = one["definition"]
        until = rule["expires_on"] or "-"
        held = until if one["holds"] else f"EXPIRED {until}"
        rows.append(
            (rule["id"], rule["kind"], rule["route"], rule["path"], one["source"], held, rule["reason"])
        )
    table(("rule", "kind", "route", "place", "from", "until", "why"), rows, {"EXPIRED": Paint.WARNING})
    for trouble in answer["trouble"]:
        talk(trouble)
    return OK


def rule_set(options: argparse.Namespace) -> int:
    text = options.rule
    try:
        rule = json.loads(Path(text[1:]).read_text(encoding="utf-8") if text.startswith("@") else text)
    except (OSError, ValueError) as error:
        form = '\'{"id": "times", "kind": "same_shape", "path": "$..updated_at"}\' or @FILE'
        raise ApiError(USAGE, f"{text}: {error}; expected JSON such as {form}") from None
    answer = api(options).ask("POST", "/api/v1/shadow/rules", {**said(options), "rule": rule})
    if not tell_json(options, answer):
        data(f"{answer['id']}: set")
        tell_next(answer["next"])
    return OK


def rule_delete(options: argparse.Namespace) -> int:
    path = f"/api/v1/shadow/rules/{quote(options.id, safe='')}"
    answer = api(options).ask("DELETE", path, said(options))
    if not tell_json(options, answer):
        data(f"{answer['id']}: deleted")
    return OK


def _category(name: str, what: str = "") -> str:
    return f"/api/v1/shadow/categories/{quote(name, safe='')}" + (f"/{what}" if what else "")


def _moment(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
