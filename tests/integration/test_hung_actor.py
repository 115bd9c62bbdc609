"""What the fleet relies on when an actor hangs: Ray kills it whatever it does, and its successor answers soon."""

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._private import state as ray_state

from fleet.actors.watchdog import Watchdog
from fleet.region.agents import Presence, RayAgents

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("cluster")]
HUNG_S = 6.0
KILLED_S = 15.0  # Ray asks the process to end, and its raylet sends SIGKILL 5 s later
BEGUN_S = 45.0  # a worker's start on a busy machine


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=0)
class Hanging:
    async def __init__(self, hung_s: float) -> None:
        self._watchdog = Watchdog(hung_s)

    async def pid(self) -> int:
        return os.getpid()

    async def alive(self) -> None: ...

    async def stick(self) -> None:
        time.sleep(1000)  # noqa: ASYNC251


def made(hung_s: float) -> tuple[Any, int]:
    actor = Hanging.remote(hung_s)  # type: ignore[attr-defined]
    return actor, ray.get(actor.pid.remote(), timeout=BEGUN_S)


def successor(actor: Any, old: int, bound_s: float) -> float:
    """Seconds until another process answers for the actor."""
    began = time.monotonic()
    while time.monotonic() - began < bound_s:
        try:
            if ray.get(actor.pid.remote(), timeout=1.0) != old:
                return time.monotonic() - began
        except Exception:  # what it raises until then is Ray's business
            time.sleep(0.2)
    raise AssertionError(f"no successor within {bound_s} s")


@pytest.fixture(params=["stopped", "stuck"])
def hang(request: pytest.FixtureRequest) -> Any:
    def stopped(_actor: Any, pid: int) -> None:
        os.kill(pid, signal.SIGSTOP)

    def stuck(actor: Any, _pid: int) -> None:
        actor.stick.remote()
        time.sleep(1.0)

    return stopped if request.param == "stopped" else stuck


def test_a_region_that_asks_for_it_has_a_hung_agent_begun_anew(hang: Any) -> None:
    actor, pid = made(0)
    agents = RayAgents("us-east", {}, {}, None)  # type: ignore[arg-type]
    assert asyncio.run(agents.presence(actor)) is Presence.ANSWERS
    hang(actor, pid)
    assert asyncio.run(agents.presence(actor)) is Presence.HANGS
    agents.restart(actor)
    print(f"answers again after {successor(actor, pid, KILLED_S + BEGUN_S):.1f} s")
    assert not Path(f"/proc/{pid}").exists()
    ray.kill(actor)


def test_an_actor_that_hangs_is_ended_by_its_own_watchdog(hang: Any) -> None:
    """Nobody asks for it: a region's manager has nobody above it."""
    actor, pid = made(HUNG_S)
    hang(actor, pid)
    print(f"answers again after {successor(actor, pid, HUNG_S + BEGUN_S):.1f} s")
    ray.kill(actor)


def test_an_agent_that_waits_for_a_machine_is_no_hung_one() -> None:
    actor = Hanging.options(resources={"node:nowhere": 1}).remote(0)  # type: ignore[attr-defined]
    agents = RayAgents("us-east", {}, {}, None)  # type: ignore[arg-type]
    time.sleep(1.0)
    assert asyncio.run(agents.presence(actor)) is Presence.WAITING
    agents.restart(actor)  # harmless; Ray says of it what it says of one that it starts again
    time.sleep(1.0)
    assert asyncio.run(agents.presence(actor)) is Presence.RETURNS
    agents.give_back(actor)
    time.sleep(1.0)
    assert asyncio.run(agents.presence(actor)) is Presence.GONE
    assert ray_state.actors(actor._actor_id.hex())["State"] == "DEAD"
