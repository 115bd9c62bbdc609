"""What a region's manager counts for Prometheus.

Counters and histograms are moved by the manager as things happen; gauges are read from one snapshot when somebody
asks. Labels are bounded: regions, sizes, steps, kinds, node classes and a bounded number of pools
(`pool_metrics.py`). Never ids. `collect()` gives plain values that travel to the API replica that answers the scrape.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Histogram, Metric

from fleet.actors.health import families, process_health
from fleet.region.model import NodeView
from fleet.region.placement import Room
from fleet.region.pool_metrics import PoolCounts, PoolSample
from fleet.store.tables import Server
from fleet.telemetry.families import gauge, sums, without_created

Background = dict[str, tuple[dict[str, int], list[str]]]
LAUNCH_STEPS = ("queued", "placed", "preparing", "creating", "booting")
ENDED_STEPS = ("stopping", "stopped")
# A launch that ends for one of these is a fault of the game or of the fleet, not a wish.
BOOT_FAILURES = frozenset({"start_failed", "never_ready", "crashed", "out_of_memory", "exited", "node_lost"})
LAUNCH_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 180.0, 600.0)
CLAIM_BUCKETS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0, 120.0)
COMMIT_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0)


@dataclass(frozen=True, slots=True)
class NodeSample:
    """Nodes of one state and class; `state`: busy | idle | draining | pending | silent | lost."""

    state: str
    node_class: str
    count: int
    memory_mb: int = 0
    memory_free_mb: int = 0
    cores: float = 0.0
    cores_free: float = 0.0
    cost_per_hour: float = 0.0


@dataclass(frozen=True, slots=True)
class RegionSample:
    """The region now. `journal_lag_seconds`: how long the oldest change has waited for its commit.

    `node_lead_seconds` by node class.
    """

    pools: Sequence[PoolSample] = ()
    nodes: Sequence[NodeSample] = ()
    queued: int = 0
    journal_lag_seconds: float = 0.0
    node_lead_seconds: Mapping[str, float] = field(default_factory=dict[str, float])
    node_pending_seconds: float = 0.0


class RegionMetrics:
    """One per manager. `sample` is called once for each `collect()`."""

    def __init__(self, region: str, sample: Callable[[], RegionSample] = RegionSample) -> None:
        self.region = region
        self._sample = sample
        self._registry = CollectorRegistry()
        self._pools = PoolCounts()
        self._lock = threading.Lock()
        self._began = time.time()
        # Of the processes of its nodes, by name: failures by task, and the tasks that fail without end.
        self.background: Callable[[], Background] = dict
        counter, histogram = self._counter, self._histogram
        self._starts = counter("fleet_starts", "Starts accepted, by how they were served.", "kind")
        self._claims = counter("fleet_claims", "Servers handed out, by what they were before.", "kind")
        self._claim = histogram("fleet_claim_seconds", "From asked to handed out.", CLAIM_BUCKETS, "kind")
        self._step = histogram("fleet_launch_step_seconds", "Time spent in a step.", LAUNCH_BUCKETS, "step")
        self._launch = histogram("fleet_launch_seconds", "From queued to running.", LAUNCH_BUCKETS, "size")
        self._boot_failures = counter("fleet_boot_failures", "Launches that never came to running.", "size")
        self._stops = counter("fleet_stops", "Servers that ended, by reason.", "reason")
        self._commit = histogram("fleet_commit_seconds", "Time of one group commit.", COMMIT_BUCKETS)
        self._statements = counter("fleet_commit_statements", "Statements written by group commits.")
        self._node_events = counter("fleet_node_events", "Nodes asked for, joined, lost, released.", "event")

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(name, meaning, ("region", *labels), registry=self._registry)

    def _histogram(self, name: str, meaning: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(name, meaning, ("region", *labels), buckets=buckets, registry=self._registry)

    # What the manager tells --------------------------------------------------------------------------------------

    def started(self, kind: str) -> None:
        """A start was accepted and served `hot` (from a pool) or `cold`."""
        self._starts.labels(self.region, kind).inc()

    def claimed(self, kind: str, seconds: float) -> None:
        """Somebody has a running server: one that was `hot` or `frozen` in a pool, or was started `cold` for them."""
        self._claims.labels(self.region, kind).inc()
        self._claim.labels(self.region, kind).observe(seconds)

    def step(self, step: str, seconds: float) -> None:
        """A launching server leaves that step after so long."""
        self._step.labels(self.region, step).observe(seconds)

    def launched(self, size: str, seconds: float) -> None:
        """A server runs, so long after it was queued."""
        self._launch.labels(self.region, size).observe(seconds)

    def boot_failed(self, size: str) -> None:
        self._boot_failures.labels(self.region, size).inc()

    def stopped(self, reason: str) -> None:
        self._stops.labels(self.region, reason).inc()

    def commit(self, seconds: float, statements: int) -> None:
        self._commit.labels(self.region).observe(seconds)
        self._statements.labels(self.region).inc(statements)

    def node(self, event: str) -> None:
        """`asked`, `joined`, `lost` or `released`."""
        self._node_events.labels(self.region, event).inc()

    def stepped(self, server: Server, before: str, took_ms: int) -> None:
        """A server has entered its present step from `before`, where it was for so long (`Books` calls this)."""
        after = server.step
        if after in ENDED_STEPS:
            if before not in ENDED_STEPS:
                self.stopped(server.stop_reason or "unknown")
            failed = server.stop_reason in BOOT_FAILURES
        else:
            failed = after == "queued" and server.retry_at is not None
        if before in LAUNCH_STEPS:
            if failed:
                self.boot_failed(server.compute_size)
            elif after not in ("queued", *ENDED_STEPS):
                self.step(before, took_ms / 1000)
        if after == "running":
            if server.start_kind == "cold" and server.generation == 1:
                self.claimed("cold", max(0, server.step_at - server.created_at) / 1000)
            self.launched(server.compute_size, max(0, server.step_at - server.launched_at) / 1000)

    # What a scrape reads ------------------------------------------------------------------------------------------

    def collect(self) -> list[Metric]:
        """Every family with its samples; picklable."""
        return self._families(self._sample(), health_families(self.region, self.background()))

    async def collect_aside(self) -> list[Metric]:
        """The same, computed in a thread: with a hundred pools it takes 10 ms, in which claims must not wait."""
        health = health_families(self.region, self.background())
        return await asyncio.to_thread(self._families, self._sample(), health)

    def _families(self, sample: RegionSample, health: list[Metric]) -> list[Metric]:
        with self._lock:  # replicas may ask at once, and pools are counted by what has changed since the last time
            pools = self._pools.families(self.region, sample.pools)
        found = [*self._registry.collect(), *self._gauges(sample), *pools, *health]
        return [without_created(family) for family in found]

    def _gauges(self, sample: RegionSample) -> list[Metric]:
        plain = {
            "fleet_region_start_time_seconds": ("When this manager began, in epoch seconds.", self._began),
            "fleet_queued_servers": ("Servers that wait for room.", sample.queued),
            "fleet_journal_lag_seconds": ("Age of the oldest change not on disk yet.", sample.journal_lag_seconds),
            "fleet_node_pending_seconds": ("How long the oldest asked-for node is due.", sample.node_pending_seconds),
        }
        families = [gauge(name, text, {(self.region,): value}, ("region",)) for name, (text, value) in plain.items()]
        lead = {(self.region, node_class): seconds for node_class, seconds in sample.node_lead_seconds.items()}
        meaning = "Estimate: from asking for a node to its use."
        families.append(gauge("fleet_node_lead_seconds", meaning, lead, ("region", "class")))
        return [*families, *self._node_gauges(sample.nodes)]

    def _node_gauges(self, nodes: Sequence[NodeSample]) -> list[Metric]:
        def by_state(value: Callable[[NodeSample], float]) -> dict[tuple[str, ...], float]:
            return sums(((self.region, node.node_class, node.state), value(node)) for node in nodes)

        labels = ("region", "class", "state")
        return [
            gauge("fleet_nodes", "Nodes.", by_state(lambda n: n.count), labels),
            gauge("fleet_node_memory_bytes", "Memory for games.", by_state(lambda n: n.memory_mb << 20), labels),
            gauge(
                "fleet_node_memory_free_bytes",
                "Memory that no game has.",
                by_state(lambda n: n.memory_free_mb << 20),
                labels,
            ),
            gauge("fleet_node_cores", "Cores that dedicated sizes may own.", by_state(lambda n: n.cores), labels),
            gauge("fleet_node_cores_free", "Such cores that no game owns.", by_state(lambda n: n.cores_free), labels),
            gauge("fleet_node_cost_per_hour", "What they cost.", by_state(lambda n: n.cost_per_hour), labels),
        ]


def health_families(region: str, others: Background, *, up: bool = True) -> list[Metric]:
    """Whether the manager is up, and the background tasks of its process and `others`."""
    mine = (process_health.counts(), [one.task for one in process_health.failing()])
    alive = gauge("fleet_region_up", "1 while the region's manager answers.", {(region,): float(up)}, ("region",))
    return [alive, *families({f"region:{region}": mine, **others})]


def node_samples(
    views: Iterable[NodeView], rooms: Iterable[Room], *, pending: Mapping[str, int], costs: Mapping[str, float]
) -> list[NodeSample]:
    """The region's nodes by state: what Ray was asked for, what is there, and how much of it games have.

    `pending` and `costs` (per hour) are per class.
    """
    free = {room.node_id: room for room in rooms}
    found = [NodeSample("pending", node_class, pending.get(node_class, 0)) for node_class in {**costs, **pending}]
    for view in views:
        room, cost = free.get(view.node_id), costs.get(view.node_class, 0.0)
        if room is None or not view.synced:  # what it holds is not known now
            state, cost = ("lost", 0.0) if view.lost else ("silent", cost)
            found.append(NodeSample(state, view.node_class, 1, cost_per_hour=cost))
            continue
        state = "draining" if view.draining else "idle" if room.memory_mb >= view.memory_mb else "busy"
        sizes = (view.memory_mb, room.memory_mb, view.cores, room.cores)
        found.append(NodeSample(state, view.node_class, 1, *sizes, cost))
    return found
