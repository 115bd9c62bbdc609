"""Warm servers put where a fleet will find them, as if it had started them: rows in the database, runs on its nodes.

Filling pools of thousands by launching takes minutes, even where nothing really boots. To be done before the region's
manager exists: it then adopts them like any manager after a restart.
"""

import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import insert
from sqlmodel import col, select

from fleet.catalog import load_catalog
from fleet.node.model import NodeShare
from fleet.node.runtime import Port, RunKey
from fleet.node.simulated import SimulatedRun, run_file
from fleet.pools.spec import pool_spec
from fleet.projects.model import project_ports
from fleet.store.commit import row_values
from fleet.store.engine import Store
from fleet.store.tables import Build, Server
from fleet.times import now_ms


@dataclass(frozen=True)
class Place:
    """A region's simulated nodes, and the build that its pools run."""

    home: Path
    region: str
    share: NodeShare
    nodes: int
    build: Build


async def newest_build(store: Store) -> Build:
    async with store.read() as session:
        return (await session.exec(select(Build).where(col(Build.status) == "ready"))).one()


async def put_warm(store: Store, place: Place, counts: dict[str, int]) -> None:
    """So many warm servers of each size, spread over the nodes."""
    sizes = [size for size, count in counts.items() for _ in range(count)]
    now = now_ms()
    runs: dict[int, list[SimulatedRun]] = {}
    rows: list[dict[str, Any]] = []
    for number, size in enumerate(sizes):
        row, run = _entry(place, size, number, now)
        rows.append(row_values(row))
        runs.setdefault(number % place.nodes, []).append(run)
    async with store.write_connection() as connection:
        await connection.execute(insert(Server), rows)
    for node, theirs in runs.items():
        file = run_file(place.home, place.region, str(node))
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"".join(orjson.dumps(run) + b"\n" for run in theirs))


def _entry(place: Place, size: str, number: int, now: int) -> tuple[Server, SimulatedRun]:
    node, build = number % place.nodes, place.build
    key = RunKey(str(uuid.uuid4()), 1)
    ports: list[dict[str, Any]] = [dict(port) for port in project_ports({})]
    external = place.share.port_first + number // place.nodes
    host = f"{place.region}-{node}.simulated.invalid"
    shown = [{**port, "external_port": external, "host": host} for port in ports]
    row = Server(
        instance_id=key.instance_id, project_id=build.project_id, region=place.region, name=f"pool-{number}",
        status="running", step="running", compute_size=size, build_id=build.build_id, version_tag=build.name,
        version=build.version, environment={}, port_configs=ports, is_pool_server=True,
        pool_spec=pool_spec(build.project_id, size, build.build_id, {}, ports), network_ports=shown,
        node_id=f"{place.region}@simulated-{node}", created_at=now, updated_at=now, launched_at=now, started_at=now,
        step_at=now,
    )  # fmt: skip
    declared = tuple(Port(p["name"], p["internal_port"], external, p["protocol"]) for p in ports)
    memory_mb = load_catalog().size(size).memory_mb
    run = SimulatedRun(key, declared, {}, memory_mb, 0.0, now, now, None, 1, {"instance_id": key.instance_id})
    return row, run
