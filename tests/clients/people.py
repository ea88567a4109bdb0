"""The real clients, each behind the same small face: `ask` something, get what came, undecoded.

A client is opened once and keeps its connections, as it does in real programs.
"""

from __future__ import annotations

import asyncio
import io
import json
import re
import ssl
import subprocess
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import aiohttp
import httpx
import requests
import urllib3
from yarl import URL

PATIENCE = 20.0
OF_THE_HOP = frozenset({"date", "connection", "keep-alive"})
"""Answer fields that may differ between asking directly and asking through Crossfade: the first
tells the time, the others speak of this connection only."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A request. `pieces` are sent chunked, `body` with its length."""

    target: str
    method: str = "GET"
    fields: tuple[tuple[str, str], ...] = ()
    body: bytes | None = None
    pieces: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Got:
    """An answer as the client hands it over: not decoded, fields in order, origin replaced by its name."""

    status: int
    reason: str
    fields: tuple[tuple[str, str], ...]
    body: bytes

    @staticmethod
    def of(origin: str, status: int, reason: str, fields: Any, body: bytes) -> Got:
        """`fields` are pairs of str or bytes."""
        netloc = origin.partition("://")[2]
        named = re.compile(rf"(https?|wss?)://{re.escape(netloc)}|{re.escape(netloc)}")
        kept = tuple(
            (name, named.sub("ORIGIN", value))
            for name, value in ((_text(name), _text(value)) for name, value in fields)
            if name.lower() not in OF_THE_HOP
        )
        return Got(status, reason, kept, body.replace(netloc.encode(), b"ORIGIN"))


class Person(Protocol):
    """A client; `form` uploads a file and a field; `sip` takes some bytes and leaves."""

    def ask(self, origin: str, ask: Ask) -> Got: ...

    def form(self, origin: str, target: str, file: bytes) -> Got: ...

    def sip(self, origin: str, target: str, size: int) -> bytes: ...

    def close(self) -> None: ...


class Requests:
    def __init__(self, ca_file: str) -> None:
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.verify = ca_file

    def ask(self, origin: str, ask: Ask) -> Got:
        return self._send(
            origin,
            ask.target,
            ask.method,
            headers=dict(ask.fields),
            data=iter(ask.pieces) if ask.pieces else ask.body,
        )

    def form(self, origin: str, target: str, file: bytes) -> Got:
        return self._send(origin, target, "POST", data={"name": "väl ue"}, files={"file": ("f.bin", file)})

    def sip(self, origin: str, target: str, size: int) -> bytes:
        with self._session.get(origin + target, stream=True, timeout=PATIENCE) as response:
            return bytes(response.raw.read(size))

    def close(self) -> None:
        self._session.close()

    def _send(self, origin: str, target: str, method: str, **more: Any) -> Got:
        self._session.cookies.clear()
        with self._session.request(
            method, origin + target, stream=True, allow_redirects=False, timeout=PATIENCE, **more
        ) as response:
            body = response.raw.read(decode_content=False)
            fields = response.raw.headers.iteritems()
            return Got.of(origin, response.status_code, response.reason, fields, body)


class Urllib3:
    def __init__(self, ca_file: str) -> None:
        self._pool = urllib3.PoolManager(ca_certs=ca_file, retries=False, timeout=PATIENCE)

    def ask(self, origin: str, ask: Ask) -> Got:
        body = iter(ask.pieces) if ask.pieces else ask.body
        return self._send(
            origin, ask.target, ask.method, headers=dict(ask.fields), body=body, chunked=bool(ask.pieces)
        )

    def form(self, origin: str, target: str, file: bytes) -> Got:
        return self._send(origin, target, "POST", fields={"name": "väl ue", "file": ("f.bin", file)})

    def sip(self, origin: str, target: str, size: int) -> bytes:
        response = self._pool.request("GET", origin + target, preload_content=False)
        try:
            return response.read(size)
        finally:
            response.close()

    def close(self) -> None:
        self._pool.clear()

    def _send(self, origin: str, target: str, method: str, **more: Any) -> Got:
        response = self._pool.request(
            method, origin + target, preload_content=False, decode_content=False, redirect=False, **more
        )
        try:
            body = response.read(decode_content=False)
        except BaseException:
            response.close()
            raise
        response.release_conn()
        return Got.of(origin, response.status, response.reason or "", response.headers.iteritems(), body)


class Httpx:
    def __init__(self, ca_file: str) -> None:
        self._client = httpx.Client(
            verify=ssl.create_default_context(cafile=ca_file), trust_env=False, timeout=PATIENCE
        )

    def ask(self, origin: str, ask: Ask) -> Got:
        content = iter(ask.pieces) if ask.pieces else ask.body
        fields = [(name, value.encode("latin-1")) for name, value in ask.fields]
        return self._send(origin, ask.target, ask.method, headers=fields, content=content)

    def form(self, origin: str, target: str, file: bytes) -> Got:
        return self._send(origin, target, "POST", data={"name": "väl ue"}, files={"file": ("f.bin", file)})

    def sip(self, origin: str, target: str, size: int) -> bytes:
        sipped = b""
        with self._client.stream("GET", origin + target) as response:
            for piece in response.iter_raw():
                sipped += piece
                if len(sipped) >= size:
                    return sipped
        return sipped

    def close(self) -> None:
        self._client.close()

    def _send(self, origin: str, target: str, method: str, **more: Any) -> Got:
        self._client.cookies.clear()
        with self._client.stream(method, origin + target, **more) as response:
            body = b"".join(response.iter_raw())
            return Got.of(origin, response.status_code, response.reason_phrase, response.headers.raw, body)


