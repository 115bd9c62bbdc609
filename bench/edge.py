"""What the door of the API costs, and whether one noisy key slows others: `python -m bench.edge [--quick]`.

1. layers: the same read with all layers (keys, limits, ids, counts, headers) and without any. Target: at least 75 % of
   the throughput.
2. neighbours: 100 projects ask at a steady pace; then the first at 20 times its limit besides. Target: the others' p99
   at most 1.5 times what it was.
3. lists: 100 of 100,000 servers, filtered, beside 100 of 1,000. Target: at most twice the time.

Figures are medians of rounds in which both sides take turns. Everything is on loopback, in a folder of its own.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console
from rich.table import Table
from sqlalchemy import insert

from bench.api import server_row
from bench.own_fleet import own_fleet
from fleet.projects.model import NewProject
from fleet.projects.service import create_project
from fleet.settings import FleetSettings
from fleet.store import migrate
from fleet.store.commit import row_values
from fleet.store.engine import Store
from fleet.store.tables import Server
from fleet.times import now_ms

ROOT = Path(__file__).parent.parent
PROJECTS, PACE, LIMIT, TIMES = 100, 2.0, 100, 20
FEW, MANY = 1_000, 100_000
LIST = "/api/v3/servers?limit=100&include_launching=true"


@dataclass(frozen=True)
class Result:
    name: str
    value: float
    target: str
    met: bool
    detail: str


async def fill(store: Store, project_id: str, count: int) -> list[str]:
    """Servers of every status; a tenth is launching and a tenth has stopped."""
    now, ids = now_ms(), []
    for first in range(0, count, 5000):
        rows = []
        for number in range(first, min(first + 5000, count)):
            row = row_values(server_row(project_id, number, now + number))
            row["status"] = {0: "stopped", 1: "launching"}.get(number % 10, "running")
            ids.append(row["instance_id"])
            rows.append(row)
        async with store.write() as session:
            await (await session.connection()).execute(insert(Server), rows)
    return ids


@contextmanager
def app(home: Path, kind: str) -> Iterator[str]:
    command = [sys.executable, "-m", "bench.edge_app", str(home), kind]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait(20)


def load(url: str, path: str, key: str, connections: int, seconds: float) -> dict[str, float]:
    at = urlsplit(url)
    arguments = [at.hostname, at.port, path, key, connections, seconds]
    done = subprocess.run(
        [sys.executable, str(ROOT / "bench" / "load.py"), *map(str, arguments)],
        capture_output=True, text=True, check=True, timeout=seconds + 60,
    )  # fmt: skip
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def crowd(url: str, keys: list[str], seconds: float, noise: float) -> dict[str, Any]:
    arguments = [url, "/api/v3/servers", str(seconds), str(PACE), str(noise)]
    done = subprocess.run(
        [sys.executable, "-m", "bench.crowd", *arguments],
        cwd=ROOT, input="\n".join(keys), capture_output=True, text=True, check=True, timeout=seconds + 60,
    )  # fmt: skip
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def layers(home: Path, project: NewProject, server: str, seconds: float, rounds: int) -> Result:
    path, rates = f"/api/v3/servers/{server}", dict[str, list[float]](full=[], bare=[])
    with ExitStack() as stack:
        urls = {kind: stack.enter_context(app(home, kind)) for kind in rates}
        for turn in range(rounds + 1):
            for kind, url in urls.items():
                rate = load(url, path, project.server_key, 8, seconds)["requests_per_s"]
                if turn:  # the first warms up
                    rates[kind].append(rate)
    full, bare = statistics.median(rates["full"]), statistics.median(rates["bare"])
    share = full / bare
    return Result("layers: throughput with ÷ without", share, ">= 0.75", share >= 0.75, f"{full:.0f} ÷ {bare:.0f} /s")


def neighbours(seconds: float, rounds: int) -> Result:
    """Through a whole fleet: its proxy sheds what replicas need not see."""
    quiet, noisy, told = [], [], {}
    usual = {"LIMITS__READS_PER_S": str(LIMIT), "LIMITS__WRITES_PER_S": "10"}
    with own_fleet({"regions": ["eu-west"], "simulated": {"nodes_per_process": 1}}, **usual) as fleet:
        keys = asyncio.run(make_keys(FleetSettings(home=fleet.home).database))
        crowd(fleet.url, keys, 3.0, 0)
        for _ in range(rounds):
            quiet.append(crowd(fleet.url, keys, seconds, 0)["p99_ms"])
            told = crowd(fleet.url, keys, seconds, LIMIT * TIMES)
            noisy.append(told["p99_ms"])
            if set(told["others"]) != {"200"}:
                raise RuntimeError(f"others were not served: {told}")
    before, after = statistics.median(quiet), statistics.median(noisy)
    detail = f"{after:.2f} ÷ {before:.2f} ms; the noisy one got {told['noisy']}"
    return Result("neighbours: p99 with ÷ without noise", after / before, "<= 1.5", after <= 1.5 * before, detail)


async def make_keys(database: str) -> list[str]:
    store = Store(database)
    projects = [await create_project(store, f"p{number}") for number in range(PROJECTS)]
    await store.close()
    return [project.server_key for project in projects]


def lists(home: Path, few: NewProject, many: NewProject, seconds: float, rounds: int) -> Result:
    times = dict[str, list[float]](few=[], many=[])
    with app(home, "full") as url:
        for _ in range(rounds):
            for name, project in (("few", few), ("many", many)):
                times[name].append(load(url, LIST, project.server_key, 1, seconds)["p50_ms"])
    short, long = statistics.median(times["few"]), statistics.median(times["many"])
    detail = f"{long:.2f} ÷ {short:.2f} ms"
    return Result(f"lists: of {MANY:,} ÷ of {FEW:,}", long / short, "<= 2", long <= 2 * short, detail)


async def prepare(home: Path) -> tuple[NewProject, NewProject, str]:
    store = Store(f"sqlite+aiosqlite:///{home}/fleet.db")
    (home / "fleet-id").write_text("bench")
    few, many = await create_project(store, "few"), await create_project(store, "many")
    server = (await fill(store, few.project_id, FEW))[5]
    await fill(store, many.project_id, MANY)
    await store.close()
    return few, many, server


def main(options: argparse.Namespace) -> None:
    seconds, rounds = (1.0, 2) if options.quick else (4.0, 5)
    with tempfile.TemporaryDirectory(prefix="fleet-bench-") as folder:
        home = Path(folder)
        migrate.upgrade(f"sqlite+aiosqlite:///{home}/fleet.db")
        few, many, server = asyncio.run(prepare(home))
        results = [
            layers(home, few, server, seconds, rounds),
            lists(home, few, many, seconds, rounds),
        ]
    results.append(neighbours(seconds, rounds))
    table = Table("what", "ratio", "target", "met", "figures")
    for result in results:
        table.add_row(result.name, f"{result.value:.2f}", result.target, "yes" if result.met else "NO", result.detail)
    Console(width=140).print(table)
    print(json.dumps([vars(result) for result in results]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    main(parser.parse_args())
