"""The stage: three backends of HTTP, one of WebSockets, and Crossfade before each, plain and with TLS."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from tests.clients.backends.flask_on_waitress import flask_backend
from tests.clients.backends.on_aiohttp import asynchronous_backends
from tests.clients.backends.plain import plain_backend
from tests.clients.backends.script import Diary
from tests.clients.crossfade_process import Front, write
from tests.clients.people import Aiohttp, Curl, Httpx, Person, Requests, Urllib3
from tests.support.programs import require_program

EXPECTED_ERRORS = {"client_gone", "http_response_incomplete"}
"""What scenes do on purpose: clients that leave early, backends that cut their answers."""

CLIENTS = ("requests", "urllib3", "httpx", "aiohttp", "curl")
NOISE = {"SSL connection is closed"}
"""The event loop warns of several writes in the one turn in which a TLS client vanishes, before it
tells anybody of the loss."""


@dataclass(frozen=True, slots=True)
class Place:
    """One backend: its own origin, those of Crossfade before it, and what it lived through."""

    name: str
    direct: str
    fronts: tuple[str, str]
    """`http://…` and `https://…`."""
    diary: Diary


@dataclass(frozen=True, slots=True)
class Stage:
    places: dict[str, Place]
    ca_file: str


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("clients")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    certificate.private_key_pem.write_to_path(str(folder / "key.pem"))
    for number, blob in enumerate(certificate.cert_chain_pems):
        blob.write_to_path(str(folder / "cert.pem"), append=number > 0)
    with ExitStack() as stack:
        diary = Diary()
        ports = stack.enter_context(asynchronous_backends(diary))
        ports["flask"] = stack.enter_context(flask_backend(diary))
        ports["plain"] = stack.enter_context(plain_backend(diary))
        fronts: dict[str, tuple[str, str]] = {}
        listening: list[tuple[socket.socket, Front]] = []
        for name, port in ports.items():
            plain, secure = (stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2))
            listening.append((plain, Front(plain.fileno(), port, None, None)))
            files = str(folder / "cert.pem"), str(folder / "key.pem")
            listening.append((secure, Front(secure.fileno(), port, *files)))
            fronts[name] = (
                f"http://localhost:{plain.getsockname()[1]}",
                f"https://localhost:{secure.getsockname()[1]}",
            )
        stack.enter_context(_Crossfade(listening))
        places = {
            name: Place(name, f"http://localhost:{port}", fronts[name], diary) for name, port in ports.items()
        }
        yield Stage(places, str(folder / "ca.pem"))
        assert not diary.faults


class _Crossfade:
    """The process. Leaving it demands that nothing went wrong that no scene had in mind."""

    def __init__(self, listening: list[tuple[socket.socket, Front]]) -> None:
        self._listening = listening

    def __enter__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "tests.clients.crossfade_process"],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=[sock.fileno() for sock, _ in self._listening],
        )
        assert self._process.stdin is not None
        with self._process.stdin as stdin:
            stdin.write(write([front for _, front in self._listening]))
        self._process.stdin = None

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            out, err = self._process.communicate(timeout=20)
        finally:
            self._process.kill()
            self._process.wait()
        assert self._process.returncode == 0, err
        assert set(err.splitlines()) <= NOISE
        confession = json.loads(out)
        assert not confession["unhandled"]
        assert not confession["cut_off"]
        assert set(confession["errors"]) <= EXPECTED_ERRORS


@pytest.fixture(params=["aiohttp", "flask", "plain"])
def place(request: pytest.FixtureRequest, stage: Stage) -> Place:
    """Each backend of HTTP in turn."""
    return stage.places[request.param]


@pytest.fixture(scope="session")
def people(stage: Stage) -> Iterator[dict[str, Person]]:
    """The clients that have been opened; they keep their connections from one test to the next."""
    people: dict[str, Person] = {}
    yield people
    for person in people.values():
        person.close()


@pytest.fixture(params=CLIENTS)
def person(request: pytest.FixtureRequest, stage: Stage, people: dict[str, Person]) -> Person:
    """Each client in turn."""
    name = request.param
    if name not in people:
        people[name] = make_person(name, stage)
    return people[name]


@pytest.fixture(scope="session")
def curl(stage: Stage) -> Curl:
    return Curl(require_program("curl"), stage.ca_file)


def make_person(name: str, stage: Stage) -> Person:
    if name == "curl":
        return Curl(require_program("curl"), stage.ca_file)
    kinds: dict[str, Callable[[str], Person]] = {
        "requests": Requests,
        "urllib3": Urllib3,
        "httpx": Httpx,
        "aiohttp": Aiohttp,
    }
    return kinds[name](stage.ca_file)
