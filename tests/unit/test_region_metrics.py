"""What a region counts: by step, reason and pool, in a bounded number of series, as values that travel."""

import pickle
from dataclasses import replace

import pytest
from prometheus_client import Metric

from fleet.region.metrics import RegionMetrics, RegionSample, node_samples
from fleet.region.model import NodeView
from fleet.region.placement import Room
from fleet.region.pool_metrics import SHOWN_POOLS, PoolSample
from fleet.store.tables import Server

LAUNCH = ("placed", "preparing", "creating", "booting", "running")


def values(families: list[Metric]) -> dict[str, float]:
    """Every sample by its name and labels, the region aside."""
    found: dict[str, float] = {}
    for family in families:
        for sample in family.samples:
            labels = ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()) if k != "region")
            found[f"{sample.name}{{{labels}}}"] = sample.value
    return found


def server(**changes: object) -> Server:
    row = {"instance_id": "i", "region": "eu-west", "compute_size": "small", "step": "queued", "launched_at": 1000}
    return Server(**{**row, **changes})


def drive(metrics: RegionMetrics, row: Server, *steps: str, took_ms: int = 200) -> None:
    at = row.launched_at
    for step in steps:
        before, row.step, at = row.step, step, at + took_ms
        row.step_at = at
        metrics.stepped(row, before, took_ms)


def test_a_launch_is_timed_by_the_step_it_leaves_and_as_a_whole() -> None:
    metrics = RegionMetrics("eu-west")
    drive(metrics, server(), *LAUNCH)
    found = values(metrics.collect())
    for step in ("queued", "placed", "preparing", "creating", "booting"):
        assert found[f"fleet_launch_step_seconds_sum{{step={step}}}"] == pytest.approx(0.2)
    assert found["fleet_launch_seconds_count{size=small}"] == 1
    assert found["fleet_launch_seconds_sum{size=small}"] == pytest.approx(1.0)
    assert not any("boot_failures_total" in name or "_created" in name for name in found)


def test_a_cold_start_is_a_claim_when_it_runs_a_pools_own_boot_and_a_second_attempt_are_none() -> None:
    metrics = RegionMetrics("eu-west")
    drive(metrics, server(start_kind="cold", generation=1, created_at=500), *LAUNCH)
    drive(metrics, server(start_kind="cold", generation=2, created_at=500), *LAUNCH)
    drive(metrics, server(start_kind=None, is_pool_server=True, created_at=500), *LAUNCH)
    found = values(metrics.collect())
    assert found["fleet_claims_total{kind=cold}"] == 1
    assert found["fleet_claim_seconds_sum{kind=cold}"] == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("steps", "reason", "failures"),
    [
        ((*LAUNCH, "stopping", "stopped"), "requested", 0),
        ((*LAUNCH, "stopping", "stopped"), "crashed", 0),
        (("placed", "preparing", "stopping", "stopped"), "requested", 0),
        (("placed", "preparing", "stopping", "stopped"), "start_failed", 1),
        (("placed", "preparing", "creating", "booting", "stopped"), "never_ready", 1),
        (("stopped",), "no_capacity", 0),
    ],
)
def test_a_stop_counts_once_and_only_a_failed_launch_is_a_boot_failure(
    steps: tuple[str, ...], reason: str, failures: int
) -> None:
    metrics = RegionMetrics("eu-west")
    drive(metrics, server(stop_reason=reason), *steps)
    found = values(metrics.collect())
    assert found[f"fleet_stops_total{{reason={reason}}}"] == 1
    assert found.get("fleet_boot_failures_total{size=small}", 0) == failures


def test_another_attempt_after_a_crash_while_booting_is_a_boot_failure_a_wished_restart_is_not() -> None:
    metrics = RegionMetrics("eu-west")
    drive(metrics, server(retry_at=5000), "placed", "booting", "queued")
    drive(metrics, server(retry_at=None), "placed", "booting", "queued")
    drive(metrics, server(retry_at=5000), *LAUNCH, "queued")
    assert values(metrics.collect())["fleet_boot_failures_total{size=small}"] == 1


def test_counts_and_commits_arrive_and_the_values_travel() -> None:
    metrics = RegionMetrics("eu-west", lambda: RegionSample(queued=3, journal_lag_seconds=0.5))
    metrics.started("hot")
    metrics.claimed("hot", 0.002)
    metrics.claimed("cold", 2.0)
    metrics.commit(0.004, 12)
    metrics.node("joined")
    found = values(pickle.loads(pickle.dumps(metrics.collect())))
    assert found["fleet_region_up{}"] == 1
    assert found["fleet_starts_total{kind=hot}"] == 1
    assert (found["fleet_claims_total{kind=hot}"], found["fleet_claims_total{kind=cold}"]) == (1, 1)
    assert found["fleet_claim_seconds_bucket{kind=hot,le=0.0025}"] == 1
    assert found["fleet_commit_seconds_count{}"] == 1
    assert found["fleet_commit_statements_total{}"] == 12
    assert found["fleet_node_events_total{event=joined}"] == 1
    assert (found["fleet_queued_servers{}"], found["fleet_journal_lag_seconds{}"]) == (3, 0.5)


