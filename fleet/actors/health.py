"""Whether the background tasks of this process do their work: how often each failed, and which fail without end.

One record per process (`process_health`), for its status and metrics, and for the alert `BackgroundTaskFailing`.
"""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass

from prometheus_client import Metric
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily

FAILING_AFTER_S = 60.0
STEADY_S = 30.0  # an attempt that has run so long counts as recovered, though it has not ended


@dataclass(slots=True)
class _Series:
    """Failures in a row of one task. `running_since`: of the attempt under way."""

    first_at: float
    error: str
    running_since: float | None = None


@dataclass(frozen=True, slots=True)
class Failing:
    """A task that fails without end. `for_s`: seconds since the first of these failures."""

    task: str
    for_s: float
    error: str


class TaskHealth:
    """Tasks are known by label and owner: many owners (nodes of one process) may have a task of one label."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._counts: dict[str, int] = {}
        self._series: dict[tuple[str, int], _Series] = {}
        self.on_failure: Callable[[str], None] = lambda _label: None

    def __reduce__(self) -> str:
        """By name: Ray copies actor classes with the globals they use, and each process has a record of its own."""
        if self is not process_health:
            raise TypeError("only the process's own record may be named to another process")
        return "process_health"

    @contextmanager
    def attempt(self, label: str, owner: object, *, lasting: bool = True) -> Generator[None]:
        """While inside, an attempt is under way. `lasting`: one that goes on is well; of a pass that is to end, it says
        nothing."""
        series = self._series.get((label, id(owner))) if lasting else None
        if series is not None:
            series.running_since = self._clock()
        try:
            yield
        finally:
            if series is not None:
                series.running_since = None

    def succeeded(self, label: str, owner: object) -> None:
        self._series.pop((label, id(owner)), None)

    def failed(self, label: str, owner: object, error: BaseException) -> None:
        key = (label, id(owner))
        self._counts[label] = self._counts.get(label, 0) + 1
        series, now = self._series.get(key), self._clock()
        if series is None or _steady(series, now):
            self._series[key] = _Series(now, repr(error))
        else:
            series.error = repr(error)
        self.on_failure(label)

    def forget(self, label: str, owner: object) -> None:
        """The task is not tried again here: it is counted, and fails no more."""
        self._series.pop((label, id(owner)), None)

    def forget_owner(self, owner: object) -> None:
        """The owner has been closed; an object made later may have its id."""
        for key in [key for key in self._series if key[1] == id(owner)]:
            del self._series[key]

    def failing(self) -> list[Failing]:
        """The tasks that have failed for `FAILING_AFTER_S` without a success, the longest first."""
        now = self._clock()
        worst: dict[str, Failing] = {}
        for (label, _), series in self._series.items():
            for_s = now - series.first_at
            if for_s < FAILING_AFTER_S or _steady(series, now):
                continue
            if label not in worst or worst[label].for_s < for_s:
                worst[label] = Failing(label, for_s, series.error)
        return sorted(worst.values(), key=lambda one: -one.for_s)

    def counts(self) -> dict[str, int]:
        """Failures by task label since the process began."""
        return dict(self._counts)

    def collect(self, process: str) -> list[Metric]:
        """For a scrape. `process` tells the fleet's processes apart, such as `region:eu-west`."""
        return families({process: (self.counts(), [one.task for one in self.failing()])})


def families(processes: dict[str, tuple[dict[str, int], list[str]]]) -> list[Metric]:
    """The metrics of some processes: of each its counts, and the labels of what fails without end."""
    counts = CounterMetricFamily(
        "fleet_background_failures",
        "Failures of background tasks, each of them tried again.",
        labels=("process", "task"),
    )
    failing = GaugeMetricFamily(
        "fleet_background_failing", "1 for a background task that fails without end.", labels=("process", "task")
    )
    for process, (found, endless) in processes.items():
        for label, number in found.items():
            counts.add_metric((process, label), number)
            failing.add_metric((process, label), float(label in endless))
    return [counts, failing]


def _steady(series: _Series, now: float) -> bool:
    return series.running_since is not None and now - series.running_since >= STEADY_S


process_health = TaskHealth()
