"""The workers of one instance: started, kept alive, changed as one, drained.

A worker has a *place* (0, 1, …) and a share of the listening sockets. One that ends without being
asked is replaced in its place, on the same sockets, so that the connections in their queues wait
for the successor instead of being reset.

`change` is the only way to another configuration, another number of workers or other code, and it
is all or nothing: workers that stay are reconfigured in place, workers that are needed are prepared,
and only when each of them runs the new orders do the new ones accept and the replaced ones drain. If
one refuses, those that had obeyed are put back and those that were prepared are ended. Since nobody
accepts before all could, nothing that a client has begun ends with them.

    starting -> ready -> draining -> ended (counted by reason)
"""

from __future__ import annotations

import asyncio
import base64
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from core.metrics import CLIENT_CONNECTIONS, REQUESTS_IN_FLIGHT, Sample
from crossfade import exposition
from crossfade.channel import Channel, Message
from crossfade.ledger import Ledger
from crossfade.logs import Log
from crossfade.orders import Orders
from crossfade.processes import Children, Process, own, resident_bytes
from crossfade.status import FlagsAck, WorkerStatus

READY_WITHIN = 30.0
"""Seconds that a new worker has until it is prepared, and again until it accepts."""
FLAGS_WITHIN = 2.0
"""Seconds that a worker has to acknowledge other flags; one that is late may take them yet."""
FLAGS_WITHIN_IF_LATE = 0.1
"""Seconds for one that has been late the last time: the others are not to wait for it twice."""
OBEY_WITHIN = 5.0
"""Seconds that a worker has to take over a new configuration."""
SAMPLES_WITHIN = 0.5
"""Seconds that a scrape waits for fresh samples before it takes the last known ones."""
REPLAYED_WITHIN = 45.0
"""Seconds in which both sides may be asked again, legacy twice; each has its own deadline."""
SILENT_FOR = 30.0
"""Seconds without a word, where one comes each second, after which a worker counts as hung."""
DEAF_WITHIN = 1.0
"""Seconds that a worker told to drain has until it stops to accept."""
LEAVE_WITHIN = 3.0
"""Seconds between the end of a drain and the end of the process."""
EARLY = 5.0
"""A worker that lives shorter than this many seconds counts towards the back-off of its place."""
FREE_DEATHS = 2
"""Early deaths in a row that are still replaced at once."""
LONGEST_BACKOFF = 5.0

Share = Sequence[socket.socket]


class State(StrEnum):
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


class ChangeError(Exception):
    """The fleet did not change; everything runs as before. `late` if time ran out."""

    def __init__(self, reasons: Sequence[str], *, late: bool = False) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = list(reasons)
        self.late = late


class Worker:
    """One worker process, as the supervisor knows it."""

    def __init__(self, place: int, process: Process, channel: Channel, share: Share) -> None:
        self.place = place
        self.process = process
        self.channel = channel
        self.share = share
        self.state = State.STARTING
        self.generation = 0
        self.flags_version = self.flags_taken = 0
        """What it obeys, and what it decides by from the next request on."""
        self.late = False
        """It has not answered to the last flags, and not been heard since."""
        self.born = time.monotonic()
        self.start_seconds = 0.0
        self.heard = self.born
        self.samples: list[Sample] = []
        self.ending: str | None = None
        """The reason, if we end it."""
        self.deaf: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """It accepts no more."""
        self.buried: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def __repr__(self) -> str:
        return f"<Worker {self.place} pid {self.process.pid} {self.state} generation {self.generation}>"

    def note_versions(self, message: Message) -> None:
        self.flags_version = message.get("flags_version", self.flags_version)
        self.flags_taken = message.get("flags_taken", self.flags_taken)

    def hear_no_more(self) -> None:
        if not self.deaf.done():
            self.deaf.set_result(None)

    def end(self, reason: str, signum: int = signal.SIGKILL) -> None:
        if self.ending is None and not self.process.exited.done():
            self.ending = reason
        self.process.kill(signum)

    def status(self) -> WorkerStatus:
        return WorkerStatus(
            worker=self.place,
            pid=self.process.pid,
            state=self.state.value,
            generation=self.generation,
            flags_version=self.flags_version,
            flags_taken=self.flags_taken,
            age_seconds=round(time.monotonic() - self.born, 3),
            start_seconds=round(self.start_seconds, 3),
            connections=int(exposition.total(self.samples, CLIENT_CONNECTIONS)),
            in_flight=int(exposition.total(self.samples, REQUESTS_IN_FLIGHT)),
            memory_bytes=resident_bytes(self.process.pid),
        )


