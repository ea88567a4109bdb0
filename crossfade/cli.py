"""The command `crossfade`. Data goes to stdout, talk to stderr.

Exit codes: 0 ok, 1 error, 2 usage or invalid input, 3 not found or nothing is running, 4 denied,
5 a report is needed, 6 a guardrail has tripped, 7 not converged in time, 9 conflict. What a command does
not need it does not import.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossfade.commands import parser as flag_commands

if TYPE_CHECKING:
    from crossfade.settings_form import Address

OK, ERROR, USAGE, NOT_FOUND, NOT_CONVERGED = 0, 1, 2, 3, 7

STATUS_WITHIN = 5.0
RELOAD_WITHIN = 60.0
RESTART_WITHIN = 120.0
"""Seconds that a command waits for its answer; each is longer than what it asks for may take."""
LEAVE_WITHIN = 10.0
"""Seconds beyond the drain that `stop` waits for the end of the instance."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        code: int = options.run(options)
    except BrokenPipeError:
        # Whoever read our output has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return ERROR
    except KeyboardInterrupt:
        return 130
    return code


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="crossfade",
        description="Moves a live service from a legacy backend to a new one with no downtime "
        "and a way back.",
        epilog="exit codes: 0 ok, 1 error, 2 usage or invalid input, 3 not found or nothing is running, "
        "4 denied, 5 a report is needed, 6 a guardrail has tripped or the gate is closed, "
        "7 not converged in time, 9 changed by somebody else meanwhile",
    )
    top.add_argument("--version", action="store_true", help="print the version and end")
    top.set_defaults(run=lambda options: _version() if options.version else _usage(top))
    commands = top.add_subparsers(title="commands", metavar="COMMAND")

    up = commands.add_parser(
        "up",
        help="run everything that the configuration names",
        description="Runs everything that the configuration names, in the foreground, until SIGTERM or "
        "Ctrl-C. SIGHUP reloads the configuration, SIGUSR2 restarts the program, SIGUSR1 opens the access "
        "log's file again.",
    )
    _add_config(up)
    up.set_defaults(run=_run)

    proxy = commands.add_parser(
        "proxy",
        help="run only the proxy, or show a running one (proxy status)",
        description="`crossfade proxy -c FILE` runs the proxy with its workers and its admin API in the "
        "foreground; `crossfade proxy status -c FILE` shows a running one.",
    )
    _add_config(proxy, None)
    proxy.set_defaults(run=lambda options: _run(options) if options.config else _usage(proxy))
    proxy_commands = proxy.add_subparsers(title="commands", metavar="COMMAND")
    status = proxy_commands.add_parser(
        "status",
        help="show the running proxy: workers, their versions, and how old those are",
        description="Shows the running proxy. With --all: every instance on the same store.",
    )
    _add_config(status)
    _add_output(status)
    status.add_argument("--all", action="store_true", help="every instance, as the store knows it")
    flag_commands.add_address(status)
    status.set_defaults(run=_status)

    compare = commands.add_parser(
        "compare",
        help="judge mirrored pairs in a process of its own",
        description="Judges what the proxies put on the bus, in the foreground, until SIGTERM or Ctrl-C. Any "
        "number of such processes may run, on any host that reaches store and bus.",
    )
    _add_config(compare)
    compare.add_argument("--metrics", metavar="ADDRESS", help="serve /metrics there, such as 127.0.0.1:9182")
    compare.set_defaults(run=_compare)

    sync = commands.add_parser(
        "sync",
        help="keep the other side's database alike, in a process of its own",
        description="Copies the tables that migration.py names and follows every change, in the foreground, "
        "until SIGTERM or Ctrl-C. Where another process works on the stream already, it stands by until that "
        "one has ended.",
    )
    _add_config(sync)
    sync.add_argument("--towards", choices=("new", "legacy"), default="new", help="default new")
    sync.add_argument("--metrics", metavar="ADDRESS", help="serve /metrics there, such as 127.0.0.1:9183")
    sync.add_argument(
        "--over-missing-rows",
        action="store_true",
        help="begin by passing over updates of rows that the target lacks; then run: crossfade data repair",
    )
    sync.add_argument(
        "--take-over", action="store_true", help="take the stream from a process that works on it"
    )
    sync.set_defaults(run=_sync)

    check = commands.add_parser(
        "check",
        help="check the configuration and what it points to",
        description="Reads the configuration as a start would and looks at certificates, ports and targets. "
        "Problems forbid a start (exit code 2), warnings do not.",
    )
    _add_config(check)
    _add_output(check)
    check.set_defaults(run=_check)

    reload_ = commands.add_parser(
        "reload",
        help="have the running instance read its configuration again",
        description="Has the running instance read its configuration again. All workers take it over, or "
        "none does. No connection is closed. Ends when every worker has acknowledged.",
    )
    _add_config(reload_)
    _add_output(reload_)
    reload_.set_defaults(run=lambda options: _order(options, "reload", RELOAD_WITHIN))

    restart = commands.add_parser(
        "restart",
        help="replace the running program without refusing a connection",
        description="Replaces the running program by the one that is installed now, under the same pid and "
        "on the same sockets, and has it read its configuration. The old workers serve until the new ones "
        "accept, then they drain. If the new ones do not come up, the old ones go on.",
    )
    _add_config(restart)
    _add_output(restart)
    restart.set_defaults(run=lambda options: _order(options, "restart", RESTART_WITHIN))

    stop = commands.add_parser(
        "stop",
        help="let requests in flight end, then stop the running instance",
        description="Has the running instance accept no more, lets requests in flight end within "
        "timeouts.drain, and waits for its end.",
    )
    _add_config(stop)
    _add_output(stop)
    stop.set_defaults(run=_stop)

    demo = commands.add_parser(
        "demo",
        help="play a whole migration of the sample product on this machine",
        description="Starts two sample backends with their databases and the proxy before them, and plays a "
        "whole migration under load, by commands that it prints. Exit code 0 if nobody has noticed anything.",
    )
    demo.add_argument("--serve", action="store_true", help="leave everything running until Ctrl-C")
    demo.add_argument(
        "--folder", type=Path, metavar="DIR", help="keep the data here instead of in a temporary folder"
    )
    demo.set_defaults(run=_demo)
    flag_commands.add(commands)
    return top


