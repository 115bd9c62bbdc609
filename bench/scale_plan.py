"""The manager's planning without I/O, at three sizes: cost of an event, of a full repair pass, memory of a server.

`python -m bench.scale_plan [--json]`: books, runs, rooms, queue and plan are the real ones; the nodes are views. An
event is what a node's report of one run costs: the run is noted, its server planned, its room kept up.
"""

import argparse
import asyncio
import gc
import json
import logging
import statistics
import time
import tracemalloc
import uuid
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog

from fleet.catalog import load_catalog
from fleet.errors import Unavailable
from fleet.node.model import Hello, RunState, RunView
from fleet.node.runtime import BuildRef, Port
from fleet.region.books import Books
from fleet.region.execute import Executor
from fleet.region.model import NodeView, Policy
from fleet.region.plan import current, plan, plan_server
from fleet.region.runs import Runs
from fleet.settings import FleetSettings
from fleet.store.tables import Server

SIZES = (100, 1_000, 10_000)
PER_NODE = 50
EVENTS = 3_000
POLICY = Policy(120_000, 600_000, 30_000, 180_000, 1_000, 60_000, 5, 300_000, 0)


class Views:
    """Nodes that are there and never change; nobody answers commands."""

    def __init__(self, number: int) -> None:
        memory = (PER_NODE + 2) * 512
        self._views = {f"n{i}": NodeView(f"n{i}", "127.0.0.1", memory, 64.0, synced=True) for i in range(number)}

    def views(self) -> Mapping[str, NodeView]:
        return self._views

    def hello(self, _node_id: str) -> Hello | None:
        return None

    async def call(self, node_id: str, _method: str, *_: Any) -> Any:
        raise Unavailable(node_id)


class Region:
    """`count` running servers, on nodes that have some room left."""

    def __init__(self, count: int) -> None:
        self.nodes = Views(max(2, count // PER_NODE))
        self.books, self.runs = Books(), Runs()
        self.executor = Executor(
            1,
            FleetSettings(home=Path("nowhere")),
            load_catalog(),
            self.books,
            self.runs,
            self.nodes,
            settle=self._settle,
            builds=self._build,
        )
        rows = [self._row(f"n{i % len(self.nodes.views())}") for i in range(count)]
        self.books.load(rows)
        for row in rows:
            self.runs[current(row)] = _view(row)
        self.executor.rooms.rooms()

    async def _settle(self) -> None: ...

    async def _build(self, build_id: str) -> BuildRef:
        return BuildRef(build_id, "zip", "hash")

    def _row(self, node_id: str) -> Server:
        port = {"name": "game", "internal_port": 7777, "protocol": "udp"}
        shown = port | {"external_port": 20000, "host": "127.0.0.1", "tls_enabled": False}
        times = dict.fromkeys(("created_at", "updated_at", "launched_at", "step_at", "started_at"), 1)
        return Server(
            instance_id=str(uuid.uuid4()),
            project_id="p",
            region="us-east",
            name="s",
            status="running",
            step="running",
            compute_size="micro",
            build_id="b",
            version_tag="default",
            port_configs=[port],
            network_ports=[shown],
            node_id=node_id,
            **times,
        )

    def event(self, view: RunView) -> None:
        """What the manager does with one report."""
        self.runs[view.key] = view
        self.executor.adopt_ports((view,))
        server = self.books.live[view.key.instance_id]
        run = self.runs.get(current(server))
        self.executor.carry_out(plan_server(server, run, self.nodes.views(), 2, POLICY))
        self.executor.rooms.find(self.executor.demand(server))

    def repair(self) -> None:
        live = list(self.books.live.values())
        self.executor.carry_out(plan(live, self.runs, self.nodes.views(), 2, POLICY))
        self.executor.rooms.rooms()


def _view(row: Server) -> RunView:
    ports = (Port("game", 7777, 20000, "udp"),)
    return RunView(current(row), row.node_id or "", RunState.RUNNING, 1, ports, 512)


def measure(count: int) -> dict[str, float]:
    tracemalloc.start()
    region = Region(count)
    gc.collect()
    memory = tracemalloc.get_traced_memory()[0] / count
    tracemalloc.stop()
    keys = list(region.runs)
    per_event: list[float] = []
    for number in range(EVENTS):
        view = replace(region.runs[keys[number * 7919 % count]], at=number)
        began = time.perf_counter()
        region.event(view)
        per_event.append(time.perf_counter() - began)
    repairs: list[float] = []
    for _ in range(5):
        began = time.perf_counter()
        region.repair()
        repairs.append(time.perf_counter() - began)
    return {
        "servers": count,
        "event_us": round(statistics.median(per_event) * 1e6, 1),
        "event_p99_us": round(statistics.quantiles(per_event, n=100)[98] * 1e6, 1),
        "repair_ms": round(min(repairs) * 1000, 2),
        "bytes_per_server": round(memory),
    }


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    wanted = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    measure(100)  # warm up
    rows = [measure(count) for count in SIZES]
    if wanted.json:
        print(json.dumps(rows))
        return
    for row in rows:
        print("  ".join(f"{name} {value:>10}" for name, value in row.items()))


if __name__ == "__main__":
    asyncio.run(main())
