"""`crossfade compare`: judge pairs in a process of its own, on any host that reaches store and bus.

Start as many as there is work for, under any supervisor of processes; each takes its part of what the proxies
put on the bus, and what one leaves behind when it ends goes to another. With `shadow.compare_here: false` the
hosts of the proxy leave all of it to these.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import structlog

from core.metrics import Sample
from crossfade import logs, metrics_page, settings, users_code
from crossfade.comparing import TRY_AGAIN, Comparing
from crossfade.embedded.postgres import EmbeddedPostgresError
from crossfade.settings import Settings, SettingsError
from crossfade.settings_form import Address, text_of
from crossfade.store.connection import StoreError
from crossfade.store.store import Store
from crossfade.store_here import open_store
from crossfade.users_code import UsersCodeError
from shadow.rules import Rule

log = structlog.get_logger(__name__)

OK, ERROR, INVALID = 0, 1, 2


def run(config: Path, metrics: Address | None) -> int:
    """Compare until SIGTERM or SIGINT; the exit code. `metrics` is where `/metrics` is served, if at all."""
    try:
        found = settings.load_to_run(config, os.environ)
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return INVALID
    if "none" in (found.store, found.bus):
        sys.stderr.write(f"{config}: comparing needs a store and a bus; one of them is none\n")
        return INVALID
    try:
        code = found.code
        rules = () if code is None else users_code.load(code, found.code_text).rules
    except UsersCodeError as error:
        sys.stderr.write(f"{error}\n")
        return INVALID
    logs.configure("compare")
    try:
        return asyncio.run(_live(found, rules, metrics))
    except OSError as error:
        sys.stderr.write(f"cannot serve /metrics on {metrics}: {error.strerror}\n")
        return ERROR


async def _live(found: Settings, rules: Sequence[Rule], metrics: Address | None) -> int:
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    work = _Work(found, rules)
    runner = None if metrics is None else await metrics_page.serve(metrics, work.samples)
    working = asyncio.create_task(work.run())
    stopping = asyncio.create_task(stop.wait())
    served = None if runner is None else "{}:{}".format(*runner.addresses[0][:2])
    log.info("comparing", pid=os.getpid(), metrics=served)
    await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
    # It ends by itself only by a fault of ours; whoever started this process then starts another one.
    fault = working.exception() if working.done() else None
    for task in (working, stopping):
        task.cancel()
    await asyncio.gather(working, stopping, return_exceptions=True)
    if runner is not None:
        await runner.cleanup()
    log.info("comparing ended", exc_info=fault)
    return OK if fault is None else ERROR


class _Work:
    def __init__(self, found: Settings, rules: Sequence[Rule]) -> None:
        self._settings = found
        self._rules = rules
        self._comparing: Comparing | None = None

    async def run(self) -> None:
        found = self._settings
        store = await self._opened()
        try:
            self._comparing = Comparing(
                store,
                text_of(found.bus),
                found.data_dir,
                keep_days=found.shadow.keep_days,
                code_rules=lambda: self._rules,
            )
            await self._comparing.run()
        finally:
            await store.close()

    async def _opened(self) -> Store:
        """The store as soon as there is one. An embedded one is that of the instance on this host."""
        told = False
        while True:
            try:
                return await open_store(text_of(self._settings.store), self._settings.data_dir)
            except (StoreError, EmbeddedPostgresError) as error:
                if not told:
                    log.warning("store unavailable", message=str(error))
                told = True
                await asyncio.sleep(TRY_AGAIN)

    def samples(self) -> list[Sample]:
        return [] if self._comparing is None else self._comparing.samples()
