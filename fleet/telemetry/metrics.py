"""Prometheus metrics of the API: requests, and background tasks that fail; summed over the replicas of a node.

Each process counts in memory-mapped files of one folder (prometheus_client's multiprocess mode), so whichever
replica a scrape reaches tells the sum of all, those that have died included.
"""

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, values
from prometheus_client.multiprocess import MultiProcessCollector

from fleet.telemetry.families import without_created

PROCESS = "api"  # all replicas of a node count together
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 120.0)
KEEP_FILES = 128  # two for each process; a fleet restarts its replicas rarely
_METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"})


class HttpMetrics:
    """Request counts and times by route template. Make one per process.

    `folder`: where the processes of this node count together; None counts in this process alone.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            forget_oldest(folder)
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
            # The library chooses at import, which Ray may have done before us.
            values.ValueClass = values.MultiProcessValue()
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "fleet_http_requests", "Requests answered.", ["method", "route", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "fleet_http_request_seconds",
            "Time to answer.",
            ["method", "route"],
            buckets=BUCKETS,
            registry=self._registry,
        )
        self._failures = Counter(
            "fleet_background_failures",
            "Failures of background tasks, each of them tried again.",
            ["process", "task"],
            registry=self._registry,
        )
        self._failing = Gauge(
            "fleet_background_failing",
            "1 for a background task that fails without end.",
            ["process", "task"],
            registry=self._registry,
            multiprocess_mode="livemax",
        )
        self._known_failing: set[str] = set()
        self._children: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one answer. `route` is the template (`/api/v3/servers/{instance_id}`), never a raw path."""
        method = method if method in _METHODS else "other"
        key = (method, route, status)
        pair = self._children.get(key)
        if pair is None:
            # Looking labels up costs more than counting; the keys are bounded by routes, methods and statuses.
            pair = self._requests.labels(method, route, str(status)), self._seconds.labels(method, route)
            self._children[key] = pair
        pair[0].inc()
        pair[1].observe(seconds)

    def background_failed(self, task: str) -> None:
        """A background task of this process has failed (`fleet.actors.health`)."""
        self._failures.labels(PROCESS, task).inc()

    def tell_failing(self, tasks: Collection[str]) -> None:
        """These fail without end now, in this process, and no others."""
        self._known_failing |= set(tasks)
        for task in self._known_failing:
            self._failing.labels(PROCESS, task).set(float(task in tasks))

    def collect(self) -> list[Metric]:
        """Everything counted on this node."""
        if self._folder is None:
            return [without_created(family) for family in self._registry.collect()]
        forget_gauges(self._folder)
        merged: Any = MultiProcessCollector(None, path=str(self._folder))
        return list(merged.collect())


def forget_oldest(folder: Path, keep: int = KEEP_FILES) -> None:
    """Bound the folder: drop the files of processes that have ended, longest untouched first, beyond `keep`."""
    ended = [file for file in folder.glob("*.db") if not _alive(file)]
    ended.sort(key=lambda file: file.stat().st_mtime, reverse=True)
    for file in ended[keep:]:
        file.unlink(missing_ok=True)


def forget_gauges(folder: Path) -> None:
    """What processes that have ended said of themselves is not so any more; what they counted stays."""
    for file in folder.glob("gauge_live*.db"):
        if not _alive(file):
            file.unlink(missing_ok=True)


def _alive(file: Path) -> bool:
    pid = file.stem.rpartition("_")[2]
    return pid.isdigit() and Path("/proc", pid).exists()
