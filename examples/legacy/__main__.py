"""`DATABASE_URL=… python -m examples.legacy --port N [--seed [FILE]]`."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import psycopg
from waitress import wasyncore
from waitress.server import create_server

from examples.legacy.app import build_app
from examples.legacy.database import connect, create_schema
from examples.legacy.seed import plant

THREADS = 8
"""Also the most connections to the database."""
DRAIN_SECONDS = 3.0


def main() -> int:
    options = parse()
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    try:
        with connect(options.database) as db:
            create_schema(db)
            if options.seed:
                plant(db, options.seed)
    except psycopg.OperationalError as error:
        print(f"legacy: cannot use the database: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    try:
        listener = socket.create_server((options.host, options.port), backlog=1024)
    except OSError as error:
        print(f"legacy: cannot listen on {options.host}:{options.port}: {error.strerror}", file=sys.stderr)
        return 1
    channels: dict[int, Any] = {}
    server: Any = create_server(
        build_app(options.database),
        map=channels,
        sockets=[listener],
        threads=THREADS,
        ident="legacy",
        channel_timeout=75,
        max_request_body_size=1024 * 1024,
        clear_untrusted_proxy_headers=False,  # X-Forwarded-Proto is read, and only to be stricter
    )
    print(f"listening on http://{options.host}:{server.effective_port}", flush=True)
    serve_until_stopped(server, channels)
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.legacy", description="The legacy monolith.")
    # Everybody on the machine may read a command line, and only we our environment.
    parser.add_argument(
        "--database",
        default=os.environ.get("DATABASE_URL"),
        metavar="URL",
        help="postgresql://…; left out, DATABASE_URL of the environment",
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes any free port")
    parser.add_argument(
        "--seed",
        type=Path,
        nargs="?",
        const=Path(__file__).parent.parent / "seed.json",
        metavar="FILE",
        help="fill an empty database with the sample data",
    )
    options = parser.parse_args()
    if not options.database:
        parser.error("no database: set DATABASE_URL, or give --database")
    return options


def serve_until_stopped(server: Any, channels: dict[int, Any]) -> None:
    """Serves until SIGTERM or SIGINT, then finishes the requests it has begun and returns."""
    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True
        server.pull_trigger()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    while not stopping:
        wasyncore.loop(timeout=1.0, use_poll=True, map=channels, count=1)
    server.del_channel()
    server.socket.close()
    deadline = time.monotonic() + DRAIN_SECONDS
    while any(busy(channel) for channel in server.active_channels.values()) and time.monotonic() < deadline:
        wasyncore.loop(timeout=0.1, use_poll=True, map=channels, count=1)
    server.task_dispatcher.shutdown(timeout=1)


def busy(channel: Any) -> bool:
    return bool(channel.requests or channel.total_outbufs_len)


if __name__ == "__main__":
    sys.exit(main())
