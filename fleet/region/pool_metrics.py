"""Pools as Prometheus sees them: at most `SHOWN_POOLS` by name, the rest summed under `other`.

Build names are chosen by users, so their number must not become the number of series.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from prometheus_client import Metric
from prometheus_client.metrics_core import CounterMetricFamily

from fleet.telemetry.families import gauge

SHOWN_POOLS = 100
OTHER = "other"
Key = tuple[str, str]  # size, build name


@dataclass(frozen=True, slots=True)
class PoolSample:
    """One pool now. Pools of several projects that have one name are shown as one.

    `project_id` only tells pools apart, it is never shown. `arrivals`, `hits`, `misses`: counts since the pool was made
    in this manager; they may begin anew, not shrink.
    `forecast`: claims expected within one lead time. A rate that is not known yet is None.
    """

    size: str
    build_tag: str
    target: int = 0
    warm: int = 0
    booting: int = 0
    claimed: int = 0
    frozen: int = 0
    forecast: float = 0.0
    expected_hit_rate: float | None = None
    observed_hit_rate: float | None = None
    arrivals: int = 0
    hits: int = 0
    misses: int = 0
    lead_seconds: float = 0.0
    cost_per_hour: float = 0.0
    project_id: str = ""
    slo: float = 0.99


@dataclass
class PoolCounts:
    """Which pools are shown, and their counters, which never fall although pools come, go and change places."""

    shown: set[Key] = field(default_factory=set[Key])
    seen: dict[tuple[str, Key], tuple[int, int, int]] = field(
        default_factory=dict[tuple[str, Key], tuple[int, int, int]]
    )
    totals: dict[Key, list[int]] = field(default_factory=dict[Key, list[int]])

    def families(self, region: str, pools: Sequence[PoolSample]) -> list[Metric]:
        merged = merge_pools(pools)
        self._choose(merged)
        self._count(pools)
        visible = merge_pools(self._named(pool) for pool in merged)
        return [*self._counters(region), *_pool_gauges(region, visible)]

    def _choose(self, pools: Sequence[PoolSample]) -> None:
        """A pool that is shown stays so while it is there; free places go to the busiest."""
        there = {(pool.size, pool.build_tag) for pool in pools}
        self.shown &= there
        self.totals = {key: counts for key, counts in self.totals.items() if key in self.shown or key == (OTHER, OTHER)}
        for pool in sorted(pools, key=lambda p: (-p.arrivals, p.size, p.build_tag)):
            if len(self.shown) >= SHOWN_POOLS:
                return
            self.shown.add((pool.size, pool.build_tag))

    def _named(self, pool: PoolSample) -> PoolSample:
        if (pool.size, pool.build_tag) in self.shown:
            return pool
        return replace(pool, size=OTHER, build_tag=OTHER)

    def _count(self, pools: Sequence[PoolSample]) -> None:
        seen = self.seen
        self.seen = {}
        for pool in pools:
            key, now = (pool.size, pool.build_tag), (pool.arrivals, pool.hits, pool.misses)
            before = seen.get((pool.project_id, key), (0, 0, 0))
            totals = self.totals.setdefault(key if key in self.shown else (OTHER, OTHER), [0, 0, 0])
            for index in range(3):
                grown = now[index] - before[index]
                totals[index] += grown if grown >= 0 else now[index]
            self.seen[pool.project_id, key] = now

    def _counters(self, region: str) -> list[Metric]:
        names = (
            ("fleet_pool_arrivals", "Starts and claims that the pool could serve."),
            ("fleet_pool_hits", "Of these, served by a warm server."),
            ("fleet_pool_misses", "Of these, started cold."),
        )
        families: list[Metric] = []
        for index, (name, text) in enumerate(names):
            family = CounterMetricFamily(name, text, labels=("region", "size", "build"))
            for (size, build), counts in self.totals.items():
                family.add_metric((region, size, build), counts[index])  # pyright: ignore[reportArgumentType]
            families.append(family)
        return families


def merge_pools(pools: Iterable[PoolSample]) -> list[PoolSample]:
    """Pools of one size and build name as one: stocks and counts add up, of rates and times the worst is shown."""
    groups: dict[Key, PoolSample] = {}
    for pool in pools:
        key = pool.size, pool.build_tag
        groups[key] = _both(groups[key], pool) if key in groups else pool
    return list(groups.values())


def _both(one: PoolSample, two: PoolSample) -> PoolSample:
    return PoolSample(
        one.size,
        one.build_tag,
        target=one.target + two.target,
        warm=one.warm + two.warm,
        booting=one.booting + two.booting,
        claimed=one.claimed + two.claimed,
        frozen=one.frozen + two.frozen,
        forecast=one.forecast + two.forecast,
        expected_hit_rate=_lower(one.expected_hit_rate, two.expected_hit_rate),
        observed_hit_rate=_lower(one.observed_hit_rate, two.observed_hit_rate),
        arrivals=one.arrivals + two.arrivals,
        hits=one.hits + two.hits,
        misses=one.misses + two.misses,
        lead_seconds=max(one.lead_seconds, two.lead_seconds),
        cost_per_hour=one.cost_per_hour + two.cost_per_hour,
        slo=max(one.slo, two.slo),
    )


def _lower(one: float | None, two: float | None) -> float | None:
    known = [rate for rate in (one, two) if rate is not None]
    return min(known) if known else None


def _pool_gauges(region: str, pools: Sequence[PoolSample]) -> list[Metric]:
    def of(value: Callable[[PoolSample], float | None]) -> dict[tuple[str, ...], float]:
        found = {(region, pool.size, pool.build_tag): value(pool) for pool in pools}
        return {key: number for key, number in found.items() if number is not None}

    stock: dict[tuple[str, ...], float] = {}
    for pool in pools:
        states = {"warm": pool.warm, "booting": pool.booting, "claimed": pool.claimed, "frozen": pool.frozen}
        stock |= {(region, pool.size, pool.build_tag, state): number for state, number in states.items()}
    labels = ("region", "size", "build")
    return [
        gauge("fleet_pool_servers", "Servers of the pool, by state.", stock, (*labels, "state")),
        gauge("fleet_pool_target", "Servers that shall be warm.", of(lambda p: p.target), labels),
        gauge("fleet_pool_forecast", "Claims expected within one lead time.", of(lambda p: p.forecast), labels),
        gauge(
            "fleet_pool_expected_hit_rate",
            "Share of claims that the policy expects to serve warm.",
            of(lambda p: p.expected_hit_rate),
            labels,
        ),
        gauge(
            "fleet_pool_observed_hit_rate",
            "Share of recent claims served warm.",
            of(lambda p: p.observed_hit_rate),
            labels,
        ),
        gauge("fleet_pool_slo", "Share of claims that shall be served warm.", of(lambda p: p.slo), labels),
        gauge("fleet_pool_lead_seconds", "From ordered to warm.", of(lambda p: p.lead_seconds), labels),
        gauge("fleet_pool_cost_per_hour", "What the idle servers cost.", of(lambda p: p.cost_per_hour), labels),
    ]
