"""The small pieces under the supervisor, each by itself."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import os
import pickle
import pickletools
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.metrics import CLIENT_CONNECTIONS, LATENCY_BUCKETS, REQUEST_SECONDS, RETRIES, Histogram, Sample
from crossfade import exposition, instance, orders, sockets
from crossfade.channel import LARGEST, Channel, Message
from crossfade.handover import FORMAT, Handover, HandoverError
from crossfade.ledger import Ledger
from flags.model import Route, Side
from proxy.config import ProxyConfig, Target

# Channel


@given(
    messages=st.lists(st.dictionaries(st.text(max_size=9), st.text(max_size=99), max_size=3), max_size=5),
    cuts=st.lists(st.integers(1, 50), min_size=1, max_size=9),
)
def test_frames_arrive_whole_however_they_are_cut(messages: list[Message], cuts: list[int]) -> None:
    async def scene() -> None:
        ours, theirs = socket.socketpair()
        heard: list[Message] = []
        sender, receiver = Channel(lambda _: None), Channel(heard.append)
        await sender.open(ours)
        for message in messages:
            sender.send(message)
        sender.close()
        await sender.closed
        theirs.setblocking(True)
        stream = b"".join(iter(lambda: theirs.recv(65536), b""))
        theirs.close()
        position = 0
        while stream[position:]:
            step = cuts[position % len(cuts)]
            receiver.data_received(stream[position : position + step])
            position += step
        assert heard == messages

    asyncio.run(scene())


async def test_what_was_read_in_part_travels_to_the_next_holder() -> None:
    ours, theirs = socket.socketpair()
    heard: list[Message] = []
    first = Channel(heard.append)
    frame = b'\x00\x00\x00\x09{"a": 12}'
    first.data_received(frame[:7])
    second = Channel(heard.append)
    await second.open(ours, first.unread)
    theirs.sendall(frame[7:])
    theirs.close()
    await second.closed
    assert heard == [{"a": 12}]


async def test_a_question_to_a_dead_process_ends() -> None:
    ours, theirs = socket.socketpair()
    channel = Channel(lambda _: None)
    await channel.open(ours)
    question = asyncio.create_task(channel.ask({"do": "anything"}, 30))
    await asyncio.sleep(0)
    theirs.close()
    with pytest.raises(ConnectionResetError):
        await question
    with pytest.raises(ConnectionResetError):
        await channel.ask({"do": "anything"}, 30)


async def test_a_late_answer_is_no_error() -> None:
    ours, theirs = socket.socketpair()
    asked: asyncio.Queue[Message] = asyncio.Queue()
    one, other = Channel(lambda _: None), Channel(asked.put_nowait)
    await one.open(ours)
    await other.open(theirs)
    with pytest.raises(TimeoutError):
        await one.ask({"do": "first"}, 0.01)
    other.answer(await asked.get(), {"late": True})
    second = asyncio.create_task(one.ask({"do": "second"}, 10))
    other.answer(await asked.get(), {"in": "time"})
    assert (await second)["in"] == "time"
    one.close()
    other.close()
    await one.closed
    await other.closed


async def test_a_frame_beyond_all_measure_breaks_the_line() -> None:
    ours, theirs = socket.socketpair()
    channel = Channel(lambda _: None)
    await channel.open(ours)
    theirs.sendall((LARGEST + 1).to_bytes(4, "big"))
    await channel.closed
    theirs.close()


# Samples

HISTOGRAM = Histogram(tuple(range(len(LATENCY_BUCKETS) + 1)), 1.5)
SAMPLES = [
    Sample(RETRIES.name, ("legacy", "connect"), 3),
    Sample(CLIENT_CONNECTIONS.name, (), 7),
    Sample(REQUEST_SECONDS.name, ("a", "new"), HISTOGRAM),
]


def test_samples_survive_the_way() -> None:
    assert exposition.from_wire(exposition.to_wire(SAMPLES)) == SAMPLES


def test_samples_of_another_version_are_left_out() -> None:
    wire: list[Any] = [
        ["crossfade_unknown_total", [], 1],
        [RETRIES.name, ["too", "many", "labels"], 1],
        [RETRIES.name, ["legacy", "connect"], [[1], 1.0]],
        [REQUEST_SECONDS.name, ["a", "new"], 1.0],
        [REQUEST_SECONDS.name, ["a", "new"], [[1, 2], 1.0]],
        *exposition.to_wire(SAMPLES),
    ]
    assert exposition.from_wire(wire) == SAMPLES


def test_sums_add_up_and_gauges_die_with_their_worker() -> None:
    ledger = Ledger()
    ledger.bury(SAMPLES, "killed")
    ledger.bury(SAMPLES, "killed")
    of_all = {(s.metric, s.labels): s.value for s in exposition.summed(SAMPLES, ledger.samples())}
    assert of_all[RETRIES.name, ("legacy", "connect")] == 9
    assert of_all[CLIENT_CONNECTIONS.name, ()] == 7
    tripled = tuple(3 * count for count in HISTOGRAM.buckets)
    assert of_all[REQUEST_SECONDS.name, ("a", "new")] == Histogram(tripled, 4.5)

    other = Ledger()
    other.restore(ledger.to_wire())
    assert other.samples() == ledger.samples()
    assert other.exits() == {"killed": 2}


def test_both_formats_of_prometheus() -> None:
    plain, plain_type = exposition.exposition(SAMPLES, "")
    assert plain_type.startswith("text/plain")
    assert b'crossfade_retries_total{reason="connect",side="legacy"} 3.0' in plain
    assert b'crossfade_request_seconds_bucket{flag="a",le="0.0025",side="new"} 1.0' in plain
    assert b'crossfade_request_seconds_bucket{flag="a",le="+Inf",side="new"} 120.0' in plain
    openmetrics, its_type = exposition.exposition(SAMPLES, "application/openmetrics-text; version=1.0.0")
    assert its_type.startswith("application/openmetrics-text")
    assert openmetrics.endswith(b"# EOF\n")


# Orders

PROXY = ProxyConfig({Side.LEGACY: Target("127.0.0.1", 1), Side.NEW: Target("127.0.0.1", 2)})


def test_orders_arrive_as_they_were_given() -> None:
    routes = (Route("a", "/a", frozenset({"GET"})),)
    given_orders = orders.orders(4, PROXY, routes)
    received = orders.Orders.from_wire(given_orders.to_wire())
    assert received.unpack() == (PROXY, routes)
    assert (received.generation, received.drain) == (4, PROXY.timeouts.drain)


def test_orders_of_another_layout_are_refused_not_misread(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = orders.orders(1, PROXY, ())

    @dataclasses.dataclass
    class Target:
        host: str
        added_in_the_next_version: int

    monkeypatch.setattr("proxy.config.Target", Target)
    with pytest.raises(orders.OtherLayoutError):
        ours.unpack()


# Sockets


@given(count=st.integers(1, 12), workers=st.integers(1, 12), listeners=st.integers(1, 3))
def test_no_socket_is_left_out_and_none_has_two_owners(count: int, workers: int, listeners: int) -> None:
    given_sockets: Any = [
        sockets.Listener("h", 1, [object() for _ in range(max(count, workers))])  # type: ignore[misc]
        for _ in range(listeners)
    ]
    shares = sockets.shares(given_sockets, workers)
    assert len(shares) == workers
    flat = [id(sock) for share in shares for sock in share]
    assert sorted(flat) == sorted(id(sock) for listener in given_sockets for sock in listener.sockets)
    assert max(map(len, shares)) - min(map(len, shares)) <= listeners


def test_an_address_of_another_machine() -> None:
    with pytest.raises(sockets.AddressError, match="this machine has no such address"):
        sockets.listen("192.0.2.1", 1234, 1)


def test_ipv6() -> None:
    try:
        listener = sockets.listen("::1", 0, 2)
    except sockets.AddressError:
        pytest.skip("no IPv6 here")
    assert str(listener).startswith("[::1]:")
    assert len({sock.getsockname()[1] for sock in listener.sockets}) == 1
    listener.close()


# Instance


def test_the_lock_lives_with_its_holder(tmp_path: Path) -> None:
    lock = instance.claim(tmp_path)
    with pytest.raises(instance.AlreadyRunningError, match=f"pid {os.getpid()}"):
        instance.claim(tmp_path)
    assert not instance.wait_for_end(tmp_path, 0)
    os.close(lock)
    assert instance.wait_for_end(tmp_path, 0)
    os.close(instance.claim(tmp_path))


# Handover

HANDOVER = Handover(
    data_dir="/x",
    listeners=[{"host": "h", "port": 1, "sockets": [5, 6]}],
    admin={"host": "h", "port": 2, "sockets": [7]},
    lock_fd=8,
    control_fd=9,
    client_fd=None,
    fleet={"workers": [{"channel": 10}]},
    api={"channel": 11},
    servers=None,
    sync={"new": {"channel": 12}},
    ledger={},
    started_at="",
    started=0.0,
    restarts=0,
    on_terminal=False,
)


def test_a_handover_is_read_as_it_was_written() -> None:
    assert Handover.from_json(HANDOVER.to_json()) == HANDOVER
    assert sorted(HANDOVER.descriptors()) == [5, 6, 7, 8, 9, 10, 11, 12]


def test_a_handover_of_another_format_is_refused() -> None:
    other = HANDOVER.to_json().replace(f'"format": {FORMAT}', '"format": 999')
    with pytest.raises(HandoverError, match="stop it and start it"):
        Handover.from_json(other)
    with pytest.raises(HandoverError, match="does not understand"):
        Handover.from_json(HANDOVER.to_json().replace('"restarts"', '"renamed"'))


def test_orders_carry_no_code() -> None:
    """A pickle is a program; ours may name nothing but values of two packages."""
    packed = orders.orders(1, PROXY, (Route("a", "/a"),)).packed
    _, values = pickle.loads(base64.b64decode(packed))
    modules = {
        arg for op, arg, _ in pickletools.genops(values) if op.name == "SHORT_BINUNICODE" and "." in str(arg)
    }
    assert modules <= {"proxy.config", "flags.model", "127.0.0.1"}
