"""What keepers of lobbies count."""

import pickle
from collections.abc import Collection
from pathlib import Path

from prometheus_client import Metric

from fleet.catalog import load_catalog
from fleet.lobbies.metrics import KeeperMetrics, KeeperSample
from fleet.telemetry.metrics import HttpMetrics
from fleet.telemetry.scrape import Scrape
from tests.unit.api_kit import Api
from tests.unit.test_scrape import samples


class Keepers:
    """Shard 0 answers, shard 1 does not."""

    def __init__(self, metrics: KeeperMetrics) -> None:
        self._metrics = metrics

    async def metrics(self, expected: Collection[str]) -> dict[str, list[Metric] | None]:
        assert not expected
        return {"0": pickle.loads(pickle.dumps(self._metrics.collect())), "1": None}


async def test_they_stand_beside_the_rest_and_a_silent_one_is_told(api: Api) -> None:
    keeper = KeeperMetrics(0, lambda: KeeperSample(queued=[(3, 7, 12.5), (1, 1, 40.0)], streams=5))
    for outcome in ("done", "done", "refused"):
        keeper.command(outcome)
    keeper.match("ended")
    keeper.waited(2.0)
    scrape = Scrape(HttpMetrics(), api.store, load_catalog(), Path("/"), keepers=Keepers(keeper))
    found = samples(await scrape.text())
    assert found["fleet_lobbies_up{shard=0}"] == 1
    assert found["fleet_lobbies_up{shard=1}"] == 0
    assert found["fleet_lobby_commands_total{outcome=done,shard=0}"] == 2
    assert found["fleet_matches_over_total{outcome=ended,shard=0}"] == 1
    assert found["fleet_queue_tickets{shard=0}"] == 4
    assert found["fleet_queue_players{shard=0}"] == 8
    assert found["fleet_queue_oldest_seconds{shard=0}"] == 40.0
    assert found["fleet_lobby_streams{shard=0}"] == 5
    assert found["fleet_queue_wait_seconds_bucket{le=2.5,shard=0}"] == 1
    assert found["fleet_scrape_up{part=lobbies}"] == 1
