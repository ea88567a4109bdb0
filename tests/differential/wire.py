"""Both ends of the wire, raw: a client that sends exact bytes, a backend that records and plays them.

Neither end uses an HTTP library, so neither repairs what it sees. The readers below are strict and
few: what they cannot read is kept as *stray* bytes and shown, never guessed at.

Nothing here sleeps. A client reads until its connection ends (every request case is followed on the
same connection by a sentinel that asks for the end), and `Lane.barrier` then sends one more request
over a new client connection: when its answer is there, the proxy is alive, and everything that it had
to say to the backend before has been said.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
from dataclasses import dataclass, field
from enum import Enum, auto

SENTINEL_TARGET = b"/sentinel"
SENTINEL = b"GET /sentinel HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n"
BARRIER_TARGET = b"/barrier-"

TCHAR = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
REQUEST_LINE = re.compile(rb"(" + TCHAR + rb") ([^\s\x00-\x20\x7f]+) HTTP/1\.([01])")
STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: ([^\r\n\x00]*))?")
FIELD = re.compile(rb"(" + TCHAR + rb"):[ \t]*([^\r\n\x00]*?)[ \t]*")
CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:[ \t]*;[^\r\n]*)?")

Fields = tuple[tuple[bytes, bytes], ...]


# What either end does, step by step ------------------------------------------------------------------


class Do(Enum):
    """A step without an argument."""

    HALF_CLOSE = auto()
    """Shut down our sending direction, go on reading."""
    CLOSE = auto()
    """Close the connection in order."""
    RESET = auto()
    """End the connection with a TCP reset."""
    AT_HEAD = auto()
    """Backend, first step only: begin when the request's head is there, not when its body is."""
    BODY = auto()
    """Backend: wait for the whole request body."""
    AFTER_CLIENT = auto()
    """Backend: wait until the client's connection of this case has ended."""
    SEEN = auto()
    """Client: wait until the backend has seen the head of a request."""
    PEER_EOF = auto()
    """Backend: wait until the proxy has ended its direction."""
    DRIP = auto()
    """From here on, send one byte at a time and let the event loop turn in between."""


@dataclass(frozen=True, slots=True)
class Until:
    """Wait until these bytes have been heard from the peer (counted from the beginning)."""

    mark: bytes


@dataclass(frozen=True, slots=True)
class ClientHas:
    """Backend: wait until the client has heard these bytes through the proxy."""

    mark: bytes


Step = bytes | Do | Until | ClientHas


# Messages, read strictly -----------------------------------------------------------------------------


class UnreadableError(Exception):
    """These bytes are not a message by the grammar of RFC 9112."""


@dataclass(slots=True)
class Body:
    """A body as it arrived: `framing` is none, length, chunked or close."""

    framing: str = "none"
    data: bytes = b""
    trailers: Fields = ()
    complete: bool = True


@dataclass(slots=True)
class Seen:
    """A request as the backend saw it; it enters the record when its head is complete."""

    method: bytes
    target: bytes
    version: int
    head: bytes
    fields: Fields
    body: Body = field(default_factory=Body)

    @property
    def line(self) -> bytes:
        return self.head.split(b"\r\n", 1)[0]

    @property
    def keeps_alive(self) -> bool:
        options = b",".join(named(self.fields, b"connection")).lower().replace(b" ", b"").split(b",")
        if b"close" in options:
            return False
        return self.version == 1 or b"keep-alive" in options


@dataclass(slots=True)
class Answer:
    """An answer as the client saw it."""

    status: int
    version: int
    reason: bytes | None
    head: bytes
    fields: Fields
    body: Body


@dataclass(frozen=True, slots=True)
class Heard:
    """All that one client connection heard. `ending`: closed, reset, or open (it never ended in time)."""

    raw: bytes
    ending: str


def named(fields: Fields, name: bytes) -> list[bytes]:
    return [value for key, value in fields if key.lower() == name]


def read_fields(lines: list[bytes]) -> Fields:
    fields = []
    for line in lines:
        if not (match := FIELD.fullmatch(line)):
            raise UnreadableError(f"field {line!r}")
        fields.append((match[1], match[2]))
    return tuple(fields)


def read_head(buffer: bytes) -> bytes | None:
    """The bytes of the first head with its empty line, or None when more are needed."""
    end = buffer.find(b"\r\n\r\n")
    if end < 0:
        if re.search(rb"(?<!\r)\n", buffer):
            raise UnreadableError("bare LF in head")
        return None
    return buffer[: end + 4]


