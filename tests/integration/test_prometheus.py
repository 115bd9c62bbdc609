"""A real Prometheus scrapes the session's fleet: config, alerts and dashboards hold what they promise."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from tests import dashboards, games
from tests.clients.unity_v3 import UnityV3
from tests.conftest import RunningFleet
from tests.player import Studio, lobby_config
from tests.prometheus import CONFIGS, Prometheus, config_for, promtool, running_prometheus
from tests.waiting import eventually

REGION = "south-africa"  # no other test plays there
BUILD = "observed"
SOON_S = 60.0

# (dashboard, panel) whose queries may give nothing in a fleet of one machine on which nothing goes wrong: none.
# Of a fleet in which no background task has failed, these have nothing to show.
MAY_BE_EMPTY = {
    ("fleet.json", "Background failures"),
    ("fleet.json", "Failing without end"),
    ("lobbies.json", "Rules not evaluated, arrivals postponed"),
}


@pytest.fixture(scope="module")
def observed(fleet: RunningFleet, studio: Studio) -> Iterator[Studio]:
    """A pool from which one start was served hot and one found nothing, a cold start, a crash, a refused request."""
    assert studio.push(games.demo_zip(), BUILD)["status"] == "ready"
    assert studio.push(games.make_zip(games.crash()), f"{BUILD}-crash")["status"] == "ready"
    pool = {"count": 1, "build": BUILD}
    config = {"enabled": True, "regions": {REGION: {"micro": pool}}, "policy": {"mode": "fixed"}}
    settings = {"pool_config": config}
    studio.call("POST", "/projects/settings", json=settings)
    eventually(lambda: _warm(studio) == 1, SOON_S, "the pool is warm")
    started = [studio.start(BUILD, region=REGION) for _ in range(3)]
    started.append(studio.start(f"{BUILD}-crash", region=REGION, wait=False))
    assert studio.http.get("/api/v3/servers/nobody").status_code == 404
    eventually(lambda: _warm(studio) == 1, SOON_S, "the pool is warm again")
    yield studio
    studio.call("POST", "/projects/settings", json={"pool_config": None})
    for server in started[:3]:
        studio.stop(server)


@pytest.fixture
def players(fleet: RunningFleet, observed: Studio) -> Iterator[list[UnityV3]]:
    """Two who can play a match, and one who waits for an opponent, and listens."""
    modes = {"duel": {"teams": 2, "playersPerTeam": 1}, "alone": {"teams": 2, "playersPerTeam": 1, "timeout": 600}}
    server = {"serverSize": "micro", "gameBuild": BUILD}
    config = {"name": BUILD, "serverSettings": server, "matchmaking": {"modes": modes}}
    with lobby_config(observed, config):
        found = [UnityV3(fleet.url, fleet.client_key, name, BUILD) for name in ("ann", "bob", "loner")]
        for player in found:
            player.lobby("POST", "", {"name": BUILD, "region": REGION})
        found[-1].lobby("POST", "/me/matchmaking", {"mode": "alone"})
        with found[-1].events():
            yield found
        for player in found:
            player.send("DELETE", "/me")
            player.http.close()


def _meet(ann: UnityV3, bob: UnityV3) -> None:
    """A match, from the queue to its end."""
    for player in (ann, bob):
        player.lobby("POST", "/me/matchmaking", {"mode": "duel"})
    eventually(lambda: ann.lobby("GET", "/me")["status"] == "in_game", SOON_S, "the match has a server")
    for player in (ann, bob):
        player.lobby("POST", "/me/end-match")


def _warm(studio: Studio) -> int:
    pools = studio.call("GET", "/pools")["pools"]
    return sum(pool["stock"]["warm"] for pool in pools if pool["region"] == REGION)


@pytest.fixture(scope="module")
def prometheus(fleet: RunningFleet, observed: Studio, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Scrapes that fleet with configs/prometheus.yml, each second."""
    with running_prometheus(config_for(fleet.url), tmp_path_factory.mktemp("prometheus")) as server:
        yield server


def test_config_and_alerts_are_what_prometheus_takes_and_each_alert_fires_and_keeps_silent_as_meant() -> None:
    checked = promtool("check", "config", CONFIGS / "prometheus.yml")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    tested = promtool("test", "rules", CONFIGS / "alerts_test.yml")
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_every_target_is_up(prometheus: Prometheus) -> None:
    for job in ("fleet", "ray"):
        eventually(lambda job=job: prometheus.has(f'up{{job="{job}"}} == 1'), SOON_S, f"{job} is scraped")
    targets = prometheus.api("targets")["activeTargets"]
    assert {target["labels"]["job"] for target in targets} == {"fleet", "ray"}


