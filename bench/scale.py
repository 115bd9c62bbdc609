"""10,000 servers on 200 simulated nodes: `make bench-scale`. The managers, agents, database and API are the real ones.

Brings up a fleet of its own with the simulated runtime (nothing is launched, no player can connect), starts servers
through the API, and at 100, 1,000 and 10,000 of them measures what should not depend on their number. In the end it
compares books and nodes, stops everything and looks for what was lost or left. `--regions 1` puts all into one manager.
"""

import argparse
import asyncio
import json
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.own_fleet import OwnFleet, own_fleet
from bench.swarm import Swarm, quantiles, swarm
from fleet.admin import Fleet
from fleet.catalog import load_catalog
from fleet.node.runtime import RunKey
from fleet.node.simulated import RunFile

Figures = dict[str, Any]
Status = Callable[[str], Awaitable[dict[str, Any]]]
SAMPLES = 30
PER_PROCESS = 25
MICRO_MB = 512


def live_rows(home: Path) -> dict[RunKey, str | None]:
    """Runs that the database says are there: key -> node."""
    with closing(sqlite3.connect(f"file:{home}/fleet.db?mode=ro", uri=True)) as db:
        rows = db.execute("SELECT instance_id, generation, node_id FROM server WHERE step = 'running'").fetchall()
    return {RunKey(name, generation): node for name, generation, node in rows}


def count_rows(home: Path, condition: str) -> int:
    with closing(sqlite3.connect(f"file:{home}/fleet.db?mode=ro", uri=True)) as db:
        return int(db.execute(f"SELECT count(*) FROM server WHERE {condition}").fetchone()[0])


def node_runs(home: Path) -> dict[RunKey, str | None]:
    """Runs that the simulated nodes say are there, read from their files."""
    found: dict[RunKey, str | None] = {}
    for path in (home / "simulated").glob("*.jsonl"):
        region, number, _ = path.name.split(".")
        for key, run in RunFile(path).read().items():
            if run.ended_at is None:
                found[key] = f"{region}@simulated-{number}"
    return found


@contextmanager
def managers_of(fleet: OwnFleet) -> Iterator[Status]:
    """What the managers say of themselves. The admin client has an event loop of its own, so it gets a thread."""
    with ThreadPoolExecutor(1) as thread:
        admin = thread.submit(Fleet, fleet.home).result()

        async def status(region: str) -> dict[str, Any]:
            return await asyncio.get_running_loop().run_in_executor(thread, admin.status, region)

        try:
            yield status
        finally:
            thread.submit(admin.close).result()


