"""Warm pools on real containers: hot starts, and what may happen to servers that wait."""

import json
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests import games
from tests.player import WAIT_S, Studio, ask, stopped_after
from tests.pools import PoolOf, pool_of

pytestmark = [pytest.mark.fleet, pytest.mark.docker]

REGION = "ap-north"


@pytest.fixture(scope="module")
def build(studio: Studio) -> str:
    assert studio.push(games.demo_zip(), "pool-demo")["status"] == "ready"
    return "pool-demo"


@pytest.fixture
def pool(studio: Studio, build: str) -> Iterator[PoolOf]:
    with pool_of(studio, REGION, build) as found:
        found.wish(count=2, max=4)
        found.full(2)
        yield found


def test_a_start_is_hot_and_the_game_learns_whose_it_is(studio: Studio, pool: PoolOf) -> None:
    idle = {server["instance_id"] for server in pool.idle()}
    server = pool.start(wait=False, custom_data={"map": "dust"}, match_id="m-7", ttl=3600, name="mine")
    with stopped_after(studio, server):
        assert server["instance_id"] in idle
        assert (server["status"], server["start_kind"], server["name"]) == ("running", "hot", "mine")
        assert server["ttl"] == 3600
        end = time.monotonic() + 10
        while json.loads(state := ask(server, "state"))["custom_data"] != {"map": "dust"}:
            assert time.monotonic() < end, state
        types = [event["type"] for event in studio.events(server)]
        assert types[-1] == "claimed"
        studio.call("POST", f"/servers/{server['instance_id']}/restart", 409)
        refilled = pool.full(2)
        assert refilled["demand"]["hits"] >= 1
        assert refilled["stock"]["claimed"] == 1
        assert server["instance_id"] not in {s["instance_id"] for s in pool.idle()}


def test_a_burst_is_served_hot_then_cold_and_nothing_twice(studio: Studio, pool: PoolOf) -> None:
    with ThreadPoolExecutor(8) as threads:
        starts = [threads.submit(pool.start, wait=False, custom_data={"n": n}) for n in range(8)]
        servers = [start.result() for start in starts]
    with stopped_after(studio, *servers):
        assert len({server["instance_id"] for server in servers}) == 8
        kinds = [server["start_kind"] for server in servers]
        assert kinds.count("hot") >= 2
        assert [server["custom_data"] for server in servers] == [{"n": n} for n in range(8)]
        for server in servers:
            assert studio.server(server, "running")["status"] == "running"
            assert ask(server, "ping x").startswith(f"pong {server['instance_id'][:8]}")


def test_a_frozen_server_is_woken_for_its_player(studio: Studio, pool: PoolOf) -> None:
    pool.wish(count=2, max=4, hot=0)
    pool.until(lambda view: view["stock"]["frozen"] == 2)
    server = pool.start(wait=False, custom_data={"map": "ice"})
    with stopped_after(studio, server):
        assert (server["status"], server["start_kind"]) == ("running", "hot")
        assert ask(server, "ping x").startswith("pong")
        pool.wish(count=2, max=4)
        pool.until(lambda view: view["stock"]["warm"] == 2 and not view["stock"]["frozen"])


def test_an_idle_server_that_dies_is_never_given_and_is_replaced(studio: Studio, pool: PoolOf) -> None:
    victim = pool.idle()[0]
    name = f"-{victim['instance_id']}-1"
    found = subprocess.run(
        ["docker", "ps", "-q", "--filter", f"name={name}"], capture_output=True, text=True, check=True
    )
    subprocess.run(["docker", "kill", found.stdout.strip()], check=True, capture_output=True)
    assert studio.server(victim, "stopped")["status"] == "stopped"
    first = pool.start(wait=False)
    with stopped_after(studio, first):
        assert first["instance_id"] != victim["instance_id"]
        assert ask(first, "ping x").startswith("pong")
        pool.full(2)


def test_a_new_version_takes_over_one_by_one(studio: Studio, pool: PoolOf, build: str) -> None:
    old = {server["instance_id"] for server in pool.idle()}
    version = studio.push(games.demo_zip(), build)["version"]
    lowest = 99

    def taken_over() -> bool:
        nonlocal lowest
        idle = [server for server in pool.idle() if server["status"] == "running"]
        lowest = min(lowest, len(idle))
        return len(idle) >= 2 and all(server["version"] == version for server in idle)

    end = time.monotonic() + WAIT_S
    while not taken_over():
        assert time.monotonic() < end, pool.view()
        time.sleep(0.1)
    assert lowest >= 2, "fewer than the target stood ready meanwhile"
    assert not old & {server["instance_id"] for server in pool.idle()}
    server = pool.start(wait=False)
    with stopped_after(studio, server):
        assert (server["version"], server["start_kind"]) == (version, "hot")


def test_pools_that_are_switched_off_leave_claimed_servers_alone(studio: Studio, pool: PoolOf) -> None:
    server = pool.start(wait=False)
    with stopped_after(studio, server):
        pool.wish()
        end = time.monotonic() + WAIT_S
        while pool.idle():
            assert time.monotonic() < end
            time.sleep(0.1)
        assert studio.server(server)["status"] == "running"
        assert ask(server, "ping x").startswith("pong")


def test_a_build_that_does_not_boot_is_not_tried_for_ever(studio: Studio, build: str) -> None:
    broken = studio.push(games.make_zip(games.crash(3)), "pool-broken")
    assert broken["status"] == "ready"
    with pool_of(studio, REGION, "pool-broken") as pool:
        pool.wish(count=3)
        seen = pool.until(lambda view: view["blocked"] and view["blocked"]["failures"] >= 2)
        assert seen["stock"]["warm"] == 0
        assert "crashed" in seen["blocked"]["last"]
        assert seen["demand"]["boot_failures"] < 20
        other = studio.start(build, region=REGION)
        studio.stop(other)
