"""Clocks that are wrong: of every process of ours, by a time that may change while they run. The databases'
and the people's own stay right.
"""

from __future__ import annotations

import struct
from pathlib import Path

_CODE = """
import mmap, os, struct, time

right = time.time
with open({file!r}, "r+b") as file:
    off = mmap.mmap(file.fileno(), 8)
# Two processes are never wrong by the same.
share = os.getpid() % 7 / 3 - 1
time.time = lambda: right() + struct.unpack("d", off)[0] * share
"""


class Clocks:
    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._file = folder / "off by"
        self.set_off(0.0)
        (folder / "sitecustomize.py").write_text(_CODE.format(file=str(self._file)))
        self.environment = {"PYTHONPATH": str(folder)}
        """In which processes go by these clocks."""

    def set_off(self, seconds: float) -> None:
        """From now on each clock is wrong by a share of it of its own, backwards or forwards."""
        with self._file.open("r+b" if self._file.exists() else "wb") as file:
            file.write(struct.pack("d", seconds))
