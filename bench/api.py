"""Reads of a running fleet under load, beside the same app under bare uvicorn and an empty handler on Serve.

`python bench/api.py --home .fleet [--seconds 5] [--rounds 3] [--no-empty] [--json FILE]`. Every figure is the median
of the rounds, and the targets take turns within a round, so that a noisy machine is noisy for all. The fleet needs no
servers of its own: the rows that are read are made in a project of the benchmark's and removed afterwards.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from rich.console import Console
from rich.table import Table
from sqlalchemy import delete
from sqlmodel import col

from fleet.ops.head import child_environment, read_head
from fleet.ops.home import find_home, free_ports, read_access
from fleet.projects.service import create_project
from fleet.settings import FleetSettings
from fleet.store.engine import Store
from fleet.store.tables import ApiKey, Project, Server
from fleet.times import now_ms

HERE = Path(__file__).parent
ROWS = 100
WRITES_PER_S = 20
CONNECTIONS = (1, 32)


@dataclass(frozen=True)
class Target:
    """Where a set of figures comes from."""

    name: str
    url: str
    fixed_path: str | None = None


@dataclass(frozen=True)
class Data:
    project_id: str
    key: str
    instance_id: str

    @property
    def paths(self) -> dict[str, str]:
        return {"get": f"/api/v3/servers/{self.instance_id}", "list100": "/api/v3/servers?limit=100"}


async def make_data(store: Store) -> Data:
    project = await create_project(store, f"bench-{uuid.uuid4().hex[:8]}")
    now = now_ms()
    rows = [server_row(project.project_id, number, now) for number in range(ROWS)]
    async with store.write() as session:
        session.add_all(rows)
    return Data(project.project_id, project.server_key, rows[0].instance_id)


def server_row(project_id: str, number: int, now: int) -> Server:
    port = {"name": "game_udp", "internal_port": 7777, "protocol": "udp", "tls_enabled": False}
    return Server(
        instance_id=str(uuid.uuid4()),
        project_id=project_id,
        region="benchmark",  # of no manager, so none looks after these rows
        name=f"bench {number}",
        status="running",
        step="stopped",  # nor do recovering managers find them
        compute_size="small",
        build_id="bench",
        version_tag="default",
        version=1,
        custom_data={"mode": "duel", "map": "dust"},
        network_ports=[{**port, "external_port": 20000 + number, "host": "127.0.0.1"}],
        created_at=now,
        updated_at=now,
        launched_at=now,
        started_at=now,
        step_at=now,
    )


async def remove_data(store: Store, data: Data) -> None:
    async with store.write() as session:
        for table in (Server, ApiKey):
            await session.exec(delete(table).where(col(table.project_id) == data.project_id))
        await session.exec(delete(Project).where(col(Project.id) == data.project_id))


async def write_for(store: Store, data: Data, seconds: float) -> None:
    """Commit `WRITES_PER_S` times a second for that long."""
    end = time.monotonic() + seconds
    number = 0
    while time.monotonic() < end:
        number += 1
        async with store.write() as session:
            row = await session.get(Server, data.instance_id)
            assert row is not None
            row.custom_data = {"number": number}
        await asyncio.sleep(1 / WRITES_PER_S)


@contextmanager
def bare_uvicorn(home: Path) -> Iterator[Target]:
    port = free_ports(1)[0]
    command = [
        sys.executable,
        "-m",
        "uvicorn",
        "--factory",
        "bare_app:make",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    command += ["--lifespan", "off", "--no-access-log", "--log-level", "warning", "--app-dir", str(HERE)]
    many = {"FLEET_LIMITS__READS_PER_S": "100000"}
    process = subprocess.Popen(command, env=os.environ | {"FLEET_HOME": str(home)} | many)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait(f"{url}/api/health", process)
        yield Target("bare uvicorn, same app", url)
    finally:
        process.terminate()
        process.wait(20)


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(url, trust_env=False).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise RuntimeError(f"{url} does not answer")


@contextmanager
def empty_on_serve(home: Path, url: str, replicas: int) -> Iterator[Target]:
    found = find_home(home)
    head = read_head(found) if found else None
    if head is None:
        raise RuntimeError(f"no fleet runs in {home}")
    environment = child_environment(head.environment | {"RAY_ADDRESS": head.address})
    script = [sys.executable, str(HERE / "empty_app.py")]
    subprocess.run([*script, "up", str(replicas)], env=environment, check=True, timeout=180)
    try:
        yield Target("empty handler on Serve", url, fixed_path="/bench-empty/")
    finally:
        subprocess.run([*script, "down"], env=environment, check=True, timeout=180)


async def measure(target: Target, path: str, key: str, connections: int, seconds: float) -> dict[str, float]:
    at = urlsplit(target.url)
    arguments = [at.hostname, at.port, target.fixed_path or path, key, connections, seconds]
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(HERE / "load.py"), *map(str, arguments), stdout=subprocess.PIPE
    )
    out, _ = await asyncio.wait_for(process.communicate(), seconds + 60)
    if process.returncode != 0:
        raise RuntimeError(f"the load generator failed on {target.name}")
    figures: dict[str, float] = json.loads(out)
    return figures


async def run(targets: list[Target], store: Store, data: Data, seconds: float, rounds: int) -> list[dict[str, Any]]:
    """One row for each combination: medians over the rounds."""
    cases = [(what, n, writes) for what in data.paths for n in CONNECTIONS for writes in (False, True)]
    rows: list[dict[str, Any]] = []
    for what, connections, writes in cases:
        taken: dict[str, list[dict[str, float]]] = {target.name: [] for target in targets}
        for _ in range(rounds):
            for target in targets:
                writer = asyncio.create_task(write_for(store, data, seconds)) if writes else None
                taken[target.name].append(await measure(target, data.paths[what], data.key, connections, seconds))
                if writer:
                    await writer
        for name, figures in taken.items():
            medians = {key: statistics.median(f[key] for f in figures) for key in figures[0]}
            rows.append({"what": what, "connections": connections, "writes": writes, "target": name, **medians})
    return rows


def add_ratios(rows: list[dict[str, Any]]) -> None:
    """`ratio`: the fleet's requests/s over this target's, in the same case."""
    for row in rows:
        case = [r for r in rows if all(r[k] == row[k] for k in ("what", "connections", "writes"))]
        row["ratio"] = round(case[0]["requests_per_s"] / row["requests_per_s"], 2)


def show(rows: list[dict[str, Any]]) -> None:
    table = Table("read", "conn.", "writes", "target", "requests/s", "p50 ms", "p99 ms", "fleet ÷ this")
    for row in rows:
        writes = f"{WRITES_PER_S}/s" if row["writes"] else "none"
        numbers = (
            f"{row['requests_per_s']:.0f}",
            f"{row['p50_ms']:.2f}",
            f"{row['p99_ms']:.2f}",
            f"{row['ratio']:.2f}",
        )
        table.add_row(row["what"], str(row["connections"]), writes, row["target"], *numbers)
    Console(width=120).print(table)


async def main(options: argparse.Namespace) -> None:
    home = options.home.resolve()
    found = find_home(home)
    access = read_access(found) if found else None
    if access is None:
        sys.exit(f"No fleet runs in {home}. Start one with `make up`.")
    settings = FleetSettings(home=home)
    store = Store(settings.database)
    data = await make_data(store)
    try:
        with ExitStack() as stack:
            targets = [Target("fleet", access.url), stack.enter_context(bare_uvicorn(home))]
            if not options.no_empty:
                targets.append(stack.enter_context(empty_on_serve(home, access.url, settings.replicas)))
            rows = await run(targets, store, data, options.seconds, options.rounds)
    finally:
        await remove_data(store, data)
        await store.close()
    add_ratios(rows)
    show(rows)
    text = json.dumps(rows)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, default=Path(".fleet"))
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-empty", action="store_true", help="skip the empty handler on Serve")
    parser.add_argument("--json", type=Path)
    asyncio.run(main(parser.parse_args()))
