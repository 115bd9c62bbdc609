"""The manager is killed at every step of a claim: one server for one start, and nothing left over."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests import games
from tests.conftest import RunningFleet
from tests.player import Studio, ask, stopped_after
from tests.pools import PoolOf, pool_of

pytestmark = [pytest.mark.fleet, pytest.mark.docker]

REGION = "ap-south"


@pytest.fixture(scope="module")
def pool(studio: Studio) -> Iterator[PoolOf]:
    assert studio.push(games.demo_zip(), "claim-demo")["status"] == "ready"
    with pool_of(studio, REGION, "claim-demo") as found:
        found.wish(count=4, max=4)
        yield found


@pytest.mark.parametrize("point", ["claim.decided", "claim.committed", "claim.told"])
def test_a_killed_manager_claims_once(fleet: RunningFleet, studio: Studio, pool: PoolOf, point: str) -> None:
    pool.full(4)
    (fleet.faults / point).touch()
    with ThreadPoolExecutor(3) as threads:
        starts = [threads.submit(pool.start, wait=False, custom_data={"n": n}) for n in range(3)]
        servers = [start.result() for start in starts]
    assert not (fleet.faults / point).exists(), "nobody passed the point"
    with stopped_after(studio, *servers):
        assert len({server["instance_id"] for server in servers}) == 3
        assert [server["custom_data"] for server in servers] == [{"n": n} for n in range(3)]
        for server in servers:
            seen = studio.server(server, "running")
            assert (seen["status"], seen["custom_data"]) == ("running", server["custom_data"])
            claims = [event for event in studio.events(server) if event["type"] == "claimed"]
            assert len(claims) == (1 if server["start_kind"] == "hot" else 0)
            assert ask(seen, "ping x").startswith("pong")
        # Every claimed server of the region is one of ours: none was claimed for nobody.
        listed = studio.call("GET", "/servers", params={"include_launching": True, "limit": 100})["servers"]
        here = {server["instance_id"] for server in listed if server["region"] == REGION}
        assert here == {server["instance_id"] for server in servers}
        pool.full(4)