def read_chunked(data: bytes) -> tuple[Body, int]:
    """A chunked body from the start of `data` and the bytes it took; `complete` says whether it ended."""
    body, at, parts = Body("chunked", complete=False), 0, []
    while True:
        end = data.find(b"\r\n", at)
        if end < 0:
            break
        if not (match := CHUNK_LINE.fullmatch(data[at:end])):
            raise UnreadableError(f"chunk line {data[at:end]!r}")
        size, start = int(match[1], 16), end + 2
        if size == 0:
            return read_trailers(data, start, parts)
        parts.append(data[start : start + size])
        if len(data) < start + size + 2:
            at = len(data)
            break
        if data[start + size : start + size + 2] != b"\r\n":
            raise UnreadableError(f"chunk end {data[start + size : start + size + 2]!r}")
        at = start + size + 2
    body.data = b"".join(parts)
    return body, at


def read_trailers(data: bytes, start: int, parts: list[bytes]) -> tuple[Body, int]:
    end = start if data[start : start + 2] == b"\r\n" else data.find(b"\r\n\r\n", start)
    if end < 0 or len(data) < start + 2:
        return Body("chunked", b"".join(parts), complete=False), len(data)
    lines = data[start:end].split(b"\r\n") if end > start else []
    used = end + (4 if lines else 2)
    return Body("chunked", b"".join(parts), read_fields(lines)), used


def read_length(fields: Fields) -> int | None:
    lengths = named(fields, b"content-length")
    if not lengths:
        return None
    if len(set(lengths)) != 1 or not lengths[0].isdigit():
        raise UnreadableError(f"content-length {lengths!r}")
    return int(lengths[0])


def read_answers(raw: bytes, methods: tuple[bytes, ...], ended: bool) -> tuple[list[Answer], bytes]:
    """The answers in what a client heard, and the bytes that are no answer.

    `methods` are those of the requests in order (GET when they run out), `ended` says whether the
    peer closed, which ends a body that has no other end.
    """
    answers: list[Answer] = []
    pending = list(methods)
    while raw:
        try:
            head = read_head(raw)
            lines = head[:-4].split(b"\r\n") if head else []
            match = STATUS_LINE.fullmatch(lines[0]) if lines else None
            if not head or not match:
                break
            fields, status = read_fields(lines[1:]), int(match[2])
            rest = raw[len(head) :]
            method = b"GET" if not pending else pending[0] if status < 200 else pending.pop(0)
            body, used = read_answer_body(rest, fields, status, method, ended)
        except UnreadableError:
            break
        answers.append(Answer(status, int(match[1]), match[3], head, fields, body))
        raw = rest[used:]
    return answers, raw


def read_answer_body(
    rest: bytes, fields: Fields, status: int, method: bytes, ended: bool
) -> tuple[Body, int]:
    if status == 101:
        return Body("tunnel", rest), len(rest)
    if status < 200 or status in {204, 304} or method == b"HEAD":
        return Body(), 0
    if named(fields, b"transfer-encoding"):
        return read_chunked(rest)
    length = read_length(fields)
    if length is None:
        return Body("close", rest, complete=ended), len(rest)
    data = rest[:length]
    return Body("length", data, complete=len(data) == length), len(data)


# The client ------------------------------------------------------------------------------------------


class Ear(asyncio.Protocol):
    """Hears everything of one connection and tells waiters when there is more."""

    def __init__(self) -> None:
        self.raw = bytearray()
        self.ending = "open"
        self.changed = asyncio.Event()
        self.ended = asyncio.Event()
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.raw += data
        self.changed.set()

    def eof_received(self) -> bool:
        self.end("closed")
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.end("reset" if exc else "closed")

    def end(self, ending: str) -> None:
        if not self.ended.is_set():
            self.ending = ending
            self.ended.set()
            self.changed.set()

    async def until(self, mark: bytes) -> None:
        while mark not in self.raw and not self.ended.is_set():
            self.changed.clear()
            await self.changed.wait()


def reset(transport: asyncio.WriteTransport) -> None:
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.fileno() >= 0:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


