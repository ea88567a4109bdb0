"""Samples on their way from the workers to `/metrics`: as JSON, summed, and in Prometheus' words.

Counters and histograms of workers that have ended are kept, so that nothing ever goes backwards;
their gauges end with them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from core.metrics import (
    CONTROL_METRICS,
    LATENCY_BUCKETS,
    SUPERVISOR_METRICS,
    SYNC_METRICS,
    WORKER_METRICS,
    Histogram,
    Kind,
    Metric,
    Sample,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.core import Metric as Family

METRICS = {
    metric.name: metric for metric in (*WORKER_METRICS, *SUPERVISOR_METRICS, *CONTROL_METRICS, *SYNC_METRICS)
}


def summed(*groups: Iterable[Sample]) -> list[Sample]:
    """One sample per metric and labels: the sum over all groups."""
    sums: dict[tuple[str, tuple[str, ...]], float | Histogram] = {}
    for group in groups:
        for sample in group:
            key = sample.metric, sample.labels
            before = sums.get(key)
            sums[key] = sample.value if before is None else _plus(before, sample.value)
    return [Sample(name, labels, value) for (name, labels), value in sums.items()]


def lasting(samples: Iterable[Sample]) -> list[Sample]:
    """What must be remembered of a worker that has ended: all but its gauges."""
    return [sample for sample in samples if METRICS[sample.metric].kind is not Kind.GAUGE]


def total(samples: Iterable[Sample], metric: Metric) -> float:
    """The sum of one counter or gauge over all its labels."""
    return sum(
        sample.value
        for sample in samples
        if sample.metric == metric.name and not isinstance(sample.value, Histogram)
    )


def to_wire(samples: Iterable[Sample]) -> list[list[Any]]:
    return [
        [
            sample.metric,
            sample.labels,
            [sample.value.buckets, sample.value.sum] if isinstance(sample.value, Histogram) else sample.value,
        ]
        for sample in samples
    ]


def from_wire(wire: Iterable[Sequence[Any]]) -> list[Sample]:
    """What `to_wire` wrote, perhaps in another version of this program.

    A metric that this version does not know, or knows with other labels or buckets, is left out.
    """
    samples = []
    for name, labels, value in wire:
        metric = METRICS.get(name)
        if metric is None or len(labels) != len(metric.labels):
            continue
        if (metric.kind is Kind.HISTOGRAM) != isinstance(value, list):
            continue
        if isinstance(value, list):
            buckets, seconds = value
            if len(buckets) != len(LATENCY_BUCKETS) + 1:
                continue
            samples.append(Sample(name, tuple(labels), Histogram(tuple(buckets), seconds)))
        else:
            samples.append(Sample(name, tuple(labels), value))
    return samples


def exposition(samples: Iterable[Sample], accept: str) -> tuple[bytes, str]:
    """The body and content type of a scrape, in the format that `accept` asks for."""
    from prometheus_client import CollectorRegistry  # noqa: PLC0415  (only the control process needs it)
    from prometheus_client.exposition import choose_encoder  # noqa: PLC0415

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(samples))
    encoder, content_type = choose_encoder(accept)
    return encoder(registry), content_type


class _Collector:
    def __init__(self, samples: Iterable[Sample]) -> None:
        self._samples = list(samples)

    def describe(self) -> Iterator[Family]:
        return iter(())

    def collect(self) -> Iterator[Family]:
        by_metric: dict[str, list[Sample]] = {name: [] for name in METRICS}
        for sample in self._samples:
            by_metric[sample.metric].append(sample)
        for name, samples in by_metric.items():
            yield _family(METRICS[name], samples)


def _family(metric: Metric, samples: list[Sample]) -> Family:
    from prometheus_client.core import (  # noqa: PLC0415
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
    )

    if metric.kind is Kind.HISTOGRAM:
        histogram = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
        for sample in samples:
            assert isinstance(sample.value, Histogram)
            bounds = [*map(_bound, LATENCY_BUCKETS), "+Inf"]
            cumulated = list(zip(bounds, accumulate(sample.value.buckets), strict=True))
            histogram.add_metric(sample.labels, cumulated, sample.value.sum)
        return histogram
    family: CounterMetricFamily | GaugeMetricFamily
    if metric.kind is Kind.COUNTER:
        family = CounterMetricFamily(metric.name, metric.help, labels=metric.labels)
    else:
        family = GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)
    for sample in samples:
        assert not isinstance(sample.value, Histogram)
        family.add_metric(sample.labels, sample.value)
    return family


def _bound(seconds: float) -> str:
    return str(float(seconds))


def _plus(a: float | Histogram, b: float | Histogram) -> float | Histogram:
    if isinstance(a, Histogram) and isinstance(b, Histogram):
        return Histogram(tuple(x + y for x, y in zip(a.buckets, b.buckets, strict=True)), a.sum + b.sum)
    assert not isinstance(a, Histogram), "a metric is a histogram everywhere or nowhere"
    assert not isinstance(b, Histogram), "a metric is a histogram everywhere or nowhere"
    return a + b
