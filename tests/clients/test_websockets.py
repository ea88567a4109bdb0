"""WebSockets: two clients with two servers, directly, through Crossfade, and through Crossfade with TLS."""

from __future__ import annotations

import asyncio
import itertools
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Origin, Subprotocol

from tests.clients.backends.script import PAYLOAD, Diary
from tests.clients.conftest import Stage

PATIENCE = 20.0
_names = itertools.count()


@dataclass(frozen=True, slots=True)
class Line:
    """One server, by one way."""

    server: str
    url: str
    direct: str
    tls: ssl.SSLContext | None
    diary: Diary

    def talk(self, path: str = "/socket", **options: Any) -> connect:
        return connect(
            self.url + path, ssl=self.tls, max_size=None, max_queue=None, ping_interval=None, **options
        )

    def heard(self, name: str) -> tuple[int, str]:
        """The close code and reason that reached the server."""
        return self.diary.closing(name).get(timeout=PATIENCE)


@pytest.fixture(params=["direct", "http", "https"])
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["websockets", "aiohttp"])
def line(request: pytest.FixtureRequest, way: str, stage: Stage) -> Line:
    """Each server by each way."""
    return _line(stage, request.param, way)


@pytest.fixture
def modern(way: str, stage: Stage) -> Line:
    """The server of `websockets`, which shows more of the protocol."""
    return _line(stage, "websockets", way)


def _line(stage: Stage, server: str, way: str) -> Line:
    place = stage.places[server]
    origin = {"direct": place.direct, "http": place.fronts[0], "https": place.fronts[1]}[way]
    tls = ssl.create_default_context(cafile=stage.ca_file) if way == "https" else None
    return Line(server, "ws" + origin.removeprefix("http"), "ws" + place.direct[4:], tls, place.diary)


async def test_talk(line: Line) -> None:
    async with line.talk("/socket?x=%20y&name=talk") as socket:
        assert await socket.recv() == "hello /socket?x=%20y&name=talk"
        for message in ("short", "", "ünï\u2028¢ødé", "x" * 70_000, b"", b"\x00\xff", PAYLOAD[:70_000]):
            await socket.send(message)
            assert await socket.recv() == message


async def test_talk_by_aiohttp(line: Line) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(line.url + "/socket", ssl=line.tls or True, max_msg_size=0) as socket,
    ):
        assert await socket.receive_str() == "hello /socket"
        for text in ("short", "", "x" * 70_000):
            await socket.send_str(text)
            assert await socket.receive_str() == text
        await socket.send_bytes(PAYLOAD)
        assert await socket.receive_bytes() == PAYLOAD
        await socket.send_str("close:4444:enough")
        message = await socket.receive()
        assert (message.type, message.data, message.extra) == (aiohttp.WSMsgType.CLOSE, 4444, "enough")


async def test_the_handshake_is_the_same(line: Line) -> None:
    """Subprotocol, extensions and all other fields of the 101 are the server's own."""
    offers = [Subprotocol("chat.v9"), Subprotocol("chat.v1"), Subprotocol("chat.v2")]
    async with line.talk(origin="https://app.example", subprotocols=offers) as socket:
        fields, spoken = _fields(socket), socket.subprotocol
    async with connect(
        line.direct + "/socket", origin=Origin("https://app.example"), subprotocols=offers
    ) as own:
        assert fields == _fields(own)
        assert spoken == own.subprotocol
    assert spoken in offers
    assert "permessage-deflate" in dict(fields)["Sec-WebSocket-Extensions"]


def _fields(socket: ClientConnection) -> list[tuple[str, str]]:
    """Those of the 101, without what is this connection's own."""
    assert socket.response is not None
    own = ("Connection", "Sec-WebSocket-Accept", "Date")
    return [(name, value) for name, value in socket.response.headers.raw_items() if name not in own]


async def test_without_compression(line: Line) -> None:
    async with line.talk(compression=None) as socket:
        assert socket.response is not None
        assert "Sec-WebSocket-Extensions" not in socket.response.headers
        assert await socket.recv() == "hello /socket"
        await socket.send(b"a" * 100_000)
        assert await socket.recv() == b"a" * 100_000


async def test_eight_megabytes(line: Line) -> None:
    message = PAYLOAD * 8
    async with line.talk(compression=None) as socket:
        await socket.recv()
        await socket.send(message)
        assert await socket.recv() == message


async def test_compressed_megabytes(line: Line) -> None:
    message = "a line that repeats itself\n" * 300_000
    async with line.talk() as socket:
        await socket.recv()
        await socket.send(message)
        assert await socket.recv() == message


