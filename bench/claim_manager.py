"""Claims inside a region's manager, without Ray: the shelf, the books and the group commit on a real SQLite file.

`in memory`: one claim at a time, from asked to decided (the row marked, the replacement ordered). `durable`: batches
of 100, each committed (synchronous=FULL) before the next begins, as one replica's coalesced calls come.
"""

import asyncio
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import insert
from sqlmodel import col, func, select

from fleet.pools.claim import ClaimCall
from fleet.pools.spec import pool_spec
from fleet.projects.model import project_ports
from fleet.projects.service import create_project
from fleet.region.books import Books
from fleet.region.pool_keeper import PoolKeeper
from fleet.region.pool_store import PoolStore
from fleet.settings import PoolSettings
from fleet.store.commit import GroupCommit, row_values, take_epoch
from fleet.store.engine import Store
from fleet.store.migrate import upgrade
from fleet.store.tables import Build, Project, Server, live
from fleet.telemetry.logs import setup_logging
from fleet.times import now_ms

REGION = "eu-west"
SIZES = ("micro", "small", "medium", "large", "xlarge")
BATCH = 100


@dataclass
class Desk:
    """A manager's parts over a database of `entries` warm servers."""

    store: Store
    books: Books
    keeper: PoolKeeper
    commits: GroupCommit
    project_id: str
    build_id: str

    def call(self, number: int) -> ClaimCall:
        size = SIZES[number % len(SIZES)]
        ports: list[Any] = list(project_ports({}))
        spec = pool_spec(self.project_id, size, self.build_id, {}, ports)
        data = {"mode": "duel", "map": "dust", "number": number}
        return ClaimCall(str(uuid.uuid4()), self.project_id, size, "default", spec, f"match-{number}", data)

    async def commit(self) -> None:
        await self.commits.submit(self.books.take().statements)

    async def claimed_on_disk(self) -> tuple[int, int]:
        """(rows claimed, different claims): equal to the number of claims if nothing was given twice or lost."""
        claimed = col(Server.pool_claimed_at).is_not(None)
        query = select(func.count(), func.count(func.distinct(col(Server.last_op)))).where(claimed)
        async with self.store.read() as session:
            rows, ops = (await session.exec(query)).one()
            return rows, ops


class _Nobody:
    def retire(self, server: Server, now: int, reason: str, detail: str) -> None:
        raise AssertionError("nothing is retired here")

    def freeze(self, server: Server, frozen: bool) -> None:
        raise AssertionError("nothing is frozen here")


async def open_desk(folder: Path, entries: int) -> Desk:
    await asyncio.to_thread(folder.mkdir)
    url = f"sqlite+aiosqlite:///{folder}/fleet.db"
    await asyncio.to_thread(upgrade, url)
    store = Store(url)
    project = await create_project(store, "bench")
    now = now_ms()
    build = Build(
        build_id=str(uuid.uuid4()), project_id=project.project_id, name="default", version=1, status="ready",
        build_type="zip", created_at=now,
    )  # fmt: skip
    per_pool = entries // len(SIZES)
    pools = {"regions": {REGION: dict.fromkeys(SIZES, per_pool)}, "enabled": True, "policy": {"mode": "fixed"}}
    async with store.write() as session:
        session.add(build)
        found = await session.get(Project, project.project_id)
        assert found is not None
        found.settings = {"pool_config": pools}
    rows = [_warm(project.project_id, build.build_id, SIZES[n % len(SIZES)], n, now) for n in range(entries)]
    async with store.write_connection() as connection:
        await connection.execute(insert(Server), [row_values(row) for row in rows])
    epoch = await take_epoch(store, REGION)
    commits = GroupCommit(store, REGION, epoch, _fail)
    books = Books()
    async with store.read() as session:
        books.load(list((await session.exec(select(Server).where(live()))).all()))
    keeper = PoolKeeper(REGION, PoolStore(store, REGION), books, PoolSettings(), _Nobody(), lambda _row: None)
    await keeper.load()
    desk = Desk(store, books, keeper, commits, project.project_id, build.build_id)
    await desk.commit()
    return desk


def _fail(error: BaseException) -> None:
    raise error


def _warm(project_id: str, build_id: str, size: str, number: int, now: int) -> Server:
    ports: list[dict[str, Any]] = [dict(port) for port in project_ports({})]
    shown = [{**port, "external_port": 20000 + number % 900, "host": "127.0.0.1"} for port in ports]
    return Server(
        instance_id=str(uuid.uuid4()), project_id=project_id, region=REGION, name=f"pool-{number}", status="running",
        step="running", compute_size=size, build_id=build_id, version_tag="default", version=1, environment={},
        port_configs=ports, network_ports=shown, is_pool_server=True,
        pool_spec=pool_spec(project_id, size, build_id, {}, ports), node_id=f"{REGION}@node-{number % 200}",
        created_at=now, updated_at=now, launched_at=now, started_at=now, step_at=now + number,
    )  # fmt: skip


async def in_memory(desk: Desk, claims: int) -> dict[str, float]:
    """Microseconds of one claim, decided but not written."""
    samples: list[float] = []
    for number in range(claims):
        call = desk.call(number)
        began = time.perf_counter()
        [given] = desk.keeper.claim([call], now_ms())
        samples.append(time.perf_counter() - began)
        assert given is not None, "the pool is empty"
        if number % 500 == 499:  # the books would else grow beyond what they ever hold
            await desk.commit()
    await desk.commit()
    samples.sort()
    return {"p50_us": micro(samples[claims // 2]), "p99_us": micro(samples[int(claims * 0.99)])}


def micro(seconds: float) -> float:
    return round(seconds * 1e6, 1)


async def durable(desk: Desk, claims: int) -> dict[str, float]:
    """Claims per second in batches, each on disk before the next."""
    batches = [[desk.call(number) for number in range(at, at + BATCH)] for at in range(0, claims, BATCH)]
    samples: list[float] = []
    began = time.perf_counter()
    for batch in batches:
        begun = time.perf_counter()
        given = desk.keeper.claim(batch, now_ms())
        await desk.commit()
        samples.append(time.perf_counter() - begun)
        assert all(given), "the pool is empty"
    took = time.perf_counter() - began
    samples.sort()
    return {
        "claims_per_s": round(claims / took),
        "batch_p50_ms": round(samples[len(samples) // 2] * 1000, 2),
        "batch_p99_ms": round(samples[int(len(samples) * 0.99)] * 1000, 2),
    }


async def measured(
    what: Callable[[Desk, int], Awaitable[dict[str, float]]], folder: Path, entries: int
) -> dict[str, float]:
    """On a database of its own; half of the entries are claimed, and found claimed on disk, once each."""
    claims = entries // 2
    desk = await open_desk(folder, entries)
    try:
        figures = await what(desk, claims)
        assert await desk.claimed_on_disk() == (claims, claims), "claims and rows differ"
    finally:
        await desk.commits.close()
        await desk.store.close()
    return {"entries": entries, "claims": claims, **figures}


async def manager_figures(entries: int) -> dict[str, dict[str, float]]:
    with tempfile.TemporaryDirectory(prefix="fleet-bench-") as name:
        folder = Path(name)
        setup_logging("bench", folder)
        return {
            "in_memory": await measured(in_memory, folder / "memory", entries),
            "durable": await measured(durable, folder / "durable", entries),
        }


if __name__ == "__main__":
    print(asyncio.run(manager_figures(10_000)))