async def talk(port: int, steps: tuple[Step, ...], deadline: float, backend: Backend | None = None) -> Heard:
    """Play `steps` to 127.0.0.1:`port` and hear until the peer ends; after `deadline` seconds give up.

    `backend` may follow what this client hears.
    """
    _, ear = await asyncio.get_running_loop().create_connection(Ear, "127.0.0.1", port)
    if backend:
        backend.client = ear
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(deadline):
            await play(ear, steps, backend)
            await ear.ended.wait()
    heard = Heard(bytes(ear.raw), ear.ending)
    ear.transport.abort()
    return heard


async def play(ear: Ear, steps: tuple[Step, ...], backend: Backend | None) -> None:
    drip = False
    for step in steps:
        if ear.transport.is_closing():
            return
        match step:
            case bytes() if drip:
                for byte in step:
                    if ear.transport.is_closing():
                        return
                    ear.transport.write(bytes((byte,)))
                    await asyncio.sleep(0)
            case bytes():
                ear.transport.write(step)
            case Until(mark):
                await ear.until(mark)
            case Do.SEEN:
                assert backend
                await backend.saw.wait()
            case Do.HALF_CLOSE:
                ear.transport.write_eof()
            case Do.RESET:
                reset(ear.transport)
            case Do.DRIP:
                drip = True
            case _:
                ear.transport.close()


# The backend -----------------------------------------------------------------------------------------


class Backend:
    """One scripted backend on a free port. `script` answers the target `/case`; all else is named back."""

    def __init__(self) -> None:
        self.script: tuple[Step, ...] = ()
        self.client_ended = asyncio.Event()
        self.client: Ear | None = None
        self.saw = asyncio.Event()
        self.record: list[Seen] = []
        self.stray: list[bytes] = []
        self.port = 0
        self.dialogues: set[Dialogue] = set()
        self.server: asyncio.Server | None = None

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self.server = await loop.create_server(lambda: Dialogue(self), "127.0.0.1", 0, backlog=256)
        self.port = self.server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self.server
        self.server.close()
        tasks = []
        for dialogue in list(self.dialogues):
            dialogue.transport.abort()
            if dialogue.story:
                dialogue.story.cancel()
                tasks.append(dialogue.story)
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.server.wait_closed()

    def begin(self, script: tuple[Step, ...]) -> None:
        """A new case: forget what was recorded, play `script` from now on."""
        self.script, self.record, self.stray = script, [], []
        self.client_ended, self.saw = asyncio.Event(), asyncio.Event()

    def end(self) -> tuple[list[Seen], list[bytes]]:
        """What the case showed: the requests in order, and bytes that are no request."""
        stray = self.stray + [bytes(d.raw) for d in self.dialogues if d.raw and not d.current]
        return [seen for seen in self.record if not seen.target.startswith(BARRIER_TARGET)], stray


