"""The client's next request and a surprise on the pooled connection wake the proxy in the same moment.

The proxy is stopped while both are put into its sockets, the request first, so that it meets the
request before it can have heard of the surprise. Only a look at the pooled connection itself, just
before it is used, can tell. However long it is stopped, none of its timers ends by that.
"""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace
from typing import TYPE_CHECKING

from tests.differential.answers import EVIL_ANSWER
from tests.differential.case import get, post
from tests.differential.proxies import CROSSFADE_KIND, Proxy, running
from tests.differential.wire import Dialogue, Ear, reset

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENT = replace(CROSSFADE_KIND, environment=lambda _: {"PATIENCE": "60"})
SURPRISES: dict[str, Callable[[Dialogue], None]] = {
    "an answer nobody asked for": lambda dialogue: dialogue.transport.write(EVIL_ANSWER),
    "an answer and a close": lambda dialogue: (
        dialogue.transport.write(EVIL_ANSWER),
        dialogue.transport.close(),
    ),
    "half a line": lambda dialogue: dialogue.transport.write(b"HTTP/1.1 200"),
    "a close": lambda dialogue: dialogue.transport.close(),
    "a half-close": lambda dialogue: dialogue.transport.write_eof(),
    "a reset": lambda dialogue: reset(dialogue.transport),
}


async def test_the_request_goes_over_a_fresh_connection_and_gets_its_own_answer() -> None:
    async with running(PATIENT, lanes=len(SURPRISES)) as proxy, asyncio.timeout(30):
        for lane, (name, surprise) in zip(proxy.lanes, SURPRISES.items(), strict=True):
            lane.backend.begin(())
            client = await connected(lane.port)
            client.transport.write(get(b"/first"))
            await client.until(b"answer to GET /first")
            (pooled,) = lane.backend.dialogues

            stop(proxy)
            client.transport.write(post(b"Content-Length: 3\r\n", b"abc", b"/second"))
            surprise(pooled)
            if pooled.transport.is_closing():
                await pooled.ended.wait()
            proxy.process.send_signal(signal.SIGCONT)

            await client.until(b"answer to POST /second")
            assert b"EVIL" not in client.raw, name
            assert client.ending == "open", name
            client.transport.abort()
            seen, _ = lane.backend.end()
            assert [(request.line, request.body.data) for request in seen] == [
                (b"GET /first HTTP/1.1", b""),
                (b"POST /second HTTP/1.1", b"abc"),
            ], name


async def connected(port: int) -> Ear:
    _, client = await asyncio.get_running_loop().create_connection(Ear, "127.0.0.1", port)
    return client


def stop(proxy: Proxy) -> None:
    """Stop the process, and return when it has stopped."""
    proxy.process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, proxy.process.pid, os.WSTOPPED | os.WNOWAIT)
