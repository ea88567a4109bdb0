"""The asynchronous backends: aiohttp with events and WebSockets, and a server of `websockets`.

Both run on one event loop in a thread of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from aiohttp import WSMsgType, web
from multidict import CIMultiDict
from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from tests.clients.backends.script import Asked, CutError, Diary, play

SUBPROTOCOLS = ("chat.v2", "chat.v1")
_PAGE = Path(__file__).parent / "page.html"


@contextlib.contextmanager
def asynchronous_backends(diary: Diary) -> Iterator[dict[str, int]]:
    """Serve until the block is left; gives the ports of `aiohttp` and `websockets`."""
    loop = asyncio.new_event_loop()
    ready = threading.Event()
    stop = asyncio.Event()
    ports: dict[str, int] = {}

    async def run() -> None:
        runner = web.AppRunner(
            _application(diary), access_log=None, shutdown_timeout=0.2, handler_cancellation=True
        )
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        async with serve(
            _Sockets(diary).talk,
            "127.0.0.1",
            0,
            select_subprotocol=_choose,
            max_size=None,
            process_request=_refuse_some,
            ping_interval=None,
        ) as sockets:
            ports["aiohttp"] = runner.addresses[0][1]
            ports["websockets"] = sockets.sockets[0].getsockname()[1]
            ready.set()
            await stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: loop.run_until_complete(run()), name="asynchronous backends")
    thread.start()
    ready.wait()
    try:
        yield ports
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


def _application(diary: Diary) -> web.Application:
    app = web.Application(client_max_size=1 << 30)

    async def anything(request: web.Request) -> web.StreamResponse:
        return await _play(request, diary)

    async def socket(request: web.Request) -> web.StreamResponse:
        return await _talk_on_aiohttp(request, diary)

    async def refuse(request: web.Request) -> None:
        raise web.HTTPForbidden(text="no such thing")

    async def page(request: web.Request) -> web.StreamResponse:
        return web.Response(body=_PAGE.read_bytes(), content_type="text/html", charset="utf-8")

    app.router.add_get("/page", page)
    app.router.add_get("/events", _events)
    app.router.add_get("/conversation/{name}", _Conversations().serve)
    app.router.add_post("/conversation/{name}", _say)
    app.router.add_get("/socket", socket)
    app.router.add_route("*", "/demanding", anything, expect_handler=refuse)
    app.router.add_route("*", "/{anything:.*}", anything)
    return app


async def _play(request: web.Request, diary: Diary) -> web.StreamResponse:
    fields = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in request.raw_headers)
    transport = request.transport
    assert transport is not None
    peer = transport.get_extra_info("peername")
    told = play(Asked(request.method, request.raw_path, fields, await request.read(), peer), diary)
    if isinstance(told.body, bytes):
        return web.Response(status=told.status, headers=CIMultiDict(told.fields), body=told.body)
    stream = web.StreamResponse(status=told.status, headers=CIMultiDict(told.fields))
    await stream.prepare(request)
    try:
        if request.method != "HEAD":
            for piece in told.body:
                await stream.write(piece)
    except CutError:
        transport.close()
    finally:
        told.body.close()  # type: ignore[attr-defined]
    return stream


# Server-sent events.


async def _events(request: web.Request) -> web.StreamResponse:
    """Two events at a time; the next two when the browser comes back with the id of the last."""
    last = int(request.headers.get("Last-Event-ID", 0))
    stream = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
    await stream.prepare(request)
    await stream.write(b": a comment\nretry: 10\n\n")
    for number in (last + 1, last + 2):
        await stream.write(b"id: %d\nevent: count\ndata: number %d\ndata: second line\n\n" % (number, number))
    return stream


_SPOKEN: dict[str, asyncio.Queue[bytes]] = {}


class _Conversations:
    """A stream that says only what is posted to it: an event is out before the next is known."""

    async def serve(self, request: web.Request) -> web.StreamResponse:
        queue = _SPOKEN.setdefault(request.match_info["name"], asyncio.Queue())
        stream = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await stream.prepare(request)
        while True:
            said = await queue.get()
            if said == b"bye":
                return stream
            await stream.write(b"data: " + said + b"\n\n")


async def _say(request: web.Request) -> web.StreamResponse:
    _SPOKEN.setdefault(request.match_info["name"], asyncio.Queue()).put_nowait(await request.read())
    return web.Response(status=204)


# WebSockets. Both servers greet at once, in the segment of their 101 or right behind it; they echo,
# and do as they are told by `close:CODE:REASON`, `die` and (websockets only) `ping`.


async def _talk_on_aiohttp(request: web.Request, diary: Diary) -> web.WebSocketResponse:
    heard = (1006, "")
    socket = web.WebSocketResponse(protocols=SUBPROTOCOLS, max_msg_size=0)
    await socket.prepare(request)
    await socket.send_str(f"hello {request.raw_path}")
    try:
        while True:
            message = await socket.receive()
            if message.type is WSMsgType.BINARY:
                await socket.send_bytes(message.data)
            elif message.type is WSMsgType.CLOSE:
                heard = int(message.data), message.extra or ""
                break
            elif message.type is not WSMsgType.TEXT:
                break
            elif message.data.startswith("close:"):
                _, code, reason = message.data.split(":")
                await socket.close(code=int(code), message=reason.encode())
                break
            elif message.data == "die":
                assert request.transport is not None
                request.transport.abort()
                break
            else:
                await socket.send_str(message.data)
    finally:
        diary.closing(request.query.get("name", "")).put(heard)
    return socket


class _Sockets:
    """The server of `websockets`."""

    def __init__(self, diary: Diary) -> None:
        self._diary = diary

    async def talk(self, socket: ServerConnection) -> None:
        assert socket.request is not None
        path = socket.request.path
        await socket.send(f"hello {path}")
        try:
            if path.startswith("/fragments"):
                await self._repeat_fragments(socket)
            else:
                await self._repeat(socket)
        except ConnectionClosed:
            pass
        name = path.partition("name=")[2]
        await socket.wait_closed()
        self._diary.closing(name).put((socket.close_code or 1006, socket.close_reason or ""))

    async def _repeat(self, socket: ServerConnection) -> None:
        while True:
            message = await socket.recv()
            if isinstance(message, str) and message.startswith("close:"):
                _, code, reason = message.split(":")
                await socket.close(int(code), reason)
                return
            if message == "die":
                socket.transport.abort()
                return
            if message == "ping":
                await (await socket.ping(b"are you there"))
                message = "ponged"
            await socket.send(message)

    async def _repeat_fragments(self, socket: ServerConnection) -> None:
        while True:
            await socket.send([fragment async for fragment in socket.recv_streaming()])


def _choose(_socket: ServerConnection, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    return next((Subprotocol(name) for name in SUBPROTOCOLS if name in offered), None)


def _refuse_some(_socket: ServerConnection, request: Request) -> Response | None:
    if not request.path.startswith("/refused"):
        return None
    body = b"not for you\n"
    headers = Headers({"Content-Length": str(len(body)), "WWW-Authenticate": "Bearer", "Connection": "close"})
    return Response(401, "Unauthorized", headers, body)