def test_pools_of_one_name_add_up_and_show_the_worse_rate() -> None:
    one = PoolSample("small", "arena", 5, 4, 1, 2, forecast=1.5, observed_hit_rate=0.99, lead_seconds=3, project_id="a")
    two = PoolSample("small", "arena", 3, 3, 0, 1, forecast=0.5, observed_hit_rate=0.7, lead_seconds=9, project_id="b")
    none = PoolSample("large", "arena")
    found = values(RegionMetrics("eu-west", lambda: RegionSample(pools=[one, two, none])).collect())
    arena = "build=arena,size=small"
    assert found[f"fleet_pool_target{{{arena}}}"] == 8
    assert found[f"fleet_pool_servers{{{arena},state=warm}}"] == 7
    assert found[f"fleet_pool_forecast{{{arena}}}"] == 2
    assert found[f"fleet_pool_observed_hit_rate{{{arena}}}"] == 0.7
    assert found[f"fleet_pool_lead_seconds{{{arena}}}"] == 9
    assert "fleet_pool_observed_hit_rate{build=arena,size=large}" not in found


def test_the_number_of_shown_pools_is_bounded_and_the_rest_is_summed() -> None:
    pools = [PoolSample("small", f"build-{n}", target=1, arrivals=n, hits=n) for n in range(SHOWN_POOLS + 50)]
    metrics = RegionMetrics("eu-west", lambda: RegionSample(pools=pools))
    found = values(metrics.collect())
    shown = [name for name in found if name.startswith("fleet_pool_target{")]
    assert len(shown) == SHOWN_POOLS + 1
    assert found["fleet_pool_target{build=other,size=other}"] == 50
    assert found["fleet_pool_hits_total{build=other,size=other}"] == sum(range(50))
    assert f"fleet_pool_target{{build=build-{SHOWN_POOLS + 49},size=small}}" in found


def test_pool_counters_never_fall_whatever_comes_and_goes() -> None:
    pools = [PoolSample("small", f"build-{n}", arrivals=10, hits=9, misses=1) for n in range(SHOWN_POOLS + 2)]
    metrics = RegionMetrics("eu-west", lambda: RegionSample(pools=pools))
    rest = "fleet_pool_arrivals_total{build=other,size=other}"
    assert values(metrics.collect())[rest] == 20
    pools = [replace(pool, arrivals=pool.arrivals + 5) for pool in pools[10:]]  # ten go, the hidden two are shown now
    assert values(metrics.collect())[rest] == 20
    pools = [replace(pool, arrivals=2, hits=0, misses=0) for pool in pools]  # a new manager counts from zero
    found = values(metrics.collect())
    assert found["fleet_pool_arrivals_total{build=build-50,size=small}"] == 17
    assert found[rest] == 20


def test_a_pool_that_ends_takes_nothing_from_its_namesake_of_another_project() -> None:
    one = PoolSample("small", "arena", arrivals=100, project_id="a")
    two = PoolSample("small", "arena", arrivals=40, project_id="b")
    pools = [one, two]
    metrics = RegionMetrics("eu-west", lambda: RegionSample(pools=pools))
    name = "fleet_pool_arrivals_total{build=arena,size=small}"
    assert values(metrics.collect())[name] == 140
    pools = [replace(two, arrivals=41)]
    assert values(metrics.collect())[name] == 141


def test_nodes_by_state_with_what_is_left_of_them_and_what_they_cost() -> None:
    views = [
        NodeView("empty", "h", 4096, 2.0, synced=True),
        NodeView("half", "h", 4096, 2.0, synced=True, node_class="dedicated"),
        NodeView("leaving", "h", 4096, 2.0, synced=True, draining=True),
        NodeView("silent", "h", 4096, 2.0, synced=False),
        NodeView("lost", "h", 4096, 2.0, synced=False, lost=True, draining=True),
    ]
    rooms = [Room("empty", 4096, 2.0), Room("half", 1024, 0.5), Room("leaving", 4096, 2.0, draining=True)]
    samples = node_samples(views, rooms, pending={"shared": 2}, costs={"shared": 0.5, "dedicated": 2.0})
    lead = {"shared": 40.0}
    found = values(RegionMetrics("eu-west", lambda: RegionSample(nodes=samples, node_lead_seconds=lead)).collect())
    numbers = {key.removeprefix("fleet_nodes{"): value for key, value in found.items() if "fleet_nodes{" in key}
    assert numbers == {
        "class=shared,state=pending}": 2,
        "class=dedicated,state=pending}": 0,
        "class=shared,state=idle}": 1,
        "class=dedicated,state=busy}": 1,
        "class=shared,state=draining}": 1,
        "class=shared,state=silent}": 1,
        "class=shared,state=lost}": 1,
    }
    busy = "{class=dedicated,state=busy}"
    assert (found[f"fleet_node_memory_free_bytes{busy}"], found[f"fleet_node_memory_bytes{busy}"]) == (1 << 30, 4 << 30)
    assert (found[f"fleet_node_cores_free{busy}"], found[f"fleet_node_cores{busy}"]) == (0.5, 2.0)
    assert sum(found[key] for key in found if "fleet_node_memory_bytes{" in key) == 3 * 4 << 30, "of those that answer"
    costs = {key: value for key, value in found.items() if "fleet_node_cost_per_hour" in key}
    assert sum(costs.values()) == 0.5 * 3 + 2.0, "a dead machine costs nothing"
    assert found["fleet_node_lead_seconds{class=shared}"] == 40
