"""The process around one proxy worker: `python -m crossfade.worker_process LINE PARENT`.

It does what its supervisor says on the line (prepare, accept, configure, flags, recent, drain, samples,
reopen) and says each second what it has counted and by which flags it decides. Flags that let requests wait
count as obeyed only when nothing is under way any more that should have waited. Prepared, it has found
all that it needs and takes no connection yet. Told to end by anybody else (SIGTERM), or left alone by a
supervisor that died, it drains and ends by itself.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvloop

from core.mirrored import Mirrored
from crossfade import exposition, users_code
from crossfade.channel import Channel, Message
from crossfade.observing import Observing
from crossfade.orders import Orders, OtherLayoutError
from crossfade.pair_line import PairLine
from crossfade.processes import die_with_parent
from crossfade.sockets import BACKLOG
from crossfade.users_code import UsersCodeError
from flags.document import InvalidFlagError, from_json
from flags.model import FlagSet, Route
from flags.snapshot import compile_snapshot
from legacy_adapter.adapter import Plugs
from proxy.config import ProxyConfig
from proxy.worker import Worker

QUIET_WITHIN = 1.5
"""Seconds in which a worker answers that it holds; what is under way longer is told later."""
LOOK_AGAIN = 0.002
"""Seconds between two looks at whether what was under way is over."""
SAMPLES_EVERY = 1.0
"""Seconds; what was counted since the last push is lost when this process is killed."""


def main() -> int:
    line, parent = int(sys.argv[1]), int(sys.argv[2])
    # A terminal's Ctrl-C and hang-up are the supervisor's business.
    for signum in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(signum, signal.SIG_IGN)
    die_with_parent(parent)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_Shell().live(socket.socket(fileno=line)))
    return 0


class _Shell:
    def __init__(self) -> None:
        self._worker: Worker | None = None
        self._pairs: PairLine | None = None
        self._sockets: list[socket.socket] = []
        self._flags: FlagSet | None = None
        self._obeyed = 0
        """The version of the flags that this worker has said, or may say, that it obeys."""
        self._routes: Sequence[Route] = ()
        self._generation = 0
        self._drain_timeout = 0.0
        self._turn = asyncio.Lock()
        """Whoever changes what the worker accepts and runs holds it: one after the other, as they came."""
        self._draining: asyncio.Task[int] | None = None
        self._over = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._bug: BaseException | None = None

    async def live(self, line: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        self._channel = Channel(self._obey)
        loop.add_signal_handler(signal.SIGTERM, lambda: self._run(self._end_by_myself()))
        self._run(self._channel.open(line))
        self._run(self._push_samples())
        self._run(self._notice_orphanhood())
        await self._over.wait()
        if self._worker is not None:
            # What that ends is counted like all else.
            await self._worker.cut()
            self._send_samples()
            await self._worker.close()
        if self._pairs is not None:
            await self._pairs.close()
        self._channel.close()
        await self._channel.closed
        if self._bug is not None:
            # The supervisor counts a crash, and the traceback is on stderr.
            raise self._bug

    def _obey(self, message: Message) -> None:
        match message["do"]:
            case "prepare":
                self._run(self._prepare(message))
            case "accept":
                self._run(self._accept(message))
            case "configure":
                self._run(self._configure(message))
            case "flags":
                self._run(self._take_flags(message))
            case "fresh":
                if self._worker is not None:
                    self._worker.freshness.learn(message["cutover"], message["upto"])
            case "lease":
                if self._worker is not None and self._taken == message["version"]:
                    self._worker.renew_lease(message["until"])
            case "recent":
                self._channel.answer(message, {"buckets": self._recent(message["flag"])})
            case "replay":
                self._replay(message)
            case "drain":
                self._run(self._leave(message))
            case "samples":
                self._channel.answer(message, self._news())
            case "reopen":
                if self._worker is not None:
                    self._worker.reopen_log()

    async def _prepare(self, message: Message) -> None:
        orders = Orders.from_wire(message["orders"])
        try:
            proxy, routes = orders.unpack()
        except OtherLayoutError as error:
            self._channel.answer(message, {"error": str(error)})
            self._over.set()
            return
        self._drain_timeout = orders.drain
        try:
            self._sockets = [socket.socket(fileno=fd) for fd in message["sockets"]]
            self._flags = _flag_set(message["flags"])
            self._routes, self._generation = routes, orders.generation
            plugs = _plugs(orders, proxy, routes)
            snapshot = compile_snapshot(routes, orders.generation, self._flags)
            self._obeyed = snapshot.flags_version
            if orders.observing is not None:
                self._pairs = PairLine(Observing.from_wire(orders.observing))
                self._run(self._pairs.run())
            self._worker = Worker(proxy, snapshot, plugs, self._pairs)
        except (OSError, UsersCodeError, InvalidFlagError) as error:
            self._channel.answer(message, {"error": _words(error, proxy)})
            self._over.set()
            return
        # What exists now lives as long as the process: no collection needs to look at it again.
        gc.collect()
        gc.freeze()
        self._channel.answer(message, self._versions())

    async def _accept(self, message: Message) -> None:
        assert self._worker is not None, "a worker accepts only after it was prepared"
        async with self._turn:
            if self._draining is not None:
                self._channel.answer(message, {"error": "a worker was told to end while it started"})
                return
            try:
                # Those that were added do not listen yet. All do before one is accepted from.
                for sock in self._sockets:
                    sock.listen(BACKLOG)
                await self._worker.start(self._sockets)
            except OSError as error:
                reason = error.strerror or str(error)
                self._channel.answer(message, {"error": f"a worker cannot accept: {reason}"})
                return
        self._channel.answer(message, {"ready": True})

    async def _configure(self, message: Message) -> None:
        assert self._worker is not None, "a worker is configured only after it was prepared"
        orders = Orders.from_wire(message["orders"])
        # Supervisor and worker are of one image here, so the layout is the same.
        proxy, routes = orders.unpack()
        async with self._turn:
            try:
                plugs = _plugs(orders, proxy, routes)
                await self._worker.reconfigure(
                    proxy, compile_snapshot(routes, orders.generation, self._flags), plugs
                )
            except (OSError, UsersCodeError) as error:
                self._channel.answer(message, {"error": _words(error, proxy)})
                return
            self._drain_timeout = orders.drain
            self._routes, self._generation = routes, orders.generation
            if self._pairs is not None and orders.observing is not None:
                self._pairs.update(Observing.from_wire(orders.observing))
        self._channel.answer(message, {"done": True})

    async def _take_flags(self, message: Message) -> None:
        """Decide by other flags from the next request on. Compiled beside, swapped by one assignment."""
        if self._worker is None:
            self._channel.answer(message, {"error": "it could not be prepared"})
            return
        async with self._turn:
            try:
                flags = from_json(message["flags"], self._flags)
            except InvalidFlagError as error:
                self._channel.answer(message, {"error": str(error)})
                return
            self._flags = flags
            if message["lease"] is not None:
                # Given for these flags: nobody may go on under it by those before.
                self._worker.lease.renew(message["lease"])
            self._worker.decide_by(compile_snapshot(self._routes, self._generation, flags))
        left = await self._quiet(self._worker, flags)
        if left:
            words = f"{left} requests that change something are still under way"
            self._channel.answer(message, {**self._versions(), "error": words})
            self._run(self._quiet_at_last(self._worker, flags))
        else:
            self._channel.answer(message, self._versions())

    async def _quiet(self, worker: Worker, flags: FlagSet, within: float = QUIET_WITHIN) -> int:
        """How much is under way after a while that these flags would have let wait."""
        held = [key for one in flags.authorities if one.holds for key in one.flags]
        deadline = time.monotonic() + within
        if held and worker.changes_under_way(held):
            # Who waits for it is to know that it has heard, however long this takes.
            self._send_samples()
        while held and (left := worker.changes_under_way(held)):
            if self._flags is not flags or time.monotonic() >= deadline:
                return left
            await asyncio.sleep(LOOK_AGAIN)
        self._obeyed = max(self._obeyed, flags.version)
        return 0

    async def _quiet_at_last(self, worker: Worker, flags: FlagSet) -> None:
        if not await self._quiet(worker, flags, float("inf")):
            self._send_samples()

    async def _leave(self, message: Message) -> None:
        cut = await self._drain(message["timeout"])
        self._channel.answer(message, {"cut": cut})
        self._over.set()

    async def _end_by_myself(self) -> None:
        await self._drain(self._drain_timeout)
        self._over.set()

    async def _notice_orphanhood(self) -> None:
        await self._channel.closed
        if self._over.is_set():
            return
        # The queues of these sockets have no other owner any more; refuse what would only hang in them.
        draining = self._run(self._end_by_myself())
        await asyncio.sleep(0)
        for sock in self._sockets:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                # Another orphan was faster.
                continue
        await draining

    async def _drain(self, timeout: float) -> int:
        """Drain once, however often it is asked for."""
        if self._worker is None:
            return 0
        async with self._turn:
            if self._draining is None:
                self._draining = self._run(self._worker.drain(timeout))
                await asyncio.sleep(0)
                self._channel.send({"deaf": True})
        return await asyncio.shield(self._draining)

    async def _push_samples(self) -> None:
        while True:
            await asyncio.sleep(SAMPLES_EVERY)
            # A supervisor that does not read shall not fill our memory.
            if self._channel.flushed:
                self._send_samples()

    def _send_samples(self) -> None:
        self._channel.send(self._news())

    def _news(self) -> Message:
        """What was counted, and the version in force: an order that was late is known from here."""
        if self._worker is None:
            return {"samples": []}
        pairs = [] if self._pairs is None else self._pairs.samples()
        samples = exposition.to_wire([*self._worker.samples(), *pairs])
        return {"samples": samples, **self._versions()}

    @property
    def _taken(self) -> int:
        """The version of the flags that it decides by from the next request on."""
        return 0 if self._flags is None else self._flags.version

    def _versions(self) -> Message:
        return {"flags_version": self._obeyed, "flags_taken": self._taken}

    def _replay(self, message: Message) -> None:
        """Answered when both sides have answered; whoever asks does not wait for ever."""
        worker, pairs = self._worker, self._pairs
        if worker is None or pairs is None:
            self._channel.answer(message, {"error": "this instance has no flags and compares nothing"})
            return

        def answer(pair: Mirrored) -> None:
            self._channel.answer(message, {"exhibit": pairs.shown(pair).decode()})

        error = worker.replay(message["request"].encode("latin-1"), answer)
        if error is not None:
            self._channel.answer(message, {"error": error})

    def _recent(self, flag: str) -> dict[int, int]:
        if self._worker is None:
            return {}
        return self._worker.recent.buckets(time.time()).get(flag, {})

    def _run(self, story: Any) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(story)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._bug = task.exception()
            self._over.set()


def _flag_set(document: Any) -> FlagSet | None:
    return None if document is None else from_json(document)


def _plugs(orders: Orders, proxy: ProxyConfig, routes: Sequence[Route]) -> Plugs:
    """What the users' own code brings. Raises UsersCodeError."""
    if orders.code is None:
        return Plugs()
    path = Path(orders.code[0])
    project = users_code.load(path, orders.code[1])
    users_code.check_names(project, (name for name, _ in proxy.adapters), routes, path)
    return Plugs(project.adapters, project.attributes)


def _words(error: OSError | UsersCodeError | InvalidFlagError, proxy: ProxyConfig) -> str:
    """One line for a person; TLS does not say by itself which file it could not use."""
    if not isinstance(error, OSError):
        return str(error)
    reason = error.strerror or str(error)
    if error.filename:
        return f"{error.filename}: {reason}"
    files = [target.tls.ca_file for target in proxy.targets.values() if target.tls and target.tls.ca_file]
    if proxy.listen_tls is not None:
        files += [proxy.listen_tls.cert_file, proxy.listen_tls.key_file]
    return f"cannot use {' or '.join(files)}: {reason}" if files else reason


if __name__ == "__main__":
    sys.exit(main())