class Dialogue(Ear):
    """One connection to the backend: reads requests one after the other and answers each in turn."""

    def __init__(self, backend: Backend) -> None:
        super().__init__()
        self.backend = backend
        self.current: Seen | None = None
        self.at = 0
        self.story: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.backend.dialogues.add(self)
        self.story = asyncio.get_running_loop().create_task(self.run())

    def eof_received(self) -> bool:
        super().eof_received()
        return True  # a proxy may half-close towards us after a whole request

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.raw and not self.current:
            self.backend.stray.append(bytes(self.raw))
            self.raw.clear()
        self.backend.dialogues.discard(self)
        if self.story:
            self.story.cancel()

    async def run(self) -> None:
        try:
            while seen := await self.next_request():
                self.current = seen
                self.backend.record.append(seen)
                self.backend.saw.set()
                stays = await self.answer(seen)
                if not seen.body.complete:
                    self.raw.clear()  # the part of the body that came stands in the record
                self.current = None
                if not stays:
                    break
        except UnreadableError:
            self.backend.stray.append(bytes(self.raw))
            self.raw.clear()
        self.transport.close()

    async def next_request(self) -> Seen | None:
        while (head := read_head(bytes(self.raw))) is None:
            if self.ended.is_set():
                return None
            self.changed.clear()
            await self.changed.wait()
        lines = head[:-4].split(b"\r\n")
        if not (match := REQUEST_LINE.fullmatch(lines[0])):
            raise UnreadableError("request line")
        seen = Seen(match[1], match[2], int(match[3]), head, read_fields(lines[1:]))
        length, coded = read_length(seen.fields), named(seen.fields, b"transfer-encoding")
        if coded and (coded != [b"chunked"] or length is not None):
            raise UnreadableError("framing")
        if coded:
            seen.body = Body("chunked", complete=False)
        elif length is not None:
            seen.body = Body("length", complete=length == 0)
        del self.raw[: len(head)]
        self.take_body(seen)
        return seen

    def take_body(self, seen: Seen) -> None:
        """Move what has arrived of the body into `seen`; the bytes leave the buffer when it is whole."""
        if seen.body.complete:
            return
        if seen.body.framing == "chunked":
            seen.body, used = read_chunked(bytes(self.raw))
        else:
            length = read_length(seen.fields) or 0
            data = bytes(self.raw[:length])
            seen.body, used = Body("length", data, complete=len(data) == length), length
        if seen.body.complete:
            del self.raw[:used]

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.current and not self.current.body.complete:
            with contextlib.suppress(UnreadableError):  # `whole_body` meets it again and reports it
                self.take_body(self.current)

    async def whole_body(self, seen: Seen) -> bool:
        while not seen.body.complete:
            if self.ended.is_set():
                return False
            self.changed.clear()
            await self.changed.wait()
            self.take_body(seen)
        return True

    async def answer(self, seen: Seen) -> bool:
        """Answer `seen`; False when the connection ends with it."""
        script = self.backend.script if seen.target == b"/case" else ()
        client_ended = self.backend.client_ended
        if script[:1] != (Do.AT_HEAD,) and not await self.whole_body(seen):
            return False
        if not script:
            self.transport.write(plain_answer(seen))
            return seen.keeps_alive
        for step in script:
            match step:
                case bytes():
                    self.transport.write(step)
                    await asyncio.sleep(0)
                case Do.BODY:
                    if not await self.whole_body(seen):
                        return False
                case Do.AFTER_CLIENT:
                    await client_ended.wait()
                case Do.PEER_EOF:
                    await self.ended.wait()
                case ClientHas(mark):
                    assert self.backend.client
                    await self.backend.client.until(mark)
                case Until(mark):
                    await self.until(mark)
                    del self.raw[: self.raw.find(mark) + len(mark)]
                case Do.HALF_CLOSE:
                    self.transport.write_eof()
                case Do.RESET:
                    reset(self.transport)
                    return False
                case Do.CLOSE:
                    return False
                case _:
                    pass
        await self.whole_body(seen)
        return seen.keeps_alive


def plain_answer(seen: Seen) -> bytes:
    """200 with the request's own target as body, so that a mix-up of answers shows."""
    body = b"answer to " + seen.method + b" " + seen.target
    head = b"HTTP/1.1 200 OK\r\nX-From: backend\r\nContent-Length: %d\r\n" % len(body)
    return head + b"\r\n" + (b"" if seen.method == b"HEAD" else body)


# One case after the other ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one case showed at both ends, and whether the next client got its own answer."""

    heard: Heard
    answers: tuple[Answer, ...]
    rest: bytes
    seen: tuple[Seen, ...]
    stray: tuple[bytes, ...]
    barrier: bytes
    """Empty when the request after the case got exactly its own answer, else what came instead."""


@dataclass(slots=True)
class Lane:
    """A proxy's port and the backend behind it; a lane plays one case at a time."""

    port: int
    backend: Backend
    count: int = 0

    async def run(
        self, steps: tuple[Step, ...], script: tuple[Step, ...], methods: tuple[bytes, ...], deadline: float
    ) -> Outcome:
        self.backend.begin(script)
        heard = await talk(self.port, steps, deadline, self.backend)
        self.backend.client_ended.set()
        await asyncio.sleep(0)
        barrier = await self.barrier()
        answers, rest = read_answers(heard.raw, methods, heard.ending == "closed")
        seen, stray = self.backend.end()
        return Outcome(heard, tuple(answers), rest, tuple(seen), tuple(stray), barrier)

    async def barrier(self, deadline: float = 5.0) -> bytes:
        self.count += 1
        target = BARRIER_TARGET + b"%d-%d" % (self.backend.port, self.count)
        request = b"GET " + target + b" HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n"
        heard = await talk(self.port, (request,), deadline)
        answers, rest = read_answers(heard.raw, (b"GET",), heard.ending == "closed")
        own = len(answers) == 1 and answers[0].body.data == b"answer to GET " + target
        return b"" if own and not rest and answers[0].status == 200 else heard.raw or b"(nothing)"
