"""How far `data verify` has come, kept in the data folder: one that was killed goes on where it was.

One file for each table. They are gone once all tables are compared. Nobody goes on from what is older than an
hour: that rows were alike then says little.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Final

from dualwrite.segments import Progress

EVERY: Final = 1.0
"""Seconds between two writes, at least."""
OLDEST: Final = 3600.0
"""Seconds."""


class KeptProgress:
    """Of one stream; `data_dir` need not be there yet. Every method may raise OSError."""

    def __init__(self, data_dir: Path, stream: str) -> None:
        self._folder = data_dir / "verify" / stream
        self._next = 0.0

    def load(self, name: str) -> Progress:
        """Where a comparison of this table was; at its beginning if nobody knows."""
        file = self._file(name)
        try:
            if time.time() - file.stat().st_mtime > OLDEST:
                return Progress()
            said = json.loads(file.read_text())
            upto = said["upto"]
            return Progress(
                of=said["of"], upto=None if upto is None else tuple(upto), rows=said["rows"],
                about=said["about"], segments=said["segments"], done=said["done"],
                cut_short=said["cut_short"],
                odd={(tuple(key), number) for key, number in said["odd"]},
            )  # fmt: skip
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            # A file of another release is as good as none.
            return Progress()

    def save(self, name: str, progress: Progress) -> None:
        """Not each time: it is asked to after every stretch. Nor what nobody can go on from."""
        began = time.monotonic()
        if not progress.of or (began < self._next and not progress.done):
            return
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = self._file(name)
        new = file.with_suffix(f".{os.getpid()}")
        said = {
            "of": progress.of, "upto": progress.upto, "rows": progress.rows, "about": progress.about,
            "segments": progress.segments, "done": progress.done,
            "cut_short": progress.cut_short, "odd": list(progress.odd),
        }  # fmt: skip
        new.write_text(json.dumps(said))
        new.replace(file)
        now = time.monotonic()
        self._next = now + max(EVERY, 10 * (now - began))

    def forget(self) -> None:
        if self._folder.is_dir():
            for file in self._folder.iterdir():
                file.unlink(missing_ok=True)

    def _file(self, name: str) -> Path:
        return self._folder / f"{name.replace('/', '_')}.json"
