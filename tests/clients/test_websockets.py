"""WebSockets through Crossfade: two servers, plain and TLS; every frame and every end as without it."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from tests.clients.conftest import Place, Stage

PATIENCE = 20.0
LARGE = bytes(range(256)) * 32_768


@dataclass(frozen=True, slots=True)
class Ways:
    """The addresses of one server: its own and those of Crossfade before it."""

    place: Place
    path: str
    trust: ssl.SSLContext

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter((self.place.direct, *self.place.fronts))

    def open(self, origin: str, query: str = "", **options: object) -> connect:
        options.setdefault("max_size", None)
        options.setdefault("subprotocols", [Subprotocol("chat.v1")])
        if origin.startswith("https"):
            options["ssl"] = self.trust
        return connect(origin.replace("http", "ws", 1) + self.path + query, open_timeout=PATIENCE, **options)  # type: ignore[arg-type]


@pytest.fixture(params=["websockets", "aiohttp"])
def ways(request: pytest.FixtureRequest, stage: Stage) -> Ways:
    trust = ssl.create_default_context(cafile=stage.ca_file)
    return Ways(stage.places[request.param], "/socket", trust)


async def greeted(socket: ClientConnection) -> str:
    return str(await asyncio.wait_for(socket.recv(), PATIENCE))


async def test_text_binary_and_very_large_messages_come_back(ways: Ways) -> None:
    for origin in ways:
        async with ways.open(origin) as socket:
            assert (await greeted(socket)).startswith("hello /socket")
            for message in ("wörd ☃", "", b"\x00\xff", b"", LARGE):
                await socket.send(message)
                assert await asyncio.wait_for(socket.recv(), PATIENCE) == message


async def test_the_subprotocol_is_agreed_between_the_ends(ways: Ways) -> None:
    for origin in ways:
        wanted = [Subprotocol("chat.v9"), Subprotocol("chat.v1")]
        async with ways.open(origin, subprotocols=wanted) as socket:
            assert socket.subprotocol == "chat.v1"


async def test_compression_is_agreed_between_the_ends(ways: Ways) -> None:
    for origin in ways:
        async with ways.open(origin, compression="deflate") as socket:
            assert socket.response is not None
            assert "permessage-deflate" in socket.response.headers["Sec-WebSocket-Extensions"]
            await greeted(socket)
            await socket.send("a" * 100_000)
            assert await asyncio.wait_for(socket.recv(), PATIENCE) == "a" * 100_000


async def test_pings_are_answered_by_the_other_end(ways: Ways) -> None:
    for origin in ways:
        async with ways.open(origin) as socket:
            await asyncio.wait_for(await socket.ping(b"there?"), PATIENCE)


async def test_a_close_by_the_server_arrives_with_code_and_reason(ways: Ways) -> None:
    for origin in ways:
        async with ways.open(origin) as socket:
            await greeted(socket)
            await socket.send("close:4002:enough")
            with pytest.raises(ConnectionClosed):
                await asyncio.wait_for(socket.recv(), PATIENCE)
            assert (socket.close_code, socket.close_reason) == (4002, "enough")


async def test_a_close_by_the_client_arrives_with_code_and_reason(ways: Ways) -> None:
    for number, origin in enumerate(ways):
        name = f"{ways.place.name}-close-{number}"
        async with ways.open(origin, f"?name={name}") as socket:
            await greeted(socket)
            await socket.close(4003, "leaving")
        heard = await asyncio.to_thread(ways.place.diary.closings[name].get, True, PATIENCE)
        assert heard == (4003, "leaving")


async def test_a_server_that_dies_is_a_broken_connection(ways: Ways) -> None:
    for origin in ways:
        async with ways.open(origin) as socket:
            await greeted(socket)
            await socket.send("die")
            with pytest.raises(ConnectionClosed):
                await asyncio.wait_for(socket.recv(), PATIENCE)
            assert socket.close_code == 1006


async def test_many_at_once_keep_apart(ways: Ways) -> None:
    async def talk(origin: str, number: int) -> None:
        async with ways.open(origin, f"?number={number}") as socket:
            assert (await greeted(socket)).endswith(f"number={number}")
            for turn in range(10):
                await socket.send(f"{number}/{turn}")
                assert await asyncio.wait_for(socket.recv(), PATIENCE) == f"{number}/{turn}"

    for origin in ways.place.fronts:
        await asyncio.gather(*(talk(origin, number) for number in range(40)))


async def test_fragments_stay_fragments(stage: Stage) -> None:
    trust = ssl.create_default_context(cafile=stage.ca_file)
    ways = Ways(stage.places["websockets"], "/fragments", trust)
    for origin in ways:
        async with ways.open(origin) as socket:
            await greeted(socket)
            await socket.send(["one ", "two ", "three"])
            pieces = [piece async for piece in socket.recv_streaming()]
            assert pieces[:3] == ["one ", "two ", "three"]


async def test_a_refused_handshake_is_the_servers_answer(stage: Stage) -> None:
    trust = ssl.create_default_context(cafile=stage.ca_file)
    ways = Ways(stage.places["websockets"], "/refused", trust)
    said = []
    for origin in ways:
        with pytest.raises(InvalidStatus) as refused:
            async with ways.open(origin):
                pass
        said.append((refused.value.response.status_code, refused.value.response.body))
    assert said[0] == said[1] == said[2]
