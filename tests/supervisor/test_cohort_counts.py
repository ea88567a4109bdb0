"""From metrics to cohorts: only what a weight decided counts, and legacy's answer for new is new's error."""

from __future__ import annotations

from core.metrics import COHORT_FALLBACKS, COHORT_SECONDS, LATENCY_BUCKETS, REQUESTS, Histogram, Sample
from crossfade.cohort_counts import cohort_counts


def requests(side: str, reason: str, code: str, count: int) -> Sample:
    return Sample(REQUESTS.name, ("items", side, reason, code), count)


def test_only_what_the_weight_decided_is_a_sample() -> None:
    found = cohort_counts(
        [
            requests("new", "weight", "2xx", 7),
            requests("new", "weight", "5xx", 2),
            requests("new", "override", "5xx", 100),
            requests("legacy", "weight", "2xx", 50),
            requests("legacy", "no_key", "2xx", 100),
            requests("legacy", "rule", "5xx", 100),
        ]
    )

    assert found == {
        "items": {
            "new": {"requests": 9, "errors": 2, "slow": {}},
            "legacy": {"requests": 50, "errors": 0, "slow": {}},
        }
    }


def test_an_answer_of_legacy_for_new_is_an_error_of_new() -> None:
    found = cohort_counts(
        [
            requests("new", "weight", "2xx", 5),
            requests("legacy", "fallback", "2xx", 10),  # by rules and settled stages, too
            Sample(COHORT_FALLBACKS.name, ("items",), 3),
        ]
    )

    assert found == {"items": {"new": {"requests": 8, "errors": 3, "slow": {}}}}


def test_slow_is_how_many_took_longer_than_each_bound() -> None:
    buckets = [0] * (len(LATENCY_BUCKETS) + 1)
    buckets[0], buckets[3], buckets[-1] = 10, 4, 1
    found = cohort_counts([Sample(COHORT_SECONDS.name, ("items", "new"), Histogram(tuple(buckets), 99.0))])

    slow = found["items"]["new"]["slow"]
    assert slow[str(LATENCY_BUCKETS[0])] == 5
    assert slow[str(LATENCY_BUCKETS[2])] == 5
    assert slow[str(LATENCY_BUCKETS[3])] == 1
    assert slow[str(LATENCY_BUCKETS[-1])] == 1
