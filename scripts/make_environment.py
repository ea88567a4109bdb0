"""Make or refresh `.venv`: exactly the packages of requirements.lock, and this project, editable.

Called by `make setup`. Needs Python 3.11 and nothing else, so it imports only the standard library
and stays readable for older Pythons, which are told so.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"


def main():
    if sys.version_info < (3, 11):
        found = "{}.{}".format(*sys.version_info)
        sys.exit(
            f"error: this is Python {found}, Crossfade needs 3.11 or later: make setup PYTHON=python3.12"
        )
    if not works([PYTHON, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]):
        shutil.rmtree(VENV, ignore_errors=True)
        make()
    pip = find_pip()
    if pip is None:
        sys.exit(NO_VENV)
    say("installing what requirements.lock names")
    run([*pip, "install", "--quiet", "--require-hashes", "-r", ROOT / "requirements.lock"])
    run([*pip, "install", "--quiet", "--no-deps", "--no-build-isolation", "--editable", ROOT])
    (VENV / ".stamp").touch()
    say("ready")


NO_VENV = (
    f"error: {sys.executable} can make no environment (no ensurepip, pip, virtualenv or uv): "
    "install Debian's python3-venv or one of these, or name another Python: make PYTHON=…"
)


def make():
    """An environment by the first way that this Python has; Debian's, for one, comes in parts."""
    say(f"making .venv for Python {sys.version.split()[0]}")
    for way in (
        [sys.executable, "-m", "venv"],
        [sys.executable, "-m", "virtualenv", "--quiet"],
        ["virtualenv", "--quiet", "--python", sys.executable],
        ["uv", "venv", "--quiet", "--seed", "--python", sys.executable],
        # No pip inside; the pip outside can work on it.
        [sys.executable, "-m", "venv", "--without-pip"],
    ):
        if works([*way, VENV]):
            return
        shutil.rmtree(VENV, ignore_errors=True)
    sys.exit(NO_VENV)


def find_pip():
    for pip in ([PYTHON, "-m", "pip"], [sys.executable, "-m", "pip", "--python", PYTHON]):
        if works([*pip, "--version"]):
            return [*pip, "--disable-pip-version-check"]
    return None


def works(command):
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    try:
        return subprocess.run(command, check=False, **quiet).returncode == 0
    except OSError:
        return False


def run(command):
    # Packages of the user's own folder must not count as installed here.
    environment = dict(os.environ, PYTHONNOUSERSITE="1")
    status = subprocess.run(command, env=environment, check=False).returncode
    if status:
        sys.exit("error: this command failed: " + " ".join(map(str, command)))


def say(text):
    print("setup:", text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
