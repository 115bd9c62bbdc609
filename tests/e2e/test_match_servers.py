"""From a match to its server: a warm one where there is one, and pools that know who waits."""

import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from tests import games
from tests.clients.unity_v3 import UnityV3
from tests.conftest import RunningFleet
from tests.player import Studio, ask, lobby_config
from tests.pools import PoolOf, pool_of
from tests.waiting import eventually

pytestmark = [pytest.mark.fleet, pytest.mark.docker]

REGION, BUILD = "ea", "match-demo"  # no other test plays there


@pytest.fixture(scope="module")
def config(studio: Studio) -> Iterator[str]:
    assert studio.push(games.demo_zip(), BUILD)["status"] == "ready"
    mode = {"teams": 2, "playersPerTeam": 1, "timeout": 120}
    server = {"serverSize": "micro", "gameBuild": BUILD}
    matches = {"name": "matches", "serverSettings": server, "matchmaking": {"modes": {"duel": mode}}}
    with lobby_config(studio, matches) as name:
        yield name


@pytest.fixture
def pool(studio: Studio, config: str) -> Iterator[PoolOf]:
    with pool_of(studio, REGION, BUILD) as found:
        found.wish(count=1, max=2)
        found.full(1)
        yield found


@pytest.fixture
def duellists(fleet: RunningFleet, config: str) -> Iterator[list[UnityV3]]:
    """Two hosts of lobbies of one, each."""
    found = [UnityV3(fleet.url, fleet.client_key, f"{name}-{uuid.uuid4().hex[:8]}", config) for name in ("ann", "bob")]
    for player in found:
        player.lobby("POST", "", {"name": "duel", "region": REGION})
    yield found
    for player in found:
        player.send("DELETE", "/me")
        player.http.close()


def queue(*players: UnityV3) -> None:
    for player in players:
        player.lobby("POST", "/me/matchmaking", {"mode": "duel"})


def playing(player: UnityV3) -> dict[str, Any]:
    """The lobby, once it is in a game that runs."""
    seen: dict[str, Any] = {}

    def runs() -> bool:
        seen.update(player.lobby("GET", "/me"))
        return seen["status"] == "in_game" and seen["server"]["status"] == "running"

    eventually(runs, 60, "the match has a running server")
    return seen


def test_a_match_gets_the_warm_server_and_its_game_learns_who_plays(
    studio: Studio, pool: PoolOf, duellists: list[UnityV3]
) -> None:
    idle = {server["instance_id"] for server in pool.idle()}
    queue(*duellists)
    lobbies = [playing(player) for player in duellists]
    server = studio.server(lobbies[0]["server"])
    assert server["instance_id"] in idle
    assert (server["start_kind"], server["region"], server["match_id"]) == ("hot", REGION, lobbies[0]["matchId"])
    told: dict[str, Any] = {}

    def knows() -> bool:
        told.update(json.loads(ask(server, "state"))["custom_data"] or {})
        return told.get("match_id") == lobbies[0]["matchId"]

    eventually(knows, 20, "the game knows of its match")
    assert set(told["all_players"]) == {player.player for player in duellists}
    assert set(told["lobby_ids"]) == {lobby["id"] for lobby in lobbies}
    for player in duellists:
        player.lobby("POST", "/me/end-match")
    studio.until_gone(server)
    pool.full(1)


def test_pools_hear_of_who_waits_and_when_they_wait_no_more(pool: PoolOf, duellists: list[UnityV3]) -> None:
    queue(*duellists)
    playing(duellists[0])
    for player in duellists:
        player.lobby("POST", "/me/end-match")
    queue(duellists[0])  # half of a match, which others of late found at once

    def announced(view: dict[str, Any]) -> float:
        return sum(view["explanation"]["announced"])

    pool.until(lambda view: announced(view) == 0.5)
    duellists[0].lobby("DELETE", "/me/matchmaking")
    pool.until(lambda view: announced(view) == 0)
