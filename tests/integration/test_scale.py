"""Hundreds of servers on simulated nodes, under the real API, managers, agents and database.

The run of 10,000 on 200 nodes is the same code: `make bench-scale` (docs/scale.md).
"""

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from rich.console import Console

from bench.own_fleet import OwnFleet, own_fleet
from bench.scale import Run, live_rows, managers_of, measured, node_runs, nodes_config, sound
from bench.swarm import each, swarm
from bench.warm import Place, newest_build, put_warm
from fleet.admin import Fleet
from fleet.region.nodes_config import NodesConfig
from fleet.settings import FleetSettings
from fleet.store.engine import Store
from tests.conftest import RunningFleet, run_fleet
from tests.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
REGIONS = ["us-east", "us-west"]


def test_500_servers_on_20_nodes_are_all_started_seen_and_stopped(fleet: RunningFleet) -> None:
    with Fleet(fleet.home) as other:  # a script may visit one fleet after another; each has a token of its own
        assert other.status(REGIONS[0])["region"] == REGIONS[0]
    with own_fleet(nodes_config(REGIONS, 20, 500), SIMULATED__BOOT_S="1") as own:
        nodes_say = run_fleet(own.env, "status").stdout
        assert "SIMULATED" in nodes_say
        own.push_demo()

        async def run() -> dict[str, object]:
            async with swarm(own.url, own.key, REGIONS) as servers:
                return await measured(Run(own, status, servers, 32), [100, 500], Console(quiet=True))

        with managers_of(own) as status:
            figures = asyncio.run(run())
    assert sound(figures) == []
    books = figures["books_and_nodes"]
    assert isinstance(books, dict)
    assert (books["rows"], books["runs"]) == (500, 500)


POOL, CLAIMS, SIZE = 10, 1000, "micro"
# Whatever boots stays booting while the test looks, so that only what was warm before can be hot.
LONG_BOOT = {"SIMULATED__BOOT_S": "900", "SIMULATED__BOOT_SPREAD": "0", "SERVERS__READY_DEADLINE_S": "1800"}


def test_of_1000_claims_at_once_on_a_pool_of_ten_ten_are_hot_and_none_is_lost() -> None:
    [region] = regions = REGIONS[:1]
    config = nodes_config(regions, 10, CLAIMS + 100)
    with own_fleet(config, **LONG_BOOT) as fleet:
        fleet.push_demo()
        asyncio.run(fill_pool(fleet, region, config))
        wish = {"enabled": True, "regions": {region: {SIZE: POOL}}, "policy": {"mode": "fixed"}}
        fleet.call("POST", "/projects/settings", json={"pool_config": wish})
        fleet.until_warm({(region, SIZE): POOL})

        async def start_all() -> list[dict[str, object]]:
            async with swarm(fleet.url, fleet.key, regions) as servers:
                return [server for server, _ in await each(range(CLAIMS), servers.start, CLAIMS)]

        answers = asyncio.run(start_all())
        hot = {str(server["instance_id"]) for server in answers if server["start_kind"] == "hot"}
        assert len(hot) == POOL
        assert {server["status"] for server in answers if server["instance_id"] in hot} == {"running"}
        assert len({server["instance_id"] for server in answers}) == CLAIMS
        assert claimed(fleet.home) == hot
        cold = {str(server["instance_id"]) for server in answers} - hot

        def all_on_nodes() -> bool:
            return cold <= {key.instance_id for key in node_runs(fleet.home)}

        eventually(all_on_nodes, 180, "every cold start has a run on a node")
        assert {key.instance_id for key in live_rows(fleet.home)} == hot
        assert unclaimed(fleet.home) <= POOL, "the pool was refilled beyond its count"


async def fill_pool(fleet: OwnFleet, region: str, config: dict[str, object]) -> None:
    store = Store(FleetSettings(home=fleet.home).database)
    share = NodesConfig.model_validate(config).node(region)
    await put_warm(store, Place(fleet.home, region, share, 2, await newest_build(store)), {SIZE: POOL})
    await store.close()


def claimed(home: Path) -> set[str]:
    """Pool servers that were given to somebody, each by one claim."""
    query = "SELECT instance_id, last_op FROM server WHERE is_pool_server AND pool_claimed_at IS NOT NULL"
    with closing(sqlite3.connect(f"file:{home}/fleet.db?mode=ro", uri=True)) as db:
        rows = db.execute(query).fetchall()
    assert len({op for _, op in rows}) == len(rows)
    return {name for name, _ in rows}


def unclaimed(home: Path) -> int:
    query = "SELECT count(*) FROM server WHERE is_pool_server AND pool_claimed_at IS NULL AND step != 'stopped'"
    with closing(sqlite3.connect(f"file:{home}/fleet.db?mode=ro", uri=True)) as db:
        return int(db.execute(query).fetchone()[0])
