"""What the commands of flags, ramps, guardrails, people and the audit take. Imports nothing that costs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TypeAlias

STAGES = ("legacy", "shadow", "live", "new")
ROLES = ("viewer", "reviewer", "operator", "approver", "admin")
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add(commands: Commands) -> None:
    """Add all of them to the command line."""
    _flag(commands)
    _kill(commands)
    _shadow(commands)
    _ramp(commands)
    _guardrail(commands)
    _audit(commands)
    _person(commands)
    _data(commands)
    _cutover(commands)
    apply = _command(commands, "apply", "apply:apply", "make flags as a file has them, all or none")
    apply.add_argument("-f", "--file", type=Path, required=True, metavar="FILE", help="flags in YAML")
    _change(apply)
    _report(apply)
    _command(commands, "doctor", "doctor:doctor", "look for what is wrong, and say what to do")


def _flag(commands: Commands) -> None:
    flag = _group(commands, "flag", "show and change flags")
    _command(flag, "list", "flags:list_flags", "all flags and where they stand")
    get = _command(flag, "get", "flags:get", "one flag; -w shows it as it changes")
    _key(get)
    get.add_argument("-w", "--watch", action="store_true", help="go on showing it until Ctrl-C")
    move = _command(flag, "move", "flags:move", "move a share of a flag's keys to a neighbouring stage")
    _key(move)
    move.add_argument("--to", required=True, choices=STAGES, help="the stage")
    move.add_argument(
        "--weight", default="100%", metavar="SHARE", help="such as 5%% or 0.01%% (default 100%%)"
    )
    _change(move)
    _report(move)
    for name, run, text in (
        ("kill", "kill:kill", "send a flag's requests to legacy, even if no store can be asked"),
        ("unkill", "kill:unkill", "take the kill of a flag back"),
        ("archive", "flags:archive", "end a flag for good"),
    ):
        one = _command(flag, name, run, text)
        _key(one)
        _change(one)
    create = _command(flag, "create", "flags:create", "create a flag at the stage legacy")
    _key(create)
    _fields(create)
    _change(create)
    edit = _command(flag, "edit", "flags:edit", "change all of a flag but where it stands")
    _key(edit)
    _fields(edit)
    edit.add_argument(
        "--needs-report", choices=("yes", "no"), help="whether new may answer more only by a kept report"
    )
    _change(edit)
    _report(edit)
    history = _command(flag, "history", "flags:history", "what was done to a flag, the latest first")
    _key(history)
    explain = _command(flag, "explain", "flags:explain", "where a request would go, and why")
    explain.add_argument("target", metavar="PATH", help="the path, with query if you like")
    explain.add_argument("-X", "--method", default="GET", metavar="METHOD", help="default GET")
    explain.add_argument(
        "-H", "--header", action="append", default=[], metavar="NAME:VALUE", help="repeatable"
    )
    explain.add_argument("--client", default="127.0.0.1", metavar="ADDRESS", help="the client's address")
    explain.add_argument(
        "--attribute",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="what your own code would say; repeatable",
    )


def _fields(to: argparse.ArgumentParser) -> None:
    to.add_argument(
        "--bucket-by", action="append", metavar="ATTRIBUTE", help="such as cookie:sid; repeatable"
    )
    to.add_argument("--assign-cookie", metavar="NAME", help="give clients without a key an identity")
    to.add_argument(
        "--fallback", metavar="SHARE", help="let legacy answer for up to that share; off for none"
    )
    to.add_argument("--mirror", metavar="SHARE", help="mirror that share at shadow and live (default 100%%)")
    to.add_argument("--owner", help="who answers for it")
    to.add_argument("--expires-on", metavar="DATE", help="by when this migration should be over")
    to.add_argument("--description", help="a line about it")
    to.add_argument("--flag-ticket", metavar="TICKET", help="the ticket of the whole migration")


def _kill(commands: Commands) -> None:
    for name, text in (
        ("kill", "send the requests of a flag, or of all, to legacy, even if no store can be asked"),
        ("unkill", "take such a kill back"),
    ):
        one = _command(commands, name, f"kill:{name}", text)
        which = one.add_mutually_exclusive_group(required=True)
        which.add_argument("key", nargs="?", metavar="FLAG")
        which.add_argument("--all", action="store_true", help="everything, also what has no flag")
        _change(one)


def _shadow(commands: Commands) -> None:
    shadow = _group(commands, "shadow", "mirroring and comparing")
    for name, text in (
        ("off", "mirror nothing any more, whatever the flags' stages"),
        ("on", "take that back"),
    ):
        _change(_command(shadow, name, f"shadow:turn_{name}", text))
    status = _command(shadow, "status", "shadow:status", "what was compared, route by route")
    _span(status)
    report = _command(shadow, "report", "shadow:report", "what decides a release")
    _span(report)
    report.add_argument(
        "--format", choices=("text", "md", "html", "json"), default="text", help="default text"
    )
    report.add_argument("--to", type=Path, metavar="FILE", help="write it there")
    report.add_argument("--keep", action="store_true", help="keep it, for a flag that asks for a report")
    _reason(report)
    report.add_argument("--gate", action="store_true", help="exit code 6 unless every route is ready, for CI")
    report.add_argument("--rate", metavar="SHARE", help="the most that may differ (default 0.1%%)")
    report.add_argument("--pairs", type=int, metavar="N", help="the fewest pairs (default 1000)")
    diffs = _command(shadow, "diffs", "shadow:diffs", "what differs, the latest first")
    diffs.add_argument("--flag", metavar="FLAG", help="of one flag only")
    show = _command(shadow, "show", "shadow:show", "one difference, with samples of both answers")
    show.add_argument("id", metavar="ID", help="as `shadow diffs` names it")
    replay = _command(shadow, "replay", "shadow:replay", "ask both sides again what its samples have asked")
    replay.add_argument("id", metavar="ID", help="as `shadow diffs` names it")
    replay.add_argument(
        "-H", "--header", action="append", default=[], metavar="NAME:VALUE", help="send this one; repeatable"
    )
    mark = _command(shadow, "mark", "shadow:mark", "say what a difference is")
    mark.add_argument("id", metavar="ID", help="as `shadow diffs` names it")
    mark.add_argument(
        "mark", choices=("open", "accepted", "bug", "needs_rule"), help="accepted ones do not close the gate"
    )
    mark.add_argument("--expires", metavar="DATE", help="until when it holds, such as 2027-03-31")
    _reason(mark)
    _command(shadow, "rules", "shadow:rules", "the differences that are expected")
    rule = _group(shadow, "rule", "expect a difference")
    put = _command(rule, "set", "shadow:rule_set", "expect a difference from now on")
    put.add_argument("rule", metavar="JSON", help="the rule, or @FILE")
    _reason(put)
    delete = _command(rule, "delete", "shadow:rule_delete", "expect it no more")
    delete.add_argument("id", metavar="ID", help="as `shadow rules` names it")
    _reason(delete)


def _span(to: argparse.ArgumentParser) -> None:
    to.add_argument("--flag", metavar="FLAG", help="of one flag only")
    to.add_argument("--hours", type=float, default=24.0, metavar="N", help="how far back (default 24)")


def _ramp(commands: Commands) -> None:
    ramp = _group(commands, "ramp", "move a flag step by step")
    start = _command(ramp, "start", "watch:ramp_start", "begin a ramp")
    _key(start)
    start.add_argument("--to", required=True, choices=STAGES, help="the stage")
    start.add_argument(
        "--steps", required=True, metavar="STEPS",
        help="such as 1%%:10m,5%%:30m:500,100%%: share, hold, and how many requests it must have moved",
    )  # fmt: skip
    start.add_argument(
        "--window",
        action="append",
        default=[],
        metavar="WHEN",
        help="such as mon-fri:09:00-16:00@Europe/Berlin; without a zone it is UTC",
    )
    _reason(start)
    _report(start)
    _dry_run(start)
    _expect_version(start)
    status = _command(ramp, "status", "watch:ramp_status", "ramps under way; exit code 6 if one has tripped")
    status.add_argument("key", nargs="?", metavar="FLAG")
    status.add_argument(
        "--wait", nargs="?", type=_seconds, const=600.0, metavar="SECONDS",
        help="until the flag's ramp has ended, or exit code 7 (600 s if no number is given)",
    )  # fmt: skip
    for name, text in (
        ("pause", "stop a ramp where it is"),
        ("resume", "go on with a paused ramp"),
        ("abort", "end a ramp and take everybody back"),
    ):
        one = _command(ramp, name, f"watch:ramp_{name}", text)
        _key(one)
        if name == "abort":
            one.add_argument("--stay", action="store_true", help="leave the weight where it is")
        _reason(one)


def _guardrail(commands: Commands) -> None:
    guardrail = _group(commands, "guardrail", "what takes a flag back by itself")
    listing = _command(guardrail, "list", "watch:guardrails", "all guardrails and their evidence")
    listing.add_argument("key", nargs="?", metavar="FLAG")
    put = _command(guardrail, "set", "watch:guardrail_set", "put a guardrail on a flag")
    _key(put)
    put.add_argument(
        "--signal", required=True, choices=("errors", "latency", "mismatches"), help="what counts as bad"
    )
    put.add_argument(
        "--action",
        default="rollback",
        choices=("alert", "pause", "rollback", "kill"),
        help="what it does (default rollback)",
    )
    put.add_argument("--tolerance", type=float, metavar="FACTOR", help="how much worse new may be")
    put.add_argument("--alpha", type=float, metavar="RISK", help="of a false alarm in the whole life of it")
    put.add_argument("--min-requests", type=int, metavar="N", help="of new, before it says ok")
    put.add_argument(
        "--ceiling", type=_part, metavar="SHARE", help="of bad answers at which it trips at once"
    )
    put.add_argument("--latency-over", type=float, metavar="SECONDS", help="what counts as slow")
    put.add_argument("--dry-run-mode", action="store_true", help="say what it would do, and do nothing")
    put.add_argument("--id", metavar="ID", help="default FLAG:SIGNAL")
    _reason(put)
    _dry_run(put)
    for name, text in (("rearm", "arm one that has tripped"), ("delete", "remove a guardrail")):
        one = _command(guardrail, name, f"watch:guardrail_{name}", text)
        one.add_argument("id", metavar="ID")
        _reason(one)


def _audit(commands: Commands) -> None:
    audit = _group(commands, "audit", "what was done and what was refused")
    tail = _command(audit, "tail", "people:tail", "the last rows")
    tail.add_argument("-n", type=int, default=20, metavar="ROWS", help="how many (default 20)")
    tail.add_argument("-f", "--follow", action="store_true", help="go on showing new ones until Ctrl-C")
    _command(audit, "verify", "people:verify", "whether all rows are as they were written")


def _person(commands: Commands) -> None:
    person = _group(commands, "person", "who may do what")
    _command(person, "list", "people:list_people", "people and their roles")
    put = _command(person, "add", "people:add", "give somebody a token; it is shown once")
    put.add_argument("name")
    put.add_argument("--role", required=True, choices=ROLES, help="what they may do")
    _why(put)
    revoke = _command(person, "revoke", "people:revoke", "end somebody's token")
    revoke.add_argument("name")
    _why(revoke)


def _data(commands: Commands) -> None:
    data = _group(commands, "data", "both databases: what is copied, how it stands, whether they are alike")
    for name, run, text in (
        ("plan", "data:plan", "look at both databases and the mapping, and touch nothing"),
        (
            "start",
            "data:start",
            "have a stream run: one of all instances, or of all processes of `crossfade sync`, works on it",
        ),
        ("stop", "data:stop", "have it run no more; its position is kept, and the source keeps its log"),
        ("status", "data:status", "how a stream stands; exit code 6 if it has stopped"),
        (
            "verify",
            "data_compare:verify_",
            "compare both sides' rows, under writes too; exit code 6 if any differs",
        ),
        (
            "repair",
            "data_compare:repair_",
            "compare, and have what differs written anew by the running stream",
        ),
    ):
        one = _plain_command(data, name, run, text)
        one.add_argument("--towards", choices=("new", "legacy"), default="new", help="default new")
        if name in ("start", "stop"):
            one.add_argument("--reason", default="", metavar="TEXT", help="why; it stands beside the stream")
        if name == "start":
            one.add_argument(
                "--over-missing-rows",
                action="store_true",
                help="begin by passing over updates of rows that the target lacks; then run: data repair",
            )
            one.add_argument(
                "--wait",
                type=_seconds,
                default=30.0,
                metavar="SECONDS",
                help="for a process to work on it, at the most (default 30; 0 waits for none)",
            )
        if name in ("verify", "repair"):
            one.add_argument("--table", action="append", metavar="TABLE", help="only this one; repeatable")
            one.add_argument(
                "--portable", action="store_true", help="hash rows by md5, even where there is a quicker way"
            )
            one.add_argument("--pace", type=_rows, metavar="ROWS", help="compare at most so many a second")
        if name == "verify":
            one.add_argument(
                "--fresh", action="store_true", help="begin anew, and not where one that was killed has ended"
            )
            one.add_argument(
                "--exact",
                action="store_true",
                help="both sides at one moment, for which the stream stands still (as a rule under a second)",
            )
            one.add_argument(
                "--report", type=Path, metavar="FILE", help="write what -o json prints there, too"
            )
        if name == "repair":
            one.add_argument("--dry-run", action="store_true", help="say how many rows it would write")
    quarantine = _group(
        data, "quarantine", "rows that a table does not take, where its policy lets them wait"
    )
    for name, run, text in (
        ("list", "data_quarantine:list_", "what waits, and what was said against it"),
        (
            "retry",
            "data_quarantine:retry",
            "have the rows written anew as they are at the source now; exit code 6 if any still waits",
        ),
    ):
        one = _plain_command(quarantine, name, run, text)
        one.add_argument("--towards", choices=("new", "legacy"), default="new", help="default new")
        one.add_argument("--table", action="append", metavar="TABLE", help="only this one; repeatable")

    check = _plain_command(
        data, "check-mapping", "mapping:check_mapping",
        "take values that legacy may hold to new and back; exit code 6 if any does not come home",
    )  # fmt: skip
    check.add_argument("--seed", type=int, default=0, help="other values by chance (default 0)")


def _rows(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f'"{text}" is no number of rows')
    return int(text)


def _cutover(commands: Commands) -> None:
    cutover = _group(commands, "cutover", "move the authority over data to the other side, and back")
    for name, text in (
        ("plan", "what stands against the next walk; exit code 6 if anything does"),
        ("prepare", "put up the fences and begin the way back; done again, it adds what is missing"),
        ("run", "give new the authority; exit code 0 done, 6 cancelled, 7 not ended in time"),
        ("status", "which side has the authority, and the last walks; -w shows it as it changes"),
        ("back", "give legacy the authority again; exit codes as of run"),
        ("abort", "cancel the walk under way, unless it was decided"),
        ("finish", "let the flags go, and take the fence away where everybody writes"),
    ):
        one = _command(cutover, name, f"cutover:{name}", text)
        one.add_argument("key", nargs="?", metavar="CUTOVER", help="as crossfade.yaml names it")
        if name == "status":
            one.add_argument("-w", "--watch", action="store_true", help="go on showing it until Ctrl-C")
        if name not in ("plan", "status"):
            _reason(one)
        if name in ("run", "back"):
            one.add_argument(
                "--rehearse", action="store_true", help="do everything up to the decision, then cancel"
            )
        if name in ("run", "back", "abort"):
            one.add_argument(
                "--wait", type=_seconds, default=600.0, metavar="SECONDS", help="at the most (default 600)"
            )
        if name == "run":
            _report(one)
        if name == "back":
            one.add_argument(
                "--accept-loss", action="store_true", help="new is gone: go back without what it still has"
            )
            one.add_argument("--confirm", metavar="CUTOVER", help="its name once more, for that")


# What they share.


def _group(commands: Commands, name: str, text: str) -> Commands:
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")

    def usage(_: argparse.Namespace) -> int:
        parser.print_help(sys.stderr)
        return 2

    parser.set_defaults(run=usage)
    return parser.add_subparsers(title="commands", metavar="COMMAND")


def _command(commands: Commands, name: str, run: str, text: str) -> argparse.ArgumentParser:
    """One that asks the admin API."""
    parser = _plain_command(commands, name, run, text)
    add_address(parser)
    return parser


def _plain_command(commands: Commands, name: str, run: str, text: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name, help=text, description=text[0].upper() + text[1:].replace("%", "%%") + "."
    )
    parser.add_argument(
        "-c",
        "--config",
        type=Path,
        default=Path("crossfade.yaml"),
        metavar="FILE",
        help="the instance's configuration (default crossfade.yaml)",
    )
    parser.add_argument(
        "-o", "--output", choices=("text", "json"), default="text", help="how data is printed"
    )
    parser.set_defaults(run=lazily(run))
    return parser


def add_address(to: argparse.ArgumentParser) -> None:
    to.add_argument(
        "--api", metavar="URL", help="of another host, instead of the instance here (also CROSSFADE_API)"
    )
    to.add_argument("--token", help="instead of this instance's own (also CROSSFADE_TOKEN)")


def lazily(run: str) -> Callable[[argparse.Namespace], int]:
    """`module:function` of this package, imported when it is run."""
    module, _, function = run.partition(":")

    def start(options: argparse.Namespace) -> int:
        from crossfade.commands.telling import in_words  # noqa: PLC0415

        return in_words(getattr(import_module(f"crossfade.commands.{module}"), function), options)

    return start


def _key(to: argparse.ArgumentParser) -> None:
    to.add_argument("key", metavar="FLAG")


def _why(to: argparse.ArgumentParser) -> None:
    to.add_argument("--reason", default="", metavar="TEXT", help="why; it stands in the audit")


def _reason(to: argparse.ArgumentParser) -> None:
    _why(to)
    to.add_argument("--ticket", metavar="TICKET", help="the ticket of this change")


def _dry_run(to: argparse.ArgumentParser) -> None:
    to.add_argument("--dry-run", action="store_true", help="say what would change and what would move")


def _expect_version(to: argparse.ArgumentParser) -> None:
    to.add_argument("--expect-version", type=int, metavar="N", help="change it only if it is that version")


def _report(to: argparse.ArgumentParser) -> None:
    to.add_argument(
        "--report",
        metavar="DIGEST",
        help="of a kept report, for a flag that asks for one: shadow report --keep",
    )


def _change(to: argparse.ArgumentParser) -> None:
    _reason(to)
    to.add_argument(
        "--wait", nargs="?", type=_seconds, const=10.0, default=0.0, metavar="SECONDS",
        help="until every worker obeys (10 s if no number is given)",
    )  # fmt: skip
    _dry_run(to)
    _expect_version(to)


def _part(text: str) -> float:
    """`50%` or `0.5`."""
    try:
        return float(text.strip().removesuffix("%")) / (100.0 if text.strip().endswith("%") else 1.0)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is no share; expected one such as 50% or 0.5") from None


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f'"{text}" is no number of seconds')
    return seconds
