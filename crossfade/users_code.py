"""Load the users' `migration.py`: by its path, anew each time, and only as a whole.

It runs in each worker, with all rights of the worker. The supervisor reads it, once per configuration:
a worker that is replaced later, or put back to the configuration before, runs what the others run and not
what the file has become. What it imports beside itself lies in its folder or is installed; other files of
that folder are loaded once per process, so that a change in them needs a restart.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from crossfade.project import Project
from flags.model import Route

MODULE = "crossfade_users_code"
"""The name under which the file is known while it runs; nobody imports it by that."""


class UsersCodeError(Exception):
    """The file cannot be used; the text says where and why, on one line."""


def read(path: Path) -> str:
    """The text of the file. Raises UsersCodeError."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsersCodeError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UsersCodeError(f"{path}: not UTF-8") from error


def load(path: Path, text: str) -> Project:
    """The `project` of `text`, which is or was what the file `path` holds. Raises UsersCodeError."""
    module = ModuleType(MODULE)
    module.__file__ = str(path)
    folder = str(path.parent)
    if folder not in sys.path:
        sys.path.append(folder)  # behind everything else: a file there hides no package
    sys.modules[MODULE] = module  # dataclasses and pickle look for it there
    try:
        exec(compile(text, str(path), "exec"), module.__dict__)  # noqa: S102  (the user's own, on their word)
    except (Exception, SystemExit) as error:
        raise UsersCodeError(f"{_place(error, path)}: {type(error).__name__}: {_line(error)}") from error
    project = getattr(module, "project", None)
    if not isinstance(project, Project):
        raise UsersCodeError(f"{path}: expected project = crossfade.Project(...), found {_kind(project)}")
    _check(project, path)
    return project


def check_names(project: Project, declared: Iterable[str], routes: Iterable[Route], path: Path) -> None:
    """Raises UsersCodeError for an adapter that is there twice, or that a route names and nobody has."""
    declared = set(declared)
    twice = sorted(declared & project.adapters.keys())
    if twice:
        raise UsersCodeError(f"{path}: the adapter {twice[0]} is declared in adapters: too; rename one")
    known = declared | project.adapters.keys()
    for route in routes:
        for use in route.adapters:
            if use.adapter not in known:
                names = ", ".join(sorted(known)) or "none"
                raise UsersCodeError(
                    f"{path}: a route of {route.flag} names the adapter {use.adapter}; there is {names}"
                )


def _check(project: Project, path: Path) -> None:
    for name, adapter in project.adapters.items():
        for function in ("request", "answer"):
            if not callable(getattr(adapter, function, None)):
                raise UsersCodeError(f"{path}: the adapter {name} has no function {function}")
    if project.attributes is not None and not callable(project.attributes):
        raise UsersCodeError(f"{path}: attributes must be a function, not {_kind(project.attributes)}")


def _place(error: BaseException, path: Path) -> str:
    """The last line of the file itself that was running."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f"{path}:{error.lineno}"
    lines = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)
    ]
    return f"{path}:{lines[-1]}" if lines else str(path)


def _line(error: BaseException) -> str:
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return " ".join(text.split())[:300]


def _kind(value: object) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
