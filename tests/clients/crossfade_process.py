"""Crossfade's data plane as one process: a worker for each `Front` that standard input describes.

On SIGTERM everything is drained, and one line of JSON on standard output says what had gone wrong.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
from dataclasses import asdict, dataclass
from typing import Any

import uvloop

from core import metrics
from flags.model import Side
from flags.snapshot import compile_snapshot
from proxy.config import AccessLog, ListenTls, ProxyConfig, Target, Timeouts
from proxy.worker import Worker

DRAIN = 5.0


@dataclass(frozen=True, slots=True)
class Front:
    """One listening socket, which is inherited, and what stands behind it."""

    fd: int
    target_port: int
    cert_file: str | None
    key_file: str | None


@dataclass(slots=True)
class Confession:
    """What a run has to say at its end."""

    errors: dict[str, float]
    """Exchanges that did not end as they should have, by reason."""
    unhandled: list[str]
    """What reached the event loop's exception handler."""
    cut_off: int
    """Exchanges that were still going on after the drain."""


def parse(text: str) -> list[Front]:
    return [Front(**front) for front in json.loads(text)]


def write(fronts: list[Front]) -> str:
    return json.dumps([asdict(front) for front in fronts])


async def serve(fronts: list[Front]) -> Confession:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    confession = Confession({}, [], 0)
    loop.set_exception_handler(lambda _loop, context: confession.unhandled.append(_describe(context)))
    workers = []
    for front in fronts:
        listening = socket.socket(fileno=front.fd)
        worker = Worker(_config(front), compile_snapshot([], version=1))
        await worker.start([listening])
        workers.append((worker, listening))
    await stop.wait()
    confession.cut_off = sum(await asyncio.gather(*(worker.drain(DRAIN) for worker, _ in workers)))
    for worker, listening in workers:
        for sample in worker.samples():
            if sample.metric == metrics.ERRORS.name:
                assert isinstance(sample.value, int | float)
                reason = sample.labels[-1]
                confession.errors[reason] = confession.errors.get(reason, 0) + sample.value
        await worker.close()
        listening.close()
    return confession


def _config(front: Front) -> ProxyConfig:
    target = Target("localhost", front.target_port)  # by name: cookies of names and of addresses differ
    tls = None
    if front.cert_file is not None and front.key_file is not None:
        tls = ListenTls(front.cert_file, front.key_file)
    return ProxyConfig(
        targets={Side.LEGACY: target, Side.NEW: target},
        timeouts=Timeouts(expect=0.2),
        listen_tls=tls,
        access_log=AccessLog(path=None),
    )


def _describe(context: dict[str, Any]) -> str:
    return f"{context.get('message')}: {context.get('exception')!r}"


if __name__ == "__main__":
    print(json.dumps(asdict(uvloop.run(serve(parse(sys.stdin.read()))))))
