"""What is shown, alerted on and documented is what the code exports, and the other way round."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fleet.lobbies.metrics import KeeperMetrics
from fleet.region.metrics import NodeSample, RegionMetrics, RegionSample
from fleet.region.pool_metrics import PoolSample
from fleet.telemetry.metrics import HttpMetrics
from fleet.telemetry.scrape import Scrape
from tests import dashboards
from tests.unit.api_kit import Api

CONFIGS = Path(__file__).parent.parent.parent / "configs"
PAGE = CONFIGS.parent / "docs" / "metrics.md"
PARTS = re.compile(r"_(total|bucket|sum|count)$")


@pytest.fixture
async def exported(api: Api) -> set[str]:
    """Every family that `/metrics` can hold, by the name under which it is asked for."""
    scrape = Scrape(HttpMetrics(), api.store, api.app.state.context.catalog, api.settings.home)
    text = (await scrape.text()).decode()
    pool = PoolSample("small", "arena", expected_hit_rate=1.0, observed_hit_rate=1.0)
    region = RegionMetrics(
        "sea", lambda: RegionSample([pool], [NodeSample("idle", "shared", 1)], node_lead_seconds={"shared": 1})
    )
    families = region.collect() + KeeperMetrics(0).collect() + HttpMetrics().collect()
    names = {family.name + ("_total" if family.type == "counter" else "") for family in families}
    return (
        names | set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)) | {"fleet_servers", "fleet_servers_cost_per_hour"}
    )


def used(text: str, exported: set[str]) -> set[str]:
    names = set(re.findall(r"\bfleet_[a-z_]+", text))
    return {name if name in exported else PARTS.sub("", name) for name in names}


def test_dashboards_and_alerts_ask_for_what_is_exported(exported: set[str]) -> None:
    asked = "\n".join(query.expression for query in dashboards.queries()) + (CONFIGS / "alerts.yml").read_text()
    assert used(asked, exported) - exported == set()


def test_every_metric_is_on_the_page_and_every_metric_of_the_page_is_there(exported: set[str]) -> None:
    told = set(re.findall(r"^\| `(fleet_\w+)", PAGE.read_text(), re.MULTILINE))
    assert told == exported


def test_every_metric_but_the_plumbing_is_on_a_dashboard(exported: set[str]) -> None:
    shown = used("\n".join(query.expression for query in dashboards.queries()), exported)
    assert exported - shown == {"fleet_region_start_time_seconds"}


def test_every_alert_is_shown_to_fire_and_to_keep_silent() -> None:
    alerts = set(re.findall(r"alert: (\w+)", (CONFIGS / "alerts.yml").read_text()))
    tests = (CONFIGS / "alerts_test.yml").read_text()
    assert set(re.findall(r"alertname: (\w+), eval_time: \w+, exp_alerts: \[\]", tests)) == alerts
    assert set(re.findall(r"- alertname: (\w+)\n", tests)) == alerts


@pytest.mark.parametrize("name", sorted(dashboards.dashboards()))
def test_a_dashboard_is_one_that_grafana_can_lay_out(name: str) -> None:
    board = dashboards.dashboards()[name]
    assert board["uid"].startswith("fleet-")
    assert board["templating"]["list"][0]["type"] == "datasource"
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    cells = [cell for panel in board["panels"] for cell in _cells(panel["gridPos"])]
    assert len(cells) == len(set(cells)), "panels overlap"
    assert all(x < 24 for x, _ in cells)
    for panel in board["panels"]:
        for target in panel.get("targets", []):
            assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert "$__range" not in target["expr"]


def _cells(place: dict[str, Any]) -> Iterator[tuple[int, int]]:
    for x in range(place["x"], place["x"] + place["w"]):
        for y in range(place["y"], place["y"] + place["h"]):
            yield x, y
