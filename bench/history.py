"""What a long history costs: a database with a million ended servers beside a new one, by the code that a fleet runs.

Both are asked in turns, so that what else the machine does falls on both alike:

  start, claim   the books' statements through the group commit, durable before the next
  admission      a start of a match that may have one server (unique_match), with a plan that counts servers
  list           a page of the project's servers
  manager        what a region's manager reads before it can answer: live rows, pools, claims, what was learned
  replica        what a replica reads at its start

`python -m bench.history [--servers N] [--rounds N] [--databases sqlite postgres]`. A million needs 3 GB in the
temporary folder, one database after the other. Fails if a long history costs more than 1.5 times a new database.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import text
from sqlmodel import col, select

from fleet.billing import ledger
from fleet.catalog import load_catalog
from fleet.lobbies.client import KeeperClient
from fleet.projects.plans import Plan
from fleet.region.books import Books
from fleet.region.client import RegionClient
from fleet.region.pool_store import PoolStore
from fleet.region.region_memory import RegionMemory
from fleet.servers.admission import Admission
from fleet.servers.listing import Listing
from fleet.servers.model import ListQuery, StartRequest
from fleet.servers.wanted import Wanted
from fleet.store.commit import GroupCommit, take_epoch
from fleet.store.engine import Store
from fleet.store.migrate import upgrade
from fleet.store.tables import Job, Server, live
from fleet.telemetry.logs import setup_logging
from fleet.telemetry.stored import read_stored
from fleet.times import now_ms
from tests import history
from tests.history import BUILD, PROJECT, REGION
from tests.postgres import PostgresServer

MOST = 1.5
SMALL = load_catalog().size("small")
_BY_MEDIAN = ("manager", "replica")  # asked too seldom for a p99
PAGE = ListQuery(include_launching=True)
_START_EVERY = 20  # rounds: start-up is asked less often than a page


@dataclass
class Side:
    """One of the two databases, and what its questions took (seconds)."""

    store: Store
    books: Books
    commits: GroupCommit
    took: dict[str, list[float]] = field(default_factory=dict[str, list[float]])

    async def timed(self, name: str, work: Callable[[], Awaitable[Any]]) -> None:
        began = time.perf_counter()
        await work()
        self.took.setdefault(name, []).append(time.perf_counter() - began)

    async def commit(self) -> None:
        await self.commits.submit(self.books.take().statements)


def row(name: str, now: int) -> Server:
    return Server(
        instance_id=name, project_id=PROJECT, region=REGION, name="match", status="launching", step="queued",
        compute_size="small", build_id=BUILD, version_tag="default", version=1, match_id=name, ttl=3600,
        custom_data={"mode": "duel"}, environment={}, port_configs=[], created_at=now, updated_at=now,
        launched_at=now, step_at=now, is_pool_server=True,
    )  # fmt: skip


async def life(side: Side, stop: list[Server]) -> None:
    """A server is started, runs, is claimed, and an earlier one ends: four commits, of which two are timed."""
    now = now_ms()
    server = row(str(uuid.uuid4()), now)
    side.books.add(server, now)
    side.books.step(server, now, "placed", node_id="node-1")
    await side.timed("start", side.commit)
    side.books.step(server, now, "running", status="running", started_at=now)
    await side.commit()
    side.books.change(server, now, pool_claimed_at=now, start_kind="hot", last_op=f"op-{server.instance_id}")
    side.books.note(server, now, "claimed", {})
    await side.timed("claim", side.commit)
    stop.append(server)
    if len(stop) > 20:  # so many live
        old = stop.pop(0)
        side.books.step(old, now, "stopped", status="stopped", stopped_at=now)
        await side.commit()


def wanted(match_id: str) -> Wanted:
    build: Any = None
    request = StartRequest(name="match", region=REGION, compute_size="small", match_id=match_id)
    return Wanted(
        str(uuid.uuid4()), PROJECT, REGION, load_catalog().size("small"), build, request, {}, [], None, once=True
    )


async def admit(side: Side) -> None:
    admission, start = Admission(side.store), wanted(str(uuid.uuid4()))
    await admission.admit(start, Plan(name="counted", max_servers=1000))
    await admission.admit(start, Plan(name="counted", max_servers=1000))
    await admission.failed(start)
    await admission.failed(start)


async def manager_start(store: Store) -> None:
    async with store.read() as session:
        await session.exec(select(Server).where(col(Server.region) == REGION, live()))
    await RegionMemory(REGION, store, Books()).load()
    pools = PoolStore(store, REGION)
    await pools.wished()
    await pools.newest_builds({(PROJECT, "default")})
    await pools.learned()
    await pools.recent_claims(now_ms())


async def replica_start(store: Store) -> None:
    await RegionClient(store)._needed()
    await KeeperClient(store, 1)._shards_in_use()
    await read_stored(store, load_catalog())


async def compare(new: Side, old: Side, rounds: int) -> None:
    live_of: dict[int, list[Server]] = {id(new): [], id(old): []}
    listings = {id(side): Listing(side.store) for side in (new, old)}
    for number in range(rounds):
        for side in (new, old) if number % 2 else (old, new):
            await life(side, live_of[id(side)])
            await side.timed("admission", lambda side=side: admit(side))
            await side.timed("list", lambda side=side: listings[id(side)].page(PROJECT, PAGE))
            if number % _START_EVERY == 0:
                await side.timed("manager", lambda side=side: manager_start(side.store))
                await side.timed("replica", lambda side=side: replica_start(side.store))


def _fatal(error: BaseException) -> None:
    raise SystemExit(f"commit failed: {error!r}")


@asynccontextmanager
async def side_of(url: str, servers: int) -> AsyncIterator[Side]:
    await asyncio.to_thread(upgrade, url)
    store, began = Store(url), time.perf_counter()
    await history.fill(store, servers, now_ms())
    async with store.write() as session:  # its usage has been counted long ago
        session.add(Job(name=ledger.JOB, position=2**62, state={"tx": 2**62}, updated_at=now_ms()))
    if not store.sqlite:
        async with store.write_connection() as connection:  # as autovacuum does after such a load
            await connection.execute(text("ANALYZE"))
    print(f"# {servers} servers filled in {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    commits = GroupCommit(store, REGION, await take_epoch(store, REGION), _fatal)
    try:
        yield Side(store, Books(), commits)
    finally:
        await commits.close()
        await store.close()


@contextmanager
def urls(database: str, folder: Path):
    """Two empty databases, gone afterwards."""
    if database == "sqlite":
        with tempfile.TemporaryDirectory(dir=folder) as both:
            yield [f"sqlite+aiosqlite:///{both}/{name}.db" for name in ("new", "old")]
        return
    server = PostgresServer()
    try:
        server.create()
        server.start()
        yield [server.url(server.new_database()) for _ in range(2)]
    finally:
        server.remove()


def figures(new: Side, old: Side) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in new.took:
        parts: dict[str, float] = {}
        for label, share in (("p50", 0.5), ("p99", 0.99)):
            a, b = (sorted(side.took[name])[int(len(side.took[name]) * share)] for side in (new, old))
            parts |= {f"new_{label}_ms": round(a * 1000, 2), f"old_{label}_ms": round(b * 1000, 2)}
            parts[f"{label}_ratio"] = round(b / a, 2)
        found[name] = parts
    return found


async def run(database: str, servers: int, rounds: int, folder: Path) -> bool:
    with urls(database, folder) as (new_url, old_url):
        async with side_of(new_url, 10) as new, side_of(old_url, servers) as old:
            await compare(new, old, max(10, rounds // 20))  # warm
            new.took.clear()
            old.took.clear()
            await compare(new, old, rounds)
            found = figures(new, old)
    print(json.dumps({"database": database, "servers": servers, "rounds": rounds, **found}, indent=2), flush=True)
    slow = [name for name in found if found[name]["p50_ratio" if name in _BY_MEDIAN else "p99_ratio"] > MOST]
    if slow:
        print(f"A long history costs more than {MOST} times in: {', '.join(slow)}", file=sys.stderr)
    return not slow


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--servers", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=1_000)
    parser.add_argument("--databases", nargs="+", default=["sqlite", "postgres"], choices=["sqlite", "postgres"])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as logs:
        setup_logging("bench", Path(logs))
        good = [asyncio.run(run(one, given.servers, given.rounds, given.folder)) for one in given.databases]
    sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
    main()
