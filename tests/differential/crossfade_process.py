"""Crossfade's data plane as one process: a worker for each `FD:BACKEND_PORT` in the arguments.

No routes are configured, so everything goes to the legacy target, which is the scripted backend. The
forwarding fields are off and the timeouts short, unless PATIENCE in the environment says how many seconds
all of them last.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from dataclasses import fields

import uvloop

from flags.model import Side
from flags.snapshot import compile_snapshot
from proxy.config import AccessLog, Forwarding, Limits, ProxyConfig, Target, Timeouts
from proxy.worker import Worker
from tests.differential.proxies import LIMIT_BODY

TIMEOUTS = Timeouts(
    header=2.0,
    body_idle=1.0,
    keepalive=1.0,
    response=1.0,
    response_idle=1.0,
    write_idle=1.0,
    tunnel_idle=2.0,
    expect=0.2,
)


def timeouts() -> Timeouts:
    patience = os.environ.get("PATIENCE")
    if patience is None:
        return TIMEOUTS
    return Timeouts(**dict.fromkeys((each.name for each in fields(Timeouts)), float(patience)))


async def serve(pairs: list[str]) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    sockets, workers = [], []
    for pair in pairs:
        fd, port = map(int, pair.split(":"))
        sock = socket.socket(fileno=fd)
        sock.setblocking(False)
        sockets.append(sock)
        target = Target("127.0.0.1", port)
        config = ProxyConfig(
            targets={Side.LEGACY: target, Side.NEW: target},
            timeouts=timeouts(),
            limits=Limits(body_bytes=LIMIT_BODY),
            forwarding=Forwarding(x_forwarded=False),
            access_log=AccessLog(path=None),
        )
        worker = Worker(config, compile_snapshot([], version=1))
        await worker.start([sock])
        workers.append(worker)
    await stop.wait()
    for worker in workers:
        await worker.close()
    for sock in sockets:
        sock.close()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1:]))
