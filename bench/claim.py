"""Claims of warm servers: inside the manager, and through the whole stack. `make bench-claim`.

(a) without Ray, on 10,000 entries: `claim_manager.py`. (b) a fleet of its own with simulated nodes and pools of
thousands: POST /servers/start served hot, beside the same API with a made-up claim (no hop) and with an empty actor
method (`claim_app.py`), in turn, in the same run. Then 300 claims at once on a pool of 300, and a hot start beside a
cold one of a game that boots for 2 s. Every answer is compared with the rows on disk: no server is given twice.
"""

import argparse
import asyncio
import json
import os
import sqlite3
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console
from rich.table import Table

from bench.claim_app import KINDS, prefix
from bench.claim_manager import manager_figures
from bench.own_fleet import ROOT, OwnFleet, own_fleet
from bench.swarm import quantiles, swarm
from bench.warm import Place, newest_build, put_warm
from fleet.ops.head import child_environment, read_head
from fleet.ops.home import find_home
from fleet.region.nodes_config import NodesConfig
from fleet.settings import FleetSettings
from fleet.store.engine import Store

Figures = dict[str, Any]
ROUNDS = ("us-east", "us-west", "eu-north")  # a region for each round, so that each begins with full pools
BURST_REGION, BURST = "eu-west", 300
COLD_SIZE = "medium"  # of no pool
SIZES = ("micro", "small")
PER_POOL = 2000
NODES = 4  # per region; every one of them runs on this machine too
START = "/api/v3/servers/start"
REPLICAS = 2
NODE_FILE: dict[str, Any] = {
    "regions": [*ROUNDS, BURST_REGION],
    "node": {"memory_mb": 1_000_000, "cores": 4096, "max_nodes": NODES},
    "simulated": {"nodes_per_process": NODES},
}


async def prepare(fleet: OwnFleet) -> None:
    """Full pools in every region, then the settings that make the managers look for them."""
    store = Store(FleetSettings(home=fleet.home).database)
    config = NodesConfig.model_validate(NODE_FILE)
    build = await newest_build(store)
    for region in (*ROUNDS, BURST_REGION):
        counts = {"micro": BURST} if region == BURST_REGION else dict.fromkeys(SIZES, PER_POOL)
        await put_warm(store, Place(fleet.home, region, config.node(region), NODES, build), counts)
    await store.close()


def open_pools(fleet: OwnFleet) -> None:
    regions: dict[str, dict[str, int]] = {region: dict.fromkeys(SIZES, PER_POOL) for region in ROUNDS}
    regions[BURST_REGION] = {"micro": BURST}
    pools = {"enabled": True, "regions": regions, "policy": {"mode": "fixed"}}
    fleet.call("POST", "/projects/settings", json={"pool_config": pools})
    fleet.until_warm({(region, size): count for region, sizes in regions.items() for size, count in sizes.items()})


@contextmanager
def made_up(fleet: OwnFleet) -> Iterator[None]:
    """The two yardsticks run beside the API."""
    home = find_home(fleet.home)
    head = read_head(home) if home else None
    assert head is not None, "the fleet has no head"
    env = child_environment(head.environment | {"RAY_ADDRESS": head.address, "PYTHONPATH": str(ROOT)})
    script = [sys.executable, "-m", "bench.claim_app"]
    subprocess.run([*script, "up", str(REPLICAS)], env=env, cwd=ROOT, check=True, timeout=180)
    try:
        yield
    finally:
        subprocess.run([*script, "down"], env=env, cwd=ROOT, check=True, timeout=180)


