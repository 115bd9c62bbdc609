"""How an agent comes up: never by raising, on the runtime that its home has used, and never beside its former self."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.errors import Unavailable
from fleet.node import agent as agent_module
from fleet.node import choose, slot
from fleet.node.agent import Lease, StartingAgent
from fleet.node.choose import PIN, Decision, choose_runtime, decide, read_pin
from fleet.node.facts import facts_of
from fleet.node.moving import while_moving
from fleet.node.runtime import EngineUnavailable, RunKey
from fleet.node.slot import take_slot
from fleet.settings import FleetSettings, NodeSettings
from tests.unit.stub_runtime import SHARE, StubRuntime
from tests.waiting import soon

ROOT = Path(__file__).parents[2]
KEY = RunKey("a", 1)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "fleet-id").write_text("x")
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/e.sock")
    monkeypatch.setattr(choose, "REFUSED_S", 0.2)
    return tmp_path


def settings(home: Path, runtime: Any = "auto") -> FleetSettings:
    return FleetSettings(home=home, runtime=runtime, node=NodeSettings(walls=False))


@pytest.fixture
def engine(home: Path) -> Iterator[socket.socket]:
    """An engine's socket at which nobody answers."""
    os.chdir(home)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("e.sock")
        listening.listen(8)
        yield listening
    os.chdir(ROOT)


# The runtime ------------------------------------------------------------------------------------------------------


async def test_an_engine_that_does_not_answer_is_not_replaced(home: Path, engine: socket.socket) -> None:
    """Not at the first start, and not at a later one."""
    for _ in range(2):
        runtime = await choose_runtime(settings(home), "us-east")
        assert runtime.name == "docker"
        await runtime.close()
    engine.close()
    (home / "e.sock").unlink()
    runtime = await choose_runtime(settings(home), "eu-west")
    assert runtime.name == "docker"
    with pytest.raises(EngineUnavailable):
        await runtime.start()
    await runtime.close()


async def test_a_machine_without_an_engine_keeps_plain_processes(home: Path) -> None:
    runtime = await choose_runtime(settings(home), "us-east")
    assert runtime.name == "process"
    assert json.loads((home / PIN).read_text()) == {"runtime": "process"}
    with socket.socket(socket.AF_UNIX) as late:
        os.chdir(home)
        late.bind("e.sock")
        late.listen(1)
        os.chdir(ROOT)
        kept = await choose_runtime(settings(home), "us-east")
        assert kept.name == "process"
        assert any("FLEET_RUNTIME=docker" in warning for warning in kept.warnings())
        assert not kept._place.closed  # type: ignore[union-attr]
        changed = await choose_runtime(settings(home, "docker"), "us-east")
        assert changed.name == "docker", "nothing is there: the setting is followed"
        await changed.close()
    assert read_pin(home) == "docker"


async def test_a_home_of_an_earlier_version_is_known_by_its_folders(home: Path) -> None:
    (home / "servers" / "a.1").mkdir(parents=True)
    runtime = await choose_runtime(settings(home), "us-east")
    assert runtime.name == "docker"
    await runtime.close()


async def test_a_setting_that_cannot_be_followed_says_so(home: Path) -> None:
    """Plain processes are there, so they go on, and new games, which were to be isolated, do not start."""
    folder = home / "servers" / "a.1"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"fleet_id": "x", "region": "us-east"}))
    runtime = await choose_runtime(settings(home, "docker"), "us-east")
    assert runtime.name == "process"
    assert any("FLEET_RUNTIME=docker is not followed" in warning for warning in runtime.warnings())
    assert runtime._place.closed  # type: ignore[union-attr]


async def test_whether_containers_are_there_must_be_known_before_processes_take_their_place(home: Path) -> None:
    (home / PIN).write_text('{"runtime": "docker"}')
    with pytest.raises(EngineUnavailable, match=r"runtime\.json"):
        await choose_runtime(settings(home, "process"), "us-east")


@given(st.sampled_from(["auto", "docker", "process"]), st.sampled_from(["docker", "process"]), st.integers(0, 3))
def test_games_that_are_there_decide(wanted: Any, pinned: Any, games: int) -> None:
    decision = decide(wanted, pinned, games)
    if games:
        assert decision.kind == pinned
    assert (decision == Decision(decision.kind)) == (wanted in ("auto", decision.kind))


# Coming up --------------------------------------------------------------------------------------------------------


class LocalAgent(StartingAgent):
    def _lease(self) -> Lease:
        return Lease("actor", "ray-node", "127.0.0.1")


