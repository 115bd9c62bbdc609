"""Many simulated nodes in one process, and the handle by which a region speaks to each as to a `NodeAgent`.

An agent's process takes 50-90 MB, so hundreds of simulated nodes share a few. A node is there as long as its file is
(`simulated.py`), so a region, or this process, that starts anew finds the nodes that it had.
"""

import asyncio
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import structlog

from fleet.node.agent import Agent, sweep
from fleet.node.choose import choose_runtime
from fleet.node.logs import LogArchive
from fleet.node.model import NodeShare
from fleet.node.node import Node
from fleet.node.runtime import BuildRef, RunKey
from fleet.node.simulated import run_file
from fleet.settings import SIMULATED, NodeSettings, get_settings
from fleet.telemetry.logs import setup_logging

log = structlog.get_logger(__name__)


# Nothing runs there, so there is nothing to look at.
_NO_HABITS = NodeSettings(health_every_s=0, warm_networks=0, usage_every_s=0, reconcile_every_s=60)


@ray.remote
class SimulatedHost:
    """Opens a node when it is first spoken to."""

    async def __init__(self, region: str, share: NodeShare) -> None:
        self._settings = get_settings()
        setup_logging(f"agent-{region}", self._settings.home)
        self._region = region
        self._share = share
        self._archive = LogArchive(self._settings.home / "logs" / "servers", self._settings.logs)
        self._agents: dict[int, asyncio.Task[Agent]] = {}
        self._sweeper = asyncio.create_task(sweep(self._archive))
        log.warning(SIMULATED, region=region, pid=os.getpid())

    async def call(self, number: int, method: str, *arguments: Any) -> Any:
        """What a region asks of node `number`."""
        if number not in self._agents:
            self._agents[number] = asyncio.create_task(self._open(number))
        agent = await asyncio.shield(self._agents[number])
        return await getattr(agent, method)(*arguments)

    async def release(self, number: int) -> None:
        """The region gives the node back: nothing of it is left."""
        if (opened := self._agents.pop(number, None)) is not None:
            await (await opened).close()
        run_file(self._settings.home, self._region, str(number)).unlink(missing_ok=True)

    async def _open(self, number: int) -> Agent:
        runtime = await choose_runtime(self._settings, self._region, str(number))
        share = replace(self._share, public_host=f"{self._region}-{number}.simulated.invalid")

        async def keep_log(key: RunKey) -> None:
            await self._archive.keep(runtime, key)

        node_id = f"{self._region}@simulated-{number}"
        node = Node(node_id, share, runtime, _nothing_to_fetch, keep_log, _NO_HABITS, _always_free)
        await node.start()
        return Agent(node, self._archive)


async def _nothing_to_fetch(_build: BuildRef) -> None:
    return None


def _always_free(_host: str, _port: int) -> bool:
    """Each simulated node plays a machine of its own, on which only its own games have ports."""
    return True


class SimulatedAgent:
    """Speaks like the handle of a NodeAgent: `agent.<method>.remote(...)`."""

    def __init__(self, host: Any, number: int) -> None:
        self._host = host
        self._number = number

    def __getattr__(self, method: str) -> "_Method":
        return _Method(self._host, self._number, method)

    def give_back(self) -> None:
        """End the lease. What runs there is gone."""
        self._host.release.remote(self._number)


class _Method:
    def __init__(self, host: Any, number: int, method: str) -> None:
        self._host = host
        self._call = (number, method)

    def remote(self, *arguments: Any) -> Any:
        return self._host.call.remote(*self._call, *arguments)


def simulated_nodes(home: Path, region: str) -> list[int]:
    """Numbers of the region's simulated nodes that are there."""
    found = (path.name.split(".") for path in (home / "simulated").glob(f"{region}.*.jsonl"))
    return sorted(int(parts[1]) for parts in found if parts[1].isdecimal())
