"""`crossfade shadow …`."""

from __future__ import annotations

import argparse

from crossfade.commands.telling import api, said, tell_change


def turn_off(options: argparse.Namespace) -> int:
    return tell_change(options, api(options).ask("POST", "/api/v1/shadow/off", said(options)))


def turn_on(options: argparse.Namespace) -> int:
    return tell_change(options, api(options).ask("POST", "/api/v1/shadow/on", said(options)))