# Each command.


def _run(options: argparse.Namespace) -> int:
    from crossfade import supervisor  # noqa: PLC0415

    return supervisor.run(options.config)


def _compare(options: argparse.Namespace) -> int:
    from crossfade import compare_role  # noqa: PLC0415

    return _with_metrics(options, "compare", lambda metrics: compare_role.run(options.config, metrics))


def _sync(options: argparse.Namespace) -> int:
    from crossfade import sync_role  # noqa: PLC0415
    from flags.model import Side  # noqa: PLC0415

    def run(metrics: Address | None) -> int:
        side, over = Side(options.towards), options.over_missing_rows
        return sync_role.run(
            options.config, side, metrics, over_missing_rows=over, take_over=options.take_over
        )

    return _with_metrics(options, "sync", run)


def _with_metrics(options: argparse.Namespace, command: str, run: Callable[[Address | None], int]) -> int:
    from crossfade.settings_form import address_of  # noqa: PLC0415

    try:
        metrics = None if options.metrics is None else address_of(options.metrics)
    except ValueError as error:
        _talk(f"crossfade {command}: --metrics: found {options.metrics}; {error}")
        return USAGE
    return run(metrics)


def _check(options: argparse.Namespace) -> int:
    from crossfade import settings  # noqa: PLC0415

    report = settings.check(options.config, os.environ)
    found = report.settings
    if options.output == "json":
        _data(
            json.dumps(
                {
                    "ok": not report.problems,
                    "problems": [str(problem) for problem in report.problems],
                    "warnings": list(report.warnings),
                }
            )
        )
        return report.exit_code
    for line in (*report.problems, *(f"warning: {warning}" for warning in report.warnings)):
        _talk(str(line))
    if found is None:
        return report.exit_code
    _data(f"OK {options.config}")
    _data(f"  listen   {', '.join(map(str, found.listen))} with {_count(found.workers, 'worker')}")
    _data(f"  admin    {found.admin}")
    for side, target in found.proxy.targets.items():
        scheme = "https" if target.tls else "http"
        host = f"[{target.host}]" if ":" in target.host else target.host
        _data(f"  {side.value:8} {scheme}://{host}:{target.port}")
    by_side = {side: sum(route.side is side for route in found.routes) for side in found.proxy.targets}
    share = ", ".join(f"{number} to {side.value}" for side, number in by_side.items() if number)
    _data(f"  routes   {len(found.routes)}{f' ({share})' if share else ''}; what matches none goes to legacy")
    return report.exit_code


