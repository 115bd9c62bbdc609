"""The engine is away for a minute, and every agent dies meanwhile: games go on, and nothing takes its place."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet.node.choose import PIN
from fleet.ops.home import find_home
from tests import games
from tests.chaos.test_kill9 import Match, containers, kill, pids
from tests.conftest import RunningFleet, fleet_environment, run_fleet, started_fleet
from tests.engine_proxy import ProxyProcess
from tests.player import Studio, ask
from tests.waiting import eventually

pytestmark = [pytest.mark.fleet, pytest.mark.docker]
AWAY_S = 60.0
BACK_S = 30.0  # an agent's tries are 5 s apart at most, a region's 2 s


@pytest.fixture(scope="module")
def proxy() -> Iterator[ProxyProcess]:
    with tempfile.TemporaryDirectory(prefix="fl") as folder:
        proxy = ProxyProcess(Path(folder) / "e.sock")
        yield proxy
        proxy.close()


@pytest.fixture(scope="module")
def fleet(proxy: ProxyProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningFleet]:
    """A fleet of its own, whose engine is the proxy."""
    env = fleet_environment(tmp_path_factory.mktemp("fleet")) | {"DOCKER_HOST": f"unix://{proxy.path}"}
    try:
        yield started_fleet(env)
    finally:
        proxy.order("back")
        down = run_fleet(env, "down")
    assert down.returncode == 0, down.stdout + down.stderr


@pytest.fixture(scope="module")
def studio(fleet: RunningFleet) -> Iterator[Studio]:
    found = Studio(fleet.url, fleet.server_key)
    yield found
    found.http.close()


def test_games_are_untouched_and_none_runs_without_isolation(
    fleet: RunningFleet, studio: Studio, proxy: ProxyProcess
) -> None:
    home = find_home(fleet.home)
    assert home is not None
    assert studio.push(games.demo_zip(), "away")["status"] == "ready"
    match, stopped = Match(studio, "away"), Match(studio, "away")
    before = containers(home)
    proxy.order("away")
    kill(home, "ray::NodeAgent")
    studio.stop(stopped.server)
    waiting = studio.start("away", wait=False, region="sea")
    end = time.monotonic() + AWAY_S
    while time.monotonic() < end:
        assert match.player in ask(match.server, "state"), "the game is not the same any more"
        time.sleep(2)
    assert containers(home) == before, "the engine's containers are as they were"
    assert (fleet.home / PIN).read_text() == '{"runtime":"docker"}'
    assert not list((fleet.home / "servers").glob("*/run.json")), "no plain process took their place"
    assert pids(home, "ray::NodeAgent"), "agents wait for their engine"
    proxy.order("back")
    eventually(lambda: studio.server(match.server)["status"] == "running", BACK_S, "the game is what its row says")
    match.check()
    eventually(lambda: studio.server(stopped.server)["status"] == "stopped", BACK_S, "the stop is done")
    eventually(lambda: studio.server(waiting)["status"] == "running", BACK_S, "the start is done")
    last = f"{waiting['instance_id']}."
    eventually(lambda: any(name.startswith(last) for name in containers(home)), BACK_S, "it is a container")