class Fleet:
    """All workers. `orders` and `shares` are what the last successful change has made true."""

    def __init__(self, children: Children, ledger: Ledger, log: Log) -> None:
        self._children = children
        self._ledger = ledger
        self._log = log
        self.orders: Orders | None = None
        self.flags: Message | None = None
        """The flag set that every worker decides by (`flags.document`), None before there is one."""
        self._shares: list[Share] = []
        self._places: dict[int, Worker] = {}
        self._living: set[Worker] = set()
        """Everyone who has not been buried: in place, half started, or draining."""
        self._replacements: dict[int, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._early_deaths: dict[int, int] = {}
        self._changing = False
        self._stopping = False

    # The story: change, keep, drain.

    async def change(self, orders: Orders, shares: Sequence[Share], *, afresh: bool = False) -> None:
        """Have one worker per share run `orders`; with `afresh` all of them are new processes.

        Raises ChangeError, after which the fleet is as it was.
        """
        # Whoever is being replaced right now would come up with the old orders.
        await self._pause_replacements()
        self._changing = True
        try:
            await self._change(orders, shares, afresh=afresh)
        finally:
            self._changing = False
            self._resume_replacements()

    async def _change(self, orders: Orders, shares: Sequence[Share], *, afresh: bool) -> None:
        stay = {
            place: worker
            for place, worker in self._places.items()
            if not afresh and place < len(shares) and _same(worker.share, shares[place])
        }
        obeyed = await self._reconfigure(list(stay.values()), orders)
        stay = {worker.place: worker for worker in obeyed}
        try:
            # Among them the places of those that died instead of obeying.
            needed = [place for place in range(len(shares)) if place not in stay]
            begun = await self._prepare_all(needed, orders, shares)
            await self._admit_all(begun)
        except BaseException:
            await self._put_back(obeyed)
            raise
        leaving = [
            worker
            for place, worker in self._places.items()
            if place not in stay and not worker.channel.closed.done()
        ]
        self.orders, self._shares = orders, list(shares)
        present = [*stay.values(), *begun]
        # Who died or left in the meantime was in no place then, so that has not emptied one.
        self._places = {
            worker.place: worker
            for worker in present
            if worker.state is State.READY and not worker.buried.done()
        }
        for worker in leaving:
            self._let_go(worker)

    def _let_go(self, worker: Worker) -> None:
        worker.state = State.DRAINING
        self._run(self.retire(worker))

    async def retire(self, worker: Worker) -> int:
        """Drain one worker and see it end; returns how many connections were cut at the deadline."""
        timeout = self.orders.drain if self.orders is not None else 0.0
        worker.state = State.DRAINING
        cut = 0
        try:
            answer = await worker.channel.ask({"do": "drain", "timeout": timeout}, timeout + LEAVE_WITHIN)
            cut = int(answer["cut"])
            worker.ending = "drained"
            async with asyncio.timeout(LEAVE_WITHIN):
                await asyncio.shield(worker.buried)
        except TimeoutError:
            self._log.warning(
                "worker did not end after its drain", worker=worker.place, pid=worker.process.pid
            )
            worker.end("hung")
        except ConnectionResetError:
            # It ended in the middle of it; what it had counted last will be in the ledger.
            self._log.warning("worker ended while it drained", worker=worker.place, pid=worker.process.pid)
        await asyncio.shield(worker.buried)
        self._log.info("worker drained", worker=worker.place, pid=worker.process.pid, cut=cut)
        return cut

    async def drain(self, when_deaf: Callable[[], None]) -> int:
        """Drain everyone, for good; returns how many exchanges were cut at the deadline.

        `when_deaf` is called as soon as nobody accepts any more.
        """
        self._stopping = True
        await self._pause_replacements()
        workers = list(self._living)
        leaving = [self._run(self.retire(worker)) for worker in workers]
        if workers:
            await asyncio.wait([worker.deaf for worker in workers], timeout=DEAF_WITHIN)
        when_deaf()
        return sum(await asyncio.gather(*leaving))

    def kill(self) -> None:
        """End everyone at once, for good."""
        self._stopping = True
        for worker in self._living:
            worker.end("killed")

    # Flags.

    async def tell_flags(self, document: Message, lease: float | None = None) -> list[FlagsAck]:
        """Have every worker decide by `document`, also those that start or drain; who did, and how soon.
        A worker that ends meanwhile is none of them.

        `lease` is until when (time.monotonic) this set is sure to have been the newest or just replaced.
        """
        self.flags = document
        workers = [worker for worker in self.living if worker.channel.is_open]
        order = {"do": "flags", "flags": document, "lease": lease}
        acks = await asyncio.gather(*(self._tell_flags(worker, order) for worker in workers))
        return [ack for ack in acks if ack is not None]

    async def _tell_flags(self, worker: Worker, order: Message) -> FlagsAck | None:
        began = time.monotonic()
        error, taken = None, False
        within = FLAGS_WITHIN_IF_LATE if worker.late else FLAGS_WITHIN
        try:
            answer = await worker.channel.ask(order, within)
            worker.note_versions(answer)
            worker.late = False
            error, taken = answer.get("error"), "flags_taken" in answer
        except TimeoutError:
            worker.late = True
            error = f"no answer within {within:g} s"
        except ConnectionResetError:
            return None
        return FlagsAck(
            worker.place,
            worker.process.pid,
            worker.flags_version,
            round((time.monotonic() - began) * 1000, 3),
            error,
            taken,
        )

    def tell_freshness(self, cutover: str, upto: float) -> None:
        """Who does not hear of it lets sessions that have written stay with legacy."""
        for worker in self.living:
            worker.channel.send({"do": "fresh", "cutover": cutover, "upto": upto})

    def tell_lease(self, version: int, until: float) -> None:
        """Who decides by `version` may send what a cutover has armed until then (time.monotonic)."""
        for worker in self.living:
            worker.channel.send({"do": "lease", "version": version, "until": until})

    async def recent(self, flag: str) -> dict[str, int]:
        """Sampled requests per bucket of `flag` in the last minutes, over all workers."""

        async def of(worker: Worker) -> dict[str, int]:
            try:
                answer = await worker.channel.ask({"do": "recent", "flag": flag}, SAMPLES_WITHIN)
            except (TimeoutError, ConnectionResetError):
                return {}
            buckets: dict[str, int] = answer["buckets"]
            return buckets

        found: Counter[str] = Counter()
        for buckets in await asyncio.gather(*(of(worker) for worker in self.living)):
            found.update(buckets)
        return dict(found)

    async def replay(self, request: str) -> dict[str, Any]:
        """Have a worker ask both sides; its answer, or why there is none."""
        worker = next((one for one in self.living if one.state is State.READY), None)
        if worker is None:
            return {"error": "no worker is ready"}
        try:
            return await worker.channel.ask({"do": "replay", "request": request}, REPLAYED_WITHIN)
        except (TimeoutError, ConnectionResetError):
            return {"error": "the worker that was asked does not answer"}

    # What others want to know.

    @property
    def not_ready(self) -> list[str]:
        """Why the fleet does not take all traffic; empty if it does."""
        if self._stopping:
            return ["draining"]
        if not self._shares:
            return ["starting"]
        states = [(place, self._state(place)) for place in range(len(self._shares))]
        return [f"worker {place} is {state}" for place, state in states if state != State.READY]

    @property
    def ready_count(self) -> int:
        return sum(worker.state is State.READY for worker in self._places.values())

    @property
    def size(self) -> int:
        return len(self._shares)

    @property
    def living(self) -> list[Worker]:
        return sorted(self._living, key=lambda worker: (worker.place, worker.born))

    def status(self) -> list[WorkerStatus]:
        """Everyone who lives, and the places whose worker is going to be started again."""
        waiting = [
            WorkerStatus(place, 0, "waiting", 0, 0, 0, 0.0, 0.0, 0, 0, 0)
            for place in range(self.size)
            if self._state(place) == "waiting"
        ]
        return [*(worker.status() for worker in self.living), *waiting]

    async def refresh(self) -> None:
        """Ask all workers for what they have counted, as fresh as each of them is within SAMPLES_WITHIN."""
        workers = [worker for worker in self._living if worker.state is not State.STARTING]
        await asyncio.gather(*(self._refresh(worker) for worker in workers))

    def samples(self) -> list[Sequence[Sample]]:
        """What the living ones have said last. Who has ended is in the ledger with that."""
        return [worker.samples for worker in self._living]

    def end_hung(self, *, forgive: bool) -> None:
        """End workers that have been silent for too long; with `forgive` their clocks begin anew."""
        now = time.monotonic()
        for worker in self._living:
            if forgive or worker.state is State.STARTING:
                worker.heard = now
            elif now - worker.heard > SILENT_FOR:
                self._log.error("worker hangs, it is ended", worker=worker.place, pid=worker.process.pid)
                worker.end("hung")

    # Starting and keeping alive.

    async def _prepare_all(
        self, places: Sequence[int], orders: Orders, shares: Sequence[Share]
    ) -> list[Worker]:
        results = await asyncio.gather(
            *(self._prepare(place, orders, shares[place]) for place in places), return_exceptions=True
        )
        prepared = [result for result in results if isinstance(result, Worker)]
        failures = [result for result in results if isinstance(result, BaseException)]
        if not failures:
            return prepared
        for worker in prepared:
            worker.end("not_ready")
        for failure in failures:
            if not isinstance(failure, ChangeError):
                raise failure
        known = [failure for failure in failures if isinstance(failure, ChangeError)]
        # N workers that stumble over the same stone say it once.
        reasons = list(dict.fromkeys(reason for failure in known for reason in failure.reasons))
        raise ChangeError(reasons, late=any(failure.late for failure in known))

    async def _admit_all(self, workers: Sequence[Worker]) -> None:
        """One after the other, so that where the first one cannot accept no other has begun to."""
        try:
            for worker in workers:
                await self._admit(worker)
        except BaseException:
            for worker in workers:
                if worker.state is State.STARTING:
                    worker.end("not_ready")
                elif worker.state is State.READY:
                    # It may have clients by now.
                    self._let_go(worker)
            raise

    async def _prepare(self, place: int, orders: Orders, share: Share) -> Worker:
        """A new worker that could accept. Raises ChangeError if it does not come so far."""
        channel = Channel(lambda message: self._received(worker, message))
        try:
            process, line = self._children.spawn_with_line("crossfade.worker_process", share)
        except OSError as error:
            raise ChangeError([f"cannot start a process: {error.strerror}"]) from error
        worker = Worker(place, process, channel, share)
        worker.generation = orders.generation
        self._living.add(worker)
        self._run(self._bury(worker))
        told = {"worker": place, "sockets": [sock.fileno() for sock in share], "orders": orders.to_wire()}
        try:
            await channel.open(line)
            # The flags of this moment: whatever comes later finds the line open.
            prepared = await self._tell_new(worker, {"do": "prepare", **told, "flags": self.flags})
            worker.note_versions(prepared)
        except BaseException:
            worker.end("not_ready")
            raise
        return worker

    async def _admit(self, worker: Worker) -> None:
        """Have a prepared worker accept. Raises ChangeError if it does not."""
        try:
            await self._tell_new(worker, {"do": "accept"})
        except ChangeError:
            worker.end("not_ready")
            raise
        except BaseException:
            # Given up while it may begin to have clients.
            self._let_go(worker)
            raise
        worker.state = State.READY
        worker.heard = time.monotonic()
        worker.start_seconds = worker.heard - worker.born

    async def _tell_new(self, worker: Worker, order: Message) -> Message:
        try:
            answer = await worker.channel.ask(order, READY_WITHIN)
        except TimeoutError:
            reason = f"worker {worker.place} was not ready within {READY_WITHIN:.0f} s"
            raise ChangeError([reason], late=True) from None
        except ConnectionResetError:
            code = await worker.process.wait()
            reason = f"worker {worker.place} ended while starting ({_exit_text(code)})"
            raise ChangeError([reason]) from None
        if "error" in answer:
            raise ChangeError([answer["error"]])
        return answer

    async def _bury(self, worker: Worker) -> None:
        """Wait for the end of a worker, count it, and see to its place."""
        exited, closed = worker.process.exited, worker.channel.closed
        either: list[asyncio.Future[Any]] = [exited, closed]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        # After its line a process ends at once, unless it is broken.
        await asyncio.wait([exited], timeout=LEAVE_WITHIN)
        if not exited.done():
            worker.end("hung")
        code = await exited
        # The last samples may still lie in the line.
        await closed
        reason = worker.ending or _exit_reason(code)
        self._living.discard(worker)
        self._ledger.bury(worker.samples, reason)
        worker.buried.set_result(None)
        worker.hear_no_more()
        if worker.state is State.READY and not self._stopping:
            who = {"worker": worker.place, "pid": worker.process.pid}
            self._log.error("worker ended", **who, reason=reason, exit=_exit_text(code))
            lived = time.monotonic() - worker.born
            deaths = self._early_deaths.get(worker.place, 0) + 1 if lived < EARLY else 0
            self._early_deaths[worker.place] = deaths
        if self._places.get(worker.place) is worker:
            del self._places[worker.place]
            self._resume_replacements()

    def _resume_replacements(self) -> None:
        if self._stopping or self._changing or self.orders is None:
            return
        for place in range(len(self._shares)):
            running = self._replacements.get(place)
            if place not in self._places and (running is None or running.done()):
                self._replacements[place] = self._run(self._replace(place))

    async def _pause_replacements(self) -> None:
        running = [task for task in self._replacements.values() if not task.done()]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        self._replacements.clear()

    async def _replace(self, place: int) -> None:
        """Start workers in an empty place until one is ready."""
        while True:
            await asyncio.sleep(backoff(self._early_deaths.get(place, 0)))
            assert self.orders is not None, "a place exists only after a change"
            try:
                worker = await self._prepare(place, self.orders, self._shares[place])
                await self._admit(worker)
            except ChangeError as error:
                self._early_deaths[place] = self._early_deaths.get(place, 0) + 1
                self._log.error("worker does not start", worker=place, reason=str(error))
                continue
            if worker.state is not State.READY or worker.buried.done():
                self._early_deaths[place] = self._early_deaths.get(place, 0) + 1
                continue
            self._places[place] = worker
            self._log.info(
                "worker replaced",
                worker=place,
                pid=worker.process.pid,
                seconds=round(worker.start_seconds, 3),
            )
            return

    # Reconfiguring in place.

    async def _reconfigure(self, workers: Sequence[Worker], orders: Orders) -> list[Worker]:
        """Have `workers` run `orders`; returns who obeyed. On ChangeError nobody has."""
        results = await asyncio.gather(*(self._configure(worker, orders) for worker in workers))
        obeyed = [worker for worker, trouble in zip(workers, results, strict=True) if trouble is None]
        troubles = [trouble for trouble in results if trouble is not None]
        # Who died meanwhile has no say: its place is filled anew, by the orders that hold then.
        refusals = [trouble for trouble in troubles if not trouble.died]
        if refusals:
            # A late one may obey yet, so it is put back too.
            await self._put_back([worker for worker in workers if not worker.buried.done()])
            reasons = list(dict.fromkeys(trouble.reason for trouble in refusals))
            raise ChangeError(reasons, late=all(trouble.late for trouble in refusals))
        return obeyed

    async def _configure(self, worker: Worker, orders: Orders) -> _Trouble | None:
        try:
            answer = await worker.channel.ask({"do": "configure", "orders": orders.to_wire()}, OBEY_WITHIN)
        except TimeoutError:
            return _Trouble(f"worker {worker.place} did not answer within {OBEY_WITHIN:.0f} s", late=True)
        except ConnectionResetError:
            return _Trouble(f"worker {worker.place} ended", died=True)
        if "error" in answer:
            return _Trouble(answer["error"])
        worker.generation = orders.generation
        return None

    async def _put_back(self, workers: Sequence[Worker]) -> None:
        if self.orders is None:
            return
        orders = self.orders
        for worker, trouble in zip(
            workers,
            await asyncio.gather(*(self._configure(worker, orders) for worker in workers)),
            strict=True,
        ):
            if trouble is not None and not trouble.died:
                # It runs who knows what; its successor will run the orders.
                worker.end("hung" if trouble.late else "not_ready")

    # Messages.

    def _received(self, worker: Worker, message: Message) -> None:
        worker.heard = time.monotonic()
        worker.late = False
        if message.get("deaf"):
            worker.hear_no_more()
            if worker.state is State.READY:
                self._leaves_unasked(worker)
        if "samples" in message:
            worker.samples = exposition.from_wire(message["samples"])
            # Also where it has obeyed after nobody waited for its answer any more.
            worker.note_versions(message)

    def _leaves_unasked(self, worker: Worker) -> None:
        """Somebody else has told it to end. Who connects meanwhile shall not wait until it has drained."""
        who = {"worker": worker.place, "pid": worker.process.pid}
        self._log.warning("worker drains without being asked", **who)
        worker.state = State.DRAINING
        if self._places.get(worker.place) is worker:
            del self._places[worker.place]
            self._resume_replacements()

    async def _refresh(self, worker: Worker) -> None:
        try:
            self._received(worker, await worker.channel.ask({"do": "samples"}, SAMPLES_WITHIN))
        except (TimeoutError, ConnectionResetError):
            return

    def _state(self, place: int) -> str:
        if place in self._places:
            return self._places[place].state
        starting = any(w.place == place and w.state is State.STARTING for w in self._living)
        return "starting" if starting else "waiting"

    def _run(self, story: Any) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(story)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # Across a restart of the program.

    async def pause(self) -> None:
        """Stand still, so that the living can be written down."""
        await self._pause_replacements()
        for worker in self._living:
            if worker.channel.closed.done():
                worker.end("crashed")
        dying = [worker for worker in self._living if worker.ending or worker.state is State.STARTING]
        await asyncio.gather(*(asyncio.shield(worker.buried) for worker in dying))
        for worker in self._living:
            worker.channel.pause()

    def resume(self) -> None:
        """Go on after a pause that led nowhere."""
        for worker in self._living:
            worker.channel.resume()
        self._resume_replacements()

    def to_wire(self) -> dict[str, Any]:
        assert self.orders is not None, "only a running fleet is handed over"
        return {
            "orders": self.orders.to_wire(),
            "shares": [[sock.fileno() for sock in share] for share in self._shares],
            "workers": [
                {
                    "place": worker.place,
                    "pid": worker.process.pid,
                    "channel": worker.channel.fileno(),
                    "unread": base64.b64encode(worker.channel.unread).decode(),
                    # Who drains accepts no more, and its sockets may be closed before it has ended.
                    "share": [s.fileno() for s in worker.share] if worker.state is State.READY else [],
                    "state": worker.state.value,
                    "generation": worker.generation,
                    "flags_version": worker.flags_version,
                    "flags_taken": worker.flags_taken,
                    "born": worker.born,
                    "start_seconds": worker.start_seconds,
                    "samples": exposition.to_wire(worker.samples),
                }
                for worker in self._living
            ],
        }

    async def adopt(self, wire: dict[str, Any], sockets: Mapping[int, socket.socket]) -> None:
        """Take over the fleet that another image of this program has written down."""
        self.orders = Orders.from_wire(wire["orders"])
        self._shares = [[sockets[fd] for fd in share] for share in wire["shares"]]
        for entry in wire["workers"]:
            await self._adopt_one(entry, sockets)
        self._children.reap()
        self._resume_replacements()

    async def _adopt_one(self, entry: dict[str, Any], sockets: Mapping[int, socket.socket]) -> None:
        channel = Channel(lambda message: self._received(worker, message))
        share = [sockets[fd] for fd in entry["share"]]
        worker = Worker(entry["place"], self._children.adopt(entry["pid"]), channel, share)
        worker.state = State(entry["state"])
        worker.generation = entry["generation"]
        worker.note_versions(entry)
        worker.born, worker.start_seconds = entry["born"], entry["start_seconds"]
        worker.samples = exposition.from_wire(entry["samples"])
        self._living.add(worker)
        self._run(self._bury(worker))
        await channel.open(own(entry["channel"]), base64.b64decode(entry["unread"]))
        if worker.state is State.DRAINING:
            self._run(self.retire(worker))
        else:
            self._places[worker.place] = worker


@dataclass(frozen=True, slots=True)
class _Trouble:
    reason: str
    late: bool = False
    died: bool = False


def backoff(early_deaths: int) -> float:
    """Seconds before the next start in a place whose workers have died early so often in a row."""
    if early_deaths <= FREE_DEATHS:
        return 0.0
    return float(min(0.1 * 2 ** (early_deaths - FREE_DEATHS - 1), LONGEST_BACKOFF))


def _same(a: Share, b: Share) -> bool:
    return {sock.fileno() for sock in a} == {sock.fileno() for sock in b}


def _exit_reason(code: int) -> str:
    if code < 0:
        return "killed"
    return "crashed" if code else "terminated"


def _exit_text(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
