"""Which share of the keys a request belongs to: one fixed bucket per key, from 0 to 999,999.

The bucket does not depend on the weight, so a weight that grows only adds keys, and one that shrinks
removes those that came last. It is the same in every worker, on every machine and in every version:
the hash is MurmurHash3 (x86, 32 bit, seed 0) of `salt:key` in UTF-8, scaled without remainder.
"""

from __future__ import annotations

from collections.abc import Callable

_MASK = 0xFFFFFFFF


def murmur3_32(data: bytes) -> int:
    """MurmurHash3, x86, 32 bit, seed 0, as an unsigned number (Austin Appleby, public domain)."""
    h = 0
    tail = len(data) & ~3
    for at in range(0, tail, 4):
        h ^= _mixed(int.from_bytes(data[at : at + 4], "little"))
        h = (h << 13 | h >> 19) & _MASK
        h = (h * 5 + 0xE6546B64) & _MASK
    if tail < len(data):
        h ^= _mixed(int.from_bytes(data[tail:], "little"))
    h ^= len(data)
    h = ((h ^ h >> 16) * 0x85EBCA6B) & _MASK
    h = ((h ^ h >> 13) * 0xC2B2AE35) & _MASK
    return h ^ h >> 16


def _mixed(block: int) -> int:
    block = (block * 0xCC9E2D51) & _MASK
    block = (block << 15 | block >> 17) & _MASK
    return (block * 0x1B873593) & _MASK


def _fastest() -> Callable[[bytes], int]:
    """The C implementation where it is installed; the one above is the same function, and slower."""
    try:
        from mmh3 import mmh3_32_uintdigest  # noqa: PLC0415  (may be missing)
    except ImportError:
        return murmur3_32
    return mmh3_32_uintdigest


hash_32 = _fastest()


def bucket(salt: str, key: str) -> int:
    """The bucket of `key` under `salt`. Bytes that are no UTF-8 count as they came."""
    return bucket_of_hash(hash_32(f"{salt}:{key}".encode("utf-8", "surrogateescape")))


def bucket_of_hash(number: int) -> int:
    return (number * 1_000_000) >> 32
