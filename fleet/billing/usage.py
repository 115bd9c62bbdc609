"""Milliseconds by hour, region, size and kind: what bills are made from. Pure."""

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from fleet.billing.intervals import Interval, Kind, hours


class Cell(NamedTuple):
    """One price's time within one hour."""

    hour: int
    region: str
    size: str
    kind: Kind


Usage = Counter[Cell]


def spread(intervals: Iterable[Interval], start: int = 0, end: int = 2**63) -> Usage:
    """The intervals' time by cell, as far as it lies in [start, end)."""
    usage: Usage = Counter()
    for interval in intervals:
        for hour, ms in hours(max(interval.start, start), min(interval.end, end)):
            usage[Cell(hour, interval.facts.region, interval.facts.size, interval.kind)] += ms
    return usage
