"""From the metrics of one instance to what its row in the store says of both cohorts of each flag.

Only requests whose side the weight decided are compared: what a rule or an override sends is somebody's
choice and no sample. An answer that legacy gave in place of a failure of new is new's, as an error.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate
from typing import Any

from core.metrics import COHORT_FALLBACKS, COHORT_SECONDS, LATENCY_BUCKETS, REQUESTS, Histogram, Sample
from flags.model import Reason, Side


def cohort_counts(samples: Iterable[Sample]) -> dict[str, dict[str, Any]]:
    """`{flag: {"new": {"requests", "errors", "slow": {bound: count}}, "legacy": …}}`, cumulative."""
    found: dict[str, dict[str, Any]] = {}

    def of(flag: str, side: str) -> dict[str, Any]:
        sides = found.setdefault(flag, {})
        cohort: dict[str, Any] = sides.setdefault(side, {"requests": 0, "errors": 0, "slow": {}})
        return cohort

    for sample in samples:
        if sample.metric == REQUESTS.name and not isinstance(sample.value, Histogram):
            flag, side, reason, code = sample.labels
            count = int(sample.value)
            if reason == Reason.WEIGHT:
                cohort = of(flag, side)
                cohort["requests"] += count
                cohort["errors"] += count if code == "5xx" else 0
        elif sample.metric == COHORT_FALLBACKS.name and not isinstance(sample.value, Histogram):
            (flag,) = sample.labels
            cohort = of(flag, Side.NEW)
            cohort["requests"] += int(sample.value)
            cohort["errors"] += int(sample.value)
        elif sample.metric == COHORT_SECONDS.name and isinstance(sample.value, Histogram):
            flag, side = sample.labels
            slow = of(flag, side)["slow"]
            all_of_them = sum(sample.value.buckets)
            for bound, quicker in zip(LATENCY_BUCKETS, accumulate(sample.value.buckets), strict=False):
                slow[str(bound)] = slow.get(str(bound), 0) + all_of_them - quicker
    return found
