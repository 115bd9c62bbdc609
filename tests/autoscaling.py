"""What `test_autoscaler.py` plays against Ray's real autoscaler: `python -m tests.autoscaling HOME`.

It is a process of its own, since a process can speak to one Ray cluster only. What was seen is printed as JSON.
"""

import asyncio
import json
import os
import signal
import sys
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import ray

from fleet.ops.home import Home
from fleet.ops.processes import command_of, environment_of, supervised
from fleet.region.client import RegionClient
from fleet.region.names import NAMESPACE
from fleet.settings import get_settings
from fleet.store.engine import Store
from fleet.store.migrate import upgrade
from fleet.store.tables import Build, Server
from fleet.times import now_ms
from tests.fake_nodes import NODE_ADDRESS
from tests.games import demo_zip
from tests.unit.builds_kit import open_builds

REGION = "us-east"


def ray_nodes() -> dict[str, list[str]]:
    """Ray's living nodes by what they offer: region -> node ids."""
    found: dict[str, list[str]] = {}
    for node in ray.nodes():
        for name in node["Resources"] if node["Alive"] else ():
            if name.startswith("node:") and name.split(":")[1] in ("us-east", "eu-west"):
                found.setdefault(name.split(":")[1], []).append(node["NodeID"])
    return found


class Play:
    def __init__(self, home: Home) -> None:
        self.home = home
        self.settings = get_settings()
        self.store = Store(self.settings.database)
        self.regions = RegionClient(self.store)
        self.seen: dict[str, Any] = {}

    async def until(self, what: str, holds: Callable[[], Awaitable[bool]], timeout_s: float = 60.0) -> float:
        began = time.monotonic()
        while not await holds():
            if time.monotonic() - began > timeout_s:
                nodes = (await self.regions.status(REGION))["nodes"]
                raise AssertionError(f"not within {timeout_s} s: {what}; nodes {nodes}; Ray {ray_nodes()}")
            await asyncio.sleep(0.1)
        return round(time.monotonic() - began, 2)

    def row(self, build: Build, *, auto_restart: bool = False) -> Server:
        now = now_ms()
        name = str(uuid.uuid4())
        return Server(
            instance_id=name,
            project_id=build.project_id,
            region=REGION,
            name=name[:8],
            status="launching",
            step="queued",
            compute_size="micro",
            build_id=build.build_id,
            version_tag="default",
            auto_restart=auto_restart,
            port_configs=[{"name": "game", "internal_port": 7777, "protocol": "udp"}],
            created_at=now,
            updated_at=now,
            launched_at=now,
            step_at=now,
        )

    async def server(self, instance_id: str) -> Server:
        async with self.store.read() as session:
            found = await session.get(Server, instance_id)
        assert found is not None
        return found

    async def running(self, *names: str) -> bool:
        return all([(await self.server(name)).status == "running" for name in names])

    async def nodes(self) -> list[dict[str, Any]]:
        return (await self.regions.status(REGION))["nodes"]

    async def count(self, number: int, *, ready: bool = True) -> bool:
        states = Counter(node["state"].split(" ")[0] for node in await self.nodes())
        return states["ready" if ready else "asked"] == number

    async def grow(self, build: Build) -> list[str]:
        """Three servers on nodes for two each: two nodes of the region, and no other, are added."""
        assert ray_nodes() == {}
        assert await self.nodes() == [], "nobody asks for a node before there is demand"
        began = time.monotonic()
        rows = [self.row(build) for _ in range(3)]
        starts = [asyncio.create_task(self.regions.start(row)) for row in rows]
        await self.until("two nodes are asked for", lambda: self.count(2, ready=False), 30)
        self.seen["asked_s"] = round(time.monotonic() - began, 2)
        await asyncio.gather(*starts)
        names = [row.instance_id for row in rows]
        await self.until("three servers run", lambda: self.running(*names), 90)
        self.seen["grown_s"] = round(time.monotonic() - began, 2)
        self.seen["nodes_after_growth"] = {region: len(ids) for region, ids in ray_nodes().items()}
        self.seen["lead_s"] = (await self.nodes())[0]["lead_s"]
        return names

    async def shrink(self, names: list[str]) -> str:
        """All but one end: the empty node is drained, released and removed; the other's server goes on."""
        survivor = names[0]
        before = await self.server(survivor)
        for name in names[1:]:
            await self.regions.stop(REGION, name, "requested", None)

        async def one_left() -> bool:
            return len(ray_nodes().get(REGION, ())) == 1

        self.seen["shrunk_s"] = await self.until("the empty node is removed", one_left, 90)
        after = await self.server(survivor)
        assert after.status == "running"
        same = (before.generation, before.node_id, before.started_at)
        self.seen["survived"] = (after.generation, after.node_id, after.started_at) == same
        return survivor

    async def drain(self, build: Build, survivor: str) -> str:
        """The survivor's node is drained by hand: what runs stays, what comes goes to a new node."""
        node_id = (await self.server(survivor)).node_id or ""
        await self.regions.drain(REGION, node_id, draining=True)
        row = self.row(build, auto_restart=True)
        await self.regions.start(row)
        await self.until("the newcomer runs", lambda: self.running(row.instance_id), 90)
        newcomer = await self.server(row.instance_id)
        assert newcomer.node_id != node_id
        assert (await self.server(survivor)).status == "running"
        self.seen["nodes_after_drain"] = {region: len(ids) for region, ids in ray_nodes().items()}
        return row.instance_id

    async def lose(self, name: str, survivor: str) -> None:
        """Ray loses the newcomer's machine, which goes on: so does the game, adopted by the agent that comes next."""
        before = await self.server(name)
        ray_node = await self._ray_node_of(before)
        os.kill(await self._machine_of(name), signal.SIGKILL)

        async def heard_again() -> bool:
            again = await self._ray_node_of(before)
            return again is not None and again != ray_node

        self.seen["heard_again_s"] = await self.until("its node is heard again", heard_again, 60)
        after = await self.server(name)
        same = (before.generation, before.node_id, before.started_at, "running")
        self.seen["went_on"] = (after.generation, after.node_id, after.started_at, after.status) == same
        assert (await self.server(survivor)).status == "running"
        assert (await self.server(survivor)).generation == 1

    async def _ray_node_of(self, server: Server) -> str | None:
        """Ray's node on which the agent of the server's node is; None while it is silent."""
        mine = [node for node in await self.nodes() if node["node_id"] == server.node_id and node["synced"]]
        return mine[0]["ray_node"] if mine else None

    async def _machine_of(self, name: str) -> int:
        """The raylet of the fake node that the server's agent is on."""
        node_id = (await self.server(name)).node_id
        hosts = {node["node_id"]: node["ray_node"] for node in await self.nodes()}
        for pid in supervised(self.home):
            machine = environment_of(pid).get("RAY_OVERRIDE_NODE_ID_FOR_TESTING")
            if machine == hosts[node_id] and Path(command_of(pid).split(" ", 1)[0]).name == "raylet":
                return pid
        raise AssertionError(f"no raylet of {node_id}")


async def play(home: Home) -> dict[str, Any]:
    it = Play(home)
    builds = await open_builds(it.settings)
    build = await builds.built(demo_zip())
    assert build.status == "ready", build.error
    names = await it.grow(build)
    survivor = await it.shrink(names)
    newcomer = await it.drain(build, survivor)
    await it.lose(newcomer, survivor)
    await it.regions.stop_all(REGION, "requested", "The test is over.")
    it.seen["other_region"] = len(ray_nodes().get("eu-west", ()))
    await builds.store.close()
    await it.store.close()
    return it.seen


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    upgrade(get_settings().database)
    ray.init(address=sys.argv[2], namespace=NAMESPACE, log_to_driver=False, _node_ip_address=NODE_ADDRESS)
    print(json.dumps(asyncio.run(play(Home(folder, (folder / "fleet-id").read_text().strip())))))
