"""Leases of this instance's workers, renewed while a walk is under way and at no other time.

Workers take a lease for the version of the flags that they decide by, and only where the store has just said
that it is the newest. So once the store has a later one, which lets what changes something wait, no lease for
the one before is given any more: whoever cannot be told has none when LEASE has passed.

The store is asked several times a second meanwhile, so this is also how a change is heard of without a bell.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from crossfade.channel import Message
from crossfade.store.connection import StoreError
from crossfade.store.store import Store
from flags.model import Phase

log = structlog.get_logger(__name__)

LEASE: Final = 1.5
"""Seconds from the question to the store; the longest that one walk waits for somebody who has vanished."""
WAITED_OUT: Final = LEASE * 1.1 + 0.1
"""Seconds after which no lease lasts anywhere, although no two clocks go equally fast."""
RENEW_EVERY: Final = 0.3

Ask = Callable[[Message], Awaitable[Message]]


def lease_from(asked: float) -> float:
    """Until when a lease lasts that the store was asked for at that moment, by the same clock."""
    return asked + LEASE


class Leases:
    """`run` goes on until it is cancelled."""

    def __init__(self, ask: Ask, heard: Callable[[int], None]) -> None:
        """`heard` is told which version the store has."""
        self._ask = ask
        self._heard = heard
        self._wanted = asyncio.Event()

    def note(self, *, under_way: bool) -> None:
        """Whether a walk is, by the flags that this instance has or is about to have."""
        if under_way:
            self._wanted.set()
        else:
            self._wanted.clear()

    async def run(self, store: Store) -> None:
        while True:
            await self._wanted.wait()
            asked = time.monotonic()
            try:
                version = await store.version()
                self._heard(version)
                await self._ask({"do": "lease", "version": version, "until": lease_from(asked)})
            except (StoreError, TimeoutError, ConnectionResetError) as error:
                log.warning("leases_not_renewed", message=str(error))
            await asyncio.sleep(RENEW_EVERY)


def is_under_way(document: Message) -> bool:
    """Whether a walk is, by a flag set as the store says it."""
    return any(one["phase"] != Phase.OPEN for one in document.get("authorities", ()))
