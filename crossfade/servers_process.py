"""The process that holds the embedded servers: `python -m crossfade.servers_process LINE PARENT`.

It starts those that it is told to, starts one again that has died, and ends them last of all. It is a
process of its own because a server ends with whoever started it: so they outlive the control process,
and a restart of the program, but never the supervisor.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from pathlib import Path

from crossfade.embedded.postgres import EmbeddedPostgres, EmbeddedPostgresError
from crossfade.embedded.valkey import EmbeddedValkey, EmbeddedValkeyError
from crossfade.logs import Log
from crossfade.processes import BEHIND_TRAFFIC, die_with_parent

LOOK_EVERY = 0.5
"""Seconds between two looks at whether they still run."""
AGAIN_AFTER = 5.0
"""Seconds before a server that does not start is tried again."""

Server = EmbeddedPostgres | EmbeddedValkey


def main() -> int:
    """Arguments beside LINE and PARENT: the data folder, and which servers (`store`, `bus`)."""
    line, parent = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    data_dir, wanted = Path(sys.argv[3]), sys.argv[4:]
    for signum in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(signum, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)
    os.nice(BEHIND_TRAFFIC)
    die_with_parent(parent)
    servers: dict[str, Server] = {}
    if "bus" in wanted:
        servers["bus"] = EmbeddedValkey(data_dir / "valkey")
    if "store" in wanted:
        servers["store"] = EmbeddedPostgres(data_dir / "postgres")
    try:
        _keep(servers, line)
    except _LeaveError:
        pass
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for server in servers.values():
            server.stop()
    return 0


class _LeaveError(Exception):
    pass


def _leave(*_: object) -> None:
    raise _LeaveError


def _keep(servers: dict[str, Server], line: socket.socket) -> None:
    """Have them all run until the line to the supervisor breaks."""
    log = Log("servers")
    next_try = dict.fromkeys(servers, 0.0)
    line.settimeout(LOOK_EVERY)
    while True:
        for name, server in servers.items():
            if server.running or time.monotonic() < next_try[name]:
                continue
            if not _try_to_start(name, server, log):
                next_try[name] = time.monotonic() + AGAIN_AFTER
        try:
            if not line.recv(1):
                return
        except TimeoutError:
            continue
        except OSError:
            return


def _try_to_start(name: str, server: Server, log: Log) -> bool:
    began = time.monotonic()
    try:
        server.stop()  # what is left of one that died
        server.start()
    except (EmbeddedPostgresError, EmbeddedValkeyError) as error:
        log.error("embedded server does not start", server=name, reason=str(error))
        return False
    log.info("embedded server runs", server=name, pid=server.pid, seconds=round(time.monotonic() - began, 3))
    return True


if __name__ == "__main__":
    sys.exit(main())
