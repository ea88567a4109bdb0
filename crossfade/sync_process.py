"""A process of `crossfade up` for one stream: `python -m crossfade.sync_process LINE PARENT`.

It works on the stream while people desire it (`crossfade data start`) and no other process has the lease, on
whichever host; else it stands by. A stream that has stopped stays stopped until they desire it anew. It is a
process of its own because mapping rows takes a processor, and because its end must touch nothing else.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

import structlog

from core.metrics import Sample
from crossfade import exposition, logs, users_code
from crossfade.channel import Channel, Message
from crossfade.directions import NoDirectionError, direction_of
from crossfade.processes import BEHIND_TRAFFIC, die_with_parent, look_for_few_circles
from crossfade.sync_telling import samples, talk
from crossfade.users_code import UsersCodeError
from dualwrite import sync
from dualwrite.capture import Way
from dualwrite.sync import Direction, Duty, Told
from flags.model import Side

log = structlog.get_logger(__name__)


def main() -> int:
    line, parent = int(sys.argv[1]), int(sys.argv[2])
    for signum in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(signum, signal.SIG_IGN)
    logs.configure("sync")
    os.nice(BEHIND_TRAFFIC)
    look_for_few_circles()
    die_with_parent(parent)
    asyncio.run(_live(socket.socket(fileno=line)))
    return 0


async def _live(line: socket.socket) -> None:
    await _Process().live(line)


class _Process:
    """Started, working or standing by, told to stop or left alone."""

    def __init__(self) -> None:
        self._start: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._stop = asyncio.Event()
        self._stream = ""
        self._told = Told()

    async def live(self, line: socket.socket) -> None:
        self._channel = Channel(self._obey)
        await self._channel.open(line)
        self._channel.closed.add_done_callback(lambda _: self._stop.set())
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._stop.set)
        stopping = asyncio.create_task(self._stop.wait())
        await asyncio.wait((stopping, self._start), return_when=asyncio.FIRST_COMPLETED)
        found = _direction(self._start.result()) if self._start.done() else None
        working: list[asyncio.Task[None]] = []
        if found is not None:
            self._stream = found.name
            duty = Duty(as_desired=True)
            working = [
                asyncio.create_task(sync.run(found, self._told, duty)),
                asyncio.create_task(talk(found.name, self._told)),
            ]
        # Where there is nothing to do it waits: what would have to be mended first is mended by a reload.
        await asyncio.wait((stopping, *working[:1]), return_when=asyncio.FIRST_COMPLETED)
        fault = working[0].exception() if working and working[0].done() else None
        for task in (stopping, *working):
            task.cancel()
        await asyncio.gather(stopping, *working, return_exceptions=True)
        self._channel.close()
        if fault is not None:
            # The supervisor starts another one, and the traceback is on stderr.
            raise fault

    def _samples(self) -> list[Sample]:
        return samples(self._stream, self._told) if self._stream else []

    def _obey(self, message: Message) -> None:
        match message["do"]:
            case "start":
                self._start.set_result(message["orders"])
            case "samples":
                self._channel.answer(message, {"samples": exposition.to_wire(self._samples())})
            case "stop":
                self._stop.set()


def _direction(orders: Message) -> Direction | None:
    path, text = orders["code"]
    urls = {Side(side): url for side, url in orders["databases"].items()}
    try:
        return direction_of(
            users_code.load(Path(path), text), urls, Side(orders["towards"]), path,
            name=orders["name"],
            ways={Side(side): Way(way) for side, way in orders["ways"].items()},
            copy_rows_per_second=orders["copy_rows_per_second"],
        )  # fmt: skip
    except (UsersCodeError, NoDirectionError) as error:
        log.warning("nothing to sync", towards=orders["towards"], message=str(error))
        return None


if __name__ == "__main__":
    sys.exit(main())
