"""The bus as a bell: it says that there is something new, never what.

Losing it costs promptness and nothing else: whoever did not hear it polls. So nothing here waits for the
bus, nothing fails because of it, and a message that cannot be sent is dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

import redis.asyncio
from redis.exceptions import RedisError

from crossfade.bus import client_of
from crossfade.embedded import valkey

CHANNEL = "crossfade:flags"
AGAIN_AFTER = 1.0
"""Seconds before a bus that is away is tried again."""
SEND_WITHIN = 1.0


class Bell:
    """`ring` from any task; `listen` until it is cancelled. `trouble` is why it is not heard, if so."""

    def __init__(self, bus: str, data_dir: Path) -> None:
        self._bus = bus
        self._data_dir = data_dir
        self._client: redis.asyncio.Redis | None = None
        self._ringing: set[asyncio.Task[None]] = set()
        self.trouble: str | None = None

    def ring(self, version: int) -> None:
        """Tell everybody who listens that there is a version `version`."""
        if self._client is None:
            return
        task = asyncio.get_running_loop().create_task(self._ring(self._client, version))
        self._ringing.add(task)
        task.add_done_callback(self._ringing.discard)

    async def listen(self, heard: Callable[[int], None]) -> None:
        """Call `heard` with the version of each ring, and with 0 whenever the bus has come back."""
        if self._bus == "none":
            return
        while True:
            try:
                await self._listen(heard)
            except (RedisError, OSError, valkey.EmbeddedValkeyError) as error:
                self.trouble = str(error) or type(error).__name__
            finally:
                await self._hang_up()
            await asyncio.sleep(AGAIN_AFTER)

    async def _listen(self, heard: Callable[[int], None]) -> None:
        client = self._client = client_of(self._bus, self._data_dir)
        async with client.pubsub(ignore_subscribe_messages=True) as subscription:
            await subscription.subscribe(CHANNEL)
            self.trouble = None
            heard(0)
            async for message in subscription.listen():
                heard(_version(message["data"]))

    async def _ring(self, client: redis.asyncio.Redis, version: int) -> None:
        with contextlib.suppress(RedisError, OSError, TimeoutError):
            async with asyncio.timeout(SEND_WITHIN):
                await client.publish(CHANNEL, version)

    async def _hang_up(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(RedisError, OSError):
                await client.aclose()


def _version(data: bytes) -> int:
    """What a ring says; 0 for what is none of ours."""
    return int(data) if data.isdigit() and len(data) < 19 else 0
