"""The control process: the admin API on its own port, and what brings flags here and moves them by itself.

    python -m crossfade.control LINE PARENT

It holds nothing of its own: the supervisor has what runs, the store has what should. No request of a client
passes through it, so its end costs nobody an answer, and it is replaced on the same listening socket.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import structlog
from aiohttp import web

from core.metrics import Sample
from crossfade import logs, users_code
from crossfade.admin.app import Admin
from crossfade.admin.asking import Supervisor
from crossfade.admin.auth import local_token
from crossfade.admin.desk import Desk
from crossfade.channel import Channel, Message
from crossfade.comparing import Comparing
from crossfade.cutover import fresh
from crossfade.cutover.conductor import Conductor
from crossfade.feed import Ask, Feed
from crossfade.processes import BEHIND_TRAFFIC, die_with_parent, look_for_few_circles
from crossfade.reconciler import Reconciler
from crossfade.settings_file import mask
from crossfade.users_code import UsersCodeError
from shadow.rules import Rule

log = structlog.get_logger(__name__)

END_WITHIN = 2.0
"""Seconds that accepted connections may take when this process is told to stop."""
LOOK_AGAIN_AFTER = 0.01
"""Seconds between two looks at whether they have ended."""
TURNS_TO_CONNECT = 5
"""Turns of asyncio's loop, at the most, from accept() to a connection that aiohttp knows."""


def main() -> int:
    line, parent = int(sys.argv[1]), int(sys.argv[2])
    for signum in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(signum, signal.SIG_IGN)
    logs.configure("control")
    os.nice(BEHIND_TRAFFIC)
    die_with_parent(parent)
    look_for_few_circles()
    asyncio.run(_live(socket.socket(fileno=line)))
    return 0


async def _live(line: socket.socket) -> None:
    await _Process().live(line)


class _Process:
    """The life of the process: started, answering, told to stop or left alone."""

    def __init__(self) -> None:
        self._start: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._stop = asyncio.Event()
        self._for_good = False
        self._feed: Feed | None = None
        self._admin: Admin | None = None
        self._reconciler: Reconciler | None = None
        self._comparing: Comparing | None = None
        self._conductor: Conductor | None = None
        self._context: Message = {}
        self._fault: BaseException | None = None

    async def live(self, line: socket.socket) -> None:
        channel = Channel(self._obey)
        await channel.open(line)
        channel.closed.add_done_callback(lambda _: self._stop.set())
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._stop.set)
        order = await self._start
        context = order["context"]
        supervisor = Supervisor(channel)
        feed = self._feed = Feed(context, supervisor.ask)
        data_dir = Path(context["data_dir"])
        desk = Desk(supervisor, feed, local_token(data_dir), data_dir, mask(context["bus"]))
        admin = self._admin = Admin(desk, context, self._samples, self._code_rules)
        runner = web.AppRunner(admin.application(), access_log=None, shutdown_timeout=END_WITHIN)
        await runner.setup()
        listening = [socket.socket(fileno=descriptor) for descriptor in order["sockets"]]
        for sock in listening:
            await web.SockSite(runner, sock).start()
        channel.answer(order, {"ready": True})
        self._context = context
        stories = (
            feed.run(),
            self._reconcile(feed),
            self._compare(feed),
            self._conduct(feed),
            self._tell_freshness(feed, supervisor.ask),
        )
        working = [asyncio.create_task(story) for story in stories]
        for task in working:
            task.add_done_callback(self._notice_fault)
        await self._stop.wait()
        await _answer_the_accepted(runner, listening)
        for task in working:
            task.cancel()
        await asyncio.gather(*working, return_exceptions=True)
        if self._for_good:
            await feed.take_leave()
        await feed.close()
        await runner.cleanup()
        channel.close()
        if self._fault is not None:
            # The supervisor starts another one, and the traceback is on stderr.
            raise self._fault

    async def _reconcile(self, feed: Feed) -> None:
        """Move what moves by itself, as soon as there is a store."""
        await feed.opened.wait()
        assert feed.store is not None
        self._reconciler = Reconciler(feed.store)
        await self._reconciler.run()

    async def _conduct(self, feed: Feed) -> None:
        """Walk the cutovers that somebody has begun."""
        await feed.opened.wait()
        assert feed.store is not None
        self._conductor = Conductor(feed.store, feed, lambda: self._context)
        await self._conductor.run()

    async def _tell_freshness(self, feed: Feed, ask: Ask) -> None:
        """So that sessions read what they have written."""
        await feed.opened.wait()
        assert feed.store is not None
        await fresh.run(feed.store, ask, lambda: self._context)

    async def _compare(self, feed: Feed) -> None:
        """Judge the pairs that this and other instances put on the bus."""
        await feed.opened.wait()
        assert feed.store is not None
        context = self._context
        where, data_dir, keep_days = context["bus"], Path(context["data_dir"]), context["keep_days"]
        self._comparing = Comparing(
            feed.store,
            where,
            data_dir,
            keep_days=keep_days,
            code_rules=self._code_rules,
            wanted=lambda: bool(self._context["compare_here"]),
        )
        await self._comparing.run()

    def _code_rules(self) -> Sequence[Rule]:
        """The rules of the users' code, which the supervisor has read."""
        code = self._context.get("code")
        if code is None:
            return ()
        try:
            return users_code.load(Path(code[0]), code[1]).rules
        except UsersCodeError as error:
            log.error("rules_of_code_not_used", message=str(error))
            return ()

    def _notice_fault(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            self._fault = task.exception()
            self._stop.set()

    def _samples(self) -> Sequence[Sample]:
        fed = self._feed.samples() if self._feed is not None else []
        moved = self._reconciler.samples() if self._reconciler is not None else []
        compared = self._comparing.samples() if self._comparing is not None else []
        walked = self._conductor.samples() if self._conductor is not None else []
        return [*fed, *moved, *compared, *walked]

    def _obey(self, message: Message) -> None:
        match message["do"]:
            case "start":
                self._start.set_result(message)
            case "context":
                self._context = message["context"]
                if self._feed is not None and self._admin is not None:
                    self._feed.update(message["context"])
                    self._admin.update(message["context"])
            case "stop":
                self._for_good = message["for_good"]
                self._stop.set()


async def _answer_the_accepted(runner: web.AppRunner, listening: list[socket.socket]) -> None:
    """Accept no more, and answer what has been accepted, for at most END_WITHIN.

    The order matters: the next process accepts from the same sockets, so a connection that waits
    there loses nothing, while one that this process has taken has nobody else.
    """
    loop = asyncio.get_running_loop()
    for sock in listening:
        loop.remove_reader(sock)
    for _ in range(TURNS_TO_CONNECT):
        await asyncio.sleep(0)
    server = runner.server
    assert server is not None
    deadline = loop.time() + END_WITHIN
    while server.connections and loop.time() < deadline:  # noqa: ASYNC110  (aiohttp tells nobody)
        await asyncio.sleep(LOOK_AGAIN_AFTER)


if __name__ == "__main__":
    sys.exit(main())
