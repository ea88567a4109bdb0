"""The process of the embedded servers (`crossfade.servers_process`), as the supervisor knows it."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crossfade.processes import Children, Process, own

LEAVE_WITHIN = 45.0
"""Seconds; PostgreSQL writes down everything before it ends."""


class ServersChild:
    """One such process. It lives as long as its line to us, so a restart hands the line on."""

    def __init__(self, process: Process, line: socket.socket, wanted: Sequence[str]) -> None:
        self.process = process
        self.wanted = list(wanted)
        """Which servers it holds: store, bus."""
        self._line = line

    @classmethod
    def start(cls, children: Children, data_dir: Path, wanted: Sequence[str]) -> ServersChild:
        """Raises OSError."""
        process, line = children.spawn_with_line("crossfade.servers_process", [], [str(data_dir), *wanted])
        return cls(process, line, wanted)

    @classmethod
    def adopt(cls, children: Children, wire: dict[str, Any]) -> ServersChild:
        return cls(children.adopt(wire["pid"]), own(wire["line"]), wire["wanted"])

    def to_wire(self) -> dict[str, Any]:
        return {"pid": self.process.pid, "line": self._line.fileno(), "wanted": self.wanted}

    async def end(self) -> None:
        """See the servers end properly, and the process with them."""
        self._line.close()
        try:
            async with asyncio.timeout(LEAVE_WITHIN):
                await self.process.wait()
        except TimeoutError:
            self.process.kill(signal.SIGKILL)
            await self.process.wait()
