"""Families of metrics made from plain numbers, for gauges that are read when a scrape asks."""

from collections.abc import Iterable, Mapping

from prometheus_client import Metric
from prometheus_client.metrics_core import GaugeMetricFamily

LabelValues = tuple[str, ...]


def sums(pairs: Iterable[tuple[LabelValues, float]]) -> dict[LabelValues, float]:
    """The values of equal keys added up."""
    found: dict[LabelValues, float] = {}
    for key, value in pairs:
        found[key] = found.get(key, 0.0) + value
    return found


def gauge(name: str, meaning: str, values: Mapping[LabelValues, float], labels: LabelValues) -> Metric:
    """A gauge with one sample for each key; a key holds the region, then the values of `labels`."""
    family = GaugeMetricFamily(name, meaning, labels=("region", *labels))
    for key, value in values.items():
        family.add_metric(key, value)
    return family
