"""The supervisor: one small process that owns the sockets, keeps the workers and takes orders.

It is plain and does little, because everything hangs on it: no request passes through it, and
nothing that a worker, the admin API or a person at the command line does may end it.

    start    lock -> sockets -> workers -> control socket -> admin API
    reload   read -> compare -> change the fleet in place, all or nothing
    restart  read -> rehearse -> exec -> adopt -> new workers -> drain the old ones
    stop     drain within the configured time -> end
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import json
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Coroutine, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from core.metrics import CONFIG_GENERATION, WORKER_MEMORY_BYTES, WORKERS, Sample
from crossfade import exposition, handover, instance, notify, sockets
from crossfade import settings as settings_of_the_file
from crossfade.admin_child import AdminChild, NotStartedError
from crossfade.channel import Message
from crossfade.flag_distribution import FlagDistribution
from crossfade.fleet import EARLY, ChangeError, Fleet, State, backoff
from crossfade.handover import Handover, HandoverError
from crossfade.ledger import Ledger
from crossfade.logs import Log
from crossfade.observing import Observing
from crossfade.orders import Orders, orders
from crossfade.outcome import Outcome
from crossfade.private_file import installation_key
from crossfade.processes import Children, own
from crossfade.servers_child import ServersChild
from crossfade.settings import Address, Databases, Settings, SettingsError
from crossfade.settings_form import text_of
from crossfade.sockets import AddressError, Listener
from crossfade.status import ProxyStatus
from crossfade.sync_children import SyncChildren
from flags.model import Authority, Side

FLUSH_WITHIN = 2.0
TICK = 1.0
API_FIRST = 10.0
"""Seconds."""


STOPPING = Outcome(1, ["the instance is being stopped"], "refused")


def run(config: Path) -> int:
    """Run an instance until it is told to stop; returns the exit code of the process."""
    # The usual soft limit of 1024 descriptors would be far fewer connections than `limits` allows.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return asyncio.run(_run(Path(os.path.abspath(config))))


async def _run(config: Path) -> int:
    supervisor = Supervisor(config)
    given = handover.received()
    if given is not None:
        return await supervisor.take_over(given)
    try:
        return await supervisor.start()
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except (AddressError, instance.AlreadyRunningError, ChangeError) as error:
        sys.stderr.write(f"crossfade: {error}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"crossfade: {error.filename or 'cannot start'}: {error.strerror}\n")
        return 1


def understand(given: Handover) -> None:
    """Read everything in a handover without acting on it; raises HandoverError if that fails."""
    try:
        Ledger().restore(given.ledger)
        Orders.from_wire(given.fleet["orders"])
        for worker in given.fleet["workers"]:
            exposition.from_wire(worker["samples"])
            State(worker["state"])
        for side, child in given.sync.items():
            Side(side)
            exposition.from_wire(child["samples"])
        given.descriptors()
    except (KeyError, TypeError, ValueError) as error:
        raise HandoverError(f"the new version does not understand the running one: {error!r}") from error


class Supervisor:
    def __init__(self, config: Path) -> None:
        self._config = config
        # Asked now: by the time that somebody wants to know, another version may have been installed.
        self._version = importlib.metadata.version("crossfade")
        self._state = "starting"
        self._children = Children()
        self._ledger = Ledger()
        self._log = Log("supervisor")
        self._fleet = Fleet(self._children, self._ledger, self._log)
        self._flags = FlagDistribution(self._fleet, self._log)
        self._sync = SyncChildren(self._children, self._ledger, self._log)
        self._listeners: list[Listener] = []
        self._admin: Listener
        self._data_dir: Path
        self._lock = -1
        self._control: socket.socket
        self._api: AdminChild | None = None
        self._api_keeper: asyncio.Task[None] | None = None
        self._servers: ServersChild | None = None
        self._servers_keeper: asyncio.Task[None] | None = None
        self._settings: Settings | None = None
        """Those that run; None in a new image that cannot read them any more."""
        self._operation = asyncio.Lock()
        """One operation at a time: reload, restart or stop."""
        self._signalled: list[signal.Signals] = []
        """Which signals asked for the operations that wait or run."""
        self._stop_asked = False
        self._end: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._started_at = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._started = time.monotonic()
        self._start_seconds = 0.0
        self._restarts = 0
        self._on_terminal = sys.stderr.isatty()

    # Start.

    async def start(self) -> int:
        """Start everything, serve, and return the exit code at the end.

        Raises SettingsError, AlreadyRunningError, AddressError, ChangeError or OSError before it has served.
        """
        age = _process_age()
        settings = settings_of_the_file.load_to_run(self._config, os.environ)
        self._data_dir = settings.data_dir
        self._lock = instance.claim(self._data_dir)
        self._settle_on(settings)
        self._flags.begin(self._data_dir, str(settings.store), _cutovers(settings))
        try:
            for address in settings.listen:
                self._listeners.append(sockets.listen(address.host, address.port, settings.workers))
            self._admin = sockets.listen_admin(settings.admin.host, settings.admin.port)
            self._handle_signals()
            shares = sockets.shares(self._listeners, settings.workers)
            starting = self._task(self._fleet.change(_orders(1, settings), shares))
            self._control = instance.listen(self._data_dir)
            await self._serve_control()
            await asyncio.wait([starting, self._end], return_when=asyncio.FIRST_COMPLETED)
            if self._end.done():
                starting.cancel()
                return await self._finish()
            await starting
        except BaseException:
            await self._end_all()
            raise
        self._state = "serving"
        self._start_seconds = age + time.monotonic() - self._started
        # All take longer than the start of the workers, and no client waits for them.
        self._servers_keeper = self._task(self._keep_servers())
        self._api_keeper = self._task(self._keep_api())
        self._task(self._begin_to_sync())
        self._announce("serving", seconds=round(self._start_seconds, 3))
        for warning in settings.warnings:
            self._log.warning(warning)
        return await self._serve()

    async def _serve(self) -> int:
        self._task(self._tick())
        await self._end
        return await self._finish()

    async def _finish(self) -> int:
        await self._end_all()
        self._log.info("stopped")
        return self._end.result()

    async def _end_all(self) -> None:
        self._fleet.kill()
        await asyncio.gather(*(asyncio.shield(worker.buried) for worker in self._fleet.living))
        if self._api_keeper is not None:
            self._api_keeper.cancel()
            await asyncio.gather(self._api_keeper, return_exceptions=True)
        if self._api is not None:
            await self._api.end()
        await self._sync.end()
        await self._end_servers()
        (self._data_dir / "run" / "control.sock").unlink(missing_ok=True)

    # Reload.

    async def reload(self) -> Outcome:
        """Read the configuration again and have all workers run it, or none."""
        if self._stop_asked:
            return STOPPING
        async with self._operation:
            if self._stop_asked:
                return STOPPING
            self._state = "reloading"
            notify.reloading()
            try:
                outcome = await self._reload()
            except Exception as error:  # the supervisor survives its own bugs, and says so
                outcome = Outcome(1, [f"reload failed: {error!r}"], "failed")
            self._state = "serving"
            self._ledger.reloaded(outcome.word)
            log = self._log.info if outcome.code == 0 else self._log.error
            log("reload " + outcome.word, generation=self._generation, lines=outcome.lines)
            notify.ready(self._summary())
        return outcome

    async def _reload(self) -> Outcome:
        try:
            settings = settings_of_the_file.load_to_run(self._config, os.environ)
        except SettingsError as error:
            return Outcome(
                2, [*map(str, error.problems), "the running configuration stays as it was"], "invalid"
            )
        fixed = settings_of_the_file.diff_for_reload(self._as_now(settings), settings)
        if fixed:
            keys = ", ".join(fixed)
            return Outcome(
                1, [f"not reloaded: {keys} cannot change while running; use crossfade restart"], "refused"
            )
        generation = self._generation + 1
        try:
            with sockets.widened(self._listeners, settings.workers):
                shares = sockets.shares(self._listeners, settings.workers)
                await self._fleet.change(_orders(generation, settings), shares)
        except AddressError as error:
            return Outcome(1, [f"not reloaded: {error}"], "failed")
        except ChangeError as error:
            lines = [f"not reloaded: {reason}" for reason in error.reasons]
            return Outcome(
                7 if error.late else 1, [*lines, "all workers run the old configuration"], "failed"
            )
        self._settle_on(settings)
        if self._api is not None:
            self._api.tell(self._context())
        self._task(self._sync.change(_syncing(settings)))
        for warning in settings.warnings:
            self._log.warning(warning)
        return Outcome(0, [*settings.warnings, self._converged()], "applied")

    # Restart.

    async def restart(self, client: asyncio.StreamWriter | None) -> Outcome:
        """Replace the whole program. Returns only if that did not come about."""
        if self._stop_asked:
            return STOPPING
        async with self._operation:
            if self._stop_asked:
                return STOPPING
            self._state = "restarting"
            notify.reloading()
            try:
                outcome = await self._restart(client)
            except Exception as error:  # the supervisor survives its own bugs, and says so
                outcome = Outcome(1, [f"restart failed: {error!r}"], "failed")
            self._state = "serving"
            self._log.error("restart " + outcome.word, lines=outcome.lines)
            notify.ready(self._summary())
        return outcome

    async def _restart(self, client: asyncio.StreamWriter | None) -> Outcome:
        stays = "the running program goes on as it was"
        try:
            settings = settings_of_the_file.load_to_run(self._config, os.environ)
        except SettingsError as error:
            return Outcome(2, [*map(str, error.problems), stays], "invalid")
        if settings.data_dir != self._data_dir:
            return Outcome(1, ["not restarted: data_dir cannot change without stop and start"], "refused")
        try:
            await handover.check(self._config, self._handover(client))
            # A change of flags that is under way needs the workers' answers, which the pause holds back.
            async with self._flags.standing_still():
                await self._fleet.pause()
                await self._flush()
                handover.hold_signals()
                # What arrived before the hold is handled now; what arrives after it, by the next image.
                await asyncio.sleep(0.01)
                if self._stop_asked:
                    return STOPPING
                self._log.info("restarting", generation=self._generation)
                self._signal_again(client)
                handover.execute(self._handover(client))
        except HandoverError as error:
            lines = [f"not restarted: {line}" for line in str(error).splitlines()]
            return Outcome(2, [*lines, stays], "refused")
        except OSError as error:
            return Outcome(1, [f"not restarted: {error.strerror}", stays], "failed")
        finally:
            handover.let_signals_in()
            if self._api is not None:
                self._api.channel.resume()
            for line in self._sync.lines:
                line.resume()
            self._fleet.resume()

    async def _flush(self) -> None:
        """Wait until everything that was said to children has left this process."""
        lines = [worker.channel for worker in self._fleet.living]
        if self._api is not None:
            self._api.channel.pause()
            lines.append(self._api.channel)
        for line in self._sync.lines:
            line.pause()
            lines.append(line)
        deadline = time.monotonic() + FLUSH_WITHIN
        while not all(line.flushed for line in lines):
            if time.monotonic() > deadline:
                raise HandoverError("a worker does not read what it is told")
            await asyncio.sleep(0.01)

    def _handover(self, client: asyncio.StreamWriter | None) -> Handover:
        return Handover(
            data_dir=str(self._data_dir),
            listeners=[listener.to_wire() for listener in self._listeners],
            admin=self._admin.to_wire(),
            lock_fd=self._lock,
            control_fd=self._control.fileno(),
            client_fd=client.get_extra_info("socket").fileno() if client is not None else None,
            fleet=self._fleet.to_wire(),
            api=self._api.to_wire() if self._api is not None else None,
            servers=self._servers.to_wire() if self._servers is not None else None,
            sync=self._sync.to_wire(),
            ledger=self._ledger.to_wire(),
            started_at=self._started_at,
            started=self._started,
            restarts=self._restarts,
            on_terminal=self._on_terminal,
        )

    async def take_over(self, given: Handover) -> int:
        """The other half of a restart, in the next image: adopt what serves, then replace it."""
        began = time.monotonic()
        self._data_dir = Path(given.data_dir)
        self._lock = given.lock_fd
        os.set_inheritable(self._lock, False)
        self._listeners = [_listener(entry) for entry in given.listeners]
        self._admin = _listener(given.admin)
        self._control = own(given.control_fd)
        client = own(given.client_fd) if given.client_fd is not None else None
        self._ledger.restore(given.ledger)
        self._started_at, self._started = given.started_at, given.started
        self._restarts = given.restarts
        self._on_terminal = given.on_terminal
        self._state = "restarting"
        self._handle_signals()
        # If the file has been spoiled since it was checked, the replacement of the workers will say so.
        with contextlib.suppress(SettingsError):
            self._settle_on(settings_of_the_file.load_to_run(self._config, os.environ))
        known_store = str(self._settings.store) if self._settings else "unknown"
        self._flags.begin(self._data_dir, known_store, _cutovers(self._settings))
        known = {sock.fileno(): sock for listener in self._listeners for sock in listener.sockets}
        await self._fleet.adopt(given.fleet, known)
        if given.servers is not None:
            self._servers = ServersChild.adopt(self._children, given.servers)
        if given.api is not None:
            self._api = await AdminChild.adopt(self._children, given.api, self._answer_api)
        await self._sync.adopt(given.sync)
        self._children.reap()
        handover.let_signals_in()
        await self._serve_control()
        # From here on nothing can be lost: the old workers serve and have a supervisor.
        self._task(self._replace_everything(client, began))
        return await self._serve()

    async def _replace_everything(self, client: socket.socket | None, began: float) -> None:
        async with self._operation:
            old_api = self._api
            try:
                outcome = await self._replace_workers()
            except Exception as error:  # whatever it is, the old workers serve
                outcome = Outcome(1, [f"restart failed: {error!r}"], "failed")
            if outcome.code == 0:
                self._restarts += 1
                self._start_seconds = time.monotonic() - began
            self._servers_keeper = self._task(self._keep_servers())
            self._api_keeper = self._task(self._keep_api(instead_of=old_api))
            self._task(self._begin_to_sync())
            self._state = "serving"
        if outcome.code == 0:
            self._announce("restarted", seconds=round(self._start_seconds, 3))
        else:
            notify.ready(self._summary())
            self._log.error("restart " + outcome.word, lines=outcome.lines)
        if client is not None:
            await _answer_inherited(client, outcome)

    async def _replace_workers(self) -> Outcome:
        """New workers of the new code on the configuration of the file; the old ones until they accept."""
        stays = "the old workers go on serving under the new supervisor"
        listeners: list[Listener] = []
        admin = self._admin
        try:
            settings = settings_of_the_file.load_to_run(self._config, os.environ)
            kept = {(listener.host, listener.port): listener for listener in self._listeners}
            for address in settings.listen:
                listener = kept.get((address.host, address.port))
                if listener is None:
                    listener = sockets.listen(address.host, address.port, settings.workers)
                listeners.append(listener)
            if settings.admin != _address(admin):
                admin = sockets.listen_admin(settings.admin.host, settings.admin.port)
            with sockets.widened(listeners, settings.workers):
                shares = sockets.shares(listeners, settings.workers)
                await self._fleet.change(_orders(self._generation + 1, settings), shares, afresh=True)
        except (SettingsError, AddressError, ChangeError) as error:
            for listener in listeners:
                if listener not in self._listeners:
                    listener.stop_listening()
                    listener.close()
            if admin is not self._admin:
                admin.close()
            late = isinstance(error, ChangeError) and error.late
            lines = [f"not restarted: {line}" for line in str(error).splitlines()]
            return Outcome(7 if late else 1, [*lines, stays], "failed")
        for gone in (self._listeners, [self._admin]):
            for listener in gone:
                if listener not in [*listeners, admin]:
                    listener.stop_listening()
                    listener.close()
        self._listeners, self._admin = listeners, admin
        self._settle_on(settings)
        return Outcome(0, [*settings.warnings, self._converged()], "applied")

    # Stop.

    def ask_to_stop(self) -> None:
        """The first time drain, the second time end at once."""
        if self._stop_asked:
            self._log.warning("stopping at once")
            self._finish_with(0)
            return
        self._stop_asked = True
        if self._state == "starting":
            self._finish_with(0)
            return
        self._task(self._stop())

    async def _stop(self) -> None:
        async with self._operation:
            self._state = "draining"
            notify.stopping()
            self._log.info("draining", workers=len(self._fleet.living))
            # What came after the last accept would only wait in vain.
            cut = await self._fleet.drain(self._stop_listening)
            self._log.info("drained", cut=cut)
            self._finish_with(0)

    def _stop_listening(self) -> None:
        for listener in self._listeners:
            listener.stop_listening()

    def _finish_with(self, code: int) -> None:
        if not self._end.done():
            self._end.set_result(code)

    # Signals and time.

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: self._log.error("bug", **_printable(context)))
        loop.add_signal_handler(signal.SIGCHLD, self._children.reap)
        loop.add_signal_handler(signal.SIGTERM, self.ask_to_stop)
        loop.add_signal_handler(signal.SIGINT, self.ask_to_stop)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        loop.add_signal_handler(signal.SIGUSR1, self._reopen_logs)
        loop.add_signal_handler(
            signal.SIGUSR2, lambda: self._task(self._as_signalled(signal.SIGUSR2, self.restart(None)))
        )

    def _hang_up(self) -> None:
        if self._on_terminal and not _has_terminal():
            # The terminal that we were started on was closed; nobody asked for a reload.
            self.ask_to_stop()
        else:
            self._task(self._as_signalled(signal.SIGHUP, self.reload()))

    async def _as_signalled(self, signum: signal.Signals, operation: Coroutine[Any, Any, Outcome]) -> None:
        self._signalled.append(signum)
        try:
            await operation
        finally:
            self._signalled.remove(signum)

    def _signal_again(self, client: asyncio.StreamWriter | None) -> None:
        """Leave what signals have asked for, and waits behind a restart, to the next image.

        To be called while signals are held. Commands that wait ask it themselves (`instance.ask`).
        """
        waiting = list(self._signalled)
        if client is None:
            waiting.remove(signal.SIGUSR2)
        for signum in set(waiting):
            os.kill(os.getpid(), signum)

    def _reopen_logs(self) -> None:
        for worker in self._fleet.living:
            worker.channel.send({"do": "reopen"})

    async def _tick(self) -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(TICK)
            # When we ourselves stood still (a suspended machine, Ctrl-Z), silence says nothing about workers.
            self._fleet.end_hung(forgive=time.monotonic() - before > 2 * TICK)

    # The control socket.

    async def _serve_control(self) -> None:
        await asyncio.start_unix_server(self._converse, sock=self._control)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                answer = await self._obey(line, writer)
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
        except (OSError, ValueError):
            # Whoever hangs up, or sends a line without end, gets no more answers.
            pass
        finally:
            writer.close()

    async def _obey(self, line: bytes, writer: asyncio.StreamWriter) -> dict[str, Any]:
        try:
            order = json.loads(line)
            request, config = order["do"], order.get("config", str(self._config))
        except (ValueError, KeyError, TypeError, AttributeError):
            return asdict(Outcome(2, ['expected {"do": …} in one line of JSON'], "invalid"))
        if config != str(self._config) and request in ("reload", "restart"):
            # Both read the file that the instance was started with; doing that silently would mislead.
            return asdict(Outcome(2, [f"the running instance uses {self._config}, not {config}"], "invalid"))
        match request:
            case "status":
                return {"code": 0, "status": asdict(self.status())}
            case "reload":
                return asdict(await self.reload())
            case "restart":
                return asdict(await self.restart(writer))
            case "kill":
                return asdict(await self._flags.kill(order.get("flag"), order["reason"], order["by"]))
            case "unkill":
                reason, by = order.get("reason", ""), order.get("by", "")
                return asdict(await self._flags.unkill(order.get("flag"), reason, by))
            case "stop":
                if not self._stop_asked:
                    self.ask_to_stop()
                return {"code": 0, "lines": ["draining"], "word": "applied", "drain": self._drain_seconds}
        return asdict(Outcome(2, [f"unknown request {request!r}"], "invalid"))

    # The admin API's process.

    async def _keep_api(self, instead_of: AdminChild | None = None) -> None:
        """Have one process that serves the admin address; its end touches nothing else."""
        deaths = 0
        while True:
            born = time.monotonic()
            try:
                self._api = await AdminChild.start(
                    self._children, self._admin, self._answer_api, self._context()
                )
            except NotStartedError as error:
                self._log.error("admin API does not start", reason=str(error))
            else:
                # It has begun with what held then; a reload may have come while it started.
                self._api.tell(self._context())
                if instead_of is not None:
                    instead_of.leave()
                    instead_of = None
                pid = self._api.process.pid
                self._log.info("admin API serving", address=str(self._admin), pid=pid)
                code = await self._api.process.wait()
                self._api = None
                self._log.error("admin API ended", pid=pid, exit=code)
            deaths = deaths + 1 if time.monotonic() - born < EARLY else 0
            await asyncio.sleep(backoff(deaths))

    async def _begin_to_sync(self) -> None:
        """Behind the admin API, which people look at first. After a restart, by the new program."""
        until = time.monotonic() + API_FIRST
        while self._api is None and time.monotonic() < until:  # noqa: ASYNC110
            await asyncio.sleep(TICK / 10)
        if self._settings is not None:
            await self._sync.change(_syncing(self._settings), afresh=True)

    async def _answer_api(self, question: Message) -> Message:
        match question["do"]:
            case "samples":
                return {"samples": exposition.to_wire(await self.samples())}
            case "flags":
                return await self._flags.take(question["document"], question["lease"])
            case "carried":
                return await self._flags.carried(question["kills"], question["version"])
            case "told":
                return await self._flags.told(question["ends"])
            case "confirm":
                return await self._flags.confirm(question["version"])
            case "fresh":
                self._fleet.tell_freshness(question["cutover"], question["upto"])
                return {}
            case "lease":
                self._fleet.tell_lease(question["version"], question["until"])
                return {}
            case "replay":
                return await self._fleet.replay(question["request"])
            case "recent":
                return {"buckets": await self._fleet.recent(question["flag"])}
        return {"status": asdict(self.status())}

    def _context(self) -> Message:
        """What the admin API's process has to know of the configuration."""
        settings = self._settings
        return {
            "config": str(self._config),
            "data_dir": str(self._data_dir),
            "store": text_of(settings.store) if settings else "none",
            "bus": text_of(settings.bus) if settings else "none",
            "operations": settings.shadow.operations if settings else (),
            "compare_here": settings.shadow.compare_here if settings else False,
            "keep_days": settings.shadow.keep_days if settings else 1,
            "code": [str(settings.code), settings.code_text] if settings and settings.code else None,
            "routes": [
                {
                    "flag": route.flag,
                    "path": route.path,
                    "methods": sorted(route.methods),
                    "host": route.host,
                    "side": route.side.value,
                }
                for route in (settings.routes if settings else ())
            ],
            "databases": {
                Side.LEGACY.value: settings.data.legacy.text,
                Side.NEW.value: settings.data.new.text,
            }
            if settings and settings.data
            else None,
            "targets": {
                side.value: [target.host, target.port]
                for side, target in (settings.proxy.targets.items() if settings else ())
            },
            "data_name": settings.data.name if settings and settings.data else "",
            "ways": _ways(settings.data) if settings and settings.data else {},
            "cutovers": [asdict(one) for one in (settings.cutovers if settings else ())],
            "token_header": settings.proxy.tokens.header if settings else "authorization",
            "address": str(self._admin),
            # The same number in every process to come, since counts are compared by it.
            "started": datetime.fromisoformat(self._started_at).timestamp(),
        }

    # The embedded servers' process.

    async def _keep_servers(self) -> None:
        """Have one process that holds the embedded servers that the configuration wants."""
        wanted = self._wanted_servers()
        if self._servers is not None and self._servers.wanted != wanted:
            await self._servers.end()
            self._servers = None
        deaths = 0
        while wanted:
            born = time.monotonic()
            try:
                self._servers = self._servers or ServersChild.start(self._children, self._data_dir, wanted)
            except OSError as error:
                self._log.error("cannot start a process for the servers", reason=error.strerror)
            else:
                code = await self._servers.process.wait()
                self._servers = None
                self._log.error("embedded servers ended", exit=code)
            deaths = deaths + 1 if time.monotonic() - born < EARLY else 0
            await asyncio.sleep(backoff(deaths))

    def _wanted_servers(self) -> list[str]:
        settings = self._settings
        if settings is None:
            return self._servers.wanted if self._servers is not None else []
        named = (("store", settings.store), ("bus", settings.bus))
        return [name for name, which in named if which == "embedded"]

    async def _end_servers(self) -> None:
        if self._servers_keeper is not None:
            self._servers_keeper.cancel()
            await asyncio.gather(self._servers_keeper, return_exceptions=True)
        if self._servers is not None:
            await self._servers.end()
            self._servers = None

    # What it knows.

    def status(self) -> ProxyStatus:
        reasons = ["draining"] if self._state == "draining" else self._fleet.not_ready
        return ProxyStatus(
            version=self._version,
            pid=os.getpid(),
            state=self._state,
            ready=not reasons,
            not_ready=reasons,
            generation=self._generation,
            config=str(self._config),
            listen=[str(listener) for listener in self._listeners],
            admin=str(self._admin),
            started_at=self._started_at,
            uptime_seconds=round(time.monotonic() - self._started, 3),
            start_seconds=round(self._start_seconds, 3),
            restarts=self._restarts,
            control_pid=self._api.process.pid if self._api is not None else 0,
            sync_pids=self._sync.pids,
            worker_exits=self._ledger.exits(),
            workers=self._fleet.status(),
            flags=self._flags.status(),
        )

    async def samples(self) -> list[Sample]:
        """Everything that is measured, summed over workers living and dead."""
        await asyncio.gather(self._fleet.refresh(), self._sync.refresh())
        # From here on without a pause: who ends goes from the living into the ledger, and is counted once.
        status = self.status()
        states: dict[str, int] = dict.fromkeys(("starting", "ready", "draining", "waiting"), 0)
        own: list[Sample] = []
        for worker in status.workers:
            states[worker.state] += 1
            if worker.state == State.READY:
                place = (str(worker.worker),)
                own.append(Sample(CONFIG_GENERATION.name, place, worker.generation))
                own.append(Sample(WORKER_MEMORY_BYTES.name, place, worker.memory_bytes))
        own += [Sample(WORKERS.name, (state,), count) for state, count in states.items()]
        living = (*self._fleet.samples(), *self._sync.samples())
        return exposition.summed(*living, self._ledger.samples(), own, self._flags.samples())

    @property
    def _generation(self) -> int:
        return self._fleet.orders.generation if self._fleet.orders is not None else 0

    @property
    def _drain_seconds(self) -> float:
        return self._fleet.orders.drain if self._fleet.orders is not None else 0.0

    def _as_now(self, settings: Settings) -> Settings:
        """`settings` with what the running instance cannot change as it is now."""
        return replace(
            settings,
            listen=tuple(_address(listener) for listener in self._listeners),
            admin=_address(self._admin),
            data_dir=self._data_dir,
            store=self._settings.store if self._settings else settings.store,
            bus=self._settings.bus if self._settings else settings.bus,
        )

    def _settle_on(self, settings: Settings) -> None:
        self._settings = settings
        self._flags.route_flags = {route.flag for route in settings.routes}

    def _converged(self) -> str:
        return f"{self._fleet.ready_count}/{self._fleet.size} workers on generation {self._generation}"

    def _summary(self) -> str:
        return f"{self._converged()}, listening on {', '.join(map(str, self._listeners))}"

    def _announce(self, event: str, **facts: Any) -> None:
        notify.ready(self._summary())
        self._log.info(
            event,
            version=self._version,
            listen=[str(listener) for listener in self._listeners],
            admin=str(self._admin),
            workers=self._fleet.size,
            generation=self._generation,
            **facts,
        )

    def _task(self, story: Any) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(story)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _orders(generation: int, settings: Settings) -> Orders:
    code = None if settings.code is None else (settings.code, settings.code_text)
    return orders(generation, settings.proxy, settings.routes, code, _observing(settings))


