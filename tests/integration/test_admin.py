"""`fleet.admin` as an operator's script uses it: a process of its own that joins the running fleet."""

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests import games
from tests.conftest import ROOT, RunningFleet
from tests.player import Studio, ask, stopped_after

pytestmark = [pytest.mark.fleet]

REGION = "ap-north"


@pytest.fixture(scope="module")
def server(studio: Studio) -> Iterator[dict[str, Any]]:
    assert studio.push(games.demo_zip(), "admin-demo")["status"] == "ready"
    port = [{"name": "game", "internal_port": 7777, "protocol": "udp"}]
    found = studio.start("admin-demo", region=REGION, port_configs=port)
    with stopped_after(studio, found):
        yield found


def script(fleet: RunningFleet, body: str) -> Any:
    """Run an operator's script on the fleet; what it prints as its last line, from JSON."""
    text = f"import json\nfrom fleet.admin import Fleet\nwith Fleet({str(fleet.home)!r}) as fleet:\n    {body}\n"
    done = subprocess.run(
        [sys.executable, "-c", text], env=fleet.env, cwd=ROOT, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_regions_nodes_and_servers(fleet: RunningFleet, server: dict[str, Any]) -> None:
    running = script(fleet, "print(json.dumps({r.region: r.running for r in fleet.regions()}))")
    assert len(running) >= 12
    assert running[REGION] == 1
    ids = script(fleet, f"print(json.dumps([s.instance_id for s in fleet.servers({REGION!r})]))")
    assert ids == [server["instance_id"]]
    fields = "[[n.runs, n.synced, n.memory_mb - n.memory_free_mb] for n in fleet.nodes(REGION)]"
    nodes = script(fleet, f"print(json.dumps({fields.replace('REGION', repr(REGION))}))")
    assert nodes == [[1, True, 512]]


def test_a_drained_node_takes_nothing_new_and_keeps_what_it_has(
    fleet: RunningFleet, studio: Studio, server: dict[str, Any]
) -> None:
    drain = f"[fleet.drain({REGION!r}, n.node_id, draining=DRAINING) for n in fleet.nodes({REGION!r})]; print(1)"
    script(fleet, drain.replace("DRAINING", "True"))
    refused = studio.start("admin-demo", region=REGION, wait=False, expect=409)
    assert "limit" in refused["error"].lower()
    assert ask(server, "ping 1").startswith("pong")
    script(fleet, drain.replace("DRAINING", "False"))
    again = studio.start("admin-demo", region=REGION)
    studio.stop(again)


def test_logs_and_stop(fleet: RunningFleet, studio: Studio, server: dict[str, Any]) -> None:
    name = server["instance_id"]
    lines = script(fleet, f"print(json.dumps([line.message for line in fleet.logs({name!r})]))")
    assert any("ready on UDP" in line for line in lines)
    script(fleet, f"print(json.dumps(fleet.stop({name!r}).status))")
    assert studio.server(server)["status"] == "stopped"
    tail = script(fleet, f"print(json.dumps([line.message for line in fleet.tail({name!r})]))")
    assert any("shutting down" in line for line in tail)


def test_without_a_fleet_it_says_how_to_start_one(tmp_path: Any) -> None:
    text = f"from fleet.admin import Fleet\nFleet({str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "fleet up" in done.stderr
