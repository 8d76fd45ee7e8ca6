"""The latest samples as prometheus-client wants them: one registry for whoever may see all, one for each tenant."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.core import Metric as Family

from monitoring.metrics import TABLE, Metric
from monitoring.totals import Samples, let_others_go_first
from worldkv.stats import SECONDS_BOUNDS, Durations

BOUNDS = (*map(str, SECONDS_BOUNDS), "+Inf")


class SampleCollector:
    """Gives the registry the samples that it was given last; keeps no figures of its own."""

    def __init__(self, tenant: str | None = None) -> None:
        """`tenant`: show only lines that carry its name; None: all."""
        self.tenant, self.samples = tenant, Samples()

    def collect(self) -> Iterator[Family]:
        """One family for each metric that has samples, in the order of the table."""
        rows: defaultdict[str, dict[tuple[str, ...], float | Durations]] = defaultdict(dict)
        for (name, labels), value in self.samples.items():
            rows[name][labels] = value
        for metric in TABLE:
            seen = {labels: value for labels, value in rows[metric.name].items() if self._shows(metric, labels)}
            if seen:
                let_others_go_first()
                yield _family(metric, seen)

    def _shows(self, metric: Metric, labels: tuple[str, ...]) -> bool:
        if self.tenant is None:
            return True
        # What has no tenant tells of all tenants together, and so of the others.
        return "tenant" in metric.labels and labels[metric.labels.index("tenant")] == self.tenant


def registry_of(collector: SampleCollector) -> CollectorRegistry:
    """A registry with nothing else in it."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    return registry


def _family(metric: Metric, samples: Mapping[tuple[str, ...], float | Durations]) -> Family:
    if metric.kind == "histogram":
        histogram = HistogramMetricFamily(metric.family, metric.help, labels=metric.labels, unit=metric.unit)
        for labels, value in samples.items():
            assert isinstance(value, Durations), f"{metric.name}: {value!r} is no histogram"
            histogram.add_metric(labels, _buckets(value), value.seconds)
        return histogram
    make = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family = make(metric.family, metric.help, labels=metric.labels, unit=metric.unit)
    for labels, value in samples.items():
        assert not isinstance(value, Durations), f"{metric.name}: a histogram is no number"
        family.add_metric(labels, value)
    return family


def _buckets(durations: Durations) -> list[tuple[str, float]]:
    """Cumulated, as the format wants them."""
    cumulated, at = [], 0
    for bound, count in zip(BOUNDS, durations.counts, strict=True):
        at += count
        cumulated.append((bound, float(at)))
    return cumulated