def test_every_query_of_every_dashboard_is_one_and_gives_data(
    prometheus: Prometheus, observed: Studio, players: list[UnityV3]
) -> None:
    missing = set(dashboards.queries())

    def found() -> bool:
        # Rates need movement between two scrapes, so something moves while we look.
        observed.stop(observed.start(BUILD, region=REGION))
        _meet(*players[:2])
        for one in list(missing):
            if prometheus.has(one.expression):
                missing.remove(one)
        return all((one.dashboard, one.panel) in MAY_BE_EMPTY for one in missing)

    try:
        eventually(found, SOON_S, "every panel has data")
    except AssertionError:
        pytest.fail("no data for\n" + "\n".join(" | ".join(one) for one in sorted(missing)))


def test_every_alert_is_computed_and_a_healthy_fleet_fires_none_that_is_critical(prometheus: Prometheus) -> None:
    def rules() -> list[dict[str, object]]:
        return [rule for group in prometheus.api("rules")["groups"] for rule in group["rules"]]

    eventually(lambda: all(rule["health"] == "ok" for rule in rules()), SOON_S, "every rule was computed")
    written = yaml.safe_load((CONFIGS / "alerts.yml").read_text())["groups"]
    assert {rule["name"] for rule in rules()} == {rule["alert"] for group in written for rule in group["rules"]}
    critical = [
        rule["name"] for rule in rules() if rule["labels"] == {"severity": "critical"} and rule["state"] == "firing"
    ]
    assert not [name for name in critical if name != "FleetDiskFull"]


def test_what_happened_is_what_prometheus_knows(prometheus: Prometheus) -> None:
    def value(expression: str) -> float:
        return sum(number for _, number in prometheus.query(expression))

    in_region = f'region="{REGION}"'
    eventually(lambda: value(f'fleet_stops_total{{{in_region},reason="crashed"}}') >= 1, SOON_S, "the crash is counted")
    assert value(f'fleet_starts_total{{{in_region},kind="hot"}}') >= 1
    assert value(f'fleet_pool_hits_total{{{in_region},build="{BUILD}"}}') >= 1
    assert value(f'fleet_pool_target{{{in_region},build="{BUILD}"}}') == 1
    # The rows and the manager are asked at two moments, between which the pool may be refilled.
    warm = [f'{name}{{{in_region},state="warm"}}' for name in ("fleet_servers", "fleet_pool_servers")]
    eventually(lambda: [value(one) for one in warm] == [1, 1], SOON_S, "rows and manager tell of the one warm server")
    hits, misses = (value(f"fleet_pool_{name}_total{{{in_region}}}") for name in ("hits", "misses"))
    assert value(f"fleet_pool_arrivals_total{{{in_region}}}") == hits + misses
    assert value('fleet_http_requests_total{route="/api/v3/servers/{instance_id}",status="404"}') >= 1


def test_both_replicas_tell_the_same_and_only_to_this_machine(fleet: RunningFleet, observed: Studio) -> None:
    replicas = _replicas(fleet)
    assert len(replicas) == 2

    def same() -> bool:
        first, second = (_samples(httpx.get(f"{url}/metrics", trust_env=False).text) for url in replicas)
        moved = {name for name in first.keys() | second.keys() if first.get(name) != second.get(name)}
        # The first scrape is a request that the second counts.
        return len(first) > 100 and all('route="/metrics"' in name for name in moved)

    eventually(same, SOON_S, "both replicas tell the same numbers")
    outside = httpx.get(f"{replicas[0]}/metrics", headers={"x-forwarded-for": "203.0.113.7"}, trust_env=False)
    assert outside.status_code == 403


def _replicas(fleet: RunningFleet) -> list[str]:
    """Where the replicas listen themselves, from the proxy's configuration."""
    head = json.loads((fleet.home / "ray.json").read_text())
    folder = Path(head["environment"]["RAY_SERVE_HAPROXY_CONFIG_FILE_LOC"]).parent
    config = next(folder.glob("**/haproxy.cfg")).read_text()
    return [f"http://{place}" for place in re.findall(r"server SERVE_REPLICA\S+ (\S+:\d+)", config)]


def _samples(text: str) -> dict[str, str]:
    """The fleet's series, but for the disk, which others fill too."""
    lines = (line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("fleet_"))
    return {name: value for name, value in lines if name != "fleet_home_disk_free_bytes"}
