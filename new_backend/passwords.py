"""Passwords, kept as `scrypt:N:r:p$salt$hex`: the text carries its own cost, and the monolith reads it."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
from functools import cache

N, R, P = 2**14, 8, 5
"""16 MiB of memory, five times over; one of the settings that OWASP gives for scrypt."""


async def hash_password(password: str) -> str:
    salt = secrets.token_hex(16)
    return f"scrypt:{N}:{R}:{P}${salt}${await asyncio.to_thread(_digest, password, salt, N, R, P)}"


async def password_fits(password: str, kept: str | None) -> bool:
    """Whether the password is the one that is kept. None, for nobody's account, takes as long to refuse."""
    method, salt, digest = (kept or _nobodys_hash()).split("$")
    name, n, r, p = method.split(":")
    if name != "scrypt":
        raise ValueError(f"a password is kept by {name}, which this program does not know")
    found = await asyncio.to_thread(_digest, password, salt, int(n), int(r), int(p))
    return hmac.compare_digest(found, digest) and kept is not None


def _digest(password: str, salt: str, n: int, r: int, p: int) -> str:
    memory = 132 * n * r * p
    return hashlib.scrypt(password.encode(), salt=salt.encode(), n=n, r=r, p=p, maxmem=memory).hex()


@cache
def _nobodys_hash() -> str:
    return f"scrypt:{N}:{R}:{P}${secrets.token_hex(16)}${secrets.token_hex(64)}"
