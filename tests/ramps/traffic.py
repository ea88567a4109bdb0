"""Simulated traffic for guardrails: how many of how many requests go wrong. Deterministic by its seed."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from flags.guardrail import Counted, Evidence, Guardrail, observe

WEIGHTS = (10_000, 50_000, 200_000, 500_000, 900_000)


def rises(
    seed: int, guardrail: Guardrail, *, bad_answers: int, share_bad: float, worse: float = 1.0
) -> Evidence:
    """The evidence after a ramp that is looked at after each bad answer, or when it was first too much.

    The weight changes every now and then. `worse` is how much more often new fails than legacy.
    """
    chance = random.Random(seed)
    evidence, limit = Evidence(), 1.0 / guardrail.alpha
    weight_ppm = chance.choice(WEIGHTS)
    for _ in range(bad_answers):
        if chance.random() < 0.05:
            weight_ppm = chance.choice(WEIGHTS)
        weight = weight_ppm / 1e6
        bad_new, bad_legacy = weight * share_bad * worse, (1.0 - weight) * share_bad
        good = int(chance.expovariate(bad_new + bad_legacy))
        good_new = binomial(chance, good, weight * (1 - share_bad * worse) / (1 - bad_new - bad_legacy))
        of_new = chance.random() < bad_new / (bad_new + bad_legacy)
        new = Counted(good_new + of_new, int(of_new))
        legacy = Counted(good - good_new + (not of_new), int(not of_new))
        evidence = observe(evidence, guardrail, {"one": (new, legacy)})
        if evidence.value >= limit:
            break
    return evidence


def bursts(seed: int, guardrail: Guardrail, *, looks: int, share_bad: float, worse: float = 1.0) -> Evidence:
    """The evidence where new's share comes in bursts, and one of two instances is worse on both sides.

    Or when it was first too much. Clients of new are few and ask in bursts: 2 % of the requests for a while,
    then most of them for some looks; the worse instance has more of them.
    """
    chance = random.Random(seed)
    evidence, limit = Evidence(), 1.0 / guardrail.alpha
    for _ in range(looks):
        burst = chance.random() < 0.2
        seen = {}
        for name, times, shift in (("good", 0.5, 0.0), ("bad", 1.5, 0.15)):
            share = min(0.98, (chance.uniform(0.5, 0.95) if burst else 0.02) + shift)
            requests = _poisson(chance, 60.0)
            of_new = binomial(chance, requests, share)
            bad_new = binomial(chance, of_new, share_bad * times * worse)
            bad_legacy = binomial(chance, requests - of_new, share_bad * times)
            seen[name] = Counted(of_new, bad_new), Counted(requests - of_new, bad_legacy)
        evidence = observe(evidence, guardrail, seen)
        if evidence.value >= limit:
            break
    return evidence


@dataclass(frozen=True, slots=True)
class Canary:
    """A canary at `weight_ppm` under `rate` requests a second, of which legacy fails `share_bad`."""

    weight_ppm: int = 50_000
    rate: float = 200.0
    share_bad: float = 0.01
    worse: float = 10.0
    grid: float = 0.5
    """Seconds between two looks."""
    delay: float = 0.0
    """Seconds between a trip and the last request that still goes to new."""


def bad_answers_before_the_trip(
    seed: int, guardrail: Guardrail, canary: Canary, *, good_requests: int = 0
) -> int:
    """How many bad answers new serves until it is found out, after so many requests as good as legacy's."""
    chance = random.Random(seed)
    evidence = Evidence()
    for _ in range(good_requests // 1000):
        evidence = _look(chance, guardrail, canary, evidence, 1000, 1.0)[0]
    bad = 0
    while evidence.value < 1.0 / guardrail.alpha:
        requests = _poisson(chance, canary.rate * canary.grid)
        evidence, of_new = _look(chance, guardrail, canary, evidence, requests, canary.worse)
        bad += of_new
    late = _poisson(chance, canary.rate * canary.delay)
    return bad + binomial(chance, late, canary.weight_ppm / 1e6 * canary.share_bad * canary.worse)


def _look(
    chance: random.Random,
    guardrail: Guardrail,
    canary: Canary,
    evidence: Evidence,
    requests: int,
    worse: float,
) -> tuple[Evidence, int]:
    of_new = binomial(chance, requests, canary.weight_ppm / 1e6)
    bad_new = binomial(chance, of_new, canary.share_bad * worse)
    bad_legacy = binomial(chance, requests - of_new, canary.share_bad)
    new, legacy = Counted(of_new, bad_new), Counted(requests - of_new, bad_legacy)
    return observe(evidence, guardrail, {"one": (new, legacy)}), bad_new


def _poisson(chance: random.Random, mean: float) -> int:
    if mean > 50.0:
        return max(0, round(chance.gauss(mean, math.sqrt(mean))))
    found, so_far = 0, chance.expovariate(1.0)
    while so_far < mean:
        found, so_far = found + 1, so_far + chance.expovariate(1.0)
    return found


def binomial(chance: random.Random, n: int, p: float) -> int:
    """How many of n happen, each with the chance p: exact for few, by the bell curve for many."""
    if n <= 0 or p <= 0.0:
        return 0
    if p >= 1.0:
        return n
    if p > 0.5:
        return n - binomial(chance, n, 1.0 - p)
    if n * p > 30.0:
        return max(0, min(n, round(chance.gauss(n * p, math.sqrt(n * p * (1.0 - p))))))
    found, at, step = 0, 0, math.log1p(-p)
    while True:
        at += 1 + int(math.log(1.0 - chance.random()) / step)
        if at > n:
            return found
        found += 1
