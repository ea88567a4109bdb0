"""Read your writes: a session that has written reads from legacy until new has what it wrote. And a bound
for everybody: where new is too far behind, all read from legacy.

The answer to a write carries a note for the client to bring back: when it was answered, by the clock of this
host that only goes forward (all its processes share it), and which host and boot that was. Now and then a
worker is told a moment of the same clock up to which everything has been applied to new. A note from before
that moment is of no matter any more. What cannot be told (another host's note, no moment yet) stays with
legacy.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from flags.attributes import reader

if TYPE_CHECKING:
    from core.http import RequestHead
    from flags.attributes import Facts

COOKIE: Final = "crossfade_w"
KEPT: Final = 3600
"""Seconds that a client keeps a note; a stream that is further behind is a fault of another kind."""

_read = reader(f"cookie:{COOKIE}")


def _here() -> str:
    """This host since it was booted: nobody else's clock is comparable."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    return hashlib.sha256(boot.encode()).hexdigest()[:8]


class Freshness:
    """Of one worker: up to when new has everything, by cutover."""

    def __init__(self) -> None:
        self._here = _here()
        self._upto: dict[str, float] = {}

    def learn(self, cutover: str, upto: float) -> None:
        """All that was answered before `upto` (time.monotonic) has been applied to new."""
        self._upto[cutover] = max(upto, self._upto.get(cutover, 0.0))

    def is_late(self, cutover: str, most_ms: int) -> bool:
        """Whether new may lack what was written longer ago than that; it may as long as nobody has said."""
        upto = self._upto.get(cutover)
        return upto is None or (time.monotonic() - upto) * 1000 > most_ms

    def note(self, *, secure: bool) -> bytes:
        """The field line that notes that something was written, now at the latest."""
        value = f"{self._here}.{time.monotonic_ns() // 1_000_000 + 1}"
        attributes = f"Path=/; Max-Age={KEPT}; HttpOnly; SameSite=Lax{'; Secure' if secure else ''}"
        return f"Set-Cookie: {COOKIE}={value}; {attributes}\r\n".encode()

    def is_behind(self, head: RequestHead, facts: Facts, cutover: str) -> bool:
        """Whether new may lack what this session has written."""
        note = _read(head, facts)
        if not note:
            return False
        here, _, moment = note.partition(".")
        if here != self._here or not (moment.isascii() and moment.isdigit()) or len(moment) > 18:
            return True
        return int(moment) > self._upto.get(cutover, 0.0) * 1000
