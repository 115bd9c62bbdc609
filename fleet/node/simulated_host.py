"""Many simulated nodes in one process, and the handle by which a region speaks to each as to a `NodeAgent`.

An agent's process takes 50-90 MB, so hundreds of simulated nodes share a few. A node is there as long as its file is
(`simulated.py`), so a region, or this process, that starts anew finds the nodes that it had.
"""

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from fleet.actors.lanes import HEALTH, LOGS, WATCH, Lanes, in_lanes, lane
from fleet.actors.single_flight import SingleFlight
from fleet.actors.startup import Startup
from fleet.actors.tasks import SupervisedTasks
from fleet.actors.watchdog import Watchdog
from fleet.node.agent import SWEEP_LIMIT_S, SWEEP_S, Agent
from fleet.node.choose import choose_runtime
from fleet.node.logs import LogArchive
from fleet.node.model import NodeShare
from fleet.node.node import Node
from fleet.node.runtime import BuildRef, RunKey
from fleet.node.simulated import run_file
from fleet.settings import SIMULATED, NodeSettings, get_settings
from fleet.telemetry.logs import setup_logging

log = structlog.get_logger(__name__)


# As the methods of `NodeAgent` say.
_LANE_OF = {"poll": WATCH, "logs": LOGS, "wait_logs": LOGS, "usage": LOGS}
# Nothing runs there, so there is nothing to look at.
_NO_HABITS = NodeSettings(health_every_s=0, warm_networks=0, usage_every_s=0, reconcile_every_s=60)


@in_lanes
class SimulatedHost:
    """Opens a node when it is first spoken to."""

    async def __init__(self, region: str, share: NodeShare) -> None:
        self._lanes = Lanes()
        self._region = region
        self._share = share
        self._agents: dict[int, Agent] = {}
        self._opening: SingleFlight[int, Agent] = SingleFlight()
        self._tasks = SupervisedTasks("simulated_host", region=region)
        self._startup = Startup(f"The host of simulated nodes of region {region}", self._tasks)
        self._watchdog: Watchdog | None = None
        self._startup.begin(self._come_up)

    async def _come_up(self) -> None:
        self._settings = get_settings()
        self._watchdog = self._watchdog or Watchdog(self._settings.hung_s)
        setup_logging(f"agent-{self._region}", self._settings.home)
        self._archive = LogArchive(self._settings.home / "logs" / "servers", self._settings.logs)
        self._tasks.every("sweep_logs", self._archive.sweep, SWEEP_S, limit_s=SWEEP_LIMIT_S, at_once=True)
        log.warning(SIMULATED, region=self._region, pid=os.getpid())

    @lane(HEALTH)
    async def alive(self) -> None:
        """A sign of life."""
        await self._lanes.run(_nothing)

    async def call(self, number: int, method: str, *arguments: Any) -> Any:
        """What a region asks of node `number`, in the lane that its caller names."""
        return await self._lanes.run(partial(self._call, number, method, *arguments))

    async def _call(self, number: int, method: str, *arguments: Any) -> Any:
        await self._startup.ready()
        agent = self._agents.get(number) or await self._opening.do(number, lambda: self._open(number), for_all=True)
        return await getattr(agent, method)(*arguments)

    async def release(self, number: int) -> None:
        """The region gives the node back: nothing of it is left."""
        await self._startup.ready()
        if number in self._opening:
            await self._opening.do(number, lambda: self._open(number))
        if (opened := self._agents.pop(number, None)) is not None:
            await opened.close()
        run_file(self._settings.home, self._region, str(number)).unlink(missing_ok=True)

    async def _open(self, number: int) -> Agent:
        runtime = await choose_runtime(self._settings, self._region, str(number))
        share = replace(self._share, public_host=f"{self._region}-{number}.simulated.invalid")

        async def keep_log(key: RunKey) -> None:
            await self._archive.keep(runtime, key)

        node_id = f"{self._region}@simulated-{number}"
        node = Node(node_id, share, runtime, _nothing_to_fetch, keep_log, _NO_HABITS, _always_free)
        await node.start()
        agent = self._agents[number] = Agent(node, self._archive)
        return agent


async def _nothing() -> None:
    return None


async def _nothing_to_fetch(_build: BuildRef) -> None:
    return None


def _always_free(_host: str, _port: int) -> bool:
    """Each simulated node plays a machine of its own, on which only its own games have ports."""
    return True


class SimulatedAgent:
    """Speaks like the handle of a NodeAgent: `agent.<method>.remote(...)`."""

    def __init__(self, host: Any, number: int) -> None:
        self.host = host
        self._number = number

    def __getattr__(self, method: str) -> "_Method":
        return _Method(self.host, self._number, method)

    def give_back(self) -> None:
        """End the lease. What runs there is gone."""
        self.host.release.remote(self._number)


class _Method:
    def __init__(self, host: Any, number: int, method: str) -> None:
        self._host = host
        self._call = (number, method)

    def remote(self, *arguments: Any) -> Any:
        lane = _LANE_OF.get(self._call[1])
        call = self._host.call if lane is None else self._host.call.options(concurrency_group=lane)
        return call.remote(*self._call, *arguments)


def simulated_nodes(home: Path, region: str) -> list[int]:
    """Numbers of the region's simulated nodes that are there."""
    found = (path.name.split(".") for path in (home / "simulated").glob(f"{region}.*.jsonl"))
    return sorted(int(parts[1]) for parts in found if parts[1].isdecimal())
