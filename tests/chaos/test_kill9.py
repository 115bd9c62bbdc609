"""kill -9 of every process of ours: games go on untouched, the API tells the truth, nothing is lost or leaked."""

import contextlib
import os
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from fleet.ops.home import Home, find_home
from fleet.ops.processes import command_of, supervised
from fleet.ops.supervisor import lock_holder
from tests import games
from tests.chaos.storm.kinds import KINDS
from tests.conftest import RunningFleet
from tests.player import WAIT_S, Studio, ask

pytestmark = [pytest.mark.fleet, pytest.mark.docker]

REGION = "sea"


@pytest.fixture(scope="module")
def home(fleet: RunningFleet) -> Home:
    found = find_home(fleet.home)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def demo(studio: Studio) -> str:
    assert studio.push(games.demo_zip(), "chaos-demo")["status"] == "ready"
    return "chaos-demo"


def pids(home: Home, word: str) -> list[int]:
    return [pid for pid in supervised(home) if word in command_of(pid)]


def kill(home: Home, word: str) -> list[int]:
    """kill -9 every process of the fleet whose command has the word."""
    found = pids(home, word)
    assert found, f"no {word} runs"
    kill_all(found)
    return found


def kill_all(pids: list[int]) -> None:
    """Some may be gone before it is their turn: they end with their parents."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def containers(home: Home, *, running: bool = True) -> set[str]:
    """`<instance id>.<generation>` of the fleet's containers in the region, as the engine has them."""
    labels = '{{.Label "fleet.server"}}.{{.Label "fleet.generation"}}'
    command = ["docker", "ps", *([] if running else ["--all"]), "--format", labels]
    filters = ["--filter", f"label=fleet.id={home.fleet_id}", "--filter", f"label=fleet.region={REGION}"]
    filters += ["--filter", "label=fleet.server"]  # not the networks made ahead
    return set(subprocess.run(command + filters, check=True, capture_output=True, text=True).stdout.split())


class Match:
    """A game with players in it: their names are only in the game's memory, so they prove that it is the same one."""

    def __init__(self, studio: Studio, build: str) -> None:
        self.studio = studio
        self.server = studio.start(build, region=REGION)
        self.player = f"p{time.monotonic_ns()}"
        assert ask(self.server, f"join {self.player}").startswith("welcome")

    def check(self) -> None:
        seen = self.studio.server(self.server)
        assert seen["status"] == "running", self.studio.events(self.server)
        assert seen["network_ports"] == self.server["network_ports"]
        assert self.player in ask(self.server, "state"), "the game is not the same any more"


@pytest.fixture
def matches(studio: Studio, demo: str) -> Any:
    found = [Match(studio, demo) for _ in range(2)]
    yield found
    for match in found:
        patient(lambda match=match: studio.stop(match.server), "kill-head")


def patient(act: Any, kind: str) -> Any:
    """What a client does while the fleet comes back: try again on 5xx and refused connections.

    No longer than docs promise for that kind of fault (tests/chaos/storm/kinds.py has the pages).
    """
    end = time.monotonic() + KINDS[kind].bound_s
    while True:
        try:
            return act()
        except (httpx.TransportError, AssertionError):
            if time.monotonic() > end:
                raise
            time.sleep(0.3)


def settle(studio: Studio, home: Home, kind: str) -> None:
    """Within what docs promise for that fault every container belongs to a live row, and each live row has its one."""

    def same() -> None:
        rows = studio.call("GET", "/servers", params={"include_launching": True, "limit": 100})["servers"]
        live = {row["instance_id"] for row in rows if row["region"] == REGION}
        assert {name.split(".")[0] for name in containers(home, running=False)} == live
        assert all(row["status"] == "running" for row in rows if row["region"] == REGION)

    patient(same, kind)


