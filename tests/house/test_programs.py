"""A missing program skips a test at a desk and fails it in CI."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.programs import require_program


@pytest.fixture
def only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The one folder on the search path."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CI", raising=False)
    return tmp_path


def test_a_program_that_is_there_is_named_by_its_path(only: Path) -> None:
    (only / "chromium-browser").touch(mode=0o755)
    assert require_program("chromium") == str(only / "chromium-browser")


def test_a_missing_program_skips_with_the_way_to_get_it(only: Path) -> None:
    with pytest.raises(pytest.skip.Exception, match=r"no-such-program is not installed; scripts/install"):
        require_program("no-such-program")


def test_in_ci_a_missing_program_is_a_failure(only: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no-such-program is not installed"):
        require_program("no-such-program")
