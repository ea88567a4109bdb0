"""`crossfade flag …`."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any
from urllib.parse import quote

from crossfade.commands.api import OK, USAGE, ApiError
from crossfade.commands.live_view import watch
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
from flags.stages import percent, ppm_of


def list_flags(options: argparse.Namespace) -> int:
    answer = api(options).get("/api/v1/flags")
    if tell_json(options, answer):
        return OK
    _tell_trouble(answer)
    if kill := answer["kill"]:
        why = f"EVERYTHING IS KILLED by {kill['by']} since {kill['at']}: {kill['reason']}"
        data(paint(why, Paint.BAD, sys.stdout))
    if off := answer["shadow_off"]:
        why = f"nothing is mirrored, by {off['by']} since {off['at']}: {off['reason']}"
        data(paint(why, Paint.WARNING, sys.stdout))
    rows = [
        (flag["key"], flag["stands"], flag["version"], flag["owner"] or "-", _due(flag))
        for flag in answer["flags"]
        if not flag["archived"]
    ]
    table(
        ("flag", "stands", "version", "owner", "due"), rows, {"killed": Paint.BAD, "OVERDUE": Paint.WARNING}
    )
    talk(f"v{answer['version']}")
    tell_next(answer["next"])
    return OK


def _tell_trouble(answer: dict[str, Any]) -> None:
    if answer["trouble"] is not None:
        talk(f"this is what the instance goes on by, not what the store has: {answer['trouble']}")


def _due(flag: dict[str, Any]) -> str:
    return f"OVERDUE since {flag['expires_on']}" if flag["overdue"] else str(flag["expires_on"] or "-")


def _in_a_line(flag: dict[str, Any]) -> str:
    return f"{flag['key']} v{flag['version']} {flag['stands']}"


def get(options: argparse.Namespace) -> int:
    asked = api(options)
    if options.watch:
        return watch(options, asked, flag_path(options.key), described, _in_a_line)
    flag = asked.get(flag_path(options.key))
    if not tell_json(options, flag):
        _tell_trouble(flag)
        for line in described(flag):
            data(line)
        tell_next(flag["next"])
    return OK


def described(flag: dict[str, Any]) -> list[str]:
    bucketing = flag["bucketing"]
    by = ", ".join(bucketing["by"]) or "nothing"
    if bucketing["assign_cookie"]:
        by += f", else an assigned cookie {bucketing['assign_cookie']}"
    lines = [
        f"flag        {flag['key']} (version {flag['version']})",
        f"stands      {flag['stands']}",
        f"bucketed by {by}",
        f"fallback    {_share(flag['fallback_ppm'])}",
        f"mirrored    {percent(flag['mirror_ppm'])}",
        f"owner       {flag['owner'] or '-'}   ticket {flag['ticket'] or '-'}   due {_due(flag)}",
    ]
    if flag["needs_report"]:
        lines.append("asks for    a report before new may answer more (--report DIGEST)")
    if flag["kill"]:
        lines.append(f"killed      by {flag['kill']['by']} at {flag['kill']['at']}: {flag['kill']['reason']}")
    for one in flag["overrides"]:
        until = "" if one["expires_at"] is None else f" until {_moment(one['expires_at'])}"
        lines.append(f"override    {one['id']}: {one['when']} → {one['stage']}{until}")
    lines += [
        f"rule        {one['id']}: {one['when']} → {_place(one['transition'])}" for one in flag["rules"]
    ]
    if flag["description"]:
        lines.append(f"            {flag['description']}")
    return lines


def _share(ppm: int | None) -> str:
    return "off" if ppm is None else f"up to {ppm / 10_000:g}%"


def _place(transition: dict[str, Any]) -> str:
    share = f"{transition['weight_ppm'] / 10_000:g}%"
    return f"{transition['from']}→{transition['to']} at {share}"


def _moment(at: float) -> str:
    from datetime import UTC, datetime  # noqa: PLC0415

    over = ", which is over" if at < time.time() else ""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="minutes") + over


def move(options: argparse.Namespace) -> int:
    body = {**said(options), "to": options.to, "weight": share_ppm(options.weight)}
    return tell_change(options, api(options).ask("POST", flag_path(options.key, "move"), body))


def archive(options: argparse.Namespace) -> int:
    return tell_change(options, api(options).ask("POST", flag_path(options.key, "archive"), said(options)))


def create(options: argparse.Namespace) -> int:
    flag: dict[str, Any] = {
        "key": options.key,
        "transition": {"from": "legacy", "to": "shadow", "weight_ppm": 0},
        "bucketing": {"by": options.bucket_by or [], "assign_cookie": options.assign_cookie},
        "owner": options.owner or "",
        "ticket": options.flag_ticket or "",
        "expires_on": options.expires_on,
        "description": options.description or "",
    }
    if options.fallback not in (None, "off"):
        flag["fallback_ppm"] = share_ppm(options.fallback)
    if options.mirror is not None:
        flag["mirror_ppm"] = share_ppm(options.mirror)
    return tell_change(options, api(options).ask("POST", "/api/v1/flags", {**said(options), "flag": flag}))


def edit(options: argparse.Namespace) -> int:
    asked = api(options)
    body: dict[str, Any] = {
        **said(options),
        "owner": options.owner,
        "flag_ticket": options.flag_ticket,
        "expires_on": options.expires_on,
        "description": options.description,
        "no_fallback": options.fallback == "off",
        "fallback": None if options.fallback in (None, "off") else share_ppm(options.fallback),
        "mirror": None if options.mirror is None else share_ppm(options.mirror),
        "needs_report": None if options.needs_report is None else options.needs_report == "yes",
    }
    if options.bucket_by is not None or options.assign_cookie is not None:
        bucketing = asked.get(flag_path(options.key))["bucketing"]
        bucketing["by"] = bucketing["by"] if options.bucket_by is None else options.bucket_by
        if options.assign_cookie is not None:
            bucketing["assign_cookie"] = options.assign_cookie or None
        body["bucketing"] = bucketing
    return tell_change(options, asked.ask("PATCH", flag_path(options.key), body))


def history(options: argparse.Namespace) -> int:
    answer = api(options).get(flag_path(options.key, "history"))
    if not tell_json(options, answer):
        for row in answer["rows"]:
            data(audit_line(row))
    return OK


def audit_line(row: dict[str, Any]) -> str:
    """One audit row for a person."""
    versions = f" v{row['from_version']}→v{row['to_version']}" if row["to_version"] else ""
    refusal = f" {row['outcome'].upper()}: {row['refusal']}" if row["outcome"] != "applied" else ""
    who = f"{row['actor']['name']} ({row['actor']['type']})"
    objects = ",".join(row["objects"])
    what = f"{row['action']} {objects}{versions}{refusal}"
    return f"{row['seq']:>5} {row['at'][:19]} {who} {what} — {row['reason']}"


def explain(options: argparse.Namespace) -> int:
    headers = []
    for text in options.header:
        name, colon, value = text.partition(":")
        if not colon:
            raise ApiError(USAGE, f'"{text}" is no header; expected NAME:VALUE, such as X-Tenant:acme')
        headers.append((name.strip(), value.strip()))
    attributes = {}
    for text in options.attribute:
        name, sign, value = text.partition("=")
        if not sign:
            raise ApiError(USAGE, f'"{text}" is no attribute; expected NAME=VALUE, such as plan=pro')
        attributes[name] = value
    body = {
        "method": options.method, "target": options.target, "headers": headers, "client": options.client,
        "attributes": attributes,
    }  # fmt: skip
    answer = api(options).ask("POST", "/api/v1/explain", body)
    if tell_json(options, answer):
        return OK
    mirrored = f", mirrored to {answer['mirror']}" if answer["mirror"] else ""
    data(f"{answer['side']} answers{mirrored} (flag {answer['flag']}, reason {answer['reason']})")
    for step in answer["steps"]:
        data(f"  {'→' if step['decided'] else ' '} {step['what']}")
    tell_next(answer["next"])
    return OK


def share_ppm(share: str) -> int:
    try:
        return ppm_of(share)
    except ValueError as error:
        raise ApiError(USAGE, f'"{share}" is no share; {error}', word="invalid") from None


def flag_path(key: str, what: str = "") -> str:
    return f"/api/v1/flags/{quote(key, safe='')}" + (f"/{what}" if what else "")