async def test_fragments_stay_fragments(modern: Line) -> None:
    sent = [b"one", b"", b"three" * 30_000, b"\x00"]
    async with modern.talk("/fragments") as socket:
        await socket.recv()
        await socket.send(sent)
        received = [fragment async for fragment in socket.recv_streaming()]
        # The library ends a fragmented message with an empty frame of its own.
        assert [fragment for fragment in received if fragment] == [piece for piece in sent if piece]
        assert len(received) > len(sent)


async def test_ping_and_pong(modern: Line) -> None:
    """Both sides ping the other itself, not Crossfade: the pong carries the payload of the ping."""
    async with modern.talk() as socket:
        await socket.recv()
        async with asyncio.timeout(PATIENCE):
            await (await socket.ping(b"payload"))
        await socket.send("ping")
        assert await socket.recv() == "ponged"


@pytest.mark.parametrize(
    ("code", "reason"), [(1000, ""), (1001, "going"), (1011, "oops"), (3000, "x" * 123), (4999, "é")]
)
async def test_the_server_closes(code: int, reason: str, line: Line) -> None:
    async with line.talk() as socket:
        await socket.recv()
        await socket.send(f"close:{code}:{reason}")
        with pytest.raises(ConnectionClosed):
            await socket.recv()
    assert (socket.close_code, socket.close_reason) == (code, reason)


@pytest.mark.parametrize(("code", "reason"), [(1000, "done"), (1001, ""), (4321, "my reasons")])
async def test_the_client_closes(code: int, reason: str, line: Line) -> None:
    name = f"closing-{next(_names)}"
    async with line.talk(f"/socket?name={name}") as socket:
        await socket.recv()
        await socket.close(code, reason)
    assert await asyncio.to_thread(line.heard, name) == (code, reason)
    assert socket.close_code == (code if line.server == "websockets" else 1000)  # aiohttp's own answer


async def test_last_words_arrive(line: Line) -> None:
    """What a client says right before it closes is heard, although both come in one segment."""
    name = f"words-{next(_names)}"
    async with line.talk(f"/socket?name={name}") as socket:
        await socket.recv()
        for number in range(50):
            await socket.send(f"word {number}")
        await socket.close(4000, "said it all")
    assert await asyncio.to_thread(line.heard, name) == (4000, "said it all")


async def test_the_server_dies(line: Line) -> None:
    async with line.talk() as socket:
        await socket.recv()
        await socket.send("die")
        with pytest.raises(ConnectionClosed):
            await asyncio.wait_for(socket.recv(), PATIENCE)
    assert socket.close_code == 1006


async def test_the_client_dies(line: Line) -> None:
    name = f"dying-{next(_names)}"
    async with line.talk(f"/socket?name={name}") as socket:
        await socket.recv()
        socket.transport.abort()
    assert (await asyncio.to_thread(line.heard, name))[0] == 1006


async def test_the_client_dies_in_a_flood(line: Line) -> None:
    """Bytes for somebody who has gone fill no buffer and keep no connection open."""
    name = f"flood-{next(_names)}"
    async with line.talk(f"/socket?name={name}", compression=None) as socket:
        for _ in range(20):
            await socket.send(PAYLOAD)
            if await socket.recv() != f"hello /socket?name={name}":
                break
        socket.transport.abort()
    assert (await asyncio.to_thread(line.heard, name))[0] == 1006


async def test_a_refused_handshake(modern: Line) -> None:
    with pytest.raises(InvalidStatus) as refusal:
        await modern.talk("/refused").__aenter__()
    response = refusal.value.response
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == "Bearer"
    assert response.body == b"not for you\n"


async def test_many_talk_at_once(line: Line) -> None:
    """Forty conversations, each with its own words, ended by either side."""

    async def converse(number: int) -> None:
        async with _greeted(line) as socket:
            for turn in range(10):
                word = f"{number}: word {turn} " + "." * (number * 37)
                await socket.send(word)
                assert await socket.recv() == word
            if number % 2:
                await socket.send("close:1000:bye")
                with pytest.raises(ConnectionClosed):
                    await socket.recv()

    async with asyncio.TaskGroup() as group:
        for number in range(40):
            group.create_task(converse(number))


@asynccontextmanager
async def _greeted(line: Line) -> AsyncIterator[ClientConnection]:
    async with line.talk() as socket:
        assert await socket.recv() == "hello /socket"
        yield socket
