"""`crossfade demo` as a person runs it: to its end, stopped by Ctrl-C, and killed."""

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
from pathlib import Path

import pytest

from crossfade import demo
from crossfade.demo import Counted, Seen

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


def lines_until(process: subprocess.Popen[str], beginning: str, *, of_talk: bool = False) -> list[str]:
    stream = process.stderr if of_talk else process.stdout
    assert stream is not None
    lines = []
    for line in stream:
        lines.append(line.rstrip("\n"))
        if line.startswith(beginning):
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
    deadline = time.monotonic() + 20
    while left := {pid for pid in family if Path(f"/proc/{pid}").exists()}:
        assert time.monotonic() < deadline, f"still there: {left}"
        time.sleep(0.02)


def rows(lines: list[str]) -> dict[tuple[str, str], tuple[int, int, int]]:
    """Of the printed table, by flag and side: requests, failures, and requests as Crossfade counted."""
    found = (
        re.match(r"(\S+) +(\S+) +(\d+) +(\d+) +[\d.]+ +[\d.]+ +(\d+) +[\d.]+ +[\d.]+$", line)
        for line in lines
    )
    return {(row[1], row[2]): (int(row[3]), int(row[4]), int(row[5])) for row in found if row}


def check_table(lines: list[str]) -> None:
    found = rows(lines)
    assert set(found) == {("posts.read", "new"), ("posts.write", "legacy"), ("rest", "legacy")}, lines
    for requests, failures, counted in found.values():
        assert requests == counted > 0
        assert failures == 0


@on_linux
def test_served_until_ctrl_c_it_leaves_nothing_behind(temporary: Path) -> None:
    with running("--serve", temporary=temporary) as process:
        lines = lines_until(process, "folder")
        check_table(lines)
        product = next(line.split()[-1] for line in lines if line.startswith("the product"))
        with urllib.request.urlopen(product, timeout=10) as answer:
            assert answer.status == 200
        family = family_of(process)
        assert len(family) > 8
        # Everybody on the machine may read the command lines.
        commands = "\n".join(Path(f"/proc/{pid}/cmdline").read_text() for pid in family)
        assert "examples.legacy" in commands
        assert "postgresql://" not in commands
        process.send_signal(signal.SIGINT)
        talk = process.communicate(timeout=30)[1]
        assert process.returncode == 0, talk
        assert talk.splitlines()[-1] == "demo: stopped"
    wait_until_gone(family)
    assert list(temporary.iterdir()) == []


@on_linux
def test_killed_it_takes_everything_along_and_its_folder_can_be_used_again(temporary: Path) -> None:
    folder = temporary / "kept"
    with running("--folder", str(folder), temporary=temporary) as process:
        lines_until(process, "demo: 8 people use it", of_talk=True)
        family = family_of(process)
        assert len(family) > 8
        process.kill()
    wait_until_gone(family)

    with running("--folder", str(folder), temporary=temporary) as process:
        said, talk = process.communicate(timeout=110)
        assert process.returncode == 0, said + talk
        check_table(said.splitlines())
        assert re.fullmatch(r"4 walks, longest hold \d+ ms", said.splitlines()[-1])


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
        demo._program(temporary / "log", "no_such_module") as program,
        pytest.raises(demo.DemoError, match="no_such_module did not start"),
    ):
        program.address()
    assert "No module named no_such_module" in capsys.readouterr().err


# The verdict.


def good() -> tuple[Seen, dict[tuple[str, str], Counted]]:
    seen = Seen()
    for flag, side in demo.EXPECTED.items():
        seen.seconds[flag, side.value] = [0.001, 0.002]
    return seen, {key: Counted(len(times), ((0.01, 2.0),)) for key, times in seen.seconds.items()}


def test_a_good_demo_has_nothing_wrong() -> None:
    assert demo.verdict(*good()) == []


def test_a_failed_request_is_named() -> None:
    seen, counted = good()
    seen.failures["posts.read", "new"] = Counter({"GET /api/posts: 500, not 200": 3})
    assert demo.verdict(seen, counted) == ["posts.read by new: 3 x GET /api/posts: 500, not 200"]


def test_an_answer_of_the_other_side_is_named_whether_or_not_crossfade_agrees() -> None:
    seen, counted = good()
    seen.seconds["posts.read", "legacy"] = [0.001]
    counted["posts.read", "legacy"] = Counted(1, ((0.01, 1.0),))
    assert demo.verdict(seen, counted) == ["posts.read was answered by legacy and new, not by new"]


def test_a_flag_that_nobody_answered_is_named() -> None:
    seen, counted = good()
    del seen.seconds["posts.write", "legacy"], counted["posts.write", "legacy"]
    assert demo.verdict(seen, counted) == ["posts.write was answered by nobody, not by legacy"]


def test_a_count_of_crossfade_that_differs_is_named() -> None:
    seen, counted = good()
    counted["rest", "legacy"] = Counted(7, ())
    (line,) = demo.verdict(seen, counted)
    assert "crossfade counted" in line
    assert "('rest', 'legacy'): 7" in line


def test_a_quantile_of_buckets_is_reckoned_as_prometheus_does() -> None:
    (*_, row) = demo.table(
        Seen(), {("f", "new"): Counted(4, ((0.01, 2.0), (0.02, 4.0), (float("inf"), 4.0)))}
    )
    assert row.split()[-3:] == ["4", "10.0", "19.8"]
