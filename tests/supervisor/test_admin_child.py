"""The admin API's process alone: replaced on the same socket, it loses no connection."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import time
from pathlib import Path

import pytest

from crossfade import sockets
from crossfade.admin_child import AdminChild
from crossfade.channel import Message
from crossfade.processes import Children

REPLACEMENTS = 8
PROBERS = 6
LATE = 1.5
"""Seconds between connecting and asking after which nobody can expect an answer: its end waits for 2 s."""


class Prober:
    """Clients that open a connection, wait a moment in some of them, ask, and read to the end."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.answered = 0
        self.failures: list[str] = []
        self.over = False

    async def run(self) -> None:
        while not self.over:
            answer, seconds = await self._ask()
            if answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(b"\r\n\r\nok\n"):
                self.answered += 1
            elif seconds < LATE:
                self.failures.append(repr(answer))

    async def _ask(self) -> tuple[bytes, float]:
        """The answer, or the error; and how many seconds this process took to connect and ask."""
        began = asked = time.monotonic()
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            with contextlib.closing(writer):
                writer.write(b"GET /healthz HTTP/1.1\r\n")
                # The end of the request comes in a packet of its own, perhaps after the order to stop.
                await asyncio.sleep(0)
                writer.write(b"Host: test\r\nConnection: close\r\n\r\n")
                asked = time.monotonic()
                return await reader.read(), asked - began
        except OSError as error:
            return repr(error).encode(), asked - began


def context(folder: Path) -> Message:
    """What the supervisor tells it, of an instance without flags."""
    return {
        "config": "", "data_dir": str(folder), "store": "none", "bus": "none", "routes": [], "address": "",
        "operations": [], "token_header": "authorization", "compare_here": True,
        "started": 0.0, "databases": None, "cutovers": [], "code": None,
    }  # fmt: skip


async def nothing(_: Message) -> Message:
    return {}


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is killed for being slow: these processes end by themselves."""
    monkeypatch.setattr("crossfade.admin_child.LEAVE_WITHIN", 30)


async def test_its_replacement_resets_no_connection(tmp_path: Path) -> None:
    children = Children()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGCHLD, children.reap)
    listener = sockets.listen_admin("127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    current = await AdminChild.start(children, listener, nothing, context(tmp_path))
    prober = Prober(port)
    probing = [asyncio.create_task(prober.run()) for _ in range(PROBERS)]
    try:
        for _ in range(REPLACEMENTS):
            successor = await AdminChild.start(children, listener, nothing, context(tmp_path))
            await current.end()
            current = successor
    finally:
        prober.over = True
        await asyncio.gather(*probing)
        await current.end()
        loop.remove_signal_handler(signal.SIGCHLD)
        listener.close()

    assert prober.failures == []
    assert prober.answered > 100


async def test_a_connection_that_asks_nothing_does_not_hold_its_end_for_long(tmp_path: Path) -> None:
    children = Children()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGCHLD, children.reap)
    listener = sockets.listen_admin("127.0.0.1", 0)
    child = await AdminChild.start(children, listener, nothing, context(tmp_path))
    try:
        with socket.create_connection(listener.sockets[0].getsockname()) as silent:
            began = time.monotonic()
            await child.end()
            assert time.monotonic() - began < 10
            assert child.process.exited.result() == 0
            silent.settimeout(5)
            assert await asyncio.to_thread(silent.recv, 1) == b""
    finally:
        loop.remove_signal_handler(signal.SIGCHLD)
        listener.close()
