"""A secret of this installation, made when it is first asked for. Only its user can read it."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

KEY_FILE = "shadow.key"


def installation_key(data_dir: Path) -> str:
    """What secrets are made tokens with before they leave a worker: 64 hexadecimal digits. Raises OSError."""
    return read_or_make(data_dir / KEY_FILE, secrets.token_hex(32))


def read_or_make(path: Path, fresh: str) -> str:
    """What is in `path`, or `fresh`, which then is in it. Raises OSError."""
    try:
        return path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        pass
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = path.with_suffix(f".{os.getpid()}")
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="ascii") as file:
        file.write(fresh + "\n")
    new.replace(path)
    return fresh
