"""The two sample backends as real processes, and the people of the sample data as their clients."""

from __future__ import annotations

import json
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import httpx

SEED = Path(__file__).parents[2] / "examples" / "seed.json"
SAMPLE: dict[str, Any] = json.loads(SEED.read_bytes())
PASSWORD = "demo-password"
START_TIMEOUT = 60.0
"""Seconds; the machine may be busy."""
COMMANDS = {
    "legacy": ("examples.legacy", ()),
    "new": ("new_backend", ("--migrate",)),
}


@dataclass
class Backend:
    """One backend process. `with` starts it, and demands at the end that it stops in order and saw no bug."""

    name: str
    database: str = field(repr=False)
    folder: Path = field(repr=False)
    seeded: bool = True
    port: int = 0
    url: str = ""
    _people: dict[str, httpx.Client] = field(default_factory=dict, repr=False)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for client in self._people.values():
            client.close()
        code = self.stop()
        if error is None:
            assert code == 0, self.log()
            assert "ERROR" not in self.log(), self.log()

    def start(self) -> None:
        self._log: IO[bytes] = (self.folder / f"{self.name}.log").open("ab")
        self.process = subprocess.Popen(
            command(self.name, self.database, self.port, *(["--seed", str(SEED)] if self.seeded else [])),
            stdout=subprocess.PIPE,
            stderr=self._log,
        )
        self.url = self._first_line().removeprefix("listening on ")
        self.port = int(self.url.rpartition(":")[2])

    def stop(self) -> int:
        """Asks the process to end, and returns its exit code. Fails if it said more than its one line."""
        assert self.process.stdout is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        with self.process.stdout as rest:
            assert rest.read() == b""
        self._log.close()
        return code

    def log(self) -> str:
        return (self.folder / f"{self.name}.log").read_text()

    def anybody(self) -> httpx.Client:
        """A client that is not logged in."""
        client = self._client("")
        client.cookies.clear()
        return client

    def person(self, username: str) -> httpx.Client:
        """A client logged in as somebody of the sample data, by token."""
        client = self._client(username)
        if "Authorization" not in client.headers:
            credentials = {"username": username, "password": PASSWORD}
            token = client.post("/api/session", json=credentials).raise_for_status().json()["token"]
            client.cookies.clear()
            client.headers["Authorization"] = f"Bearer {token}"
        return client

    def _client(self, username: str) -> httpx.Client:
        if username not in self._people:
            self._people[username] = httpx.Client(base_url=self.url, timeout=30, trust_env=False)
        return self._people[username]

    def _first_line(self) -> str:
        assert self.process.stdout is not None
        deadline = time.monotonic() + START_TIMEOUT
        ready, _, _ = select.select([self.process.stdout], [], [], deadline - time.monotonic())
        line = self.process.stdout.readline().decode().strip() if ready else ""
        if not line.startswith("listening on http://127.0.0.1:"):
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"{self.name} did not start: {line!r}\n{self.log()}")
        return line


def command(name: str, database: str, port: int, *more: str) -> list[str]:
    module, options = COMMANDS[name]
    where = ["--database", database, "--port", str(port)]
    return [sys.executable, "-W", "error", "-m", module, *where, *options, *more]


def person(username: str) -> dict[str, Any]:
    """Somebody's row in the sample data."""
    return next(row for row in SAMPLE["accounts"] if row["username"] == username)


def error_of(response: httpx.Response) -> tuple[int, str, dict[str, str]]:
    """Status, code and the problems of a refusal, which must have the one common format."""
    assert response.headers["Content-Type"] == "application/json; charset=utf-8"
    body = response.json()
    assert list(body) == ["error"]
    assert list(body["error"]) == ["code", "message", "fields"]
    assert body["error"]["message"]
    problems = {problem["field"]: problem["problem"] for problem in body["error"]["fields"]}
    return response.status_code, body["error"]["code"], problems
