"""What a worker counts comes out under the names and labels that are declared."""

from __future__ import annotations

from core import metrics
from core.metrics import LATENCY_BUCKETS, WORKER_METRICS, Histogram
from flags.model import Decision, Reason, Side
from proxy.counters import Counters


def decision(flag: str = "items", side: Side = Side.NEW, version: int = 1) -> Decision:
    return Decision(side, Reason.ROUTE, flag, version)


def found(counters: Counters, name: str) -> dict[tuple[str, ...], object]:
    return {sample.labels: sample.value for sample in counters.samples() if sample.metric == name}


def test_answers_are_counted_by_decision_and_class() -> None:
    counters = Counters()
    one = decision()
    for status in (200, 204, 404, 499, 502, 101):
        counters.count(one, status, 0.003, 10, 100)
    counters.count(decision("-", Side.LEGACY), 200, 99.0, 0, 1)
    assert found(counters, metrics.REQUESTS.name) == {
        ("items", "new", "route", "1xx"): 1,
        ("items", "new", "route", "2xx"): 2,
        ("items", "new", "route", "4xx"): 2,
        ("items", "new", "route", "5xx"): 1,
        ("-", "legacy", "route", "2xx"): 1,
    }
    assert found(counters, metrics.RECEIVED_BYTES.name) == {("new",): 60, ("legacy",): 0}
    assert found(counters, metrics.SENT_BYTES.name) == {("new",): 600, ("legacy",): 1}


def test_answers_of_a_side_are_those_of_all_reasons() -> None:
    counters = Counters()
    for reason in (Reason.ROUTE, Reason.WEIGHT):
        counters.count(Decision(Side.NEW, reason, "items", 1), 200, 0.1, 0, 0)
    counters.count(Decision(Side.NEW, Reason.WEIGHT, "items", 2), 503, 0.1, 0, 0)
    counters.count(Decision(Side.NEW, Reason.WEIGHT, "others", 1), 200, 0.1, 0, 0)
    assert counters.answers("items", Side.NEW) == 3
    assert counters.answers("items", Side.LEGACY) == 0


def test_each_duration_falls_into_its_bucket() -> None:
    counters = Counters()
    one = decision()
    for seconds in (*LATENCY_BUCKETS, 1000.0):
        counters.count(one, 200, seconds, 0, 0)
    histogram = found(counters, metrics.REQUEST_SECONDS.name)["items", "new"]
    assert isinstance(histogram, Histogram)
    assert histogram.buckets == (1,) * (len(LATENCY_BUCKETS) + 1)
    assert abs(histogram.sum - sum(LATENCY_BUCKETS) - 1000) < 1e-6


def test_counts_outlive_the_snapshot_that_began_them() -> None:
    counters = Counters()
    counters.count(decision(version=1), 200, 0.1, 0, 0)
    counters.forget_decisions()
    counters.count(decision(version=2), 200, 0.1, 0, 0)
    assert found(counters, metrics.REQUESTS.name) == {("items", "new", "route", "2xx"): 2}


def test_events_carry_their_labels_and_every_name_is_declared() -> None:
    counters = Counters()
    counters.event(metrics.ERRORS, "new", "dns_error")
    counters.event(metrics.ERRORS, "new", "dns_error")
    counters.event(metrics.CLIENT_CONNECTIONS_CLOSED, "drain")
    counters.count(decision(), 200, 0.1, 0, 0)
    assert found(counters, metrics.ERRORS.name) == {("new", "dns_error"): 2}
    declared = {metric.name: len(metric.labels) for metric in WORKER_METRICS}
    for sample in counters.samples():
        assert declared[sample.metric] == len(sample.labels)
