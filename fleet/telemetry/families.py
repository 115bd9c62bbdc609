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


def gauge(name: str, meaning: str, values: Mapping[LabelValues, float], labels: LabelValues = ()) -> Metric:
    """A gauge with one sample for each key, whose parts are the values of `labels`."""
    family = GaugeMetricFamily(name, meaning, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family


def merge(families: Iterable[Metric]) -> list[Metric]:
    """One family for each name, with the samples of all: a scrape must not hold a name twice."""
    found: dict[str, Metric] = {}
    for family in families:
        known = found.get(family.name)
        if known is None:
            found[family.name] = known = Metric(family.name, family.documentation, family.type, family.unit)
        elif known.type != family.type:
            raise ValueError(f"{family.name} is a {known.type} here and a {family.type} there")
        known.samples = [*known.samples, *family.samples]
    return [family for family in found.values() if family.samples]


def without_created(family: Metric) -> Metric:
    """The same without the times at which its series began: nobody asks, and each would be a series more."""
    family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
    return family
