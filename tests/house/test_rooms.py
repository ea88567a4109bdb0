"""The house is as its plans say: rooms, lock, shared words."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from core import metrics

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = (ROOT / "requirements.lock").read_text()
NOT_PRODUCT = {"tests", "bench", "migrations"}
"""Rooms that the floors do not bind: nobody imports them."""
DECLARED = [value for value in vars(metrics).values() if isinstance(value, metrics.Metric)]


def tracked() -> list[Path]:
    """Every file that git knows, or nearly knows."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone of the repository")
    listed = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def test_every_room_stands_on_a_floor() -> None:
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")} - NOT_PRODUCT
    assert rooms == set(PROJECT["tool"]["importlinter"]["root_packages"])
    assert rooms == set(PROJECT["tool"]["mypy"]["packages"])
    packed = {name.removesuffix("*") for name in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert rooms == packed - NOT_PRODUCT


def test_every_folder_of_tests_is_a_package() -> None:
    """Without it `tests/proxy` can stand before `proxy` on the import path."""
    folders = {
        path.parent for path in tracked() if path.suffix == ".py" and path.is_relative_to(ROOT / "tests")
    }
    assert {folder for folder in folders if not (folder / "__init__.py").exists()} == set()


def test_the_lock_names_exact_versions_with_hashes_and_no_address() -> None:
    entries = re.split(r"\n(?=[a-z0-9])", LOCK.strip(), flags=re.IGNORECASE)
    assert len(entries) > 40
    for entry in entries:
        assert re.match(r"[a-z0-9._\-]+(\[[a-z,]+\])?==[^ ]+ ", entry, re.IGNORECASE), entry.splitlines()[0]
        assert "--hash=sha256:" in entry
    assert "://" not in LOCK
    assert not re.search(r"^\s*-(?!-hash)", LOCK, re.MULTILINE), "the lock holds packages only, no options"


def test_the_lock_fulfils_the_project_s_wishes() -> None:
    locked = {
        canonicalize_name(name): version
        for name, version in re.findall(r"^([A-Za-z0-9._\-]+)(?:\[[^\]]*\])?==(\S+)", LOCK, re.MULTILINE)
    }
    wishes = [
        *PROJECT["build-system"]["requires"],
        *PROJECT["project"]["dependencies"],
        *(wish for extra in PROJECT["project"]["optional-dependencies"].values() for wish in extra),
    ]
    for wish in map(Requirement, wishes):
        assert wish.specifier.contains(locked.get(canonicalize_name(wish.name), "0")), (
            f"{wish}: run `make lock`"
        )


def test_no_file_names_a_registry_or_a_place_of_one_machine() -> None:
    # Put together here, so that this file does not name them either.
    hosts = [".".join(words) for words in (("pypi", "org"), ("pythonhosted", "org"), ("npmjs", "org"))]
    places = ["/".join(("", *words, "")) for words in (("root",), ("work", "main"), ("opt", "pypi"))]
    found = [
        f"{path.relative_to(ROOT)}: {word}"
        for path in tracked()
        if path.suffix not in {".png", ".ico", ".woff2"}
        for word in (*hosts, *places)
        if word in path.read_text(errors="replace")
    ]
    assert found == []


def test_every_metric_is_declared_once_and_handed_out_by_one_process() -> None:
    names = [metric.name for metric in DECLARED]
    assert len(names) == len(set(names))
    processes = (
        metrics.WORKER_METRICS,
        metrics.SUPERVISOR_METRICS,
        metrics.CONTROL_METRICS,
        metrics.SYNC_METRICS,
    )
    assert sorted(metric.name for of_one in processes for metric in of_one) == sorted(names)


@pytest.mark.parametrize(
    "metric",
    [value for value in vars(metrics).values() if isinstance(value, metrics.Metric)],
    ids=lambda it: it.name,
)
def test_a_metric_s_name_tells_its_kind_and_unit(metric: metrics.Metric) -> None:
    assert re.fullmatch(r"crossfade_[a-z_]+(_log10)?", metric.name)
    assert metric.name.endswith("_total") == (metric.kind is metrics.Kind.COUNTER)
    if metric.kind is metrics.Kind.HISTOGRAM:
        assert metric.name.endswith("_seconds")
    assert metric.help.endswith(".")
    assert len(set(metric.labels)) == len(metric.labels)
