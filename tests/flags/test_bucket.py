"""Buckets: the same for ever, uniform, independent between flags, and monotone in the weight."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flags.bucket import bucket, bucket_of_hash, hash_32, murmur3_32
from flags.model import EVERYBODY

VECTORS = {
    b"": 0x00000000,
    b"a": 0x3C2569B2,
    b"hello": 0x248BFA47,
    b"hello, world": 0x149BBB7F,
    b"The quick brown fox jumps over the lazy dog": 0x2E4FF723,
}
"""Published values of MurmurHash3 (x86, 32 bit, seed 0)."""

BUCKETS = {("items.read", "ada"): 98_608, ("items.read", "bob"): 919_100, ("orders", "ada"): 446_269}
"""Where these keys have been since the first release. Who changes this moves everybody's clients."""


@pytest.mark.parametrize(("data", "number"), VECTORS.items())
def test_the_hash_is_the_published_one(data: bytes, number: int) -> None:
    assert murmur3_32(data) == hash_32(data) == number


@given(st.binary(max_size=200))
def test_both_implementations_are_one_function(data: bytes) -> None:
    assert murmur3_32(data) == hash_32(data)


@pytest.mark.parametrize(("of", "number"), BUCKETS.items())
def test_a_key_stays_in_its_bucket_from_release_to_release(of: tuple[str, str], number: int) -> None:
    assert bucket(*of) == number


def test_nobody_and_everybody_are_exact() -> None:
    lowest, highest = bucket_of_hash(0), bucket_of_hash(2**32 - 1)
    assert (lowest, highest) == (0, EVERYBODY - 1)
    assert not lowest < 0
    assert highest < EVERYBODY


@given(st.text(max_size=30), st.text(max_size=30), st.integers(0, EVERYBODY), st.integers(0, EVERYBODY))
def test_a_greater_weight_only_adds(salt: str, key: str, one: int, other: int) -> None:
    low, high = sorted((one, other))
    at = bucket(salt, key)
    assert 0 <= at < EVERYBODY
    assert not at < low or at < high


@pytest.mark.parametrize(
    "keys", [[str(n) for n in range(100_000)], [f"user-{n:08x}@x" for n in range(100_000)]]
)
def test_keys_spread_evenly(keys: list[str]) -> None:
    """Chi-square over a hundred cells; 99 degrees of freedom, p = 0.0001 at 160."""
    cells = Counter(bucket("items.read", key) // 10_000 for key in keys)
    expected = len(keys) / 100
    assert sum((cells[n] - expected) ** 2 / expected for n in range(100)) < 160


def test_flags_are_independent() -> None:
    """Whoever is early in one flag is early in another no more often than anybody."""
    keys = [str(n) for n in range(100_000)]
    early = [key for key in keys if bucket("items.read", key) < 50_000]
    in_both = sum(bucket("orders", key) < 50_000 for key in early)
    assert abs(in_both / len(early) - 0.05) < 0.012
    assert [bucket("a", key) for key in keys[:100]] != [bucket("b", key) for key in keys[:100]]


def test_the_share_is_what_the_weight_says() -> None:
    draw = random.Random(7)
    keys = [f"{draw.getrandbits(64):x}" for _ in range(200_000)]
    for weight in (100, 10_000, 250_000, 999_000):
        share = sum(bucket("orders", key) < weight for key in keys) / len(keys)
        assert abs(share - weight / EVERYBODY) < 5 * (weight / EVERYBODY * 1 / len(keys)) ** 0.5 + 1e-5
