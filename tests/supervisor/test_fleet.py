"""The fleet with real workers, where a test has to reach into its clocks."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from crossfade import sockets
from crossfade.fleet import SILENT_FOR, ChangeError, Fleet, Worker
from crossfade.ledger import Ledger
from crossfade.logs import Log
from crossfade.orders import Orders, orders
from crossfade.processes import Children
from flags.model import Side
from proxy.config import AccessLog, ListenTls, ProxyConfig, Target

TARGETS = {Side.LEGACY: Target("127.0.0.1", 1), Side.NEW: Target("127.0.0.1", 2)}
PROXY = ProxyConfig(TARGETS, access_log=AccessLog(None))


@contextlib.asynccontextmanager
async def running_fleet(size: int) -> AsyncIterator[tuple[Fleet, Ledger, sockets.Listener]]:
    children, ledger = Children(), Ledger()
    asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, children.reap)
    fleet = Fleet(children, ledger, Log("test"))
    listener = sockets.listen("127.0.0.1", 0, size)
    try:
        await fleet.change(orders(1, PROXY, ()), sockets.shares([listener], size))
        yield fleet, ledger, listener
    finally:
        living = fleet.living
        fleet.kill()
        await asyncio.gather(*(worker.buried for worker in living))
        listener.close()
        asyncio.get_running_loop().remove_signal_handler(signal.SIGCHLD)


async def until_ready(fleet: Fleet) -> list[Worker]:
    async with asyncio.timeout(30):
        while fleet.not_ready:  # noqa: ASYNC110  (it is another process)
            await asyncio.sleep(0.01)
    return fleet.living


async def test_a_silent_worker_is_ended_and_replaced() -> None:
    async with running_fleet(2) as (fleet, ledger, _):
        hung, well = fleet.living
        os.kill(hung.process.pid, signal.SIGSTOP)
        hung.heard -= SILENT_FOR + 1

        # After a pause of our own nobody is judged.
        fleet.end_hung(forgive=True)
        assert hung.ending is None
        hung.heard -= SILENT_FOR + 1
        fleet.end_hung(forgive=False)
        await hung.buried

        assert ledger.exits() == {"hung": 1}
        assert well in await until_ready(fleet)


async def test_a_change_that_one_worker_does_not_answer_is_taken_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("crossfade.fleet.OBEY_WITHIN", 2.0)
    async with running_fleet(2) as (fleet, ledger, listener):
        stopped, well = fleet.living
        os.kill(stopped.process.pid, signal.SIGSTOP)

        with pytest.raises(ChangeError, match="worker 0 did not answer") as caught:
            await fleet.change(orders(2, PROXY, ()), sockets.shares([listener], 2))

        assert caught.value.late
        assert fleet.orders is not None
        assert fleet.orders.generation == 1
        assert well.generation == 1
        # Nobody knows what the silent one would run when it wakes, so it is replaced.
        await stopped.buried
        assert ledger.exits() == {"hung": 1}
        assert {worker.generation for worker in await until_ready(fleet)} == {1}


async def test_what_a_worker_refuses_no_worker_runs(tmp_path: Path) -> None:
    """The supervisor has looked at the certificate before, but the file may go in between."""
    gone = replace(PROXY, listen_tls=ListenTls(str(tmp_path / "a.pem"), str(tmp_path / "a.key")))
    async with running_fleet(2) as (fleet, ledger, listener):
        before = fleet.living
        with pytest.raises(ChangeError, match=r"cannot use .*a\.pem or .*a\.key: No such file") as caught:
            await fleet.change(orders(2, gone, ()), sockets.shares([listener], 2))
        assert not caught.value.late
        assert [(worker.generation, worker.state) for worker in fleet.living] == [(1, "ready")] * 2
        assert fleet.living == before
        assert ledger.exits() == {}


async def test_orders_that_a_new_worker_cannot_read_change_nothing() -> None:
    async with running_fleet(1) as (fleet, ledger, listener):
        before = fleet.living
        listener.widen(2)
        with pytest.raises(ChangeError):
            await fleet.change(Orders(2, 1.0, "AAAA"), sockets.shares([listener], 2), afresh=True)
        assert fleet.living == before
        assert ledger.exits() == {"crashed": 2}
        assert fleet.not_ready == []


async def test_a_worker_that_dies_during_a_change_comes_back_on_the_new_orders() -> None:
    async with running_fleet(2) as (fleet, _, listener):
        victim, _ = fleet.living
        os.kill(victim.process.pid, signal.SIGKILL)
        await fleet.change(orders(2, PROXY, ()), sockets.shares([listener], 2))
        assert {worker.generation for worker in await until_ready(fleet)} == {2}


async def test_a_new_worker_that_has_clients_is_not_killed_when_the_next_one_cannot_accept() -> None:
    async with running_fleet(2) as (fleet, ledger, listener):
        old, _ = before = fleet.living
        first, second = listener.sockets
        async with clients_of(listener, old) as waiting:
            with (
                socket.create_connection(first.getsockname()) as deaf,
                pytest.raises(ChangeError, match="a worker cannot accept"),
            ):
                # The first new worker takes the clients; the second one is given what nobody can listen on.
                await fleet.change(orders(2, PROXY, ()), [[first, second], [deaf]], afresh=True)
            os.kill(old.process.pid, signal.SIGCONT)
            for reader, writer in waiting:
                writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                # The target is nowhere; what counts is that there is an answer.
                assert await reader.readline() == b"HTTP/1.1 502 Bad Gateway\r\n"
        async with asyncio.timeout(30):
            while len(fleet.living) > 2:  # noqa: ASYNC110  (it is another process)
                await asyncio.sleep(0.01)
        assert fleet.living == before
        assert ledger.exits() == {"not_ready": 1, "drained": 1}


@contextlib.asynccontextmanager
async def clients_of(
    listener: sockets.Listener, stopped: Worker
) -> AsyncIterator[list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]:
    """Connected clients, some of them in the queue of a worker that stands still."""
    os.kill(stopped.process.pid, signal.SIGSTOP)
    port = listener.sockets[0].getsockname()[1]
    found = [await asyncio.open_connection("127.0.0.1", port) for _ in range(20)]
    try:
        async with asyncio.timeout(30):
            yield found
    finally:
        for _, writer in found:
            writer.close()
