"""Where the bus is, and a connection to it."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import redis.asyncio
import redis.exceptions

from crossfade.embedded import valkey

CONNECT_WITHIN = 1.0
RefusedError = redis.exceptions.ResponseError
"""The bus is there and does not do it: its memory is full, say."""
AWAY = (redis.exceptions.RedisError, OSError, valkey.EmbeddedValkeyError)
"""The bus cannot be asked."""
_KEEPALIVE = {socket.TCP_KEEPIDLE: 5, socket.TCP_KEEPINTVL: 5, socket.TCP_KEEPCNT: 2}
"""Find out within 15 s that the way to the bus was cut; a listener says nothing by itself."""


def client_of(bus: str, data_dir: Path, **more: Any) -> redis.asyncio.Redis:
    """A client that is not connected yet. Raises EmbeddedValkeyError for an embedded one that never ran."""
    url = _url_of(bus, data_dir)
    if not url.startswith("unix:"):
        more = {"socket_keepalive": True, "socket_keepalive_options": _KEEPALIVE, **more}
    return redis.asyncio.Redis.from_url(url, socket_connect_timeout=CONNECT_WITHIN, protocol=2, **more)


def _url_of(bus: str, data_dir: Path) -> str:
    if bus == "embedded":
        return valkey.url_of(data_dir / "valkey")
    scheme, mark, rest = bus.partition("://")
    return {"valkey": "redis", "valkeys": "rediss"}.get(scheme, scheme) + mark + rest
