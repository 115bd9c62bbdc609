"""What operators import: a typed client to the fleet's actors, for scripts.

    from fleet.admin import Fleet

    with Fleet("auto") as fleet:
        for server in fleet.servers("us-east"):
            print(server.name, server.status, server.network_ports)

Reads come from the database, commands go to the region managers, so a script sees what the API shows.
"""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import ray
from sqlmodel import col, select

from fleet.errors import NotFound, Unavailable
from fleet.node.runtime import LogLine
from fleet.ops.head import read_head
from fleet.ops.home import find_home
from fleet.ops.join import join_head
from fleet.region.client import RegionClient
from fleet.region.names import NAMESPACE
from fleet.region.nodes_config import load_nodes_config
from fleet.settings import FleetSettings, get_settings
from fleet.store.engine import Store
from fleet.store.tables import Server, live


@dataclass(frozen=True, slots=True)
class RegionInfo:
    """`live` counts servers that are not finished (launching, running, or stopping); `running` those that run."""

    region: str
    live: int
    running: int


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """One node, leased or asked for; memory in MB. `synced`: its agent answers now. `lead_s`: how long a node of its
    class takes from asked to ready. `drain_until`: when its machine goes (ms), if it drains for that. `warnings`: what
    its operator should know, above all isolation that is not in force."""

    node_id: str
    node_class: str
    state: str
    region: str
    host: str
    runtime: str
    memory_mb: int
    memory_free_mb: int | None
    runs: int
    builds: int
    draining: bool
    drain_until: int | None
    synced: bool
    ray_node: str
    lead_s: float
    warnings: Sequence[str] = ()


class Fleet:
    """Connects to the fleet of a home folder ("auto": FLEET_HOME, else `.fleet` here).

    Raises `Unavailable` when no fleet runs there, and `FleetError` subclasses from every method.
    """

    def __init__(self, home: str | Path = "auto") -> None:
        settings = get_settings() if home == "auto" else FleetSettings(home=Path(home).resolve())
        self._settings = settings
        self._runner = asyncio.Runner()
        self._connected_here = _connect(settings.home)
        self._store = Store(settings.database)
        self._regions = RegionClient(self._store)

    def regions(self) -> list[RegionInfo]:
        """Every enabled region and how much lives there."""
        rows = self._rows(live())
        enabled = load_nodes_config(self._settings.node_config).enabled
        return [
            RegionInfo(
                region,
                sum(r.region == region for r in rows),
                sum(r.region == region and r.status == "running" for r in rows),
            )
            for region in enabled
        ]

    def nodes(self, region: str) -> list[NodeInfo]:
        """The nodes that the region leases now."""
        status = self._runner.run(self._regions.status(region))
        return [NodeInfo(region=region, **node) for node in status["nodes"]]

    def status(self, region: str) -> dict[str, Any]:
        """The manager's own view: epoch, pid, commits, nodes."""
        return self._runner.run(self._regions.status(region))

    def servers(self, region: str | None = None, *, include_stopped: bool = False) -> list[Server]:
        """Servers of all projects, newest first."""
        conditions = [] if include_stopped else [col(Server.status) != "stopped"]
        if region is not None:
            conditions.append(col(Server.region) == region)
        return self._rows(*conditions)

    def server(self, instance_id: str) -> Server:
        rows = self._rows(col(Server.instance_id) == instance_id)
        if not rows:
            raise NotFound(f"There is no server '{instance_id}'.", error="Server not found")
        return rows[0]

    def stop(self, instance_id: str, reason: str = "requested") -> Server:
        """Stop one server gracefully; its row is `stopped` at once."""
        server = self.server(instance_id)
        return self._runner.run(self._regions.stop(server.region, instance_id, reason, "Stopped by an operator."))

    def stop_all(self, reason: str = "requested") -> int:
        """Stop every server of every region and wait until they are gone; how many there were."""
        regions = sorted({row.region for row in self._rows(live())})

        async def all_regions() -> int:
            calls = [self._regions.stop_all(region, reason, "The fleet was taken down.") for region in regions]
            return sum(await asyncio.gather(*calls))

        return self._runner.run(all_regions())

    def drain(self, region: str, node_id: str, *, draining: bool = True) -> None:
        """Place nothing more on a node (or again, with draining=False); what runs there goes on."""
        self._runner.run(self._regions.drain(region, node_id, draining=draining))

    def logs(self, instance_id: str, limit: int = 200) -> list[LogLine]:
        """The first `limit` lines of the server's log."""
        return self._runner.run(self._regions.logs(self.server(instance_id), None, None, limit)).lines

    def tail(self, instance_id: str) -> Iterator[LogLine]:
        """Lines of the server's log as they come, until it ends."""
        stream = self._regions.follow_logs(self.server(instance_id), None)
        while True:
            try:
                yield from self._runner.run(anext(stream))  # pyright: ignore[reportArgumentType]
            except StopAsyncIteration:
                return

    def close(self) -> None:
        self._runner.run(self._store.close())
        self._runner.close()
        if self._connected_here:
            ray.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _rows(self, *conditions: Any) -> list[Server]:
        async def read() -> list[Server]:
            query = select(Server).where(*conditions).order_by(col(Server.created_at).desc())
            async with self._store.read() as session:
                return list((await session.exec(query)).all())

        return self._runner.run(read())


def _connect(path: Path) -> bool:
    """Join the home's Ray head; False if this process is connected already."""
    if ray.is_initialized():
        return False
    home = find_home(path)
    head = read_head(home) if home else None
    if head is None or not head.alive:
        raise Unavailable(
            f"No fleet runs in {path}. Start it with `fleet up`.",
            error="Fleet not running",
        )
    join_head(head, NAMESPACE)
    return True
