"""`crossfade apply -f flags.yaml`: the difference first, then all of it or nothing."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from typing import Any

from crossfade.commands.api import USAGE, ApiError
from crossfade.commands.telling import api, data, said, tell_change
from crossfade.settings_file import Document, Loc, read_document
from flags.document import InvalidFlagError, flag_from_json
from flags.stages import SHARE_FORM, ppm_of

_PART = re.compile(r"\[(\d+)\]|([^.\[\]]+)")


def apply(options: argparse.Namespace) -> int:
    document = read_document(options.file, None)
    _flags_of(document, {})  # what is wrong with the file is said before anybody is asked
    asked = api(options)
    seen = asked.get("/api/v1/flags")
    flags = _flags_of(document, {flag["key"]: flag for flag in seen["flags"]})
    body = {**said(options), "flags": flags}
    if body["expected_version"] is None:
        # What was seen, and is shown, is what is changed, or nothing is.
        body["expected_version"] = seen["version"]
    if options.dry_run or options.output == "json":
        return tell_change(options, asked.ask("POST", "/api/v1/apply", body))
    planned = asked.ask("POST", "/api/v1/apply", {**body, "dry_run": True})
    for line in planned["differences"]:
        data(line)
    return tell_change(options, {**asked.ask("POST", "/api/v1/apply", body), "differences": []})


def _flags_of(document: Document, known: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The flags of a file in the form of the API. Raises ApiError with a line for each thing wrong.

    Where a file does not say where a flag stands, or whether it asks for reports, `known` ones stay so.
    """
    wrong = [str(problem) for problem in document.problems]
    top = document.root.value
    listed = top.get("flags") if isinstance(top, dict) else None
    if not isinstance(top, dict) or not isinstance(listed, list):
        wrong = wrong or [f"{document.file}: expected one key, flags, with a list of flags"]
        listed, top = [], {}
    for key in top:
        if key != "flags":
            wrong.append(f"{document.where((key,))}: unknown; expected flags")
    flags: list[dict[str, Any]] = []
    for number, written in enumerate(listed):
        at = f"flags[{number}]"
        try:
            flags.append(_in_the_form_of_the_api(written, at, known))
            flag_from_json(flags[-1], at)
        except InvalidFlagError as error:
            wrong.append(f"{document.where(_loc(error.path, document))}: {error.message}")
    if wrong:
        raise ApiError(USAGE, "\n".join(wrong), word="invalid")
    return flags


def _in_the_form_of_the_api(written: Any, at: str, known: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """A flag as people write it: shares in percent."""
    if not isinstance(written, dict):
        raise InvalidFlagError(at, "expected a mapping with key, transition, …")
    flag = dict(written)
    before = known.get(flag["key"], {}) if isinstance(flag.get("key"), str) else {}
    at_legacy = {"from": "legacy", "to": "shadow", "weight_ppm": 0}
    flag["transition"] = (
        _transition(flag["transition"], f"{at}.transition")
        if "transition" in flag
        else before.get("transition", at_legacy)
    )
    flag.setdefault("needs_report", before.get("needs_report", False))
    if isinstance(flag.get("rules"), list):
        flag["rules"] = [
            {**rule, "transition": _transition(rule.get("transition"), f"{at}.rules[{n}].transition")}
            if isinstance(rule, dict)
            else rule
            for n, rule in enumerate(flag["rules"])
        ]
    if "fallback" in flag:
        share = flag.pop("fallback")
        off = share in (None, False, "off")
        flag["fallback_ppm"] = None if off else _ppm(share, f"{at}.fallback")
    if "mirror" in flag:
        flag["mirror_ppm"] = _ppm(flag.pop("mirror"), f"{at}.mirror")
    return flag


def _transition(written: Any, at: str) -> dict[str, Any]:
    if not isinstance(written, dict):
        raise InvalidFlagError(at, "expected {from: STAGE, to: STAGE, weight: SHARE}")
    found = dict(written)
    if "weight" in found:
        found["weight_ppm"] = _ppm(found.pop("weight"), f"{at}.weight")
    return found


def _ppm(share: Any, at: str) -> int:
    try:
        return ppm_of(share if isinstance(share, str) else "")
    except ValueError:
        raise InvalidFlagError(at, f"found {share}; {SHARE_FORM}") from None


def _loc(path: str, document: Document) -> Loc:
    """`flags[0].transition.weight_ppm` as the parts that stand in the file, where it may be `weight`."""
    loc: Loc = ()
    entry = document.root
    for number, name in _PART.findall(path):
        part: str | int = int(number) if number else name
        if part not in entry.children and str(part).removesuffix("_ppm") in entry.children:
            part = str(part).removesuffix("_ppm")
        loc += (part,)
        if part not in entry.children:
            break
        entry = entry.children[part]
    return loc
