"""/metrics: one text of many parts, the same from each replica, for the operator only."""

import asyncio
from collections.abc import Collection
from pathlib import Path

import httpx
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from fleet.catalog import load_catalog
from fleet.region.metrics import RegionMetrics, RegionSample
from fleet.region.pool_metrics import PoolSample
from fleet.settings import FleetSettings
from fleet.store.tables import Server
from fleet.telemetry import scrape as scrape_module
from fleet.telemetry.families import gauge, merge
from fleet.telemetry.metrics import HttpMetrics
from fleet.telemetry.scrape import Scrape
from fleet.telemetry.stored import server_families
from fleet.times import now_ms
from serve_app.http import create_app
from tests.unit.api_kit import Api, by_proxy


class TwoManagers:
    """Real counts of two regions; `asked` says how often, and what was expected to be there."""

    def __init__(self) -> None:
        pools = [PoolSample("small", "arena", target=3, warm=2)]
        self.regions = {name: RegionMetrics(name, lambda: RegionSample(pools=pools)) for name in ("eu-west", "us-east")}
        self.asked: list[Collection[str]] = []

    async def metrics(self, expected: Collection[str]) -> dict[str, list[Metric] | None]:
        self.asked.append(expected)
        answers = {name: region.collect() for name, region in self.regions.items()}
        return {**dict.fromkeys(expected), **answers}


def samples(text: bytes | str) -> dict[str, float]:
    """By name and labels. Parsing fails on a text that Prometheus would refuse for a family told twice."""
    text = text.decode() if isinstance(text, bytes) else text
    types = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(types) == len(set(types))
    families = list(text_string_to_metric_families(text))
    found = [
        (f"{one.name}{{{','.join(f'{k}={v}' for k, v in sorted(one.labels.items()))}}}", one.value)
        for f in families
        for one in f.samples
    ]
    assert len(found) == len(dict(found))
    return dict(found)


def server(number: int, **values: object) -> Server:
    row = {"name": "match", "region": "us-east", "status": "running", "step": "running", "compute_size": "small"}
    row |= {"build_id": "b", "version_tag": "default", "created_at": 1, "updated_at": 1, "launched_at": 1, "step_at": 1}
    return Server(instance_id=f"server-{number}", **{**row, **values})


async def add(api: Api, *servers: Server) -> None:
    async with api.store.write() as session:
        for one in servers:
            one.project_id = api.project.project_id
            session.add(one)


@pytest.fixture
def scrape(api: Api) -> Scrape:
    return Scrape(HttpMetrics(), api.store, load_catalog(), api.settings.home, managers=TwoManagers())


async def test_the_parts_of_all_regions_and_the_database_are_one_text(api: Api, scrape: Scrape) -> None:
    pool = {"is_pool_server": True}
    await add(
        api,
        server(1),
        server(2, **pool),
        server(3, **pool, pool_claimed_at=now_ms()),
        server(4, **pool, step="booting", status="launching"),
        server(5, region="eu-west", compute_size="large"),
        server(6, step="stopped", status="stopped"),
    )
    found = samples(await scrape.text())
    servers = {name: value for name, value in found.items() if name.startswith("fleet_servers{")}
    assert servers == {
        "fleet_servers{region=us-east,size=small,state=running}": 2,
        "fleet_servers{region=us-east,size=small,state=warm}": 1,
        "fleet_servers{region=us-east,size=small,state=booting}": 1,
        "fleet_servers{region=eu-west,size=large,state=running}": 1,
    }
    assert found["fleet_builds{status=ready}"] == 2
    for region in ("eu-west", "us-east"):
        assert found[f"fleet_region_up{{region={region}}}"] == 1
        assert found[f"fleet_pool_target{{build=arena,region={region},size=small}}"] == 3
    assert found["fleet_home_disk_bytes{}"] > found["fleet_home_disk_free_bytes{}"] > 0
    assert all(found[f"fleet_scrape_up{{part={part}}}"] == 1 for part in ("database", "regions", "requests", "disk"))


async def test_a_region_with_servers_whose_manager_is_not_there_is_down_not_missing(api: Api, scrape: Scrape) -> None:
    await add(api, server(1, region="sea"))
    found = samples(await scrape.text())
    assert found["fleet_region_up{region=sea}"] == 0
    assert found["fleet_region_up{region=us-east}"] == 1