def test_the_region_manager(studio: Studio, home: Home, matches: list[Match], demo: str) -> None:
    """Killed amid starts and stops: every start that was acknowledged exists, once."""
    victim = studio.start(demo, region=REGION)
    with ThreadPoolExecutor(6) as pool:
        starts = [
            pool.submit(lambda n=n: studio.start(demo, wait=False, name=f"amid {n}", region=REGION)) for n in range(6)
        ]
        stopping = pool.submit(studio.stop, victim)
        kill(home, "ray::RegionManager")
        started = [start.result() for start in starts]
        stopping.result()
    for match in matches:
        match.check()
    for server in started:
        assert studio.server(server, "running")["status"] == "running", studio.events(server)
    assert studio.server(victim)["status"] == "stopped"
    settle(studio, home, "kill-manager")
    for server in started:
        studio.stop(server)
    settle(studio, home, "kill-manager")


def test_the_node_agent(studio: Studio, home: Home, matches: list[Match], demo: str) -> None:
    """What ends while the agent is dead is told with its exit code; a launch under way is finished."""
    dying = studio.start(demo, region=REGION)
    launching = studio.start(demo, wait=False, region=REGION)
    kill(home, "ray::NodeAgent")
    assert ask(dying, "crash 9") == "crashing"
    assert studio.server(launching, "running")["status"] == "running", studio.events(launching)
    assert studio.server(dying, "stopped")["status"] == "stopped"
    assert studio.last_stop(dying)["exit_code"] == 9
    assert "fatal: asked to crash" in "\n".join(studio.log(dying))
    for match in matches:
        match.check()
    studio.stop(launching)
    settle(studio, home, "kill-agent")


def test_an_api_replica(studio: Studio, home: Home, matches: list[Match]) -> None:
    kill_all(pids(home, "ray::ServeReplica")[:1])
    for match in matches:
        patient(match.check, "kill-replica")
    patient(lambda: studio.call("GET", "/servers"), "kill-replica")


def test_the_proxy(studio: Studio, home: Home, matches: list[Match]) -> None:
    kill(home, "haproxy")
    for match in matches:
        patient(match.check, "kill-proxy")


def test_the_whole_head(studio: Studio, home: Home, matches: list[Match], demo: str) -> None:
    """Everything but the supervisor: Ray, replicas, managers, agents, proxy, at once."""
    dying = studio.start(demo, region=REGION)
    kill_all(supervised(home))
    for match in matches:
        assert match.player in ask(match.server, "state")
    assert ask(dying, "crash 4") == "crashing"
    for match in matches:
        patient(match.check, "kill-head")
    patient(lambda: studio.server(dying, "stopped"), "kill-head")
    assert studio.last_stop(dying)["exit_code"] == 4
    settle(studio, home, "kill-head")
    after = studio.start(demo, region=REGION)
    assert ask(after, "ping 1").startswith("pong")
    studio.stop(after)


def test_the_supervisor_and_the_head(fleet: RunningFleet, studio: Studio, home: Home, matches: list[Match]) -> None:
    """Really everything; the operator types `fleet up` again."""
    supervisor = lock_holder(home)
    assert supervisor is not None
    kill_all([supervisor, *supervised(home)])
    assert fleet.command("up").returncode == 0
    for match in matches:
        patient(match.check, "kill-head")
    settle(studio, home, "kill-head")


def test_a_build_in_the_pipeline(studio: Studio, home: Home) -> None:
    """Killed while it unpacks: the build becomes ready all the same, and no staging folder stays behind."""
    filler = {f"data/{n}.bin": (os.urandom(1 << 20), 0o644) for n in range(48)}
    archive = games.make_zip(games.demo() | filler)
    link = studio.call("POST", "/builds/upload-url", 201, params={"name": "chaos-pipeline"})
    assert httpx.put(link["upload_url"], content=archive, timeout=WAIT_S).status_code == 200
    end = time.monotonic() + WAIT_S
    while not pids(home, "ray::process_build"):
        status = studio.call("GET", f"/builds/{link['build_id']}")["status"]
        assert status == "processing", f"{status} before it could be killed"
        assert time.monotonic() < end
    kill(home, "ray::process_build")
    build = studio.processed(link["build_id"])
    assert build["status"] == "ready", build
    assert not list(home.path.glob("bundles/.staging-*"))