def _status(options: argparse.Namespace) -> int:
    if options.all:
        return flag_commands.lazily("instances:instances")(options)
    code, answer = _ask(options, {"do": "status"}, STATUS_WITHIN)
    if answer is None:
        return code
    status = answer["status"]
    if options.output == "json":
        _data(json.dumps(status))
        return OK
    ready = "ready" if status["ready"] else "not ready: " + ", ".join(status["not_ready"])
    _data(f"crossfade {status['version']}, pid {status['pid']}, {status['state']}, {ready}")
    _data(f"listening on {', '.join(status['listen'])}, admin on {status['admin']}")
    _data(f"configuration {status['config']}, generation {status['generation']}")
    _data(
        f"up {status['uptime_seconds']:.0f} s, {_count(status['restarts'], 'restart')}, "
        f"last start took {status['start_seconds']:.2f} s"
    )
    if status["sync_pids"]:
        syncing = ", ".join(f"towards {side} pid {pid}" for side, pid in status["sync_pids"].items())
        _data(f"syncing, or ready to: {syncing}")
    exits = ", ".join(f"{number} {reason}" for reason, number in status["worker_exits"].items())
    _data(f"ended workers: {exits or 'none'}")
    for line in _flags_lines(status["flags"]):
        _data(line)
    _data("")
    head = ("worker", "pid", "state", "generation", "flags", "age", "connections", "in flight", "memory")
    rows = [
        (
            str(w["worker"]), str(w["pid"] or "-"), w["state"], str(w["generation"]),
            f"v{w['flags_version']}" if w["flags_version"] else "-",
            f"{w['age_seconds']:.0f} s", str(w["connections"]), str(w["in_flight"]),
            f"{w['memory_bytes'] / 2**20:.1f} MiB",
        )
        for w in status["workers"]
    ]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        _data("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return OK


def _flags_lines(flags: dict[str, Any]) -> list[str]:
    """Which flags hold, how old that is, and what is wrong with them."""
    if flags["store"] == "none":
        return ["flags: none, routes go by the configuration"]
    age = flags["age_seconds"]
    confirmed = "not confirmed yet" if age is None else f"confirmed {age:.1f} s ago"
    lines = [f"flags v{flags['version']} from {flags['store']}, {confirmed}"]
    if flags["kills"]:
        lines.append(f"killed on this host, not in the store yet: {', '.join(flags['kills'])}")
    if flags["trouble"]:
        lines.append(f"trouble: {flags['trouble']}")
    return lines


def _order(options: argparse.Namespace, order: str, timeout: float) -> int:
    code, answer = _ask(options, {"do": order}, timeout)
    if answer is None:
        return code
    _tell(options, answer)
    return int(answer["code"])


def _stop(options: argparse.Namespace) -> int:
    from crossfade import instance  # noqa: PLC0415

    code, answer = _ask(options, {"do": "stop"}, STATUS_WITHIN)
    if answer is None:
        return code
    if not instance.wait_for_end(_data_dir(options.config), answer["drain"] + LEAVE_WITHIN):
        _talk("crossfade: it has not ended in time")
        return NOT_CONVERGED
    _tell(options, {**answer, "lines": ["stopped"]})
    return OK


def _demo(options: argparse.Namespace) -> int:
    from crossfade import demo  # noqa: PLC0415

    return int(demo.run(serve=options.serve, folder=options.folder))


def _version() -> int:
    from importlib.metadata import version  # noqa: PLC0415

    _data(f"crossfade {version('crossfade')}")
    return OK


def _usage(of: argparse.ArgumentParser) -> int:
    of.print_help(sys.stderr)
    return USAGE


# What they share.


def _ask(
    options: argparse.Namespace, request: dict[str, Any], timeout: float
) -> tuple[int, dict[str, Any] | None]:
    """The running instance's answer, or an exit code and none."""
    from crossfade import instance  # noqa: PLC0415

    request["config"] = os.path.abspath(options.config)
    try:
        answer = instance.ask(_data_dir(options.config), request, timeout)
    except instance.NothingRunningError as error:
        unreadable = _unreadable(options.config)
        _talk(unreadable or f"crossfade: {error}")
        return USAGE if unreadable else NOT_FOUND, None
    except TimeoutError as error:
        _talk(f"crossfade: {error}")
        return NOT_CONVERGED, None
    except (instance.NoAnswerError, OSError) as error:
        _talk(f"crossfade: {error}")
        return ERROR, None
    return OK, answer


def _data_dir(config: Path) -> Path:
    """Where the instance of this configuration lives, even if the rest of the file is invalid by now."""
    from crossfade.settings_file import read_document  # noqa: PLC0415

    document = read_document(config, os.environ)
    top = document.root.value
    named = top.get("data_dir") if isinstance(top, Mapping) else None
    folder = named if isinstance(named, str) else ".crossfade"
    return Path(os.path.abspath(config)).parent / folder


def _unreadable(config: Path) -> str:
    """Why nobody can say which instance is meant; empty if the file can be read."""
    from crossfade.settings_file import read_document  # noqa: PLC0415

    document = read_document(config, os.environ)
    return "" if document.readable else "\n".join(map(str, document.problems))


def _tell(options: argparse.Namespace, answer: dict[str, Any]) -> None:
    if options.output == "json":
        _data(json.dumps({key: answer[key] for key in ("code", "word", "lines")}))
        return
    for line in answer["lines"]:
        (_data if answer["code"] == OK else _talk)(line)


def _add_config(to: argparse.ArgumentParser, default: Path | None = Path("crossfade.yaml")) -> None:
    to.add_argument(
        "-c",
        "--config",
        type=Path,
        metavar="FILE",
        default=default,
        help="the configuration (default: crossfade.yaml)",
    )


def _add_output(to: argparse.ArgumentParser) -> None:
    to.add_argument(
        "-o", "--output", choices=("text", "json"), default="text", help="json for machines (default: text)"
    )


def _count(number: int, of: str) -> str:
    return f"{number} {of}{'' if number == 1 else 's'}"


def _data(line: str) -> None:
    sys.stdout.write(line + "\n")


def _talk(line: str) -> None:
    sys.stderr.write(line + "\n")
