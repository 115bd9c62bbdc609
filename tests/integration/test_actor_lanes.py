"""Long waits take no place from what is quick: in Ray as it is, and in each of the fleet's actors."""

import asyncio
import threading
import time

import pytest
import ray

from fleet.actors.lanes import HEALTH, LANES, LOGS, WATCH, Lanes, lane
from fleet.lobbies.keeper import LobbyKeeper
from fleet.node.agent import NodeAgent
from fleet.node.simulated_host import SimulatedHost
from fleet.region.manager import RegionManager

CALLS = 20
QUICK_S = 2.0  # on a busy machine; without lanes it is as long as the waits
WAIT_S = 20.0


@ray.remote(num_cpus=0, max_concurrency=CALLS, concurrency_groups=LANES)
class Waiting:
    async def __init__(self) -> None:
        self._lanes = Lanes()
        self._thread = threading.get_ident()
        self.waits = 0

    @lane(WATCH)
    async def wait(self, seconds: float) -> bool:
        return await self._lanes.run(lambda: self._wait(seconds))

    async def _wait(self, seconds: float) -> bool:
        self.waits += 1
        try:
            await asyncio.sleep(seconds)
        finally:
            self.waits -= 1
        return threading.get_ident() == self._thread

    async def quick(self) -> int:
        return self.waits

    @lane(HEALTH)
    async def alive(self) -> int:
        return await self._lanes.run(self.quick)


def test_a_thousand_waits_stall_nothing(cluster: None) -> None:
    actor = Waiting.remote()  # type: ignore[attr-defined]
    assert ray.get(actor.wait.remote(0.0), timeout=60), "the work is done in the actor's own loop"
    waits = [actor.wait.remote(WAIT_S) for _ in range(1000)]
    end = time.monotonic() + WAIT_S / 2
    while ray.get(actor.quick.remote()) < 1000:
        assert time.monotonic() < end
    for call in (actor.quick, actor.alive):
        began = time.monotonic()
        assert ray.get(call.remote(), timeout=10) == 1000
        assert time.monotonic() - began < QUICK_S
    for wait in waits:
        ray.cancel(wait)  # whoever asked is gone: nothing waits for nobody
    while ray.get(actor.quick.remote()) > 0:
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("actor", "lanes"),
    [
        (RegionManager, {"reached": WATCH, "logs": LOGS, "wait_logs": LOGS, "usage": LOGS, "status": HEALTH}),
        (NodeAgent, {"poll": WATCH, "logs": LOGS, "wait_logs": LOGS, "usage": LOGS, "alive": HEALTH}),
        (LobbyKeeper, {"poll": WATCH, "metrics": HEALTH, "status": HEALTH}),
        (SimulatedHost, {"alive": HEALTH}),
    ],
)
def test_each_actor_has_its_waits_in_lanes(actor: object, lanes: dict[str, str]) -> None:
    meta = actor.__ray_metadata__  # type: ignore[attr-defined]
    assert meta.concurrency_groups.items() >= LANES.items()
    assert meta.method_meta.concurrency_group_for_methods.items() >= lanes.items()


async def test_a_lane_carries_answers_errors_and_the_end_of_a_caller() -> None:
    lanes, gone = Lanes(), asyncio.Event()

    async def forever() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            gone.set()

    async def fails() -> None:
        raise KeyError("x")

    async def other_loop() -> None:
        assert await lanes.run(lambda: asyncio.sleep(0, "answer")) == "answer"
        with pytest.raises(KeyError):
            await lanes.run(fails)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await lanes.run(forever)

    await asyncio.to_thread(asyncio.run, other_loop())
    async with asyncio.timeout(5):
        await gone.wait()
    assert await lanes.run(lambda: asyncio.sleep(0, "here")) == "here"