async def test_scrapes_at_once_and_soon_after_share_one_answer(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    managers = TwoManagers()
    scrape = Scrape(HttpMetrics(), api.store, load_catalog(), api.settings.home, managers=managers)
    answers = await asyncio.gather(*(scrape.text() for _ in range(20)))
    assert len(set(answers)) == 1
    await scrape.text()
    assert len(managers.asked) == 1
    monkeypatch.setattr(scrape_module, "KEEP_S", 0.0)
    fresh = Scrape(HttpMetrics(), api.store, load_catalog(), api.settings.home, managers=managers)
    await fresh.text()
    await fresh.text()
    assert len(managers.asked) == 3


async def test_one_impatient_scraper_does_not_take_the_answer_from_the_others(scrape: Scrape) -> None:
    first, second = asyncio.create_task(scrape.text()), asyncio.create_task(scrape.text())
    await asyncio.sleep(0)
    first.cancel()
    assert b"fleet_region_up" in await second


async def test_what_fails_is_missing_and_said_so(api: Api, tmp_path: Path) -> None:
    scrape = Scrape(HttpMetrics(), api.store, load_catalog(), tmp_path / "not-there")
    found = samples(await scrape.text())
    assert found["fleet_scrape_up{part=disk}"] == 0
    assert found["fleet_scrape_up{part=database}"] == 1
    assert "fleet_home_disk_bytes{}" not in found


def test_families_of_one_name_and_two_types_are_a_fault() -> None:
    with pytest.raises(ValueError, match="fleet_x is a gauge here and a counter there"):
        merge([gauge("fleet_x", "x", {(): 1}), Metric("fleet_x", "x", "counter")])


def test_what_servers_cost_is_told_by_what_they_are_for() -> None:
    catalog = load_catalog()
    sizes = {**catalog.sizes, "small": catalog.size("small").model_copy(update={"cost_per_hour": 0.5})}
    priced = catalog.model_copy(update={"sizes": sizes})
    live = [("eu-west", "small", "running", True, 4), ("eu-west", "small", "running", False, 6)]
    costs = {one.labels["use"]: one.value for one in server_families(live, priced)[1].samples}
    assert costs == {"pool": 2.0, "game": 3.0}


TOKEN = {"authorization": "Bearer secret"}
OUTSIDE = by_proxy(client="203.0.113.7")


@pytest.mark.parametrize(
    ("settings", "peer", "headers", "status"),
    [
        ({}, "127.0.0.1", {}, 200),
        ({}, "127.0.0.1", by_proxy(client="127.0.0.1"), 200),
        ({}, "::1", {}, 200),
        ({}, "127.0.0.1", OUTSIDE, 403),
        ({}, "203.0.113.7", by_proxy(client="127.0.0.1"), 403),
        ({}, "127.0.0.1", {"x-forwarded-for": "127.0.0.1"}, 403),
        ({}, "127.0.0.1", by_proxy(client="no address"), 403),
        ({"metrics_public": True}, "203.0.113.7", OUTSIDE, 200),
        ({"metrics_token": "secret"}, "127.0.0.1", OUTSIDE | TOKEN, 200),
        ({"metrics_token": "secret"}, "127.0.0.1", {}, 401),
        ({"metrics_token": "secret"}, "127.0.0.1", {"authorization": "Bearer secre"}, 401),
        ({"metrics_token": "secret", "metrics_public": True}, "127.0.0.1", {}, 401),
    ],
)
@pytest.mark.parametrize("path", ["/metrics", "/metrics/ray"])
async def test_metrics_are_for_this_machine_unless_a_token_or_a_setting_says_more(
    api: Api, path: str, settings: dict[str, object], peer: str, headers: dict[str, str], status: int
) -> None:
    api.app.state.context.settings = FleetSettings(home=api.settings.home, **settings)
    transport = httpx.ASGITransport(api.app, client=(peer, 4711))
    async with httpx.AsyncClient(transport=transport, base_url="http://fleet.test", headers=headers) as client:
        answer = await client.get(path)
    assert answer.status_code == status, answer.text
    if status != 200:
        assert "FLEET_METRICS_TOKEN" in answer.json()["detail"]


async def test_prometheus_finds_rays_nodes(api: Api) -> None:
    targets = [{"targets": ["127.0.0.2:1234"], "labels": {"job": "ray"}}]
    app = create_app(api.app.state.context, ray_targets=lambda: targets)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://fleet.test") as client:
        answer = await client.get("/metrics/ray")
    assert answer.headers["content-type"].startswith("application/json")
    assert answer.json() == targets