async def test_an_agent_whose_start_fails_comes_up_when_it_can(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says meanwhile what is missing; what runs is adopted in the end, by one node, on one slot."""
    local = settings(home, "process")
    made: list[StubRuntime] = []
    away: list[Exception] = [EngineUnavailable("the engine does not answer")]

    async def choose_one(_settings: FleetSettings, _scope: str) -> StubRuntime:
        runtime = StubRuntime()
        runtime.put(KEY)
        if away:
            runtime.faults["list"] = away[0]
        made.append(runtime)
        return runtime

    monkeypatch.setattr(agent_module, "get_settings", lambda: local)
    monkeypatch.setattr(agent_module, "choose_runtime", choose_one)
    monkeypatch.setattr(agent_module, "setup_logging", lambda *_: None)
    agent = LocalAgent("us-east", replace(SHARE, tls_ports=0), facts_of(local))
    agent.begin()
    await soon(lambda: len(made) >= 3, 10, "it is tried again")
    assert all(runtime.calls["close"] == 1 for runtime in made[:-1]), "half a start is closed"
    monkeypatch.setattr("fleet.actors.startup.READY_WAIT_S", 0.1)
    with pytest.raises(Unavailable, match="engine does not answer"):
        async with asyncio.timeout(30):
            await agent._startup.ready(0.1)
    away.clear()
    hello = await agent.hello(1)
    assert [run.key for run in hello.runs] == [KEY]
    assert hello.failures["agent.come_up"] >= 3
    assert [path.name for path in (home / "agents").glob("*.slot")] == ["us-east.0.slot"]
    await agent.close()


async def test_work_that_stands_still_is_let_go() -> None:
    done, moves = asyncio.Event(), iter(range(100))
    began = time.monotonic()
    with pytest.raises(Unavailable, match="stood still"):
        await while_moving(lambda: time.sleep(3), lambda: 0, 0.3, "Fetching")
    assert time.monotonic() - began < 1.5
    assert await while_moving(lambda: time.sleep(0.8) or 7, lambda: next(moves), 0.3, "Fetching") == 7
    with pytest.raises(ValueError, match="bad"):
        await while_moving(lambda: int("bad"), lambda: 0, 0.3, "Fetching")
    done.set()


# Slots ------------------------------------------------------------------------------------------------------------

HOLD = (
    "import sys; from pathlib import Path; from fleet.node.slot import take_slot;"
    "print(take_slot(Path(sys.argv[1]), 'r', sys.argv[2]), flush=True); sys.stdin.read()"
)
PARENT = (
    "import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', sys.argv[1], sys.argv[2], sys.argv[3]],"
    "stdout=subprocess.PIPE, stdin=subprocess.PIPE); child.stdout.readline(); print(child.pid, flush=True);"
    "sys.stdin.read()"
)


def hold(*command: str) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        [sys.executable, "-c", *command], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    while not (line := process.stdout.readline().strip()).isdigit():  # a line of its log
        assert process.poll() is None
    return process, line


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        pipe.close()


def test_an_agent_that_hangs_is_killed_before_its_next_life_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two would be one scope at once. The new one keeps the slot, and so its games."""
    monkeypatch.setattr(slot, "AGAIN_S", 0.3)
    hung, taken = hold(HOLD, str(tmp_path), "a")
    hung.send_signal(signal.SIGSTOP)
    assert take_slot(tmp_path, "r", "a") == int(taken) == 0
    assert hung.wait(5) == -signal.SIGKILL
    end(hung)
    assert take_slot(tmp_path, "r", "a") == 0, "tried again by the same process it is the same slot"


def test_an_agent_whose_raylet_is_dead_makes_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slot, "AGAIN_S", 0.3)
    raylet, pid = hold(PARENT, HOLD, str(tmp_path), "old")
    os.kill(int(pid), signal.SIGSTOP)
    assert take_slot(tmp_path, "r", "new") == 1, "while its raylet lives it is another agent of this machine"
    end(raylet)
    next_life, taken = hold(
        HOLD.replace("import sys;", "import sys; import fleet.node.slot as s; s.AGAIN_S = .3;"), str(tmp_path), "third"
    )
    assert taken == "0"
    end(next_life)


def test_a_holder_that_is_not_known_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slot, "AGAIN_S", 0.2)
    holder, _ = hold(HOLD, str(tmp_path), "a")
    (tmp_path / "r.0.slot").write_text("a")  # as an earlier version wrote it
    with pytest.raises(Unavailable, match="fuser"):
        take_slot(tmp_path, "r", "a")
    end(holder)
    assert take_slot(tmp_path, "r", "a") == 0
