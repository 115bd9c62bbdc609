"""An agent that hangs while its machine lives: starts work again within a minute, and its games never notice."""

import json
import os
import signal
import time

import httpx
import pytest

from tests import games
from tests.conftest import RunningFleet
from tests.player import Studio, ask, stopped_after

pytestmark = [pytest.mark.fleet, pytest.mark.slow]

BOUND_S = 60.0


def agent_of(fleet: RunningFleet, region: str) -> int:
    """Its process, as it said in its log last."""
    lines = (fleet.home / "logs" / f"agent-{region}.log").read_text().splitlines()
    ready = [json.loads(line) for line in lines if '"agent_ready"' in line]
    return ready[-1]["pid"]


def runs(studio: Studio, build: str) -> bool:
    """Whether a start leads to a running server."""
    body = {"name": build, "region": "us-east", "compute_size": "micro", "version_tag": build}
    try:
        made = studio.call("POST", "/servers/start", 201, json=body, params={"wait_for": "running", "timeout": 10})
    except (AssertionError, httpx.HTTPError):
        return False
    studio.stop(made)
    return made["status"] == "running"


def test_starts_work_again_and_games_go_on(studio: Studio, fleet: RunningFleet) -> None:
    assert studio.push(games.demo_zip(), "hung-demo")["status"] == "ready"
    server = studio.start("hung-demo")
    with stopped_after(studio, server):
        pid = agent_of(fleet, "us-east")
        os.kill(pid, signal.SIGSTOP)
        began = time.monotonic()
        while not runs(studio, "hung-demo"):
            assert time.monotonic() - began <= BOUND_S
            assert ask(server, "ping 1").startswith("pong")
            time.sleep(0.5)
        took = time.monotonic() - began
        print(f"starts work again {took:.1f} s after the agent was stopped")
        assert took <= BOUND_S
        assert agent_of(fleet, "us-east") != pid
        after = studio.server(server)
        same = ("status", "network_ports", "started_at")
        assert [after[name] for name in same] == [server[name] for name in same]
        assert ask(server, "ping 2").startswith("pong")