class Run:
    """One benchmark run on a fleet that is up."""

    def __init__(self, fleet: OwnFleet, admin: Status, servers: Swarm, at_once: int) -> None:
        self.fleet = fleet
        self.admin = admin
        self.servers = servers
        self.at_once = at_once
        self.ids: list[str] = []
        self.acknowledged: set[str] = set()
        self.number = 0
        self.base: dict[int, int] = {}

    async def warm_up(self) -> None:
        """A server in each region, so that managers exist; their size now is what the servers' is measured from."""
        ids, _ = await self.servers.start_many(0, len(self.servers.regions), 1)
        self.acknowledged.update(ids)
        await self.servers.until_running(len(ids), 120)
        await self.servers.stop_many(ids, 1)
        self.base = dict(self.fleet.memory()["RegionManager"])

    async def grow(self, level: int) -> Figures:
        """Start servers until there are `level`."""
        missing = level - len(self.ids)
        began = time.monotonic()
        ids, seconds = await self.servers.start_many(self.number, missing, self.at_once)
        accepted = time.monotonic()
        self.ids += ids
        self.acknowledged.update(ids)
        self.number += missing
        await self.servers.until_running(level, 900)
        running = time.monotonic()
        return {
            "started": missing,
            "accepted_s": round(accepted - began, 1),
            "all_running_s": round(running - began, 1),
            "starts_per_s": round(missing / (running - began), 1),
            "start_ms_under_load": quantiles(seconds),
        }

    async def measure(self, level: int) -> Figures:
        growth = await self.grow(level)
        stopped = [self.ids.pop() for _ in range(SAMPLES)]
        stop = await self.servers.stop_latency(stopped)
        crash = await self.servers.crash_latency(self.number, SAMPLES)
        self.number += SAMPLES
        step = max(1, len(self.ids) // 200)
        some = self.ids[::step][:200]
        get = await self.servers.timed(len(some), lambda n: self.servers.call("GET", f"/servers/{some[n]}"))
        pages = await self.servers.timed(SAMPLES, lambda n: self.servers.call("GET", f"/servers?limit=100&offset={n}"))
        start = await self.servers.timed(SAMPLES, self._start_one)
        statuses = [await self.admin(region) for region in self.servers.regions]
        return {
            "servers": level,
            "growth": growth,
            "event_ms": {"stop": quantiles(stop), "crash": quantiles(crash)},
            "api_ms": {"get": quantiles(get), "list100": quantiles(pages), "start": quantiles(start)},
            "repair_ms": {status["region"]: status["repair_ms"] for status in statuses},
            "memory": self.memory(level),
        }

    async def _start_one(self, _number: int) -> None:
        server = await self.servers.start(self.number)
        self.number += 1
        self.ids.append(server["instance_id"])
        self.acknowledged.add(server["instance_id"])

    def memory(self, level: int) -> Figures:
        """MB of each kind of process, and what the managers have grown by for each server."""
        found = self.fleet.memory()
        grown = sum(size - self.base.get(pid, size) for pid, size in found["RegionManager"])
        return {
            "manager_bytes_per_server": round(grown / level),
            "mb": {
                kind: {"processes": len(sizes), "mb": round(sum(size for _, size in sizes) / 1e6)}
                for kind, sizes in sorted(found.items())
            },
        }

    async def compare(self) -> Figures:
        """Books against nodes, once all is quiet."""
        await self.servers.until_running(len(self.ids), 120)
        rows, runs = live_rows(self.fleet.home), node_runs(self.fleet.home)
        wanted = set(self.ids)
        return {
            "rows": len(rows),
            "runs": len(runs),
            "nodes": len(set(runs.values())),
            "only_in_books": len(rows.keys() - runs.keys()),
            "only_on_nodes": len(runs.keys() - rows.keys()),
            "on_another_node": sum(runs.get(key) != node for key, node in rows.items()),
            "lost": len(wanted - {key.instance_id for key in rows}),
        }

    async def stop_all(self) -> Figures:
        began = time.monotonic()
        seconds = await self.servers.stop_many(self.ids, self.at_once)
        answered = time.monotonic()
        end = answered + 300
        while count_rows(self.fleet.home, "step != 'stopped'") or node_runs(self.fleet.home):
            if time.monotonic() > end:
                break
            await asyncio.sleep(1)
        gone = time.monotonic()
        home = self.fleet.home
        missing = self.acknowledged - self._all_ids()
        return {
            "stopped": len(self.ids),
            "answered_s": round(answered - began, 1),
            "all_gone_s": round(gone - began, 1),
            "stop_ms_under_load": quantiles(seconds),
            "acknowledged": len(self.acknowledged),
            "acknowledged_without_a_row": len(missing),
            "rows_not_stopped": count_rows(home, "step != 'stopped'"),
            "stopped_without_a_reason": count_rows(home, "step = 'stopped' AND stop_reason IS NULL"),
            "runs_left_on_nodes": len(node_runs(home)),
        }

    def _all_ids(self) -> set[str]:
        with closing(sqlite3.connect(f"file:{self.fleet.home}/fleet.db?mode=ro", uri=True)) as db:
            return {row[0] for row in db.execute("SELECT instance_id FROM server")}


async def measured(run: Run, levels: list[int], report: Console) -> Figures:
    await run.warm_up()
    figures: Figures = {"levels": []}
    for level in levels:
        report.print(f"· {level} servers")
        figures["levels"].append(await run.measure(level))
    report.print("· comparing books and nodes, stopping all")
    figures["books_and_nodes"] = await run.compare()
    figures["end"] = await run.stop_all()
    return figures


def sound(figures: Figures) -> list[str]:
    """What must be nothing and is something."""
    zero = {
        "books_and_nodes": ("only_in_books", "only_on_nodes", "on_another_node", "lost"),
        "end": (
            "acknowledged_without_a_row",
            "rows_not_stopped",
            "stopped_without_a_reason",
            "runs_left_on_nodes",
        ),
    }
    return [f"{part}.{name} is {figures[part][name]}" for part, names in zero.items() for name in names
            if figures[part][name]]  # fmt: skip


def nodes_config(regions: list[str], nodes: int, servers: int) -> dict[str, Any]:
    per_node = -(-servers // nodes)
    spare = -(-8 * SAMPLES // per_node // len(regions))  # what is started beyond the level, to be measured
    per_region = -(-nodes // len(regions)) + spare
    return {
        "regions": regions,
        "node": {"memory_mb": per_node * MICRO_MB, "cores": 4096, "max_nodes": per_region},
        "simulated": {"nodes_per_process": min(PER_PROCESS, per_region)},
    }


def show(figures: Figures, console: Console) -> None:
    table = Table("", *(f"{level['servers']} servers" for level in figures["levels"]))

    def row(title: str, *path: str) -> None:
        cells: list[str] = []
        for level in figures["levels"]:
            value: Any = level
            for part in path:
                value = value[part]
            cells.append(f"{value['p50']} / {value['p99']}" if isinstance(value, dict) else str(value))
        table.add_row(title, *cells)

    row("started", "growth", "started")
    row("all running after, s", "growth", "all_running_s")
    row("starts/s", "growth", "starts_per_s")
    row("stop → seen by who waits, ms p50 / p99", "event_ms", "stop")
    row("crash → seen by who waits, ms p50 / p99", "event_ms", "crash")
    row("GET one, ms", "api_ms", "get")
    row("GET list of 100, ms", "api_ms", "list100")
    row("POST start, ms", "api_ms", "start")
    row("manager memory per server, bytes", "memory", "manager_bytes_per_server")
    table.add_row("repair pass, ms (slowest region)", *(str(max(x["repair_ms"].values())) for x in figures["levels"]))
    for kind in figures["levels"][-1]["memory"]["mb"]:
        cells = [level["memory"]["mb"].get(kind, {"processes": 0, "mb": 0}) for level in figures["levels"]]
        table.add_row(f"{kind}, MB (processes)", *(f"{cell['mb']} ({cell['processes']})" for cell in cells))
    console.print(table)
    console.print("books and nodes:", figures["books_and_nodes"])
    console.print("end:", figures["end"])


def main(options: argparse.Namespace) -> None:
    console = Console(width=140)
    regions = list(load_catalog().regions)[: options.regions]
    levels = sorted({*(level for level in (100, 1000) if level < options.servers), options.servers})
    config = nodes_config(regions, options.nodes, options.servers)
    settings = {"SIMULATED__BOOT_S": str(options.boot), "SIMULATED__CREATE_S": "0.1"}
    with own_fleet(config, options.folder, **settings) as fleet:
        console.print(f"SIMULATED runtime: {options.nodes} nodes, {options.servers} servers, {len(regions)} region(s)")
        fleet.push_demo()

        async def run() -> Figures:
            async with swarm(fleet.url, fleet.key, regions) as servers:
                return await measured(Run(fleet, status, servers, options.at_once), levels, console)

        with managers_of(fleet) as status:
            figures = asyncio.run(run())
    figures["simulated"] = {"nodes": options.nodes, "regions": len(regions), "boot_s": options.boot}
    show(figures, console)
    print(json.dumps(figures))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    if wrong := sound(figures):
        raise SystemExit("; ".join(wrong))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--servers", type=int, default=10_000)
    parser.add_argument("--nodes", type=int, default=200)
    parser.add_argument("--regions", type=int, default=4)
    parser.add_argument("--at-once", type=int, default=32, help="start requests under way")
    parser.add_argument("--boot", type=float, default=2.0, help="median boot time of a simulated game, seconds")
    parser.add_argument("--folder", type=Path, help="for the fleet's home, kept afterwards")
    parser.add_argument("--json", type=Path)
    main(parser.parse_args())
