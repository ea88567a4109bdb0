"""The command line as a stranger meets it: words, exit codes, what goes to stdout and what to stderr."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from crossfade.cli import parser
from tests.support.crossfade_process import crossfade_command, running_crossfade

Config = dict[str, Any]


async def test_status_for_people_and_for_machines(tmp_path: Path, config: Config) -> None:
    async with running_crossfade(tmp_path, config) as cf:
        people = await cf.command("proxy", "status")
        assert people.code == 0
        assert people.err == ""
        lines = people.out.splitlines()
        assert lines[0].endswith(f", pid {cf.pid}, serving, ready")
        assert lines[1].startswith(f"listening on 127.0.0.1:{cf.port}, admin on 127.0.0.1:{cf.admin_port}")
        assert lines[2] == f"configuration {cf.config_path}, generation 1"
        assert [line.split()[:4] for line in lines[-2:]] == [
            [str(place), str(pid), "ready", "1"] for place, pid in enumerate(await cf.worker_pids())
        ]

        machines = await cf.command("proxy", "status", "-o", "json")
        status = json.loads(machines.out)
        assert status["pid"] == cf.pid
        assert status["generation"] == 1


async def test_reload_and_stop_for_machines(tmp_path: Path, config: Config) -> None:
    async with running_crossfade(tmp_path, config) as cf:
        done = await cf.command("reload", "-o", "json")
        assert json.loads(done.out) == {
            "code": 0,
            "word": "applied",
            "lines": ["2/2 workers on generation 2"],
        }
        done = await cf.command("stop", "-o", "json")
        assert json.loads(done.out) == {"code": 0, "word": "applied", "lines": ["stopped"]}


async def test_another_file_for_the_same_data_folder_is_not_reloaded(tmp_path: Path, config: Config) -> None:
    async with running_crossfade(tmp_path, config) as cf:
        other = tmp_path / "other.yaml"
        other.write_text(cf.config_path.read_text())
        done = await crossfade_command("reload", "-c", str(other))
        assert done.code == 2
        assert done.err == f"the running instance uses {cf.config_path}, not {other}\n"


async def test_check_says_ok_and_what_it_read(tmp_path: Path, config: Config) -> None:
    file = tmp_path / "crossfade.yaml"
    file.write_text(yaml.safe_dump({**config, "listen": "127.0.0.1:0", "admin": {"listen": "127.0.0.1:0"}}))

    done = await crossfade_command("check", "-c", str(file))

    assert done.code == 0
    assert done.out.splitlines() == [
        f"OK {file}",
        "  listen   127.0.0.1:0 with 2 workers",
        "  admin    127.0.0.1:0",
        f"  legacy   {config['targets']['legacy']['url']}",
        f"  new      {config['targets']['new']['url']}",
        "  routes   1 (1 to legacy); what matches none goes to legacy",
    ]


async def test_check_names_what_is_wrong(tmp_path: Path, config: Config) -> None:
    file = tmp_path / "crossfade.yaml"
    file.write_text(yaml.safe_dump({**config, "workers": "many"}))

    people = await crossfade_command("check", "-c", str(file))
    assert people.code == 2
    assert people.out == ""
    assert 'workers: found "many"' in people.err

    machines = await crossfade_command("check", "-c", str(file), "-o", "json")
    assert machines.code == 2
    found = json.loads(machines.out)
    assert not found["ok"]
    assert len(found["problems"]) == 1


async def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    for command in ("up", "proxy", "check", "reload", "restart", "stop", "proxy status"):
        done = await crossfade_command(*command.split(), "-c", str(tmp_path / "none.yaml"))
        assert done.code == 2
        assert len(done.err.splitlines()) == 1
        assert str(tmp_path / "none.yaml") in done.err


async def test_an_instance_whose_file_is_gone_can_still_be_stopped(tmp_path: Path, config: Config) -> None:
    async with running_crossfade(tmp_path, config) as cf:
        cf.config_path.unlink()
        done = await cf.command("reload")
        assert done.code == 2
        assert str(cf.config_path) in done.err
        assert (await cf.command("stop")).code == 0


@pytest.mark.parametrize("arguments", [[], ["proxy"], ["up", "--no"], ["nonsense"], ["reload", "--no"]])
async def test_wrong_usage_is_explained(arguments: list[str]) -> None:
    done = await crossfade_command(*arguments)
    assert done.code == 2
    assert done.out == ""
    assert "usage: crossfade" in done.err


async def test_version() -> None:
    done = await crossfade_command("--version")
    assert done.code == 0
    assert done.out.startswith("crossfade ")


def test_every_command_has_a_help_text() -> None:
    commands = [(parser(), "crossfade")]
    seen = []
    while commands:
        one, name = commands.pop()
        assert one.description, f"{name} does not say what it does"
        seen.append(name)
        for action in one._actions:
            if isinstance(action.choices, dict):
                described = {choice.dest for choice in action._choices_actions}  # type: ignore[attr-defined]
                assert set(action.choices) == described
                commands += [(sub, f"{name} {word}") for word, sub in action.choices.items()]
            elif action.option_strings:
                assert action.help, f"{name} {action.option_strings} has no help"
    assert {"crossfade up", "crossfade proxy status", "crossfade demo", "crossfade restart"} <= set(seen)