def _syncing(settings: Settings) -> Message | None:
    """What those go by who work on streams; None where nobody does so here."""
    if settings.data is None or settings.code is None or not settings.data.run_here:
        return None
    urls = {Side.LEGACY: settings.data.legacy, Side.NEW: settings.data.new}
    return {
        "databases": {side.value: url.text for side, url in urls.items()},
        "code": [str(settings.code), settings.code_text],
        "name": settings.data.name,
        "ways": _ways(settings.data),
        "copy_rows_per_second": settings.data.copy_rows_per_second,
    }


def _ways(data: Databases) -> dict[str, str]:
    return {side.value: way.value for side, way in data.ways.items()}


def _observing(settings: Settings) -> dict[str, Any] | None:
    """How workers compare; nothing where no flag can ever ask for it."""
    if settings.store == "none":
        return None
    shadow, key = settings.shadow, installation_key(settings.data_dir)
    return Observing(
        text_of(settings.bus), str(settings.data_dir), key, shadow.inspect,
        settings.proxy.mirror.body_bytes, shadow.redact_also, shadow.redact_never, shadow.redact_emails,
        shadow.operations,
    ).to_wire()  # fmt: skip


def _address(listener: Listener) -> Address:
    return Address(listener.host, listener.port)


def _listener(wire: dict[str, Any]) -> Listener:
    return Listener(wire["host"], wire["port"], [own(fd) for fd in wire["sockets"]])


async def _answer_inherited(client: socket.socket, outcome: Outcome) -> None:
    """Tell whoever asked the previous image for a restart how it went."""
    client.setblocking(False)
    with client, contextlib.suppress(OSError):
        await asyncio.get_running_loop().sock_sendall(client, json.dumps(asdict(outcome)).encode() + b"\n")


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


def _process_age() -> float:
    """Seconds since this process began, 0.0 where the kernel does not say."""
    try:
        with open("/proc/self/stat", "rb") as stat:
            ticks = int(stat.read().rpartition(b")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError):
        return 0.0


def _cutovers(settings: Settings | None) -> Sequence[Authority]:
    """Those of the configuration, as they stand before anything was moved."""
    known = () if settings is None else settings.cutovers
    return [
        Authority(one.name, one.flags, Side.LEGACY, 0, own_writes=one.own_writes, max_lag_ms=one.max_lag_ms)
        for one in known
    ]


def _printable(context: dict[str, Any]) -> dict[str, str]:
    return {"message": context["message"], "exception": repr(context.get("exception"))}
