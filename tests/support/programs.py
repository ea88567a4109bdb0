"""Programs that are not Python packages: used where they are, skipped where they are not, needed in CI."""

from __future__ import annotations

import os
import shutil

import pytest

NAMES = {"chromium": ("chromium", "chromium-browser", "google-chrome")}
"""Where a program has other names than the one it is asked for by."""


def require_program(name: str) -> str:
    """The path of a program; without it the test is skipped, or fails when CI=true."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"))
    for candidate in NAMES.get(name, (name,)):
        if (found := shutil.which(candidate, path=path)) is not None:
            return found
    reason = f"{name} is not installed; scripts/install-debian-packages installs it"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
