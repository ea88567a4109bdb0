"""What a change of a flag would move, by the buckets that asked lately.

An estimate: of a sample, of this instance's traffic, and by the weight alone; what rules and overrides send
elsewhere is counted as if they were not there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flags.model import Flag, Stage


@dataclass(frozen=True, slots=True)
class BlastRadius:
    """`requests` of `of_requests` and `keys` of `of_keys` (distinct buckets) would be at another stage."""

    requests: int
    of_requests: int
    keys: int
    of_keys: int


def blast_radius(before: Flag, after: Flag, buckets: Mapping[int, int]) -> BlastRadius:
    """`buckets`: how often each bucket of the flag asked in the last minutes."""
    moved = [asked for at, asked in buckets.items() if stage_of(before, at) is not stage_of(after, at)]
    return BlastRadius(sum(moved), sum(buckets.values()), len(moved), len(buckets))


def stage_of(flag: Flag, bucket: int) -> Stage:
    """Where a bucket is by the flag's kill and weight."""
    if flag.kill is not None:
        return Stage.LEGACY
    transition = flag.transition
    return transition.target if bucket < transition.weight_ppm else transition.origin
