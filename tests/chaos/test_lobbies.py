"""The keeper of lobbies is killed at each step: nothing acknowledged is lost, a match has one server, none is left."""

import json
import subprocess
import sys
from typing import Any

import pytest

from tests import games
from tests.conftest import ROOT, RunningFleet
from tests.player import Studio

pytestmark = [pytest.mark.fleet, pytest.mark.docker]

CONFIG = {
    "name": "chaos",
    "maxPlayers": 4,
    "serverSettings": {"serverSize": "micro", "gameBuild": "lobby-demo"},
    "matchmaking": {"modes": {"pairs": {"teams": 2, "playersPerTeam": 2}}},
}


@pytest.fixture(scope="module")
def lobby_config(studio: Studio) -> str:
    assert studio.push(games.demo_zip(), "lobby-demo")["status"] == "ready"
    studio.call("POST", "/projects/settings", json={"lobby_configs": [CONFIG]})
    return "chaos"


@pytest.mark.parametrize(
    "point", ["lobby.decided", "lobby.committed", "lobby.starting", "lobby.started", "lobby.active", "lobby.stopping"]
)
def test_a_killed_keeper_loses_nothing(fleet: RunningFleet, lobby_config: str, point: str) -> None:
    seen = play(fleet, lobby_config, point)
    assert seen == {"fired": True, "kept": [True] * 6, "matches": 3, "servers": 3, "stopped": True, "free": True}


def play(fleet: RunningFleet, config: str, point: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.chaos.lobby_players", str(fleet.home), fleet.project_id, config]
    done = subprocess.run(
        [*command, str(fleet.faults / point)],
        env=fleet.env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
    return json.loads(done.stdout.splitlines()[-1])
