"""`DATABASE_URL=… python -m new_backend --port N [--migrate] [--seed [FILE]]`."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from pathlib import Path

import uvloop
from aiohttp import web
from sqlalchemy import exc

from new_backend import schema, seed
from new_backend.app import build_app
from new_backend.database import create_engine
from new_backend.operations import Database
from new_backend.releases import GOOD, RELEASES

DRAIN_SECONDS = 3.0
KEEPALIVE_SECONDS = 75.0


def main() -> int:
    options = parse()
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    try:
        if options.migrate:
            schema.upgrade(options.database)
        if options.seed:
            seed.plant(options.database, options.seed)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(serve(options))
    except exc.OperationalError as error:
        return fail(f"cannot use the database: {' '.join(str(error.orig).split())}")
    except exc.ProgrammingError as error:
        return fail(f"the database is not ready: {str(error.orig).splitlines()[0]}; run with --migrate")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m new_backend", description="The new service.")
    # Everybody on the machine may read a command line, and only we our environment.
    parser.add_argument(
        "--database",
        default=os.environ.get("DATABASE_URL"),
        metavar="URL",
        help="postgresql://…; left out, DATABASE_URL of the environment",
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes any free port")
    parser.add_argument("--migrate", action="store_true", help="bring the schema up to date first")
    parser.add_argument(
        "--seed",
        type=Path,
        nargs="?",
        const=Path(__file__).parent.parent / "examples" / "seed.json",
        metavar="FILE",
        help="fill an empty database with the sample data",
    )
    parser.add_argument(
        "--reuse-port",
        action="store_true",
        help="share the port with the process before it, which is stopped once this one serves",
    )
    parser.add_argument(
        "--release",
        choices=tuple(RELEASES),
        default=GOOD,
        help=f"for demonstrations: all but {GOOD}, the default, are wrong on purpose (releases.py)",
    )
    options = parser.parse_args()
    if not options.database:
        parser.error("no database: set DATABASE_URL, or give --database")
    return options


async def serve(options: argparse.Namespace) -> int:
    """Serves until SIGTERM or SIGINT, then finishes the requests it has begun and returns."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    engine = create_engine(options.database)
    runner = web.AppRunner(
        build_app(Database(engine), RELEASES[options.release]),
        access_log=None,
        keepalive_timeout=KEEPALIVE_SECONDS,
        shutdown_timeout=DRAIN_SECONDS,
    )
    try:
        async with engine.connect() as connection:
            found, needed = await connection.run_sync(schema.current), schema.newest()
        if found != needed:
            return fail(f"the database is at revision {found}, not at {needed}; run with --migrate")
        await runner.setup()
        site = web.TCPSite(runner, options.host, options.port, reuse_port=options.reuse_port or None)
        try:
            await site.start()
        except OSError as error:
            return fail(f"cannot listen on {options.host}:{options.port}: {error.strerror}")
        print(f"listening on http://{options.host}:{runner.addresses[0][1]}", flush=True)
        await stopped.wait()
        return 0
    finally:
        await runner.cleanup()
        await engine.dispose()


def fail(message: str) -> int:
    print(f"new_backend: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
