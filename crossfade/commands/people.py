"""`crossfade audit …` and `crossfade person …`."""

from __future__ import annotations

import argparse
import json
import time
from urllib.parse import quote

from crossfade.commands.api import ERROR, OK
from crossfade.commands.flags import audit_line
from crossfade.commands.telling import api, data, said, table, talk, tell_json, tell_next

FOLLOW_EVERY = 1.0
AT_ONCE = 1000


def tail(options: argparse.Namespace) -> int:
    asked = api(options)
    answer = asked.get("/api/v1/audit", limit=max(1, min(options.n, AT_ONCE)))
    if not options.follow and tell_json(options, answer):
        return OK
    last = 0
    try:
        while True:
            for row in answer["rows"]:
                data(json.dumps(row) if options.output == "json" else audit_line(row))
                last = row["seq"]
            if not options.follow:
                return OK
            time.sleep(FOLLOW_EVERY)
            answer = asked.get("/api/v1/audit", after=last, limit=AT_ONCE)
    except KeyboardInterrupt:
        return OK


def verify(options: argparse.Namespace) -> int:
    answer = api(options).get("/api/v1/audit/verify")
    if not tell_json(options, answer):
        if answer["intact"]:
            data(f"{answer['rows']} rows are as they were written; the last hash is {answer['hash']}")
        else:
            talk(f"the chain breaks at row {answer['seq']}: {answer['why']}")
        tell_next(answer["next"])
    return OK if answer["intact"] else ERROR


def list_people(options: argparse.Namespace) -> int:
    answer = api(options).get("/api/v1/people")
    if not tell_json(options, answer):
        rows = [
            (
                person["name"],
                person["role"],
                person["created_at"][:10],
                (person["last_used"] or "-")[:19],
                "revoked" if person["revoked_at"] else "",
            )
            for person in answer["people"]
        ]
        table(("name", "role", "since", "last used", ""), rows)
    return OK


def add(options: argparse.Namespace) -> int:
    body = {**said(options), "name": options.name, "role": options.role}
    answer = api(options).ask("POST", "/api/v1/people", body)
    if not tell_json(options, answer):
        data(answer["token"])
        talk(f"{answer['name']} is {answer['role']}")
        tell_next(answer["next"])
    return OK


def revoke(options: argparse.Namespace) -> int:
    answer = api(options).ask("DELETE", f"/api/v1/people/{quote(options.name, safe='')}", said(options))
    if not tell_json(options, answer):
        data(f"{options.name}: revoked")
    return OK
