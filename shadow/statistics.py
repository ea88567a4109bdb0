"""Bounds for what was counted: how large a share can be, given so many of so many. Exact, and pure."""

from __future__ import annotations

from math import exp, lgamma, log


def upper_bound(found: int, of: int, alpha: float) -> float:
    """The largest share that still lets at most `found` of `of` happen with probability `alpha`.

    One-sided Clopper-Pearson: whatever the true share is, it is above the bound in at most `alpha` of all
    samples. 1 without any sample.
    """
    if of <= 0 or found >= of:
        return 1.0
    low, high = found / of, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if _at_most(found, of, middle) > alpha:
            low = middle
        else:
            high = middle
    return high


def two_stage_upper_bound(unequal: int, pairs: int, bad: int, inspected: int, alpha: float) -> float:
    """Of how many pairs differ at most, when of the `unequal` ones only `inspected` were looked at.

    The product of two bounds, each at half of `alpha`. What was looked at was chosen by a budget and not by
    its content.
    """
    if unequal == 0:
        return upper_bound(0, pairs, alpha)
    return upper_bound(unequal, pairs, alpha / 2) * upper_bound(bad, inspected, alpha / 2)


def lower_bound(found: int, of: int, alpha: float) -> float:
    """The smallest share that still lets at least `found` of `of` happen with probability `alpha`."""
    return 1.0 - upper_bound(of - found, of, alpha) if found else 0.0


def excess_upper_bound(new_only: int, legacy_only: int, of: int, alpha: float) -> float:
    """By how much more new may differ alone than legacy does, of `of` pairs that were drawn by lot."""
    return max(0.0, upper_bound(new_only, of, alpha / 2) - lower_bound(legacy_only, of, alpha / 2))


def excess_p_value(new_only: int, legacy_only: int) -> float:
    """How likely it is that new differs alone at least so often, if it is no noisier than legacy is.

    Given a first answer of legacy, a second one of legacy and one of new are then alike, so each of the pairs
    in which only one of them differs is a fair coin (McNemar's exact test).
    """
    tossed = new_only + legacy_only
    if tossed == 0:
        return 1.0
    return 1.0 - _at_most(new_only - 1, tossed, 0.5) if new_only else 1.0


def _at_most(found: int, of: int, share: float) -> float:
    """The probability of at most `found` of `of` at a true `share`."""
    if found < 0:
        return 0.0
    if share <= 0.0:
        return 1.0
    if share >= 1.0:
        return 1.0 if found >= of else 0.0
    # Terms far from the largest one vanish; the sum begins at the largest and goes both ways.
    peak = min(found, int((of + 1) * share))
    start = lgamma(of + 1) - lgamma(peak + 1) - lgamma(of - peak + 1)
    start += peak * log(share) + (of - peak) * log(1 - share)
    ratio = share / (1 - share)
    total = term = 1.0
    for k in range(peak, 0, -1):
        term *= k / ((of - k + 1) * ratio)
        total += term
        if term < total * 1e-17:
            break
    term = 1.0
    for k in range(peak, found):
        term *= (of - k) * ratio / (k + 1)
        total += term
        if term < total * 1e-17:
            break
    return min(1.0, exp(start) * total)
