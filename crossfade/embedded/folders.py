"""What every embedded server needs of its folder: a lock that its processes hold, privacy, a short path.

The lock is an open file that a server and its children inherit, so "the lock is free" means exactly "no
process of this server is left".
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import pwd
import stat
import tempfile
import time
from pathlib import Path

LONGEST_SOCKET_FOLDER = 80
"""Bytes; the name of a socket, folder included, must stay below 104 (macOS) or 108 (Linux)."""
POLL = 0.005
"""Seconds between two looks at a lock or a file."""


class NotPrivateError(Exception):
    """A folder that others may enter, or that is not ours; the message says what to do."""


def take(path: Path, seconds: float) -> int | None:
    """The exclusive lock on `path` as an open file, or None if it was not to be had in time."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(file)
                return None
            time.sleep(POLL)
        else:
            return file


def socket_folder(folder: Path) -> Path:
    """Where the sockets of a server in `folder` lie: in it, or in a private place with a shorter name."""
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]
    elsewhere = f"crossfade-{os.geteuid()}-{digest}"
    places = (folder / "run", Path(tempfile.gettempdir(), elsewhere), Path("/tmp", elsewhere))  # noqa: S108
    return next(place for place in places if len(os.fsencode(place)) <= LONGEST_SOCKET_FOLDER)


def make_private(folder: Path) -> None:
    """An empty folder of mode 0700, in a place where others may have been before us.

    Raises NotPrivateError.
    """
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    ours = {os.geteuid()} if os.geteuid() else {0, pwd.getpwnam("nobody").pw_uid}
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in ours or found.st_mode & 0o077:
        raise NotPrivateError(f"{folder} is not a private folder of ours (mode 0700): remove it")
    for left_over in folder.iterdir():
        left_over.unlink()


def write_secret(path: Path, text: str) -> None:
    """A file that only its owner may read, whatever stood there before."""
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
        file.write(text)
