"""`crossfade demo` as a person runs it: to its end, stopped by SIGTERM, and killed; and its pieces."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from crossfade import demo
from crossfade.demo import acts, facts
from crossfade.demo.facts import Facts, Written
from crossfade.demo.people import Crowd, Told
from crossfade.demo.play import Play
from crossfade.demo.programs import DemoError, program
from crossfade.demo.screen import Now, Screen, described
from crossfade.demo.stage import Stage, folder_for

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, dies by prctl")


@contextlib.contextmanager
def running(*options: str, temporary: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "crossfade", "demo", *options],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"TMPDIR": str(temporary)},
    )  # fmt: skip
    with process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder for temporary files with a short name, as systems have it."""
    with tempfile.TemporaryDirectory(prefix="t") as folder:
        yield Path(folder)


def lines_until(process: subprocess.Popen[str], pattern: str) -> list[str]:
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line.rstrip("\n"))
        if re.search(pattern, line):
            return lines
    assert process.stderr is not None
    pytest.fail("\n".join((*lines, process.stderr.read())))


def family_of(process: subprocess.Popen[str]) -> set[int]:
    """All living descendants."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(entry.parent.name)] = int(entry.read_text().rpartition(")")[2].split()[1])
    family, found = set(), {process.pid}
    while found:
        family |= found
        found = {pid for pid, parent in parents.items() if parent in found} - family
    return family - {process.pid}


def wait_until_gone(family: set[int]) -> None:
    deadline = time.monotonic() + 60
    while left := {pid for pid in family if Path(f"/proc/{pid}").exists()}:
        assert time.monotonic() < deadline, f"still there: {left}"
        time.sleep(0.02)


def after(lines: list[str], command: str) -> list[str]:
    """What the command said, of each time that it was typed."""
    found: list[str] = []
    said = False
    for line in lines:
        said = line.startswith(f"$ crossfade {command}") or (said and not line.startswith("$"))
        if said:
            found.append(line)
    assert found, f"{command} was never typed"
    return found


@on_linux
@pytest.mark.timeout(480)
def test_the_whole_migration_and_then_served_until_it_is_stopped(temporary: Path) -> None:
    with running("--serve", temporary=temporary) as process:
        lines = lines_until(process, "^   to go on")
        text = "\n".join(lines)
        # A bug is found, and stands against the release.
        assert "$.comment_count" in "\n".join(after(lines, "shadow diffs"))
        refused, *_, opened = [
            number
            for number, line in enumerate(lines)
            if re.match(r"\$ crossfade shadow report .*--gate", line)
        ]
        assert "    exit code 6" in lines[refused : refused + 14]
        assert "not_ready" in "\n".join(lines[refused:opened])
        assert "    exit code 5" in after(lines, "flag move reads --to live --weight 5%")
        # Once it is mended the gate opens.
        assert "ready" in "\n".join(lines[opened : opened + 9])
        assert "not_" not in "\n".join(lines[opened : opened + 7])
        # A guardrail takes a bad build back.
        assert "tripped" in "\n".join(after(lines, "guardrail list reads"))
        assert re.search(
            r"^   [1-9][\d,]* requests that new failed were answered by legacy", text, re.MULTILINE
        )
        # Forth, back, forth.
        sides = [line.split()[1] for line in after(lines, "cutover") if line.startswith("    shop  ")]
        assert sides == ["legacy", "new", "legacy", "new"]
        # And nobody has noticed anything.
        assert re.search(r"^   failures       0 ", text, re.MULTILINE), text
        assert re.search(r"^   lost, doubled  none$", text, re.MULTILINE), text
        assert re.search(r"^   longest hold   \d+ ms, of 3 walks$", text, re.MULTILINE), text
        assert "Nobody has noticed anything." in lines
        assert "WRONG" not in text
        # There is no terminal: the state is told now and then, and nothing is rewritten.
        assert re.search(
            r"^ +\d+ s \| +\d+ requests/s \| 0 failed \| authority legacy \|", text, re.MULTILINE
        )
        assert "\x1b" not in text

        # What is left running is what anybody would use.
        for name in ("console", "the product", "metrics"):
            address = next(line.split()[-1] for line in lines if line.startswith(f"   {name} "))
            with urllib.request.urlopen(address, timeout=10) as answer:
                assert answer.status == 200
        folder = next(line.split()[-1] for line in lines if line.startswith("   folder "))
        back = ["cutover", "back", "--reason", "once more"]
        done = subprocess.run(
            [sys.executable, "-m", "crossfade", *back],
            cwd=folder, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done
        family = family_of(process)
        assert len(family) > 8
        # Everybody on the machine may read the command lines.
        commands = "\n".join(Path(f"/proc/{pid}/cmdline").read_text() for pid in family)
        assert "examples.legacy" in commands
        assert "postgresql://" not in commands
        process.send_signal(signal.SIGTERM)
        talk = process.communicate(timeout=60)[1]
        assert process.returncode == 0, talk
        assert talk.splitlines()[-1] == "demo: stopped"
    wait_until_gone(family)
    (left,) = temporary.iterdir()
    assert [path.name for path in left.iterdir()] == ["report.html"]
    assert "All 5 routes are ready" in (left / "report.html").read_text()


@on_linux
@pytest.mark.timeout(240)
def test_killed_it_takes_everything_along_and_its_folder_can_be_used_again(temporary: Path) -> None:
    folder = temporary / "kept"
    with running("--folder", str(folder), temporary=temporary) as process:
        lines_until(process, "^2  Shadow")
        family = family_of(process)
        assert len(family) > 8
        process.kill()
    wait_until_gone(family)

    with running("--folder", str(folder), temporary=temporary) as process:
        lines = lines_until(process, "^2  Shadow")
        assert "   An earlier demo in this folder is taken back first." in lines
        family = family_of(process)
        process.send_signal(signal.SIGINT)
        talk = process.communicate(timeout=60)[1]
        assert process.returncode == 130, talk
    wait_until_gone(family)


def test_without_the_sample_backends_it_says_where_they_are(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert demo.run(serve=False, folder=temporary / "d") == 1
    said = capsys.readouterr()
    assert said.err.startswith("demo: error: the sample backends are not installed here; run `make demo` in")
    assert said.err.count("\n") == 1
    assert said.out == ""
    assert list(temporary.iterdir()) == []


def test_a_program_that_does_not_start_is_quoted(temporary: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (
        program(temporary / "log", "no_such_module") as started,
        pytest.raises(DemoError, match="no_such_module did not start"),
    ):
        started.address()
    assert "No module named no_such_module" in capsys.readouterr().err


# An act that does not do what it promises.


@pytest.fixture
def play(temporary: Path) -> Iterator[Play]:
    """A stage on which nothing runs, and people who do nothing."""
    with ExitStack() as stack:
        waiting = stack.enter_context(
            program(temporary / "people.log", "http.server", "--bind", "127.0.0.1", "0")
        )
        crowd = Crowd(waiting, temporary / "told.jsonl", "x")
        stage = Stage(stack, temporary, {})
        stage.config.write_text("targets: {}\n")
        yield Play(stage, Screen(), crowd, temporary / "report.html")


def test_a_command_with_another_exit_code_than_promised_ends_it(
    play: Play, capsys: pytest.CaptureFixture[str]
) -> None:
    play.types("flag list", code=3)
    with pytest.raises(DemoError, match="crossfade flag list ended with 3, not with 0; see above"):
        play.types("flag list", only="what is not in it")
    first, second = capsys.readouterr().out.split("$ crossfade flag list\n")[1:]
    assert first == second
    assert first.endswith("    exit code 3\n")


def test_a_fact_that_does_not_come_about_ends_it(play: Play, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DemoError, match="the moon did not come about within 0 s"):
        play.until("the moon", lambda: None, 0.0, "flag list")
    assert capsys.readouterr().out.startswith("$ crossfade flag list\n")


def test_people_who_go_home_by_themselves_end_it(play: Play) -> None:
    play.crowd._running.end()
    with pytest.raises(DemoError, match=r"http.server ended with .* in the middle of the demo"):
        play.types("flag list", code=3)


# What the people were told.


def test_what_the_people_were_told_is_read_while_it_is_written(play: Play, temporary: Path) -> None:
    assert play.crowd.look() == Told("x")
    with (temporary / "told.jsonl").open("w") as file:
        file.write('{"comment": "x-1"}\n{"transfer": "x-2"}\n{"failed": "GET /"}\n{"requests": 9, "fai')
        file.flush()
        assert play.crowd.look() == Told("x", comments=["x-1"], transfers=["x-2"], failed=["GET /"])
        file.write('lures": 1, "slowest": 0.5, "over": true}\n')
    found = play.crowd.look()
    assert (found.requests, found.failures, found.slowest, found.over) == (9, 1, 0.5, True)


def good() -> Facts:
    told = Told("x", requests=100, comments=["x-1", "x-2"], transfers=["x-3"], over=True)
    written = {side: Written(["x-2", "x-1"], ["x-3"], 500) for side in ("legacy", "new")}
    return Facts(told, written, 500, (0.1, 0.2, 0.1), {"legacy": 60, "new": 40}, 3, ())


def with_new(**changes: object) -> Facts:
    found = good()
    return replace(found, written={**found.written, "new": replace(found.written["new"], **changes)})


def test_a_good_demo_has_nothing_wrong(temporary: Path) -> None:
    assert facts.wrong(good()) == []
    said = "\n".join(facts.said(good(), temporary / "report.html", 90.0))
    assert "longest hold   200 ms, of 3 walks" in said
    assert "each is in both databases once" in said


@pytest.mark.parametrize(
    ("found", "line"),
    [
        (with_new(comments=["x-1"]), "new has lost 1 acknowledged comments, such as x-2"),
        (with_new(transfers=["x-3", "x-3"]), "new has 1 transfers twice"),
        (with_new(comments=["x-1", "x-2", "x-9"]), "new has 1 comments that nobody was told of"),
        (with_new(cents=499), "new has 499 cents in all; there were 500"),
        (replace(good(), differ=["posts"]), "both databases differ in posts"),
        (replace(good(), held=(0.1,)), "the authority has moved 1 times, not 3"),
        (replace(good(), told=replace(good().told, failures=1, failed=["GET /: 503"])), "GET /: 503"),
    ],
)  # fmt: skip
def test_whatever_somebody_could_have_noticed_is_named(found: Facts, line: str) -> None:
    assert facts.wrong(found) == [line]


def test_failures_count_even_if_not_each_was_told_by_name() -> None:
    (line,) = facts.wrong(replace(good(), told=replace(good().told, failures=1)))
    assert line == "1 requests have failed"


def test_a_demo_without_people_proves_nothing() -> None:
    nobody = Told("x", over=True)
    empty = {side: Written([], [], 500) for side in ("legacy", "new")}
    wrong = facts.wrong(replace(good(), told=nobody, written=empty))
    assert wrong == ["nobody was there", "nobody has written anything, so that nothing could be lost"]


# How it is shown.


def test_the_line_says_how_it_is_now() -> None:
    now = Now(12.3, 87.6, 0, Counter(legacy=95, new=5), 0.012, "shadow→live at 5%", "legacy")
    assert described(now) == (
        "  12 s |   88 requests/s | 0 failed | authority legacy | lag 12 ms"
        " | reads at shadow→live at 5% | answered by legacy 95% new 5%"
    )
    assert "authority ? | lag ? | reads at ? | answered by nobody" in described(Now(0, 0, 0))


@pytest.mark.parametrize("last", [0.0, 59.0, 53.9, 54.1, 119.5])
def test_evidence_begins_with_a_minute_that_has_nothing_of_before_in_it(last: float) -> None:
    begins = acts.first_minute(last)
    assert begins % 60 == 0
    assert last + acts.MARGIN < begins <= last + acts.MARGIN + 60


def test_of_a_temporary_folder_only_the_report_is_left(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    with folder_for(None, "report.html") as folder:
        (folder / "data").mkdir()
        (folder / "a.log").write_text("")
    assert list(temporary.iterdir()) == []
    with folder_for(None, "report.html") as folder:
        (folder / "data").mkdir()
        (folder / "report.html").write_text("")
    assert [path.name for path in folder.iterdir()] == ["report.html"]
