"""`crossfade flag …`, `kill`, `unkill` and `apply`."""

from __future__ import annotations

import argparse
import getpass
import re
import sys
import time
from typing import Any
from urllib.parse import quote

from crossfade.commands.api import (
    ANSWER_WITHIN,
    ERROR,
    NOT_CONVERGED,
    OK,
    USAGE,
    Api,
    ApiError,
    data_dir_of,
    own_token,
)
from crossfade.commands.telling import api, data, said, table, talk, tell_change, tell_json

WATCH_EVERY = 1.0


def list_flags(options: argparse.Namespace) -> int:
    answer = api(options).get("/api/v1/flags")
    if tell_json(options, answer):
        return OK
    if answer["kill"]:
        data(f"EVERYTHING IS KILLED by {answer['kill']['by']}: {answer['kill']['reason']}")
    rows = [
        (flag["key"], flag["stands"], flag["version"], flag["owner"] or "-", _due(flag))
        for flag in answer["flags"]
        if not flag["archived"]
    ]
    table(("flag", "stands", "version", "owner", "due"), rows)
    talk(f"v{answer['version']}")
    return OK


def _due(flag: dict[str, Any]) -> str:
    due = flag["expires_on"]
    if due is None:
        return "-"
    return f"{due} OVERDUE" if due < time.strftime("%Y-%m-%d", time.gmtime()) else str(due)


def get(options: argparse.Namespace) -> int:
    asked = api(options)
    path = _path(options.key)
    if not options.watch:
        flag = asked.get(path)
        if not tell_json(options, flag):
            for line in _described(flag):
                data(line)
        return OK
    return _watch(options, asked, path)


def _watch(options: argparse.Namespace, asked: Api, path: str) -> int:
    """Redraw on a terminal; anywhere else one line for each change."""
    terminal = sys.stdout.isatty() and options.output == "text"
    shown: object = None
    try:
        while True:
            flag = asked.get(path)
            status = asked.get("/api/v1/proxy")
            running = sorted({worker["flags_version"] for worker in status["workers"]})
            lines = [*_described(flag), f"workers     v{_list(running)}"]
            if terminal:
                data("\x1b[H\x1b[2J" + "\n".join([*lines, "", "Ctrl-C ends this"]))
            elif (now := (flag["version"], flag["stands"], running)) != shown:
                shown = now
                if not tell_json(options, flag):
                    data(f"{flag['key']} v{flag['version']} {flag['stands']}, workers v{_list(running)}")
            time.sleep(WATCH_EVERY)
    except KeyboardInterrupt:
        return OK


def _list(versions: list[int]) -> str:
    return ", v".join(map(str, versions))


def _described(flag: dict[str, Any]) -> list[str]:
    bucketing = flag["bucketing"]
    by = ", ".join(bucketing["by"]) or "nothing"
    if bucketing["assign_cookie"]:
        by += f", else an assigned cookie {bucketing['assign_cookie']}"
    lines = [
        f"flag        {flag['key']} (version {flag['version']})",
        f"stands      {flag['stands']}",
        f"bucketed by {by}",
        f"fallback    {_share(flag['fallback_ppm'])}",
        f"owner       {flag['owner'] or '-'}   ticket {flag['ticket'] or '-'}   due {_due(flag)}",
    ]
    if flag["kill"]:
        lines.append(f"killed      by {flag['kill']['by']} at {flag['kill']['at']}: {flag['kill']['reason']}")
    lines += [f"override    {one['id']}: {one['when']} → {one['stage']}" for one in flag["overrides"]]
    lines += [f"rule        {one['id']}: {one['when']} → {one['transition']}" for one in flag["rules"]]
    if flag["description"]:
        lines.append(f"            {flag['description']}")
    return lines


def _share(ppm: int | None) -> str:
    return "off" if ppm is None else f"up to {ppm / 10_000:g}%"


def move(options: argparse.Namespace) -> int:
    body = {**said(options), "to": options.to, "weight": options.weight}
    return tell_change(options, api(options).ask("POST", _path(options.key, "move"), body))


def archive(options: argparse.Namespace) -> int:
    return tell_change(options, api(options).ask("POST", _path(options.key, "archive"), said(options)))


def kill(options: argparse.Namespace) -> int:
    """On this host at once, by the supervisor; then in the store, for all hosts.

    Whoever brings a token of their own, or a condition, is somewhere else or wants to be sure first: they
    go by the store, and by this host only where the store cannot be asked.
    """
    key = None if getattr(options, "all", False) else options.key
    path = "/api/v1/kill" if key is None else _path(key, "kill")
    order = {"do": "kill", "flag": key, "reason": options.reason, "by": _user()}
    at_once = not (options.dry_run or options.expect_version or own_token(options))
    code = _order(options, order) if at_once else OK
    if code not in (OK, NOT_CONVERGED):
        return code
    try:
        answer = api(options).ask("POST", path, said(options))
    except ApiError as error:
        if not error.unreachable or options.dry_run:
            raise
        talk(f"crossfade: {error}")
        if not at_once:
            code = _order(options, order)
        talk("crossfade: the other hosts get it when the store is back; this one tells it")
        return code
    return tell_change(options, answer)