class Aiohttp:
    def __init__(self, ca_file: str) -> None:
        self._runner = asyncio.Runner()
        self._session = self._runner.run(self._open(ca_file))

    def ask(self, origin: str, ask: Ask) -> Got:
        body = _one_by_one(ask.pieces) if ask.pieces else ask.body
        return self._runner.run(self._send(origin, ask.target, ask.method, headers=ask.fields, data=body))

    def form(self, origin: str, target: str, file: bytes) -> Got:
        form = aiohttp.FormData()
        form.add_field("name", "väl ue")
        form.add_field("file", io.BytesIO(file), filename="f.bin")
        return self._runner.run(self._send(origin, target, "POST", data=form))

    def sip(self, origin: str, target: str, size: int) -> bytes:
        return self._runner.run(self._sip(origin + target, size))

    def close(self) -> None:
        self._runner.run(self._session.close())
        self._runner.close()

    async def _open(self, ca_file: str) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=ca_file)),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=PATIENCE),
        )

    async def _send(self, origin: str, target: str, method: str, **more: Any) -> Got:
        url = URL(origin + target, encoded=True)
        async with self._session.request(method, url, allow_redirects=False, **more) as response:
            body = await response.read()
            return Got.of(origin, response.status, response.reason or "", response.raw_headers, body)

    async def _sip(self, url: str, size: int) -> bytes:
        async with self._session.get(url) as response:
            return await response.content.readexactly(size)


class CurlError(Exception):
    """curl's exit code and what it said."""


@dataclass(frozen=True, slots=True)
class Report:
    """One request of curl: the heads that came (interim ones too), the body, and what curl says itself."""

    url: str
    heads: tuple[str, ...]
    body: bytes
    said: dict[str, Any]

    def got(self) -> Got:
        """The answer itself. To HEAD, curl gives the head as the content."""
        line, *fields = self.heads[-1].split("\r\n")
        _, status, *reason = line.split(" ", 2)
        pairs = [re.split(r":[ \t]*", field, maxsplit=1) for field in fields]
        origin = "/".join(self.url.split("/")[:3])
        return Got.of(
            origin,
            int(status),
            reason[0] if reason else "",
            pairs,
            b"" if self.said["method"] == "HEAD" else self.body,
        )


class Curl:
    """The program of Debian. It is started once for all the origins of a request, because starting costs."""

    def __init__(self, program: str, ca_file: str) -> None:
        self._program = program
        self._ca_file = ca_file

    def ask(self, origin: str, ask: Ask) -> Got:
        return self.ask_all([origin], ask)[0]

    def ask_all(self, origins: Sequence[str], ask: Ask) -> list[Got]:
        options = ["--head"] if ask.method == "HEAD" else ["--request", ask.method]
        for name, value in ask.fields:
            options += ["--header", f"{name}: {value}" if value else f"{name};"]
        body = b"".join(ask.pieces) if ask.pieces else ask.body
        if ask.pieces:
            options += ["--header", "Transfer-Encoding: chunked"]
        return [
            report.got()
            for report in self.run([origin + ask.target for origin in origins], *options, data=body)
        ]

    def form(self, origin: str, target: str, file: bytes) -> Got:
        options = ["--form", "name=väl ue", "--form", "file=@FILE;filename=f.bin"]
        return self.run([origin + target], *options, file=file)[0].got()

    def sip(self, origin: str, target: str, size: int) -> bytes:
        command = [self._program, *self._usual, "--no-buffer", origin + target]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert process.stdout is not None
        with process.stdout as out:
            sipped = out.read(size)
        process.kill()
        process.wait()
        return sipped

    def run(
        self, urls: Sequence[str], *options: str, data: bytes | None = None, file: bytes | None = None
    ) -> list[Report]:
        """The same request to each of `urls`, one after the other; raises CurlError.

        `data` is posted; FILE in an option stands for a file that holds `file`.
        """
        with tempfile.TemporaryDirectory(prefix="curl") as name:
            folder = Path(name)
            for content, path in ((data, folder / "data"), (file, folder / "file")):
                if content is not None:
                    path.write_bytes(content)
            if data is not None:
                options += ("--data-binary", f"@{folder / 'data'}")
            options = tuple(option.replace("FILE", str(folder / "file")) for option in options)
            command = [self._program, "--fail-early"]
            for number, url in enumerate(urls):
                places = ["-D", f"{folder}/head{number}", "-o", f"{folder}/body{number}", "-w", "%{json}\\n"]
                command += [*(["--next"] if number else []), *self._usual, *places, *options, url]
            done = subprocess.run(command, capture_output=True, timeout=PATIENCE, check=False)
            if done.returncode:
                raise CurlError(done.returncode, done.stderr.decode())
            said = [json.loads(line) for line in done.stdout.splitlines()]
            return [
                Report(
                    url, _heads(folder / f"head{number}"), _content(folder / f"body{number}"), said[number]
                )
                for number, url in enumerate(urls)
            ]

    def close(self) -> None:
        pass

    @property
    def _usual(self) -> list[str]:
        usual = ["--disable", "--silent", "--show-error", "--noproxy", "*", "--globoff", "--ipv4"]
        return [*usual, "--cacert", self._ca_file, "--expect100-timeout", "0.1"]


def ask_all(person: Person, origins: Sequence[str], ask: Ask) -> list[Got]:
    """The same request to several origins."""
    if isinstance(person, Curl):
        return person.ask_all(origins, ask)
    return [person.ask(origin, ask) for origin in origins]


def _heads(path: Path) -> tuple[str, ...]:
    return tuple(path.read_bytes().decode("latin-1").split("\r\n\r\n")[:-1])


def _content(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


async def _one_by_one(pieces: tuple[bytes, ...]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value
