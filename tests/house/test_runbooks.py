"""What runbooks, the guide to the cutover and the board name is there."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from core import metrics
from crossfade.cli import parser

ROOT = Path(__file__).parents[2]
PAGES = [*sorted((ROOT / "runbooks").glob("*.md")), ROOT / "docs" / "cutover.md"]
KNOWN = {
    metric.name
    for group in (
        metrics.WORKER_METRICS, metrics.SUPERVISOR_METRICS, metrics.CONTROL_METRICS, metrics.SYNC_METRICS,
    )
    for metric in group
}  # fmt: skip


def commands() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        for block in re.findall(r"```console\n(.*?)```", page.read_text(), re.DOTALL):
            for line in block.splitlines():
                if line.startswith("$ "):
                    yield page.name, line[2:].partition("#")[0].strip()


@pytest.mark.parametrize(("page", "command"), [*commands()])
def test_each_command_is_one_that_there_is(page: str, command: str) -> None:
    program, *words = shlex.split(command)
    assert program == "crossfade", page
    assert parser().parse_args(words).run


def test_each_runbook_is_listed_and_each_link_leads_somewhere() -> None:
    listed = (ROOT / "runbooks" / "README.md").read_text()
    for page in PAGES:
        if page.name != "README.md" and page.parent.name == "runbooks":
            assert f"]({page.name})" in listed
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert (page.parent / link).exists(), (page, link)


@pytest.mark.parametrize("board", sorted((ROOT / "dashboards" / "grafana").glob("*.json")))
def test_a_board_shows_what_is_measured(board: Path) -> None:
    panels = json.loads(board.read_text())["panels"]
    asked = {
        name if name in KNOWN else re.sub(r"_(bucket|sum|count)$", "", name)
        for panel in panels
        for target in panel["targets"]
        for name in re.findall(r"crossfade_[a-z_]+", target["expr"])
    }
    assert asked <= KNOWN, asked - KNOWN
    labels = {
        label
        for panel in panels
        for target in panel["targets"]
        for group in re.findall(r"by \(([^)]*)\)", target["expr"])
        for label in group.replace(" ", "").split(",")
    }
    declared = {
        label
        for group in (
            metrics.WORKER_METRICS, metrics.SUPERVISOR_METRICS, metrics.CONTROL_METRICS, metrics.SYNC_METRICS,
        )
        for metric in group
        for label in metric.labels
    }  # fmt: skip
    assert labels <= declared | {"le"}, labels - declared
