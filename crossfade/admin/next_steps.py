"""What can be done next, as commands. Part of every answer: whoever got one is in the middle of a move."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from crossfade.store.changes import Applied
from crossfade.store.guardrails import LATCHED, Watch
from crossfade.store.ramps import RampRow
from flags.change import (
    Apply,
    Archive,
    Command,
    Create,
    DropAuthority,
    Edit,
    KillAll,
    KillFlag,
    Move,
    SetAuthority,
    ShadowOff,
    ShadowOn,
    Unkill,
    UnkillAll,
)
from flags.model import Flag, FlagSet, Transition
from flags.ramp import ENDED, RampState
from flags.stages import percent, reachable

WHY = "--reason WHY"
LOOK = "crossfade doctor"

AFTER_REFUSAL: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "not_found": ("look what there is: crossfade flag list, ramp status, guardrail list or person list",),
        "archived": ("crossfade flag create with another key",),
        "exists": ("crossfade flag edit changes what is there",),
        "stage_jump": ("move to a stage that the message names, settle there, then go on",),
        "conflict": (
            "look again, and whether it is still wanted: crossfade flag get, ramp status, cutover status -w",
        ),
        "invalid": (
            "correct what the message names and ask again",
            "the form of each request: GET /api/v1/openapi.json",
        ),
        "malformed": ("send one JSON object", "the form of each request: GET /api/v1/openapi.json"),
        "guardrail_tripped": (
            "look why: crossfade guardrail list",
            f"then crossfade guardrail rearm ID {WHY}",
        ),
        "report_needed": (
            f"crossfade shadow report --flag FLAG --keep {WHY}",
            "then the same with --report and the digest that it prints",
        ),
        "under_authority": ("crossfade cutover status",),
        "blocked": ("mend what the message names, then look again: crossfade cutover plan",),
        "denied": (f"an admin gives roles: crossfade person add NAME --role ROLE {WHY}",),
        "unauthorized": (
            "send Authorization: Bearer TOKEN",
            f"an admin makes tokens: crossfade person add NAME --role ROLE {WHY}",
        ),
        "no_path": ("what there is: GET /api/v1/openapi.json",),
        "too_large": ("send less than 1 MB",),
        "no_store": (LOOK, f"in an emergency, on the host itself: crossfade kill FLAG {WHY}"),
        "unreachable": (LOOK, f"in an emergency, on the host itself: crossfade kill FLAG {WHY}"),
        "busy": ("ask again in a moment",),
        "unknown_outcome": ("look whether it was done before you ask again: crossfade audit tail",),
        "forbidden": (LOOK,),
        "not_migrated": (LOOK,),
        "newer": (LOOK,),
        "unreadable": (LOOK,),
        "silent": ("ask again in a moment", "crossfade proxy status"),
        "fault": ("look into the log of the process `control`, and tell us what it says",),
    }
)
"""By the word of a refusal. What is particular to the case stands in its message."""


def after_looking_at(flag: Flag) -> list[str]:
    if flag.archived:
        return [f"crossfade flag history {flag.key}"]
    if flag.kill is not None:
        return [f"crossfade unkill {flag.key} {WHY}", f"crossfade flag history {flag.key}"]
    here = flag.transition.settled
    moves = [
        f"crossfade flag move {flag.key} --to {stage} {WHY}"
        for stage in reachable(flag.transition)
        if stage is not here
    ]
    return [*moves, f"crossfade kill {flag.key} {WHY}"]


def after_looking_at_all(flag_set: FlagSet) -> list[str]:
    if flag_set.kill is not None:
        return [f"crossfade unkill --all {WHY}"]
    if not flag_set.flags:
        return [f"crossfade flag create KEY {WHY}", f"crossfade apply -f flags.yaml {WHY}"]
    return ["crossfade flag get FLAG"]


def after_change(command: Command, applied: Applied, *, dry_run: bool, complete: bool | None) -> list[str]:
    """`complete`: whether every worker obeys; None where nobody has waited for it."""
    key = _key(command)
    if dry_run:
        if applied.after is applied.before:
            return []
        before = applied.before if key is None else applied.before.flag(key)
        expect = "" if before is None else f" with --expect-version {before.version}"
        return [f"the same without --dry-run{expect}"]
    steps = [] if complete in (None, True) else ["crossfade proxy status", LOOK]
    back = _way_back(command, applied)
    if back is not None:
        steps.append(f"the way back: {back}")
    if key is not None:
        steps.append(f"crossfade flag get {key} -w")
    return steps or ["crossfade flag list"]


def _way_back(command: Command, applied: Applied) -> str | None:
    match command:
        case Move(key) if applied.after is not applied.before:
            before = applied.before.flag(key)
            return None if before is None else f"crossfade flag move {key} {_place(before.transition)} {WHY}"
        case KillFlag(key):
            return f"crossfade unkill {key} {WHY}"
        case Unkill(key):
            return f"crossfade kill {key} {WHY}"
        case KillAll():
            return f"crossfade unkill --all {WHY}"
        case UnkillAll():
            return f"crossfade kill --all {WHY}"
        case ShadowOff():
            return f"crossfade shadow on {WHY}"
        case ShadowOn():
            return f"crossfade shadow off {WHY}"
        case _:
            return None


def _place(transition: Transition) -> str:
    here = transition.settled
    if here is not None:
        return f"--to {here}"
    return f"--to {transition.target} --weight {percent(transition.weight_ppm)}"


def _key(command: Command) -> str | None:
    match command:
        case Create(flag):
            return flag.key
        case Edit(key) | Move(key) | KillFlag(key) | Unkill(key) | Archive(key):
            return key
        case KillAll() | UnkillAll() | ShadowOff() | ShadowOn() | Apply() | SetAuthority() | DropAuthority():
            return None


def after_ramp(row: RampRow) -> list[str]:
    flag, state = row.flag, row.ramp.state
    if state is RampState.TRIPPED:
        return [f"crossfade guardrail list {flag}", f"crossfade flag history {flag}"]
    if state in ENDED:
        return [f"crossfade flag get {flag}"]
    abort = f"crossfade ramp abort {flag} {WHY}"
    if state is RampState.PAUSED:
        return [f"crossfade ramp resume {flag} {WHY}", abort]
    return [f"crossfade ramp status {flag} --wait", f"crossfade ramp pause {flag} {WHY}", abort]


def after_guardrail(watch: Watch) -> list[str]:
    name, flag = watch.guardrail.id, watch.guardrail.flag
    if watch.state in LATCHED:
        return [f"crossfade flag history {flag}", f"crossfade guardrail rearm {name} {WHY}"]
    return [f"crossfade guardrail list {flag}"]


def after_guardrails(watches: Sequence[Watch]) -> list[str]:
    latched = [watch.guardrail.id for watch in watches if watch.state in LATCHED]
    if latched:
        return [f"crossfade guardrail rearm {name} {WHY}" for name in latched]
    return [f"crossfade guardrail set FLAG --signal errors {WHY}"]
