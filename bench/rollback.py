"""How many bad answers a bad canary serves before it is taken back, all of it real: proxy, store, clock.

Legacy fails 1 % of its answers and new 10 %. 5 % of the clients are at new, each request is of another
client, and the load is open: 400 a second, whatever comes back. Counted by the backend itself, from the move
to the moment when the flag is back, so that everything on the way is in it.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep

from bench import processes
from bench.contenders import NotStartedError, free_ports
from bench.table import Verdict, median, spread

RATE = 400
"""Requests a second."""
SENDERS = 4
LIMIT = 15
GIVE_UP = 90.0
"""Seconds for one canary."""
FLAG = "items.read"


@dataclass(frozen=True, slots=True)
class Rollback:
    """Bad answers that new has served, and seconds until it was taken back, one value a canary."""

    bad: list[int]
    seconds: list[float]

    def verdicts(self) -> list[Verdict]:
        return [Verdict("bad answers of a canary ten times worse, median", median(self.bad), LIMIT)]

    def __str__(self) -> str:
        job = f"{len(self.bad)} canaries at 5 %, {RATE} requests/s, legacy fails 1 %, new 10 %"
        found = f"bad answers of new {spread(self.bad, 0)}, seconds {spread(self.seconds)}"
        return f"Rollback of a bad canary: {job}\n{found}"


def measure(canaries: int) -> Rollback:
    bad, seconds = [], []
    with backend(0.01, 1) as legacy, backend(0.10, 2) as new, _crossfade(legacy, new) as instance:
        instance.command("flag", "edit", FLAG, "--bucket-by", "cookie:sid", "--mirror", "0%")
        instance.command("flag", "move", FLAG, "--to", "shadow")
        instance.command("guardrail", "set", FLAG, "--signal", "errors", "--action", "rollback")
        with instance.load():
            for number in range(canaries):
                if number:
                    instance.command("guardrail", "rearm", f"{FLAG}:errors")
                before, began = _bad(new), monotonic()
                instance.command("flag", "move", FLAG, "--to", "live", "--weight", "5%", "--wait")
                instance.wait_until_back(began + GIVE_UP)
                seconds.append(monotonic() - began)
                bad.append(_bad(new) - before)
    return Rollback(bad, seconds)


@contextlib.contextmanager
def backend(share: float, seed: int) -> Iterator[int]:
    process = processes.start(
        [sys.executable, "-m", "bench.failing_backend", str(share), str(seed)], pipes=True
    )
    try:
        assert process.stdout is not None
        yield int(json.loads(process.stdout.readline())["port"])
    finally:
        processes.end(process)


def _bad(port: int) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with contextlib.closing(connection):
        connection.request("GET", "/_served")
        return int(json.loads(connection.getresponse().read())["bad"])


@contextlib.contextmanager
def _crossfade(legacy: int, new: int) -> Iterator[_Instance]:
    with tempfile.TemporaryDirectory(prefix="bench-rollback-") as folder:
        port, admin = free_ports(2)
        config = Path(folder, "crossfade.yaml")
        config.write_text(f"""\
listen: 127.0.0.1:{port}
admin: {{listen: 127.0.0.1:{admin}}}
workers: 2
access_log: {{path: false}}
targets:
  legacy: {{url: "http://127.0.0.1:{legacy}"}}
  new:    {{url: "http://127.0.0.1:{new}"}}
routes:
  - {{flag: {FLAG}, match: {{path: "/**"}}}}
""")
        with Path(folder, "output.log").open("wb") as log:
            process = processes.start([sys.executable, "-m", "crossfade", "up", "-c", config], log=log)
        try:
            instance = _Instance(config, port)
            instance.wait_for_flags()
            yield instance
        finally:
            processes.end(process, patience=60)


class _Instance:
    def __init__(self, config: Path, port: int) -> None:
        self._config = config
        self._port = port
        self._over = threading.Event()
        self._keys = itertools.count()

    def command(self, *words: str) -> str:
        reason = [] if words[:2] == ("flag", "get") else ["--reason", "bench"]
        command = [sys.executable, "-m", "crossfade", *words, *reason, "-c", str(self._config)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise NotStartedError(f"crossfade {' '.join(words)}: {done.stderr.strip()}")
        return done.stdout

    def wait_for_flags(self) -> None:
        deadline = monotonic() + 60
        while True:
            try:
                self.command("flag", "get", FLAG)
                return
            except NotStartedError:
                if monotonic() > deadline:
                    raise
                sleep(0.2)

    def wait_until_back(self, deadline: float) -> None:
        while "shadow→live" in self.command("flag", "get", FLAG):
            if monotonic() > deadline:
                raise NotStartedError(f"the canary was not taken back within {GIVE_UP:.0f} s")
            sleep(0.05)

    @contextlib.contextmanager
    def load(self) -> Iterator[None]:
        senders = [threading.Thread(target=self._send, args=(n,), daemon=True) for n in range(SENDERS)]
        for sender in senders:
            sender.start()
        try:
            yield
        finally:
            self._over.set()
            for sender in senders:
                sender.join()

    def _send(self, number: int) -> None:
        """Requests at their times, each of another client."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=10)
        due = monotonic() + number / RATE
        while not self._over.is_set():
            sleep(max(0.0, due - monotonic()))
            due += SENDERS / RATE
            connection.request("GET", "/items/1", headers={"Cookie": f"sid=client-{next(self._keys)}"})
            connection.getresponse().read()
        connection.close()
