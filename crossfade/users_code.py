"""Load the users' `migration.py`: by its path, anew each time, and only as a whole.

It runs in each worker, with all rights of the worker. What it imports beside itself lies in its folder
or is installed; other files of that folder are loaded once per process, so that a change in them needs a
restart.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from crossfade.project import Project
from flags.model import Route

MODULE = "crossfade_users_code"
"""The name under which the file is known while it runs; nobody imports it by that."""


class UsersCodeError(Exception):
    """The file cannot be used; the text says where and why, on one line."""


def load(path: Path) -> Project:
    """The `project` of the file `path`. Raises UsersCodeError."""
    if not path.is_file():
        raise UsersCodeError(f"{path}: no such file")
    spec = spec_from_file_location(MODULE, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    folder = str(path.parent)
    if folder not in sys.path:
        sys.path.append(folder)  # behind everything else: a file there hides no package
    sys.modules[MODULE] = module  # dataclasses and pickle look for it there
    try:
        spec.loader.exec_module(module)
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