def load(fleet: OwnFleet, path: str, connections: int, bodies: list[Figures]) -> Figures:
    at = urlsplit(fleet.url)
    job = {"host": at.hostname, "port": at.port, "path": path, "key": fleet.key}
    done = subprocess.run(
        [sys.executable, str(ROOT / "bench" / "post_load.py")],
        input=json.dumps(job | {"connections": connections, "bodies": bodies}),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=400,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    figures: Figures = json.loads(done.stdout)
    return figures


def bodies(region: str, count: int, sizes: tuple[str, ...] = SIZES) -> list[Figures]:
    return [
        {
            "name": f"match-{number}", "region": region, "compute_size": sizes[number % len(sizes)],
            "match_id": f"m-{number}", "custom_data": {"mode": "duel", "map": "dust", "number": number},
        }
        for number in range(count)
    ]  # fmt: skip


class Exact:
    """Every server that an answer called hot, to be compared with the rows."""

    def __init__(self) -> None:
        self.hot: list[str] = []
        self.other: list[Any] = []

    def take(self, figures: Figures) -> Figures:
        """Note the answers and leave them out of the figures."""
        for status, instance_id, kind in figures.pop("answers"):
            if status == 201 and kind == "hot":
                self.hot.append(instance_id)
            else:
                self.other.append((status, instance_id, kind))
        return figures

    def verdict(self, home: Path) -> Figures:
        query = "SELECT instance_id, last_op FROM server WHERE pool_claimed_at IS NOT NULL AND start_kind = 'hot'"
        with closing(sqlite3.connect(f"file:{home}/fleet.db?mode=ro", uri=True)) as db:
            rows = db.execute(query).fetchall()
        return {
            "hot_answers": len(self.hot),
            "given_twice": len(self.hot) - len(set(self.hot)),
            "rows_claimed": len(rows),
            "rows_differ": len(set(self.hot) ^ {name for name, _ in rows}),
            "claims_on_one_row": len(rows) - len({op for _, op in rows}),
            "not_hot": len(self.other),
            "first_not_hot": self.other[:3],
        }


def rounds(fleet: OwnFleet, exact: Exact, options: argparse.Namespace) -> dict[str, Figures]:
    """Medians over the rounds: path -> concurrency -> figures."""
    taken: dict[str, dict[int, list[Figures]]] = {}
    cases = {64: options.claims, 1: options.claims // 8}
    for region in ROUNDS[: options.rounds]:
        for connections, count in cases.items():
            for kind in (*KINDS, "hot"):
                path = START if kind == "hot" else prefix(kind) + START
                figures = load(fleet, path, connections, bodies(region, count))
                if kind == "hot":
                    exact.take(figures)
                else:
                    figures.pop("answers")
                taken.setdefault(kind, {}).setdefault(connections, []).append(figures)
    return {
        kind: {
            str(connections): {name: statistics.median(f[name] for f in figures) for name in figures[0]}
            for connections, figures in by_connections.items()
        }
        for kind, by_connections in taken.items()
    }


async def cold_ms(fleet: OwnFleet, count: int) -> Figures:
    """From asked to running, one start after another, of a game that boots for 2 s."""
    async with swarm(fleet.url, fleet.key, [BURST_REGION]) as servers:
        servers.size = COLD_SIZE
        return quantiles(await servers.timed(count, lambda number: servers.start(number, wait=True)))


def through_http(options: argparse.Namespace) -> Figures:
    settings = {"SIMULATED__BOOT_S": "2.0", "SIMULATED__BOOT_SPREAD": "0", "REPLICAS": str(REPLICAS)}
    exact = Exact()
    with own_fleet(NODE_FILE, options.folder, **settings) as fleet:
        fleet.push_demo()
        asyncio.run(prepare(fleet))
        open_pools(fleet)
        with made_up(fleet):
            paths = rounds(fleet, exact, options)
        burst = exact.take(load(fleet, START, BURST, bodies(BURST_REGION, BURST, ("micro",))))
        verdict = exact.verdict(fleet.home)
        cold = asyncio.run(cold_ms(fleet, 5))
    hot = paths["hot"]
    return {
        "paths": paths,
        "hot_to_no_hop_at_64": round(hot["64"]["requests_per_s"] / paths["none"]["64"]["requests_per_s"], 2),
        "hot_to_empty_hop_at_1": round(hot["1"]["p50_ms"] / paths["empty"]["1"]["p50_ms"], 2),
        "burst": burst,
        "cold_ms": cold,
        "cold_to_hot": round(cold["p50"] / hot["1"]["p50_ms"], 1),
        "exact": verdict,
    }


def show(figures: Figures, console: Console) -> None:
    console.print("Inside the manager:", figures["manager"])
    http = figures["http"]
    names = {"none": "no hop", "empty": "one empty actor call", "hot": "durable hot claim"}
    table = Table("POST /servers/start", "c=64 requests/s", "p50 ms", "p99 ms", "c=1 p50 ms", "p99 ms")
    for kind, title in names.items():
        many, one = http["paths"][kind]["64"], http["paths"][kind]["1"]
        cells = (many["requests_per_s"], many["p50_ms"], many["p99_ms"], one["p50_ms"], one["p99_ms"])
        table.add_row(title, *map(str, cells))
    console.print(table)
    for name in ("hot_to_no_hop_at_64", "hot_to_empty_hop_at_1", "burst", "cold_ms", "cold_to_hot", "exact"):
        console.print(f"{name}:", http[name])


def wrong(figures: Figures) -> list[str]:
    exact = figures["http"]["exact"]
    return [f"{name} is {exact[name]}" for name in ("given_twice", "rows_differ", "claims_on_one_row", "not_hot")
            if exact[name]]  # fmt: skip


def main(options: argparse.Namespace) -> None:
    console = Console(width=140)
    console.print("SIMULATED nodes; the API, managers, agents and database are real")
    figures = {"manager": asyncio.run(manager_figures(options.entries)), "http": through_http(options)}
    show(figures, console)
    print(json.dumps(figures))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    if found := wrong(figures):
        raise SystemExit("; ".join(found))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=10_000, help="inside the manager")
    parser.add_argument("--claims", type=int, default=3000, help="through HTTP, per round at concurrency 64")
    parser.add_argument("--rounds", type=int, default=len(ROUNDS))
    parser.add_argument("--folder", type=Path, help="for the fleet's home, kept afterwards")
    parser.add_argument("--json", type=Path)
    main(parser.parse_args())