def unkill(options: argparse.Namespace) -> int:
    key = None if getattr(options, "all", False) else options.key
    path = "/api/v1/unkill" if key is None else _path(key, "unkill")
    try:
        return tell_change(options, api(options).ask("POST", path, said(options)))
    except ApiError as error:
        if not error.unreachable or options.dry_run:
            raise
        talk(f"crossfade: {error}")
    return _order(options, {"do": "unkill", "flag": key})


def _order(options: argparse.Namespace, order: dict[str, Any]) -> int:
    from crossfade import instance  # noqa: PLC0415

    try:
        answer = instance.ask(data_dir_of(options.config), order, ANSWER_WITHIN)
    except (instance.NothingRunningError, instance.NoAnswerError, TimeoutError, OSError) as error:
        raise ApiError(ERROR, str(error)) from None
    if not tell_json(options, {key: answer[key] for key in ("code", "word", "lines")}):
        for line in answer["lines"]:
            (data if answer["code"] == OK else talk)(line)
    return int(answer["code"])


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
        "fallback": None if options.fallback in (None, "off") else options.fallback,
    }
    if options.bucket_by is not None or options.assign_cookie is not None:
        bucketing = asked.get(_path(options.key))["bucketing"]
        bucketing["by"] = bucketing["by"] if options.bucket_by is None else options.bucket_by
        if options.assign_cookie is not None:
            bucketing["assign_cookie"] = options.assign_cookie or None
        body["bucketing"] = bucketing
    return tell_change(options, asked.ask("PATCH", _path(options.key), body))


def history(options: argparse.Namespace) -> int:
    answer = api(options).get(_path(options.key, "history"))
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
    attributes = dict(text.split("=", 1) for text in options.attribute if "=" in text)
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
    return OK


def apply(options: argparse.Namespace) -> int:
    import yaml  # noqa: PLC0415

    try:
        found = yaml.safe_load(options.file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ApiError(USAGE, f"{options.file}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ApiError(USAGE, f"{options.file}: {error}") from None
    if not isinstance(found, dict) or not isinstance(found.get("flags"), list) or set(found) != {"flags"}:
        raise ApiError(USAGE, f"{options.file}: expected one key, flags, with a list of flags")
    flags = [_flag_of_the_file(flag, f"{options.file}: flags[{n}]") for n, flag in enumerate(found["flags"])]
    asked = api(options)
    if not options.dry_run and options.output == "text":
        # What will change comes first; the order of both is kept by the set's version.
        planned = asked.ask("POST", "/api/v1/apply", {**said(options), "flags": flags, "dry_run": True})
        for line in planned["differences"]:
            data(line)
        body = {**said(options), "flags": flags}
        if body["expected_version"] is None and planned["changed"]:
            body["expected_version"] = planned["version"] - 1
        answer = asked.ask("POST", "/api/v1/apply", body)
        return tell_change(options, {**answer, "differences": []})
    return tell_change(options, asked.ask("POST", "/api/v1/apply", {**said(options), "flags": flags}))


def _flag_of_the_file(flag: Any, where: str) -> dict[str, Any]:
    """A flag as people write it: shares in percent, and dates without quotes."""
    if not isinstance(flag, dict):
        raise ApiError(USAGE, f"{where}: expected a mapping with key, transition, …")
    found = dict(flag)
    found.setdefault("transition", {"from": "legacy", "to": "shadow", "weight": "0%"})
    found["transition"] = _transition(found["transition"], f"{where}.transition")
    if isinstance(found.get("rules"), list):
        found["rules"] = [
            {**rule, "transition": _transition(rule.get("transition"), f"{where}.rules[{n}].transition")}
            if isinstance(rule, dict)
            else rule
            for n, rule in enumerate(found["rules"])
        ]
    if "fallback" in found:
        share = found.pop("fallback")
        found["fallback_ppm"] = None if share in (None, False, "off") else share_ppm(share)
    for name in ("expires_on",):
        if found.get(name) is not None:
            found[name] = str(found[name])
    return found


def _transition(transition: Any, where: str) -> Any:
    if not isinstance(transition, dict):
        raise ApiError(USAGE, f"{where}: expected {{from: STAGE, to: STAGE, weight: SHARE}}")
    found = dict(transition)
    if "weight" in found:
        found["weight_ppm"] = share_ppm(found.pop("weight"))
    return found


def share_ppm(share: Any) -> int:
    percent = re.fullmatch(r"(\d{1,3})(?:\.(\d{1,4}))?\s*%", str(share).strip())
    if percent:
        return int(percent[1]) * 10_000 + int((percent[2] or "").ljust(4, "0"))
    if isinstance(share, int) or str(share).isdigit():
        return int(share)
    raise ApiError(USAGE, f'"{share}" is no share; expected one such as 5% or 0.01%')


def _path(key: str, what: str = "") -> str:
    return f"/api/v1/flags/{quote(key, safe='')}" + (f"/{what}" if what else "")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "somebody"
