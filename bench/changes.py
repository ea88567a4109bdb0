"""How soon a change of a flag is acknowledged by every worker, with the bus and without it, under load.

Two instances share one store; what is changed at the first is waited for at both. *With the bus* the changes
come one after the other. *Without it* the second instance finds them by its poll, and since each then takes
a second or two, many are under way at once. From the request to the admin API until its answer, which comes
when all workers of both have acknowledged: the commit, the way and the wait are all in it.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep

from bench import processes
from bench.contenders import NotStartedError, free_ports
from bench.load import percentile
from bench.rollback import backend
from bench.table import Verdict
from crossfade.embedded.postgres import EmbeddedPostgres
from crossfade.embedded.valkey import EmbeddedValkey

LIMITS = {"with the bus": 0.1, "without the bus": 2.5}
"""Seconds, for the slowest in a hundred."""
FLAGS = 24
RATE = 300
"""Requests a second through each instance meanwhile."""
AT_ONCE = {"with the bus": 1, "without the bus": FLAGS}


@dataclass(frozen=True, slots=True)
class Changes:
    """Seconds from the order to the acknowledgement of all workers of both instances."""

    seconds: dict[str, list[float]]

    def verdicts(self) -> list[Verdict]:
        return [
            Verdict(
                f"acknowledged by all workers, {way}, p99", percentile(self.seconds[way], 0.99), limit, " s"
            )
            for way, limit in LIMITS.items()
        ]

    def __str__(self) -> str:
        lines = ["Changes of flags: 2 instances of 2 workers, " + f"{RATE} requests/s through each"]
        for way, values in self.seconds.items():
            shares = (
                f"p{share * 100:g} {percentile(values, share) * 1000:,.0f} ms" for share in (0.5, 0.99, 1.0)
            )
            lines.append(f"{way}: {len(values)} changes, {', '.join(shares)}")
        return "\n".join(lines)


def measure(changes: int) -> Changes:
    return Changes({way: _measure(way, changes) for way in LIMITS})


def _measure(way: str, changes: int) -> list[float]:
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-changes-")))
        store = stack.enter_context(EmbeddedPostgres(folder / "pg"))
        bus = (
            stack.enter_context(EmbeddedValkey(folder / "valkey")).url() if way == "with the bus" else "none"
        )
        port = stack.enter_context(backend(0.0, 1))
        pair = [
            stack.enter_context(_instance(folder / name, store.url(), bus, port)) for name in ("one", "two")
        ]
        pair[0].wait_until_all_are_known(len(pair))
        for instance in pair:
            stack.enter_context(instance.load())
        return pair[0].changes(changes, AT_ONCE[way])


class _Instance:
    def __init__(self, folder: Path, port: int, admin: int) -> None:
        self._folder = folder
        self._port = port
        self._admin = admin
        self._over = threading.Event()

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, dict[str, object]]:
        token = (self._folder / ".crossfade" / "run" / "admin.token").read_text().strip()
        connection = http.client.HTTPConnection("127.0.0.1", self._admin, timeout=30)
        with contextlib.closing(connection):
            headers = {"Authorization": f"Bearer {token}"}
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())

    def wait_until_known(self) -> None:
        """Until this one has its flags."""
        self._until("/api/v1/flags", "flags", FLAGS)

    def wait_until_all_are_known(self, instances: int) -> None:
        """Until the store has heard of all: whom it does not know nobody waits for."""
        self._until("/api/v1/instances", "instances", instances)

    def _until(self, path: str, name: str, number: int) -> None:
        deadline = monotonic() + 60
        while True:
            with contextlib.suppress(OSError, ValueError):
                status, answer = self.ask("GET", path)
                found = answer.get(name)
                if status == 200 and isinstance(found, list) and len(found) >= number:
                    return
            if monotonic() > deadline:
                raise NotStartedError(f"there were not {number} {name} within 60 s")
            sleep(0.1)

    def changes(self, number: int, at_once: int) -> list[float]:
        """`number` changes, `at_once` at a time, each of another flag than those under way."""
        seconds: list[float] = []
        faults: list[str] = []
        lock = threading.Lock()

        def work(worker: int) -> None:
            for turn in range(number // at_once + (worker < number % at_once)):
                stage = "shadow" if turn % 2 == 0 else "legacy"
                began = monotonic()
                body = {"to": stage, "reason": "bench", "wait": 20}
                status, answer = self.ask("POST", f"/api/v1/flags/flag-{worker}/move", body)
                taken = monotonic() - began
                converged = answer.get("converged")
                with lock:
                    if status == 200 and isinstance(converged, dict) and converged["complete"]:
                        assert converged["workers"] == 4, converged
                        seconds.append(taken)
                    else:
                        faults.append(f"{status} {answer}")

        workers = [threading.Thread(target=work, args=(n,)) for n in range(at_once)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if faults or len(seconds) != number:
            raise NotStartedError(f"{len(faults)} changes failed: {faults[:1]}")
        return seconds

    @contextlib.contextmanager
    def load(self) -> Iterator[None]:
        sender = threading.Thread(target=self._send, daemon=True)
        sender.start()
        try:
            yield
        finally:
            self._over.set()
            sender.join()

    def _send(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=10)
        due = monotonic()
        while not self._over.is_set():
            sleep(max(0.0, due - monotonic()))
            due = max(due + 1 / RATE, monotonic() - 0.1)
            connection.request("GET", f"/flag-{int(due * 1000) % FLAGS}")
            if connection.getresponse().read() != b"ok\n":
                raise NotStartedError("a request was not answered as it should be")
        connection.close()


@contextlib.contextmanager
def _instance(folder: Path, store: str, bus: str, target: int) -> Iterator[_Instance]:
    folder.mkdir()
    port, admin = free_ports(2)
    config = folder / "crossfade.yaml"
    routes = "".join(f'  - {{flag: flag-{n}, match: {{path: "/flag-{n}"}}}}\n' for n in range(FLAGS))
    config.write_text(f"""\
listen: 127.0.0.1:{port}
admin: {{listen: 127.0.0.1:{admin}}}
workers: 2
store: {json.dumps(store)}
bus: {json.dumps(bus)}
access_log: {{path: false}}
targets:
  legacy: {{url: "http://127.0.0.1:{target}"}}
  new:    {{url: "http://127.0.0.1:{target}"}}
routes:
{routes}""")
    with (folder / "output.log").open("wb") as log:
        process = processes.start([sys.executable, "-m", "crossfade", "up", "-c", config], log=log)
    try:
        instance = _Instance(folder, port, admin)
        instance.wait_until_known()
        yield instance
    finally:
        processes.end(process, patience=60)
